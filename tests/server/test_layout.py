"""Tables on a cluster, and rows that go at an age: what can be run without a ClickHouse server is."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from tests.api.journals import UID
from tests.server.samples import Make, write_runs
from torchtrack.api import Api
from torchtrack.errors import StoreError
from torchtrack.server import schema, stored
from torchtrack.server.indexer import Indexer
from torchtrack.server.layout import KEPT, Layout
from torchtrack.server.metrics import MetricsStore

DAY_US = 86_400_000_000
OLD, NEW = "0" * 15 + "1", "0" * 15 + "2"
SMALL = ("streams", "runs", "verdicts")
"""Tables that hold no rows of journals."""


def two_runs(journal: Make) -> None:
    """One that was written 100 days ago and one of today, alike."""
    for uid, days in ((OLD, 100), (NEW, 0)):
        with journal(uid, start_us=time.time_ns() // 1000 - days * DAY_US) as rank:
            rank.about(name=uid)
            for step in range(5):
                rank.log(step, {"loss": 1.0})
            rank.line("stdout", "hello")


def reopened(store: MetricsStore, keep_days: Mapping[str, int]) -> MetricsStore:
    """The store of a server that is started again with other settings."""
    store.close()
    return MetricsStore(store._dsn, store.database, Layout(keep_days=keep_days))


def kept(store: MetricsStore) -> dict[str, int]:
    """Rows of each table, once the engine has removed what may go."""
    for table in KEPT:
        store.command(f"OPTIMIZE TABLE {table} FINAL")
    found = list(stored.counts(store))
    assert all(rows == keys for _, rows, keys in found)
    return {table: rows for table, rows, _ in found}


def test_rows_go_at_the_age_that_is_set_and_what_the_run_says_of_itself_stays(
    runs: Path, journal: Make, store: MetricsStore
) -> None:
    two_runs(journal)
    store = reopened(store, {"scalars": 30})
    Indexer(runs, store).poll()

    assert kept(store) == {"scalars": 5, "texts": 0, "tensors": 0, "media": 0, "logs": 2, "events": 2}
    assert Api.of(stored.open_source(store)).run(OLD).name == OLD
    assert Api(runs).run(OLD).history("loss").num_rows == 5


def test_the_age_can_be_changed_and_taken_back(runs: Path, journal: Make, store: MetricsStore) -> None:
    two_runs(journal)
    Indexer(runs, store).poll()
    counted = []
    for keep_days in ({"scalars": 200, "logs": 200}, {"scalars": 200, "logs": 30}, {}):
        store = reopened(store, keep_days)
        counted.append({table: rows for table, rows in kept(store).items() if table in ("scalars", "logs")})
    engines = store.query(
        "SELECT engine_full FROM system.tables WHERE database = currentDatabase() AND name IN {names:Array(String)}",
        names=list(KEPT),
    )

    assert counted == [{"scalars": 10, "logs": 2}, {"scalars": 10, "logs": 1}, {"scalars": 10, "logs": 1}]
    assert "TTL" not in str(engines)


def test_built_anew_rows_come_back_from_the_journals_and_go_again(
    runs: Path, journal: Make, store: MetricsStore
) -> None:
    two_runs(journal)
    store = reopened(store, {"scalars": 30})
    indexer = Indexer(runs, store)
    indexer.poll()
    assert kept(store)["scalars"] == 5
    rows = indexer.rebuild()

    assert rows == 14
    assert kept(store)["scalars"] == 5


def test_a_frame_whose_rows_went_is_not_taken_for_one_that_never_came(
    runs: Path, journal: Make, store: MetricsStore
) -> None:
    store = reopened(store, {"scalars": 30})
    now = time.time_ns() // 1000
    rank = journal()
    for step, days in enumerate((0, 100, 0, 100)):  # a clock that goes back and forth
        rank.log(step, {"loss": 1.0}, time_us=now - days * DAY_US)
    Indexer(runs, store).poll()
    assert kept(store)["scalars"] == 2
    store.command("TRUNCATE TABLE streams")  # all bookmarks are lost
    rank.log(4, {"loss": 1.0}, time_us=now)
    Indexer(runs, store).poll()

    assert kept(store)["scalars"] == 3


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"keep_days": {"events": 3}}, "scalars, tensors, texts, logs can be"),
        ({"keep_days": {"scalars": 0}}, "1 to 3650 days, not for 0"),
        ({"cluster": "a'b"}, "is no name of a cluster"),
        ({"replicated": True}, "need the name of the cluster"),
    ],
)
def test_a_layout_that_is_none_is_refused(settings: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        Layout(**settings)


def test_tables_that_lie_elsewhere_are_not_emptied(store: MetricsStore) -> None:
    said = schema.made_by(Layout(cluster="main", replicated=True))
    store.command(f"ALTER TABLE streams MODIFY COMMENT '{said}'")
    store.close()

    with pytest.raises(StoreError, match="made with cluster main, replicated: start with the same settings"):
        MetricsStore(store._dsn, store.database)


def test_the_engine_reads_the_statements_of_a_replicated_cluster(store: MetricsStore) -> None:
    layout = Layout(cluster="main", replicated=True, keep_days=dict.fromkeys(KEPT, 30))
    expiry = [layout.change_expiry(table, "MergeTree SETTINGS a = 1") for table in KEPT]
    statements = [*schema.statements("torchtrack", layout), *filter(None, expiry)]
    read = [
        store.query("SELECT formatQuerySingleLine({text:String}) AS read", text=each)["read"][0].as_py()
        for each in statements
    ]

    assert len(read) == 2 * (len(schema.NAMES) + len(SMALL)) + len(KEPT)
    assert all(" ON CLUSTER main " in each for each in read)
    stored_in = [each for each in read if "MergeTree(" in each]
    assert len(stored_in) == len(schema.NAMES) + len(SMALL)
    assert all("'/clickhouse/tables/{shard}/torchtrack/" in each and "'{replica}'" in each for each in stored_in)
    assert any("ReplicatedReplacingMergeTree(" in each and each.count("version)") for each in stored_in)
    known = "SELECT name FROM system.settings WHERE name IN {names:Array(String)}"
    assert set(store.query(known, names=list(layout.settings))["name"].to_pylist()) == layout.settings.keys()


def test_on_a_cluster_every_run_is_the_run_in_its_journals(runs: Path, journal: Make, tmp_path: Path) -> None:
    write_runs(journal)
    config = tmp_path / "config.xml"
    shard = "<shard><replica><host>127.0.0.1</host><port>19000</port></replica></shard>"
    config.write_text(
        f"<clickhouse><tcp_port>19000</tcp_port><remote_servers><main>{shard}</main></remote_servers></clickhouse>"
    )
    environ = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    subprocess.run(
        [sys.executable, "-c", _ON_A_CLUSTER, str(tmp_path / "engine"), str(config), str(runs), UID],
        check=True,
        env=environ,
    )


_ON_A_CLUSTER = """
import pathlib, shutil, sys
import chdb
from tests.server.test_indexer import assert_alike, assert_once, stored_api
from torchtrack.server.indexer import Indexer
from torchtrack.server.layout import Layout
from torchtrack.server.metrics import MetricsStore
from torchtrack.server.reading import Reader

class Alone(Layout):  # a statement for all machines needs a Keeper, which the engine in this process has not
    on_cluster = ""

folder, config, runs, uid = sys.argv[1], sys.argv[2], pathlib.Path(sys.argv[3]), sys.argv[4]
engine = chdb.connect(f"{folder}?config-file={config}")  # the one of this process from here on
store = MetricsStore(f"chdb://{folder}", layout=Alone(cluster="main", keep_days={"logs": 3650}))
indexer = Indexer(runs, store)
indexer.poll()
assert_once(store, runs)
reader = Reader(store, lambda: indexer.batch)
assert reader.update(60.0) and len(reader.projects()) == 2
engines = store.query("SELECT engine FROM system.tables WHERE database = currentDatabase()")
assert set(engines["engine"].to_pylist()) == {"Distributed", "MergeTree", "ReplacingMergeTree"}
shutil.rmtree(runs / uid)
indexer.poll(everything=True)
assert_once(store, runs)
assert_alike(runs, stored_api(store))
store.close()
engine.close()
"""
