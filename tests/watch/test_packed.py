"""The buffers of a turn: their size follows from the plan, and what the plan cannot hold stays outside."""

from __future__ import annotations

import random

import numpy as np
import pytest

from torchtrack.histogram import NUM_BUCKETS
from torchtrack.watch.agreement import agree
from torchtrack.watch.layout import Region
from torchtrack.watch.offer import Offer, read_offers
from torchtrack.watch.packed import HEADER, MAX_COLUMNS, Packed
from torchtrack.watch.plan import Plan
from torchtrack.watch.rows import MAXES, SUMS, Counted

HELD = {"a": Region(4, "", 0, 4), "b": Region(6, "", 0, 6)}
ROWS = tuple((kind, name) for kind in ("gradient", "parameter") for name in "ab")


def planned(offer: Offer) -> Plan:
    plan = agree(read_offers([offer.encode()] * 2))
    assert plan is not None
    return plan


PLAN = planned(Offer(0, ROWS, HELD, {0: dict.fromkeys(HELD, 7)}))


def counted(*tensors: tuple[str, str, int], planned: bool = True) -> Counted:
    n = len(tensors)
    keys = [(kind, name) for kind, name, _ in tensors]
    stages = ["pre_clip" if kind == "gradient" else "step" for kind, _ in keys]
    numels = [numel for *_, numel in tensors]
    return Counted(keys, np.ones((n, SUMS)), np.ones((n, MAXES)), numels, [""] * n, stages, [planned] * n)


def test_the_buffers_hold_the_rows_of_the_plan_and_nothing_else() -> None:
    packed = Packed(PLAN, counted(("gradient", "a", 4)))
    assert (packed.sums.size, packed.maxes.size) == (2 + 4 * SUMS, HEADER + 4 * MAX_COLUMNS)
    assert packed.sums.sum() == SUMS


def test_what_was_not_counted_under_the_plan_stays_outside_and_asks_for_another() -> None:
    packed = Packed(PLAN, counted(("gradient", "a", 4), planned=False))
    assert packed.rest is not None
    assert packed.rest.keys == [("gradient", "a")]
    assert packed.replan == 1.0
    assert packed.sums.sum() == 0


def test_a_row_that_is_new_stays_outside_and_asks_for_another_plan() -> None:
    packed = Packed(PLAN, counted(("gradient", "a", 4), ("gradient", "new", 60)))
    assert packed.rest is not None
    assert packed.rest.keys == [("gradient", "new")]
    assert packed.replan == 1.0
    assert packed.sums.sum() == SUMS


def test_what_was_packed_comes_back_merged_with_its_stages() -> None:
    packed = Packed(PLAN, counted(("gradient", "a", 4), ("parameter", "a", 4)))
    packed.sums[:2] = 1.0, 1.0
    merged = packed.merged()
    assert merged is not None
    assert merged.keys == [("gradient", "a"), ("gradient", "b"), ("parameter", "a"), ("parameter", "b")]
    assert merged.numels == [4, 6, 4, 6]
    assert (merged.stages[0], merged.stages[2]) == ("pre_clip", "step")
    assert merged.covers == [""] * 4
    assert merged.ranks == 2


def test_a_rank_that_dropped_its_part_is_missing_in_what_a_row_covers() -> None:
    packed = Packed(PLAN, counted(("gradient", "a", 4)))
    packed.sums[:2] = 1.0, 0.0
    merged = packed.merged()
    assert merged is not None
    assert merged.covers == ["", ":0-1", "", ":0-1"]


def test_the_activations_of_a_merged_row_are_as_many_as_were_counted() -> None:
    key = ("activation", "layer")
    packed = Packed(planned(Offer(0, (key,), {}, {0: {}})), counted((*key, 4)))
    packed.sums[:2] = 1.0, 1.0
    merged = packed.merged()
    assert merged is not None
    assert (merged.keys, merged.numels, merged.covers) == ([key], [328], [""])


def test_a_piece_of_an_update_stays_outside_and_asks_for_no_other_plan() -> None:
    packed = Packed(PLAN, counted(("update", "a", 4), planned=False))
    assert packed.rest is not None
    assert packed.rest.keys == [("update", "a")]
    assert packed.replan == 0.0


def random_rows(generator: np.random.Generator, width: int) -> Counted:
    """Of each row some buckets, here or there on either side of zero."""
    rows = counted(*[(kind, name, 4) for kind, name in ROWS])
    rows.sums[:, :NUM_BUCKETS] = 0.0
    for row in rows.sums:
        for begin in generator.integers(0, NUM_BUCKETS - width, 2):
            row[begin : begin + width] = generator.integers(0, 2, width)
    return rows


@pytest.mark.parametrize("width", [1, 7, 60])
def test_what_goes_through_sum_is_all_that_any_rank_has(width: int, rng: random.Random) -> None:
    generator = np.random.default_rng(rng.getrandbits(64))
    several = [Packed(PLAN, random_rows(generator, width)) for _ in range(2)] + [Packed(PLAN, None)]
    expected = np.sum([packed.sums for packed in several], 0)
    highest = np.max([packed.maxes for packed in several], 0)
    for packed in several:
        packed.maxes[:] = highest
    (places,) = {tuple(packed.occupied()) for packed in several}
    assert set(np.flatnonzero(expected)) <= set(places)
    assert len(set(places)) == len(places) < expected.size


def test_of_a_row_that_nobody_counted_three_numbers_go_through_sum() -> None:
    packed = Packed(PLAN, None)
    assert packed.occupied().size == 2 + 3 * len(ROWS)  # who is present; zeros, sum and sum of squares of each row
