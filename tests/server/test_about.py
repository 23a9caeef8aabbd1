"""What a run's page asks first: the same as the run says, in few questions, and nobody waits for the rules."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from pathlib import Path

import pyarrow as pa
import pytest

from tests.api.journals import UID, RankJournal
from tests.server.samples import OTHER, Make, write_runs
from torchtrack import Api
from torchtrack.api.run import Run
from torchtrack.server.about import about
from torchtrack.server.indexer import Indexer
from torchtrack.server.metrics import MetricsStore
from torchtrack.server.reading import Reader
from torchtrack.stability import Finding
from torchtrack.stability.step import Step


def test_it_says_of_a_run_what_the_run_says(runs: Path, journal: Make, store: MetricsStore) -> None:
    made = write_runs(journal, seal=False)
    made[0].log(3, {"_tt/dropped_rows": 7.0})
    made[1].log(3, {"_tt/dropped_rows": float("nan")})
    Indexer(runs, store).poll()
    reader, run = Reader(store), Api(runs).run(UID)
    for current in (False, True):
        with reader.run(UID) as mine:
            said = about(reader, mine)
        assert said["keys"] == run.keys()
        assert said["dropped"] == run.dropped == 7
        assert said["damages"] == [damage.reason for damage in run.damages]
        assert (said["name"], said["config"], said["state"]) == (run.name, run.config, run.state)
        assert said["summary"]["loss"] == run.summary["loss"]
        assert said["last_step"] == run.last_step
        assert reader.update() or current


def test_it_takes_as_few_questions_however_many_ranks_there_are(
    runs: Path, store: MetricsStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    for uid, ranks in ((UID, 2), (OTHER, 20)):
        for rank in range(ranks):
            with RankJournal(runs, uid, rank=rank, world_size=ranks) as one:
                one.about(project="many")
                one.event("mesh", {"dp": rank})
                one.log(0, {"loss": 1.0, "watch/local_grad_norm": 2.0})
    indexer = Indexer(runs, store)
    indexer.poll()
    reader = Reader(store, lambda: indexer.batch)
    reader.update()
    asked: list[str] = []
    query = MetricsStore.query

    def noted(self: MetricsStore, sql: str, **parameters: object) -> pa.Table:
        asked.append(sql)
        return query(self, sql, **parameters)

    monkeypatch.setattr(MetricsStore, "query", noted)
    numbers = []
    for uid, ranks in ((UID, 2), (OTHER, 20)):
        with reader.run(uid) as run:
            asked.clear()
            assert len(about(reader, run)["mesh"]) == ranks
            numbers.append(len(asked))

    assert numbers[0] == numbers[1] <= 6


def test_while_the_rules_look_at_a_run_others_read_it(
    runs: Path, journal: Make, store: MetricsStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    rank = journal()
    rank.log(0, {"loss": 1.0})
    indexer = Indexer(runs, store)
    indexer.poll()
    reader, began, goes_on = Reader(store), threading.Event(), threading.Event()
    judged: list[int] = []
    steps = Run.steps

    def slow(run: Run) -> Iterator[Step]:
        judged.append(run.last_step or 0)
        began.set()
        assert goes_on.wait(30)
        return steps(run)

    monkeypatch.setattr(Run, "steps", slow)
    found: list[Sequence[Finding]] = []
    thread = threading.Thread(target=lambda: found.append(reader.findings(UID)))
    thread.start()
    assert began.wait(30)
    with reader.run(UID) as run:
        assert about(reader, run)["keys"] == ["loss"]
    goes_on.set()
    thread.join()
    assert reader.findings(UID) == found[0]
    assert judged == [0]
    rank.log(1, {"loss": 1.0})
    indexer.poll()
    began.clear()
    goes_on.clear()
    thread = threading.Thread(target=lambda: found.append(reader.findings(UID)))
    thread.start()
    assert began.wait(30)
    assert reader.findings(UID) == found[0]  # what was concluded last, at once
    goes_on.set()
    thread.join()
    assert judged == [0, 1]
