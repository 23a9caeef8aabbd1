"""The buffers of a turn: their size follows from the plan, and what the plan cannot hold stays outside."""

from __future__ import annotations

import numpy as np

from torchtrack.watch import layout
from torchtrack.watch.packed import HEADER, MAX_COLUMNS, Packed
from torchtrack.watch.rows import MAXES, SUMS, Counted

PLAN = layout.Plan(("a", "b"), (4, 6), {"other": 7}, 0, 2, 1)


def counted(*tensors: tuple[str, str, int]) -> Counted:
    n = len(tensors)
    keys = [(kind, name) for kind, name, _ in tensors]
    stages = ["pre_clip" if kind == "gradient" else "step" for kind, _ in keys]
    numels = [numel for *_, numel in tensors]
    return Counted(keys, np.ones((n, SUMS)), np.ones((n, MAXES)), numels, [""] * n, stages)


def test_the_buffers_hold_the_watched_kinds_of_all_tensors_of_the_plan_and_nothing_else() -> None:
    one, both = Packed(PLAN, ["gradient"], None), Packed(PLAN, layout.KINDS, counted(("gradient", "a", 4)))
    assert (one.sums.size, one.maxes.size) == (2 + 2 * SUMS, HEADER + 2 * MAX_COLUMNS)
    assert (both.sums.size, both.maxes.size) == (2 + 4 * SUMS, HEADER + 4 * MAX_COLUMNS)


def test_a_tensor_that_now_has_another_size_stays_outside_and_asks_for_another_plan() -> None:
    packed = Packed(PLAN, layout.KINDS, counted(("gradient", "a", 4), ("gradient", "b", 60)))
    assert packed.rest is not None
    assert packed.rest.keys == [("gradient", "b")]
    assert packed.replan == 1.0
    assert packed.sums.sum() == SUMS


def test_a_tensor_that_differs_between_ranks_stays_outside_and_asks_for_nothing() -> None:
    packed = Packed(PLAN, layout.KINDS, counted(("parameter", "other", 7)))
    assert packed.rest is not None
    assert packed.replan == 0.0


def test_what_was_packed_comes_back_merged_with_its_stages() -> None:
    packed = Packed(PLAN, layout.KINDS, counted(("gradient", "a", 4), ("parameter", "a", 4)))
    packed.sums[:2] = 1.0, 1.0
    merged = packed.merged()
    assert merged.keys == [("gradient", "a"), ("gradient", "b"), ("parameter", "a"), ("parameter", "b")]
    assert merged.numels == [4, 6, 4, 6]
    assert (merged.stages[0], merged.stages[2]) == ("pre_clip", "step")
    assert merged.covers == [""] * 4
    assert merged.ranks == 2


def test_a_rank_that_dropped_its_part_is_missing_in_what_a_row_covers() -> None:
    packed = Packed(PLAN, ["gradient"], counted(("gradient", "a", 4)))
    packed.sums[:2] = 1.0, 0.0
    assert packed.merged().covers == ["", ":0-1"]
