"""Alert rules over runs that are being written: on what they fire, how often, and what a restart makes of it."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from sqlalchemy.exc import OperationalError

from tests.api.journals import UID, RankJournal
from tests.server.samples import OTHER, Make
from torchtrack.server import evaluation, overview, tenancy, watched
from torchtrack.server.alarms import alarms
from torchtrack.server.catalog import Catalog
from torchtrack.server.evaluation import Board, Evaluation
from torchtrack.server.indexer import Indexer
from torchtrack.server.metrics import MetricsStore
from torchtrack.server.reading import Reader

NAN = float("nan")
HOUR_US = 3_600_000_000


class Scene:
    """A folder of runs, its index, and who judges; a run of `llm` on request."""

    def __init__(self, store: MetricsStore, runs: Path, catalog: Catalog, make: Make) -> None:
        self.store, self.runs, self.catalog, self._make = store, runs, catalog, make
        self.indexer = Indexer(runs, store)
        self.board = Board(targets=("JSON",))
        self.start_over()

    def start_over(self) -> None:
        """Another process takes over."""
        self.reader = Reader(self.store, lambda: self.indexer.batch, self.catalog)
        self.evaluation = Evaluation(self.reader, self.catalog, self.board)

    def rule(self, name: str = "rule", filter_: str = "", project: str = "llm", **when: Any) -> str:
        return str(self.catalog.save_alert_rule(project, name, filter_, "critical", "ann", when or None)["id"])

    def run(self, uid: str = UID, *, project: str = "llm", **how: Any) -> RankJournal:
        made = self._make(uid, start_us=time.time_ns() // 1000, **how)
        if made.rank == 0:
            made.about(name="calm-otter-7", project=project)
        return made

    def look(self) -> list[tuple[str, int | None]]:
        """What has fired so far, the oldest first: the name of the rule, the step."""
        self.indexer.poll(everything=True)
        self.evaluation.judge()
        return [(row["name"], row["step"]) for row in reversed(self.catalog.firings.of("llm", 100))]

    def firing(self) -> dict[str, Any]:
        (only,) = self.catalog.firings.of("llm", 100)
        return only


@pytest.fixture
def scene(store: MetricsStore, runs: Path, journal: Make, tmp_path: Path) -> Iterator[Scene]:
    catalog = Catalog.in_folder(tmp_path / "catalog")
    yield Scene(store, runs, catalog, journal)
    catalog.close()


def test_a_value_above_fires_once_with_what_it_was(scene: Scene) -> None:
    scene.rule("high", kind="above", metric="loss", value=10)
    run = scene.run()
    run.log(0, {"loss": 1.0})
    assert scene.look() == []
    for step in range(1, 50):
        run.log(step, {"loss": 11.0 + step})
        if step in (3, 30):
            assert scene.look() == [("high", 1)]
    row = scene.firing()

    assert row["text"] == "loss is above 10: 12"
    assert (row["uid"], row["run"], row["severity"]) == (UID, "calm-otter-7", "critical")
    assert row["told"] == [{"target": 1, "service": "JSON", "state": "waiting", "tries": 0}]
    assert scene.board.changes["llm"] == 1


def test_a_spike_of_one_step_between_two_looks_is_seen(scene: Scene) -> None:
    scene.rule("low", kind="below", metric="acc", value=0.5)
    scene.rule("nan", kind="not_finite", metric="acc")
    run = scene.run()
    for step in range(100):
        run.log(step, {"acc": 0.1 if step == 41 else NAN if step == 43 else 0.9})

    assert scene.look() == [("low", 41), ("nan", 43)]


def test_what_comes_and_goes_fires_once_until_it_was_away_for_long(scene: Scene) -> None:
    scene.rule("high", kind="above", metric="loss", value=10)
    run = scene.run()
    start = run.now_us
    for step in range(60):  # for an hour, in and out
        run.log(step, {"loss": 20.0 if step % 4 == 0 else 1.0}, time_us=start + step * 60_000_000)
    assert scene.look() == [("high", 0)]
    run.log(100, {"loss": 1.0}, time_us=start + 2 * HOUR_US)
    run.log(101, {"loss": 20.0}, time_us=start + 3 * HOUR_US)

    assert scene.look() == [("high", 0), ("high", 101)]
    first = scene.catalog.firings.of("llm", 100)[1]
    assert (first["cleared"] is not None, first["last_step"]) == (True, 56)


def test_another_process_fires_on_nothing_again(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(evaluation, "CALM_S", 1e9)
    rules: list[dict[str, Any]] = [
        {"kind": "above", "metric": "loss", "value": 10, "for_steps": 5},
        {"kind": "not_finite", "metric": "loss"},
        {"kind": "absent", "metric": "acc", "for_steps": 8},
        {"kind": "finding", "least": "warning"},
    ]
    for number, when in enumerate(rules):
        scene.rule(f"rule {number}", **when)
    scene.rule("fits", "last_step > 3")
    run = scene.run()
    for step in range(10):
        run.log(step, {"loss": NAN if step == 9 else 20.0})
    run.event("finding", {"rule": "loss_spike", "severity": "critical", "why": "it rose", "first_step": 7})
    fired = scene.look()
    assert sorted(fired) == [("fits", 9), ("rule 0", 5), ("rule 1", 9), ("rule 2", 9), ("rule 3", 7)]
    scene.start_over()
    assert scene.look() == fired
    for step in range(10, 20):
        run.log(step, {"loss": 20.0})
    scene.start_over()

    assert scene.look() == fired


def test_what_is_over_is_said_to_be_and_not_fired_on_again_by_another_process(
    scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(evaluation, "CALM_S", 0.001)
    scene.rule("high", kind="above", metric="loss", value=10)
    run = scene.run()
    start = run.now_us
    run.log(0, {"loss": 20.0}, time_us=start)
    run.log(1, {"loss": 20.0}, time_us=start + 1)
    run.log(2, {"loss": 1.0}, time_us=start + 2)
    assert scene.look() == [("high", 0)]
    row = scene.firing()
    assert (row["cleared"] is not None, row["last_step"], row["last_us"]) == (True, 1, start + 1)
    scene.start_over()

    assert scene.look() == [("high", 0)]


def test_a_metric_that_is_missed(scene: Scene) -> None:
    scene.rule("no eval", kind="absent", metric="eval", for_steps=100)
    run = scene.run()
    run.log(50_000, {"loss": 1.0})  # from a checkpoint: it has not missed the steps before
    run.log(50_001, {"loss": 1.0, "eval": 1.0})
    run.log(50_100, {"loss": 1.0})
    assert scene.look() == []
    run.log(50_101, {"loss": 1.0})

    assert scene.look() == [("no eval", 50_101)]
    assert scene.firing()["text"] == "eval is not logged for 100 steps: none since step 50001"


def test_a_metric_is_missed_by_the_clock_of_the_run_and_not_of_the_server(scene: Scene) -> None:
    scene.rule("silent", kind="absent", metric="loss", for_s=0.2)
    run = scene.run()
    run.log(0, {"loss": 1.0})
    assert scene.look() == []
    while time.time_ns() // 1000 < run.now_us + 200_000:
        run.log(1, {"other": 1.0})
        time.sleep(0.02)
    run.log(1, {"other": 1.0})

    assert scene.look() == [("silent", 1)]


@pytest.mark.parametrize("reason", ["exception", "finish"])
def test_a_run_that_ends_badly(scene: Scene, reason: str) -> None:
    scene.rule("failed", kind="ended")
    run = scene.run()
    run.log(3, {"loss": 1.0})
    assert scene.look() == []
    run.writer.meta({"type": "ended", "reason": reason, "error": "ValueError: no", "time_ns": time.time_ns()})
    run.writer.seal(reason)

    assert scene.look() == ([("failed", 3)] if reason == "exception" else [])


def test_the_filter_says_which_runs(scene: Scene) -> None:
    scene.rule("big", 'name ~ "calm-*" and config.lr > 1', kind="above", metric="loss", value=10)
    for uid, lr in ((UID, 0.1), (OTHER, 10.0)):
        run = scene.run(uid)
        run.event("config", {"lr": lr})
        run.log(0, {"loss": 20.0})
    scene.look()

    assert scene.firing()["uid"] == OTHER


def test_what_was_before_a_rule_is_none_of_its_business(scene: Scene, journal: Make) -> None:
    run = scene.run()
    run.log(0, {"loss": 20.0})
    old = journal(OTHER, start_us=time.time_ns() // 1000 - HOUR_US)
    old.about(name="old")
    old.writer.meta({"type": "ended", "reason": "exception", "error": "no", "time_ns": old.now_us * 1000})
    old.writer.seal("exception")
    scene.look()
    scene.rule("high", kind="above", metric="loss", value=10)
    scene.rule("failed", kind="ended")
    assert scene.look() == []
    run.log(1, {"loss": 20.0}, time_us=time.time_ns() // 1000)

    assert scene.look() == [("high", 1)]


def test_a_value_is_judged_once_all_ranks_have_given_their_part(scene: Scene) -> None:
    scene.rule("slow", kind="below", metric="tokens", value=15)
    ranks = [scene.run(rank=rank, world_size=2) for rank in (0, 1)]
    for rank in ranks:
        rank.log(0, {"tokens": 10.0}, reduce="sum")
    ranks[0].log(1, {"tokens": 10.0}, reduce="sum")
    assert scene.look() == []
    ranks[1].log(1, {"tokens": 1.0}, reduce="sum")

    assert scene.look() == [("slow", 1)]


def test_a_rank_that_has_stopped_is_not_waited_for(scene: Scene) -> None:
    scene.rule("high", kind="above", metric="loss", value=10)
    ranks = [scene.run(rank=rank, world_size=2) for rank in (0, 1)]
    for rank in ranks:
        rank.log(0, {"loss": 1.0})
    ranks[0].log(1, {"loss": 20.0})
    assert scene.look() == []
    ranks[0].log(2, {"loss": 20.0}, time_us=ranks[0].now_us + watched.LATE_US + 10_000_000)

    assert scene.look() == [("high", 1)]


def test_a_later_attempt_is_judged_from_its_beginning(scene: Scene) -> None:
    scene.rule("high", kind="above", metric="loss", value=10)
    first = scene.run()
    for step in range(10):
        first.log(step, {"loss": 1.0})
    assert scene.look() == []
    second = scene.run(attempt=2)
    second.log(5, {"loss": 20.0})

    assert scene.look() == [("high", 5)]


def test_more_values_than_are_judged_at_a_time_are_all_judged(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(evaluation, "MOST_VALUES", 10)
    monkeypatch.setattr(watched, "MOST_VALUES", 10)
    scene.rule("high", kind="above", metric="loss", value=10)
    run = scene.run()
    for step in range(25):
        run.log(step, {"loss": 20.0 if step == 23 else 1.0})

    assert [scene.look() for _ in range(3)] == [[], [], [("high", 23)]]


def test_findings_that_are_grave_enough_fire_one_a_kind(scene: Scene) -> None:
    scene.rule("found", kind="finding", least="warning")
    run = scene.run()
    for severity, rule, more in (
        ("info", "warm_up", {}),
        ("warning", "loss_spike", {}),
        ("warning", "loss_spike", {}),
        ("critical", "non_finite", {"cause": "loss_spike"}),
        ("critical", "dead_layer", {}),
    ):
        run.event("finding", {"rule": rule, "severity": severity, "why": "so", "first_step": 7, **more})
    scene.look()

    assert [row["what"] for row in scene.catalog.firings.of("llm", 9)] == ["dead_layer", "loss_spike"]


def test_a_rule_that_cannot_be_judged_harms_no_other(scene: Scene, expect_internal_failures: Any) -> None:
    scene.rule("broken", "nonsense >", kind="ended")
    scene.rule("high", kind="above", metric="loss", value=10)
    scene.run().log(0, {"loss": 20.0})

    assert scene.look() == [("high", 0)]


def test_a_rule_saved_anew_lets_go_of_what_it_fired_on(scene: Scene) -> None:
    scene.rule("high", kind="above", metric="loss", value=10)
    run = scene.run()
    run.log(0, {"loss": 20.0})
    scene.look()
    scene.rule("high", kind="above", metric="loss", value=15)
    assert scene.firing()["cleared"] is not None
    run.log(1, {"loss": 20.0}, time_us=time.time_ns() // 1000)

    assert scene.look() == [("high", 0), ("high", 1)]


def test_a_run_is_alone_with_a_rule_whoever_else_judges(scene: Scene) -> None:
    scene.rule("high", kind="above", metric="loss", value=10)
    scene.run().log(0, {"loss": 20.0})
    scene.look()
    firings = scene.evaluation._held.values()
    for held in firings:
        held.firings.clear()
        held.lines.clear()
        held.judged.clear()

    assert scene.look() == [("high", 0)]


def test_what_rules_fired_on_is_shown_to_those_who_may_read_the_project(scene: Scene) -> None:
    for uid, project in ((UID, "llm"), (OTHER, "secret")):
        scene.rule(project, project=project, kind="above", metric="loss", value=10)
        scene.run(uid, project=project).log(0, {"loss": 20.0})
    scene.look()
    shown = {}
    for seen in (None, frozenset({"llm"}), frozenset({"secret"})):
        token = tenancy._readable.set(seen)
        shown[seen] = {line["uid"] for line in alarms(scene.reader, "-", 50)["lines"]}
        tenancy._readable.reset(token)

    assert list(shown.values()) == [{UID, OTHER}, {UID}, {OTHER}]


def test_what_a_rank_was_waited_for_is_judged_once_the_run_has_ended(
    scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    scene.rule("high", kind="above", metric="loss", value=10)
    ranks = [scene.run(rank=rank, world_size=2) for rank in (0, 1)]
    for rank in ranks:
        rank.log(0, {"loss": 1.0})
    ranks[0].log(1, {"loss": 20.0})
    assert scene.look() == []
    later = time.time_ns() // 1000 + 120_000_000
    monkeypatch.setattr(overview, "time", SimpleNamespace(time_ns=lambda: later * 1000))  # lost by now: nothing came

    assert scene.look() == [("high", 1)]


def test_what_a_catalog_did_not_take_is_judged_again(
    scene: Scene, monkeypatch: pytest.MonkeyPatch, expect_internal_failures: Any
) -> None:
    def fail(*_: object) -> None:
        raise OperationalError("INSERT", {}, OSError("gone"))

    scene.rule("high", kind="above", metric="loss", value=10)
    scene.run().log(0, {"loss": 20.0})
    with monkeypatch.context() as broken:
        broken.setattr(scene.catalog.firings, "add", fail)
        assert scene.look() == []

    assert scene.look() == [("high", 0)]
