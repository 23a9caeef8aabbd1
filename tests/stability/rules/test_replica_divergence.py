"""Replicas that are no longer equal."""

from __future__ import annotations

import pytest

from tests.stability import steps
from torchtrack.stability import Step
from torchtrack.stability.step import Seen


@pytest.mark.parametrize(("odd", "named"), [([2], (2,)), ([], (0, 1))])
def test_replicas_that_part_are_a_critical_finding_with_the_odd_rank(odd: list[int], named: tuple[int, ...]) -> None:
    said = {"tensor": "a", "kind": "parameter", "ranks": [0, 1], "odd_ranks": odd, "text": "a differs."}
    (one,) = steps.run([Step(7, seen=[Seen(0, "replica_divergence", said)]), Step(8), Step(9)])

    assert (one.rule, one.severity, one.first_step) == ("replica_divergence", "critical", 7)
    assert (one.names, one.ranks, one.why) == (("a",), named, "a differs.")


def test_steps_at_which_nothing_was_seen_are_none() -> None:
    assert steps.run([Step(at, {"watch/replicas_differ": 0.0}) for at in range(10)]) == []
