"""Signs become findings: opened late, closed late, shared, folded, and never a storm."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest

from tests.stability import steps
from torchtrack.stability import Finding, Monitor, Sign, Step


class Scripted:
    """A rule that sees what the metric of its own name says: 2 opens, 1 keeps open, 0 is calm."""

    def __init__(self, name: str = "scripted", *, causes: tuple[str, ...] = (), severity: str = "warning") -> None:
        self.name, self.patience, self.calm, self.causes = name, 2, 2, frozenset(causes)
        self.severity = severity

    def update(self, step: Step) -> Mapping[str, Sign | None]:
        looked: dict[str, Sign | None] = {}
        for key, value in step.scalars.items():
            if key.startswith(self.name):
                bad = Sign(f"{key} at {step.step}", "look", value, self.severity, names=(key,), opens=value >= 2)  # type: ignore[arg-type]
                looked[key] = bad if value else None
        return looked


def found(values: list[int], **options: str) -> list[Finding]:
    return steps.run(steps.scalars("scripted", values), [Scripted(**options)])  # type: ignore[arg-type]


def test_a_sign_must_stay_before_it_is_a_finding_which_then_begins_at_the_first() -> None:
    assert found([0, 2, 0, 2, 0]) == []
    (one,) = found([0, 2, 2, 0])
    assert (one.first_step, one.last_step, one.is_open, one.why) == (1, 2, True, "scripted at 1")


def test_between_two_limits_a_finding_stays_open_but_none_opens() -> None:
    assert found([1, 1, 1, 1]) == []
    (one,) = found([2, 2, 1, 1, 1, 0])
    assert (one.last_step, one.is_open) == (4, True)


def test_a_finding_ends_when_enough_looks_saw_nothing() -> None:
    (one,) = found([2, 2, 0, 0, 0])
    assert (one.last_step, one.is_open) == (1, False)


def test_what_comes_back_soon_is_the_same_finding() -> None:
    (one,) = found([2, 2, 0, 0] * 20)
    assert (one.first_step, one.last_step) == (0, 77)


def test_many_tensors_share_a_finding_that_names_the_first_ones_first() -> None:
    rule, late = Scripted(), ["scripted/a", "scripted/b"]
    rows = [Step(at, {"scripted/z": 2.0, **(dict.fromkeys(late, 2.0) if at > 1 else {})}) for at in range(6)]
    (one,) = steps.run(rows, [rule])
    assert one.names == ("scripted/z", "scripted/a", "scripted/b")
    assert "2 more" in one.why


def test_the_number_of_findings_of_a_rule_is_bounded() -> None:
    rows = [Step(1000 * at + near, {f"scripted/{at}": 2.0}) for at in range(100) for near in range(2)]
    assert len(steps.run(rows, [Scripted()])) == 32


@pytest.mark.parametrize(("delay", "folded"), [(5, True), (500, False)])
def test_a_consequence_is_folded_into_its_cause_if_it_follows_soon(delay: int, folded: bool) -> None:
    rules = [Scripted("cause", causes=("effect",)), Scripted("effect", severity="critical")]
    rows = [Step(at, {"cause": 2.0 * (at < 2), "effect": 2.0 * (at >= delay)}) for at in range(delay + 3)]
    first, *others = steps.run(rows, rules)  # type: ignore[arg-type]
    assert (first.rule, first.severity) == ("cause", "critical" if folded else "warning")
    assert [part["rule"] for part in first.consequences] == ["effect"] * folded
    assert [other.rule for other in others] == ["effect"] * (not folded)


class Distinct(Scripted):
    """One that stands for itself unless its cause is going on."""

    distinct = True


@pytest.mark.parametrize(("lasts", "folded"), [(40, True), (4, False)])
def test_what_is_distinct_is_folded_into_a_cause_that_goes_on_and_not_into_one_that_is_over(
    lasts: int, folded: bool
) -> None:
    rules = [Scripted("cause", causes=("effect",)), Distinct("effect", severity="critical")]
    rows = [Step(at, {"cause": 2.0 * (at < lasts), "effect": 2.0 * (at in (20, 21))}) for at in range(40)]
    found = steps.run(rows, rules)  # type: ignore[arg-type]
    assert [one.rule for one in found] == ["cause"] + ["effect"] * (not folded)
    assert found[-1].severity == "critical"
    assert folded or (found[1].first_step, found[1].names) == (20, ("effect",))


def test_what_is_distinct_shares_a_finding_with_what_goes_on_or_comes_back_in_the_same_place() -> None:
    on = {"a": (5, 6, 20, 21), "b": (8, 9, 40, 41)}
    rows = [Step(at, {f"one/{key}": 2.0 * (at in seen) for key, seen in on.items()}) for at in range(60)]
    found = steps.run(rows, [Distinct("one", severity="critical")])
    assert [(one.first_step, one.names) for one in found] == [
        (5, ("one/a",)),
        (8, ("one/b",)),
    ]


def test_of_two_that_open_at_once_the_rule_that_comes_first_is_the_cause() -> None:
    rules = [Scripted("cause", causes=("effect",)), Scripted("effect", causes=("cause",))]
    (one,) = steps.run([Step(at, {"cause": 2.0, "effect": 2.0}) for at in range(3)], rules)  # type: ignore[arg-type]
    assert one.rule == "cause"


def test_a_note_that_becomes_grave_is_a_finding_of_its_own() -> None:
    rule = Scripted(severity="info")
    monitor = Monitor([rule])
    for step in steps.scalars("scripted", [2, 2, 2]):
        monitor.update(step)
    rule.severity = "warning"
    for step in steps.scalars("scripted", [2, 2], start=3):
        monitor.update(step)
    assert [(one.severity, one.first_step) for one in monitor.findings] == [("info", 0), ("warning", 3)]


def test_a_learning_rate_that_jumped_and_a_mark_are_hints() -> None:
    rows = [Step(at, {"scripted": 2.0 * (at > 3), "lr": 0.1 if at < 3 else 1.0}) for at in range(8)]
    rows[2] = Step(2, rows[2].scalars, marks=("shard 7 begins",))
    (one,) = steps.run(rows, [Scripted()])
    assert "lr went from 0.1 to 1 at step 3" in one.why
    assert "'shard 7 begins' was marked at step 2" in one.why


def test_update_returns_what_changed() -> None:
    monitor = Monitor([Scripted()])
    changed = [monitor.update(step) for step in steps.scalars("scripted", [0, 2, 2, 2, 0, 0, 0])]
    assert [[one.is_open for one in part] for part in changed] == [[], [], [True], [], [], [False], []]


@pytest.mark.usefixtures("expect_internal_failures")
@pytest.mark.parametrize("answer", [RuntimeError("no"), ["a list"], {"key": "no sign"}])
def test_a_rule_that_fails_leaves_the_others_alone(answer: Any) -> None:
    class Broken(Scripted):
        def update(self, step: Step) -> Mapping[str, Sign | None]:
            assert step.scalars
            if isinstance(answer, Exception):
                raise answer
            return answer  # type: ignore[no-any-return]

    (one,) = steps.run(steps.scalars("scripted", [2, 2, 2]), [Broken("broken"), Scripted()])
    assert one.rule == "scripted"


def test_a_finding_survives_json() -> None:
    (one,) = found([2, 2, 0])
    assert Finding.from_dict(one.as_dict()) == one
