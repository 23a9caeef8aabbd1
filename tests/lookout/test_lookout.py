"""Beside the training the rules find what they find afterwards, in whatever pieces and order rows come."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import torchtrack
from tests.api.journals import UID, RankJournal, tensor_row
from torchtrack.api import Finding
from torchtrack.api.feed import HOLD_S, PATIENCE_S, Feed
from torchtrack.api.findings import recorded
from torchtrack.lookout.lookout import Lookout
from torchtrack.lookout.said import Said
from torchtrack.stability import default_rules

WEIGHT = np.random.default_rng(0).normal(0, 0.1, 200)
LAYERS = ("a", "b", "c")


class Clock:
    """Time that goes on when it is told to."""

    now_s = 1000.0

    def __call__(self) -> float:
        return self.now_s


def gradients(step: int, *, dead: bool = False, broken: bool = False) -> list[dict[str, Any]]:
    values = {name: WEIGHT * (0.0 if dead and name == "b" else 1.0) for name in LAYERS}
    if broken:
        values["c"] = np.where(np.arange(200) < 3, np.nan, WEIGHT)
    return [tensor_row(step, name, held) for name, held in values.items()]


def attempt(folder: Path, number: int, span: range, rng: np.random.Generator, *, dead_from: int, nan_at: int) -> None:
    """Two ranks with a loss, that of rank 1 skewed from step 90 on; rank 0 has the merged rows, and a spike at 60."""
    with RankJournal(folder, rank=0, attempt=number, world_size=2) as zero:
        zero.about()
        zero.event("model", {"modules": [{"name": "", "parameters": [{"name": n, "dtype": ""} for n in LAYERS]}]})
        for step in span:
            norm = float(np.exp(rng.normal(0, 0.1))) * (30.0 if step == 60 else 1.0)
            zero.log(step, {"loss": 2.0 - step / 200, "lr": 0.1 if step < 58 else 0.5})
            zero.log(step, {"watch/grad_norm": norm, "system/cpu": 3.0})
            if step % 2 == 0:
                zero.tensors(gradients(step, dead=step >= dead_from, broken=step == nan_at))
            if step == 59:
                zero.event("mark", {"title": "shard 2"}, step=59)
    with RankJournal(folder, rank=1, attempt=number, world_size=2) as one:
        for step in span:
            one.log(step, {"loss": (2.0 - step / 200) * (2.5 if step >= 90 else 1.0)})
            if step == nan_at:
                one.event("nonfinite", {"kind": "gradient", "first": "c", "names": ["c"], "count": 3}, step=step)


@pytest.fixture(scope="module")
def stored(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that died, and went on from an earlier step as its second attempt."""
    folder = tmp_path_factory.mktemp("stored")
    rng = np.random.default_rng(1)
    attempt(folder, 1, range(100), rng, dead_from=1000, nan_at=96)
    attempt(folder, 2, range(80, 140), rng, dead_from=110, nan_at=130)
    return folder


def pieces(stored: Path, folder: Path, rng: random.Random) -> Iterator[None]:
    """The files of a run as they grow, the first attempt's before the second's, in pieces that end anywhere."""
    files = sorted(stored.rglob("*.ttj"), key=lambda path: path.stat().st_mtime_ns)
    for group in (files[:2], files[2:]):
        left = {folder / path.relative_to(stored): path.read_bytes() for path in group}
        while left:
            path = rng.choice(list(left))
            size = rng.choice([1, 50, 1000, 20_000, 60_000])
            path.parent.mkdir(parents=True, exist_ok=True)
            with path.open("ab") as file:
                file.write(left[path][:size])
            left[path] = left[path][size:]
            left = {path: rest for path, rest in left.items() if rest}
            yield


def said(folder: Path) -> list[Finding]:
    """What the lookout has recorded, as it stands."""
    return sorted(recorded(torchtrack.Api(folder).run(UID).events("finding")), key=lambda one: one.first_step)


def plain(findings: list[Finding]) -> list[str]:
    return sorted(json.dumps(one.as_dict(), default=str) for one in findings)


@pytest.mark.parametrize("seed", range(4))
def test_in_whatever_pieces_rows_come_the_findings_are_those_of_the_whole_run(
    stored: Path, tmp_path: Path, seed: int
) -> None:
    rng, clock = random.Random(seed), Clock()
    lookout = Lookout(tmp_path, UID, clock=clock)
    for _ in pieces(stored, tmp_path, rng):
        clock.now_s += rng.choice([0.0, 0.5, 2.0, 8.0, 40.0])
        lookout.look()
    lookout.finish()

    afterwards = torchtrack.Api(stored).run(UID).findings()
    assert plain(said(tmp_path)) == plain(afterwards)
    assert {"gradient_spike", "dead_layer", "rank_skew", "non_finite"} <= {
        *(one.rule for one in afterwards),
        *(str(part["rule"]) for one in afterwards for part in one.consequences),
    }


def rows(folder: Path, *, ranks: int = 1) -> list[RankJournal]:
    """Journals of a run's ranks, to be written to."""
    made = [RankJournal(folder, rank=rank, world_size=ranks) for rank in range(ranks)]
    made[0].about()
    return made


class Made:
    """Makes rules, and counts how often."""

    def __init__(self, *rules: type) -> None:
        self.times = 0
        self._rules = rules

    def __call__(self) -> list[Any]:
        self.times += 1
        return [rule() for rule in self._rules] if self._rules else default_rules()


def test_a_finding_is_told_while_the_run_goes_on_and_rows_in_order_are_looked_at_once(tmp_path: Path) -> None:
    clock, made = Clock(), Made()
    lookout = Lookout(tmp_path, UID, clock=clock, rules=made)
    with rows(tmp_path)[0] as journal:
        for step in range(60):
            journal.log(step, {"loss": 50.0 if step == 30 else 1.0})
            clock.now_s += 1.0
            lookout.look()
            assert [one.rule for one in said(tmp_path)] == ["loss_spike"] * (step >= 30 + HOLD_S + 1)
    lookout.finish()
    assert made.times == 1


def test_the_last_step_of_a_run_that_hangs_is_looked_at_after_a_while(tmp_path: Path) -> None:
    clock = Clock()
    lookout = Lookout(tmp_path, UID, clock=clock)
    (journal,) = rows(tmp_path)
    for step in range(3):
        journal.log(step, {"loss": 1.0 if step < 2 else np.nan})
    for _ in range(2):
        lookout.look()
        clock.now_s += PATIENCE_S
    lookout.look()
    assert [one.rule for one in said(tmp_path)] == ["non_finite"]
    journal.abandon()
    lookout.finish()


def test_a_finding_that_late_rows_do_away_with_is_withdrawn(tmp_path: Path) -> None:
    clock = Clock()
    lookout = Lookout(tmp_path, UID, clock=clock)
    zero, one = rows(tmp_path, ranks=2)
    for step in range(60):
        zero.log(step, {"loss": 50.0 if step == 30 else 1.0}, reduce="min")
    for _ in range(3):
        lookout.look()
        clock.now_s += PATIENCE_S
    assert [each.rule for each in said(tmp_path)] == ["loss_spike"]
    for step in range(60):
        one.log(step, {"loss": 1.0}, reduce="min")
    clock.now_s += 60
    for _ in range(4):
        lookout.look()
        clock.now_s += PATIENCE_S
    run = torchtrack.Api(tmp_path).run(UID)
    assert (said(tmp_path), run.findings()) == ([], [])
    assert [event.data.get("withdrawn") for event in run.events("finding")] == [None, True]
    for journal in (zero, one):
        journal.close()
    lookout.finish()


def test_rules_begin_anew_at_most_once_a_minute(tmp_path: Path) -> None:
    clock, made = Clock(), Made()
    lookout = Lookout(tmp_path, UID, clock=clock, rules=made)
    (journal,) = rows(tmp_path)
    for step in range(200):
        journal.log(step, {"loss": 1.0})
        journal.log(max(0, step - 20), {"val/loss": 1.0})  # of a step that was long ago
        clock.now_s += 1.0
        lookout.look()
    assert 2 <= made.times <= 4
    journal.close()
    lookout.finish()


def test_a_lookout_that_is_replaced_says_nothing_twice(stored: Path, tmp_path: Path) -> None:
    for path in stored.rglob("*.ttj"):
        copy = tmp_path / path.relative_to(stored)
        copy.parent.mkdir(parents=True, exist_ok=True)
        copy.write_bytes(path.read_bytes())
    Lookout(tmp_path, UID).finish()
    before = [event.data for event in torchtrack.Api(tmp_path).run(UID).events("finding")]
    Lookout(tmp_path, UID).finish()
    after = [event.data for event in torchtrack.Api(tmp_path).run(UID).events("finding")]
    assert len(before) == len(after) > 2


def test_of_ranks_that_log_nothing_nothing_is_waited_for(tmp_path: Path) -> None:
    clock, made = Clock(), Made()
    lookout = Lookout(tmp_path, UID, clock=clock, rules=made)
    zero, one = rows(tmp_path, ranks=2)
    for step in range(60):
        zero.log(step, {"loss": 50.0 if step == 30 else 1.0})
        zero.log(step, {"watch/local_grad_norm": 1.0})
        one.log(0, {"watch/local_grad_norm": 7.0})  # whose counter never moves
        clock.now_s += 1.0
        lookout.look()
    assert [each.rule for each in said(tmp_path)] == ["loss_spike"]
    for journal in (zero, one):
        journal.close()
    lookout.finish()
    assert made.times == 1


def test_a_rank_that_lags_is_waited_for(tmp_path: Path) -> None:
    clock, made = Clock(), Made()
    lookout = Lookout(tmp_path, UID, clock=clock, rules=made)
    zero, one = rows(tmp_path, ranks=2)
    for step in range(50):
        zero.log(step, {"loss": 1.0})
        if step % 2 == 0:
            one.log(step // 2, {"loss": 3.0})
        clock.now_s += 1.0
        lookout.look()
    assert [(each.rule, each.ranks) for each in said(tmp_path)] == [("rank_skew", (1,))]
    for journal in (zero, one):
        journal.close()
    lookout.finish()
    assert made.times == 1


def test_an_attempt_that_goes_back_makes_a_feed_stale_whatever_it_logs_first(tmp_path: Path) -> None:
    feed = Feed(tmp_path, UID)
    (journal,) = rows(tmp_path)
    for step in range(60):
        journal.log(step, {"loss": 1.0})
    journal.close()
    feed.take(0.0, over=True)
    assert (feed.since, feed.stale) == (60, False)
    with RankJournal(tmp_path, attempt=2) as second:
        second.text(30, "note", "from the checkpoint of step 30")
        feed.take(1.0)
        assert feed.stale


def test_an_attempt_that_says_where_it_begins_makes_a_feed_stale_before_it_logs(tmp_path: Path) -> None:
    feed = Feed(tmp_path, UID)
    (journal,) = rows(tmp_path)
    for step in range(60):
        journal.log(step, {"loss": 1.0})
    journal.close()
    feed.take(0.0, over=True)
    with RankJournal(tmp_path, attempt=2, from_step=30) as second:
        second.about()
        feed.take(1.0)
        assert feed.stale
        again = Feed(tmp_path, UID).take(2.0, over=True)

    assert [step.step for step in again] == list(range(30))


def test_an_attempt_that_goes_on_where_it_had_one_step_makes_a_feed_stale_and_new_steps_do_not(tmp_path: Path) -> None:
    feed = Feed(tmp_path, UID)
    (journal,) = rows(tmp_path)
    for step in range(60):
        journal.log(step, {"loss": 1.0, "val": 1.0})
    journal.close()
    with RankJournal(tmp_path, attempt=2) as second:
        second.log(30, {"val": 2.0})
        given = feed.take(0.0, over=True)
        assert [step.scalars["val"] for step in given] == [1.0] * 30 + [2.0] + [1.0] * 29
        second.log(60, {"loss": 1.0})
        feed.take(1.0, over=True)
        assert not feed.stale
        second.log(61, {"val": 2.0})  # what came after step 30 is taken back
        feed.take(2.0)
        assert feed.stale


def test_what_was_given_out_is_forgotten(tmp_path: Path) -> None:
    feed, now_s = Feed(tmp_path, UID), 0.0
    (journal,) = rows(tmp_path)
    steps = []
    for step in range(100):
        journal.log(step, {"loss": 1.0, "system/cpu": 1.0})
        journal.tensors(gradients(step))
        now_s += 1.0
        steps += feed.take(now_s)
        assert feed.held <= 3 * (HOLD_S + 2)
    journal.close()
    steps += feed.take(now_s, over=True)
    assert [step.step for step in steps] == list(range(100))
    assert all(step.tensors["gradient"].names == LAYERS for step in steps)


def test_more_rows_than_may_be_held_end_the_lookout_with_a_warning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("torchtrack.api.feed.MAX_HELD", 10)
    lookout = Lookout(tmp_path, UID)
    (journal,) = rows(tmp_path)
    for step in range(5):
        journal.tensors(gradients(0, dead=step > 2))
    lookout.look()
    (warning,) = torchtrack.Api(tmp_path).run(UID).events("warning")
    assert "more than 10 rows" in warning.data["text"]
    journal.close()
    lookout.finish()


def test_a_rank_that_learned_late_whose_it_is_is_found_where_it_wrote(tmp_path: Path) -> None:
    clock = Clock()
    lookout = Lookout(tmp_path, UID, clock=clock)
    (zero,) = rows(tmp_path)
    with RankJournal(tmp_path, "0123456789abcdef", rank=1, world_size=2) as one:
        one.joined(UID, rank=1, world_size=2)
        for step in range(60):
            zero.log(step, {"loss": 1.0})
            one.log(step, {"loss": 3.0})
        zero.close()
    lookout.finish()
    assert [(found.rule, found.ranks) for found in said(tmp_path)] == [("rank_skew", (1,))]


def test_a_lookout_of_a_rank_that_turns_out_to_be_of_another_run_knows(tmp_path: Path) -> None:
    lookout = Lookout(tmp_path, "0123456789abcdef", clock=Clock())
    (zero,) = rows(tmp_path)
    with RankJournal(tmp_path, "0123456789abcdef", rank=1) as one:
        lookout.look()
        before = lookout.moved
        one.joined(UID, rank=1, world_size=2)
        lookout.look()
        assert (before, lookout.moved) == (False, True)
    zero.close()
    lookout.close("moved")


def test_a_finding_that_comes_and_goes_is_no_storm() -> None:
    said = Said([])
    told = []
    for now_s in range(600):
        finding = Finding("loss_spike", "warning", 3, now_s, "up", is_open=now_s % 2 == 0)
        told += said.news([finding], float(now_s), all_of_them=False, last=False)
    assert len(told) < 20
    grave = said.news([replace(finding, severity="critical")], 600.0, all_of_them=False, last=False)
    assert [data.get("again") for data in grave] == [None]  # at once, and an alert of its own
