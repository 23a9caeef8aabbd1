"""Stability rules on runs that go on: what it costs to look at them again and again is bounded, and nothing is late."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.api.journals import UID
from tests.server.samples import Make
from torchtrack.api.run import Run
from torchtrack.api.source import Api
from torchtrack.errors import StoreError
from torchtrack.server.indexer import Indexer
from torchtrack.server.judging import SHARE, Judge
from torchtrack.server.metrics import MetricsStore
from torchtrack.stability import Finding, default_rules
from torchtrack.stability.step import Step

TAKES_S = 6.0
"""What a replay takes on the clock of these tests."""


class Clock:
    """A clock that replays move, and who waits; and of each replay the last step that it saw."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now_s = 0.0
        self.replayed: list[int | None] = []
        steps = Run.steps

        def slow(run: Run) -> Iterator[Step]:
            self.now_s += TAKES_S
            self.replayed.append(run.last_step)
            return steps(run)

        monkeypatch.setattr(Run, "steps", slow)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    return Clock(monkeypatch)


def now_us() -> int:
    """For a run that goes on, since it began just now."""
    return time.time_ns() // 1000


def judge_of(store: MetricsStore, clock: Clock) -> Judge:
    return Judge(store, clock=lambda: clock.now_s)


def test_a_run_that_goes_on_is_replayed_for_a_share_of_the_time(
    runs: Path, journal: Make, store: MetricsStore, clock: Clock
) -> None:
    rank, indexer, judge = journal(start_us=now_us()), Indexer(runs, store), judge_of(store, clock)
    for step in range(30):
        rank.log(step, {"loss": 1.0})
        indexer.poll()
        judge.findings(UID)
        clock.now_s += 5.0
    assert len(clock.replayed) > 1
    assert TAKES_S * (len(clock.replayed) - 1) <= SHARE * clock.now_s


def test_a_run_that_has_ended_is_replayed_to_its_end_at_once(
    runs: Path, journal: Make, store: MetricsStore, clock: Clock
) -> None:
    rank, indexer, judge = journal(start_us=now_us()), Indexer(runs, store), judge_of(store, clock)
    rank.log(0, {"loss": 1.0})
    indexer.poll()
    judge.findings(UID)
    rank.log(1, {"loss": float("nan")})
    rank.close()
    indexer.poll()
    found = judge.findings(UID)
    assert clock.replayed == [0, 1]
    assert found == Api(runs).run(UID).findings() != []
    assert judge.findings(UID) == found
    assert len(clock.replayed) == 3  # two here, one by the reader of the folder


def test_what_a_lookout_recorded_is_there_without_a_replay(
    runs: Path, journal: Make, store: MetricsStore, clock: Clock
) -> None:
    rank, indexer, judge = journal(start_us=now_us()), Indexer(runs, store), judge_of(store, clock)
    rank.log(0, {"loss": 1.0})
    indexer.poll()
    assert judge.findings(UID) == []
    said = Finding("a_rule_elsewhere", "critical", 1, 1, "it burns")
    rank.event("finding", said.as_dict(), step=1)
    indexer.poll()
    assert [found.rule for found in judge.findings(UID)] == ["a_rule_elsewhere"]
    assert clock.replayed == [0]


def test_the_rules_are_those_that_a_run_replays(runs: Path, journal: Make, store: MetricsStore) -> None:
    with journal() as rank:
        for step in range(40):
            rank.log(step, {"loss": float("nan") if step == 30 else 1.0})
    Indexer(runs, store).poll()
    mine = Judge(store).findings(UID)
    assert mine == Api(runs).run(UID).findings()
    assert {found.rule for found in mine} <= {rule.name for rule in default_rules()}


def sick(journal: Make) -> None:
    """A run that has ended, with something to find."""
    with journal() as rank:
        for step in range(40):
            rank.log(step, {"loss": float("nan") if step == 30 else 1.0})


def test_a_server_that_is_started_anew_does_not_replay_what_was_judged(
    runs: Path, journal: Make, store: MetricsStore, clock: Clock
) -> None:
    sick(journal)
    Indexer(runs, store).poll()
    found = judge_of(store, clock).findings(UID)

    again = judge_of(store, clock).findings(UID)

    assert len(clock.replayed) == 1
    assert [one.as_dict() for one in again] == [one.as_dict() for one in found] != []


def test_what_has_come_since_is_judged(runs: Path, journal: Make, store: MetricsStore, clock: Clock) -> None:
    rank, indexer = journal(), Indexer(runs, store)
    rank.log(0, {"loss": 1.0})
    indexer.poll()
    judge_of(store, clock).findings(UID)
    rank.log(1, {"loss": float("nan")})
    rank.close()
    indexer.poll()

    assert judge_of(store, clock).findings(UID) != []
    assert clock.replayed == [0, 1]


def test_other_rules_judge_anew(
    runs: Path, journal: Make, store: MetricsStore, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    sick(journal)
    Indexer(runs, store).poll()
    judge_of(store, clock).findings(UID)
    monkeypatch.setattr("torchtrack.server.verdicts._rules", lambda: "another digest")

    judge_of(store, clock).findings(UID)

    assert len(clock.replayed) == 2


def test_tables_that_are_made_anew_are_judged_anew(
    runs: Path, journal: Make, store: MetricsStore, clock: Clock
) -> None:
    sick(journal)
    Indexer(runs, store).poll()
    judge_of(store, clock).findings(UID)
    Indexer(runs, store).rebuild()

    judge_of(store, clock).findings(UID)

    assert len(clock.replayed) == 2


@pytest.mark.parametrize("said", ["", "{", "{}", "[1]", "null"])
def test_a_damaged_verdict_is_found_again(
    runs: Path, journal: Make, store: MetricsStore, clock: Clock, said: str
) -> None:
    sick(journal)
    Indexer(runs, store).poll()
    found = judge_of(store, clock).findings(UID)
    store.command("INSERT INTO verdicts SELECT uid, version + 1, made_of, {said:String} FROM verdicts", said=said)

    assert judge_of(store, clock).findings(UID) == found != []
    assert len(clock.replayed) == 2


def test_a_verdict_that_cannot_be_kept_is_told_all_the_same(
    runs: Path, journal: Make, store: MetricsStore, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise StoreError("the disk is full")

    sick(journal)
    Indexer(runs, store).poll()
    judge = judge_of(store, clock)
    monkeypatch.setattr(store, "insert", fail)

    assert judge.findings(UID) == judge.findings(UID) != []
    assert len(clock.replayed) == 1
