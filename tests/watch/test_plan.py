"""Who counts what: every element by exactly one rank, whatever the ranks hold."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from torchtrack.api.tensors import parse_covers
from torchtrack.histogram import ZERO
from torchtrack.watch import plan as planning
from torchtrack.watch.layout import Region, Summand
from torchtrack.watch.plan import MAX_SUMMED, Offer, Plan, Summed, agree, format_covers, row_digests
from torchtrack.watch.rows import SUMS

NAMES = [f"layer{i}.weight" for i in range(6)]
sizes = st.dictionaries(st.sampled_from(NAMES), st.integers(0, 60), min_size=1)
worlds = st.integers(1, 9)


def whole(numel: int) -> Region:
    return Region(numel, "", 0, numel)


def offer(held: dict[str, Region], digest: str = "x", sample: int = 0, next_sample: int = 1) -> Offer:
    rows = tuple(("gradient", name) for name in held)
    return Offer(next_sample, rows, held, {sample: dict.fromkeys(held, digest)})


def made(offers: list[Offer]) -> Plan:
    plan = agree(offers)
    assert plan is not None
    return plan


@st.composite
def jobs(draw: st.DrawFn) -> list[dict[str, Region]]:
    """What the ranks of a job hold: replicas, shards over a mesh dimension, flat ranges, stages of a pipeline."""
    groups, shards = draw(st.integers(1, 3)), draw(st.integers(1, 3))
    numels = draw(sizes)
    how = {name: draw(st.sampled_from(["replicated", "sharded", "flat", "stage"])) for name in numels}
    held: list[dict[str, Region]] = []
    for rank in range(groups * shards):
        shard, mine = rank % shards, {}
        for name, numel in numels.items():
            lo, hi = numel * shard // shards, numel * (shard + 1) // shards
            if how[name] == "replicated":
                mine[name] = whole(numel)
            elif how[name] == "sharded":
                mine[name] = Region(numel, f"{shard}/{shards}d0", 0, hi - lo)
            elif how[name] == "flat":
                mine[name] = Region(numel, "", lo, hi - lo)
            elif shard == 0:
                mine[name] = whole(numel)
        held.append(mine)
    return held


def counted(plan: Plan, rank: int) -> dict[str, set[tuple[str, int]]]:
    """The elements a rank counts, by name, each as shard and place in it."""
    shares = plan.shares_by_rank()[rank]
    return {name: {(s.key, i) for i in range(s.lo, s.hi)} for name, s in shares.items()}


@given(jobs())
def test_every_element_is_counted_by_exactly_one_rank(held: list[dict[str, Region]]) -> None:
    plan = made([offer(mine) for mine in held])
    by_rank = [counted(plan, rank) for rank in range(len(held))]
    for name in set().union(*held):
        parts = [elements for mine in by_rank if (elements := mine.get(name))]
        numel = next(mine[name].numel for mine in held if name in mine)
        assert sum(map(len, parts)) == len(set().union(*parts)) == numel == plan.numels.get(name, 0)


@given(jobs())
def test_a_rank_counts_only_what_it_holds(held: list[dict[str, Region]]) -> None:
    plan = made([offer(mine) for mine in held])
    for mine, shares in zip(held, plan.shares_by_rank(), strict=True):
        for name, share in shares.items():
            region = mine[name]
            assert (share.key, share.count) == (region.key, region.count)
            assert region.lo + share.at == share.lo
            assert 0 <= share.at <= share.at + share.hi - share.lo <= region.count


@given(sizes, worlds)
def test_replicas_share_the_work_evenly(numels: dict[str, int], world_size: int) -> None:
    plan = made([offer({name: whole(n) for name, n in numels.items()})] * world_size)
    work = [sum(s.hi - s.lo for s in shares.values()) for shares in plan.shares_by_rank()]
    assert sum(work) == sum(numels.values())
    assert max(work) - min(work) <= 1


@given(jobs(), st.data())
def test_covers_tells_what_some_of_the_ranks_counted(held: list[dict[str, Region]], data: st.DataObject) -> None:
    plan = made([offer(mine) for mine in held])
    ranks = data.draw(st.lists(st.integers(0, len(held) - 1), unique=True))
    for name, numel in plan.numels.items():
        expected = set().union(*(counted(plan, rank).get(name, set()) for rank in ranks))
        text = plan.covers(name, ranks)
        assert text is not None
        if text == "":
            assert len(expected) == numel
        else:
            told = {
                (key[:-1], i) for key, spans in parse_covers(text).items() for lo, hi in spans for i in range(lo, hi)
            }
            assert told == expected


def test_neighbouring_ranges_are_told_as_one() -> None:
    assert format_covers([("", 4, 6), ("", 0, 4), ("0/2d0", 1, 3), ("", 8, 9)]) == ":0-6,8-9;0/2d0:1-3"


def test_covers_of_many_tensors_on_many_ranks_takes_no_time_for_each_pair() -> None:
    plan = made([offer({f"layer{i:03}": whole(1000) for i in range(500)})] * 128)
    ranks = [rank for rank in range(128) if rank != 100]
    incomplete = [name for name in plan.numels if plan.covers(name, ranks)]
    assert len(incomplete) in (4, 5)


def test_a_rank_that_did_not_make_the_plan_cannot_tell_what_others_counted() -> None:
    plan = made([offer({"a": whole(4)})] * 3)
    told = Plan.decode(plan.encode(plan.shares_by_rank()[1]))
    assert told.covers("a", [0, 1, 2]) == ""
    assert told.covers("a", [0, 1]) is None


@given(jobs())
def test_a_plan_survives_its_encoding(held: list[dict[str, Region]]) -> None:
    plan = made([offer(mine) for mine in held])
    for shares in plan.shares_by_rank():
        assert Plan.decode(plan.encode(shares)) == replace(plan, shares=shares, regions=None)


@given(jobs(), st.integers(0, 9))
def test_an_offer_survives_its_encoding(held: list[dict[str, Region]], sample: int) -> None:
    for mine in held:
        given_offer = offer(mine, sample=sample)
        assert Offer.decode(given_offer.encode()) == given_offer


@given(jobs())
def test_a_plan_begins_after_what_any_rank_may_have_counted(held: list[dict[str, Region]]) -> None:
    plan = made([offer(mine, next_sample=1 + 3 * rank) for rank, mine in enumerate(held)])
    assert plan.start > 1 + 3 * (len(held) - 1)


def test_without_a_common_sample_there_is_no_plan() -> None:
    assert agree([offer({"a": whole(3)}, sample=0), offer({"a": whole(3)}, sample=1)]) is None


def test_tensors_of_one_name_that_were_counted_otherwise_are_parts_of_a_larger_whole() -> None:
    first = Offer(3, (), {"same": whole(4), "other": whole(5)}, {2: {"same": "x", "other": "x"}})
    second = Offer(4, (), {"same": whole(4), "other": whole(5)}, {2: {"same": "x", "other": "y"}})
    plan = made([first, second])
    assert plan.numels == {"same": 4, "other": 10}
    assert [shares["other"].hi - shares["other"].lo for shares in plan.shares_by_rank()] == [5, 5]
    assert (plan.start, plan.world_size) == (5, 2)


def test_experts_replicated_over_some_ranks_are_counted_once_for_each_expert() -> None:
    digests = ["x", "y", "x", "y"]
    plan = made([offer({"expert.weight": whole(8)}, digest) for digest in digests])
    assert plan.numels == {"expert.weight": 16}
    assert [s["expert.weight"].hi - s["expert.weight"].lo for s in plan.shares_by_rank()] == [4, 4, 4, 4]


def test_tensors_of_which_equality_would_say_nothing_are_left_out() -> None:
    assert made([offer({"a": whole(4)}, ""), offer({"a": whole(4)}, "")]).numels == {}


def test_a_shard_that_metadata_tells_needs_no_fingerprint() -> None:
    held = [{"a": Region(8, f"{rank % 2}/2d0", 0, 4)} for rank in range(4)]
    plan = made([offer(mine, "") for mine in held])
    assert plan.numels == {"a": 8}
    assert [s["a"].hi - s["a"].lo for s in plan.shares_by_rank()] == [2, 2, 2, 2]


def test_what_only_one_rank_holds_needs_no_fingerprint() -> None:
    plan = made([offer({"first": whole(3)}, ""), offer({"last": whole(5)}, "")])
    assert plan.numels == {"first": 3, "last": 5}


def test_the_whole_beside_a_shard_of_it_makes_no_plan_for_it() -> None:
    held = [{"a": whole(8)}, {"a": Region(8, "", 0, 4)}, {"a": Region(8, "", 4, 4)}]
    assert made([offer(mine) for mine in held]).numels == {}


def test_a_tensor_is_judged_by_the_last_common_sample_it_was_counted_in() -> None:
    """Two optimizers take turns: a sample holds the tensors of one of them."""
    held = {"generator": whole(4), "discriminator": whole(6)}
    one = Offer(4, (), held, {2: {"generator": "x"}, 3: {"discriminator": "x"}})
    two = Offer(4, (), held, {2: {"generator": "x"}, 3: {"discriminator": "y"}})
    assert made([one, one]).numels == {"generator": 4, "discriminator": 6}
    assert made([one, two]).numels == {"generator": 4, "discriminator": 12}


def test_plans_of_other_content_have_other_digests() -> None:
    offers = [
        offer({"a": whole(3)}), offer({"a": whole(3)}, next_sample=2), offer({"b": whole(3)}), offer({"a": whole(4)}),
    ]  # fmt: skip
    plans = [made([each, each]) for each in offers] + [made([offers[0]])]
    assert len({plan.digest for plan in plans}) == 5
    assert all(float(plan.digest) == plan.digest for plan in plans)


def test_rows_of_moments_follow_their_parameter_and_activations_need_none() -> None:
    held = {"a.weight": whole(4)}
    rows = (("optimizer", "a.weight.exp_avg"), ("activation", "a"), ("optimizer", "gone.exp_avg"))
    plan = made([Offer(1, rows, held, {0: {"a.weight": "x"}})] * 2)
    assert plan.rows == (("activation", "a"), ("optimizer", "a.weight.exp_avg"))


def test_a_gradient_that_is_yet_to_be_added_up_takes_one_summand_of_each_rank_that_differs() -> None:
    offers = [
        Offer(1, (), {}, {0: {}}, summands={"norm": Summand(8, "", f"{rank % 2}/2", 8, "float32")}) for rank in range(4)
    ]
    assert made(offers).summed == (Summed("norm", 8, "", 8, "float32", (0, 1)),)
    assert made(offers[:1]).summed == ()  # the other summand is on no rank that watches


def test_gradients_to_be_added_up_travel_only_while_they_are_small() -> None:
    sizes = {"small": 8, "large": MAX_SUMMED}
    summands = {name: Summand(n, "", "0/1", n, "float32") for name, n in sizes.items()}
    assert [s.name for s in made([Offer(1, (), {}, {0: {}}, summands=summands)]).summed] == ["small"]


def row(**buckets: int) -> np.ndarray[Any, Any]:
    counts = np.zeros(SUMS)
    for bucket, count in buckets.items():
        counts[int(bucket[1:])] = count
    return counts


def test_a_fingerprint_tells_counts_of_each_kind_apart() -> None:
    one, other = row(b170=2, b180=2), row(b170=3, b180=1)
    every = [
        row_digests(["a"], counts)["a"]
        for counts in (
            {("gradient", "a"): one}, {("parameter", "a"): one}, {("gradient", "a"): other},
            {("gradient", "a"): one, ("parameter", "a"): other}, {("gradient", "a"): other, ("parameter", "a"): one},
        )
    ]  # fmt: skip
    assert len(set(every)) == 5
    json.dumps(every)


@pytest.mark.parametrize(
    ("counts", "tells"),
    [
        ({}, False),
        ({("gradient", "a"): row(**{f"b{ZERO}": 4})}, False),
        ({("parameter", "a"): row(b200=4)}, False),
        ({("gradient", "a"): row(b200=4)}, True),
        ({("parameter", "a"): row(b200=3, b201=1)}, True),
        ({("parameter", "a"): row(b200=4), ("gradient", "a"): row(**{f"b{ZERO}": 3, "b170": 1})}, True),
    ],
)
def test_equality_of_a_constant_that_training_has_not_touched_says_nothing(
    counts: dict[tuple[str, str], np.ndarray[Any, Any]],
    tells: bool,
) -> None:
    assert bool(row_digests(["a"], counts)["a"]) == tells


def test_the_turns_of_updates_are_part_of_the_plan_and_reach_every_rank(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(planning, "KEPT_ELEMENTS", 10)
    held = {name: whole(12) for name in "abc"}
    offers = [Offer(1, tuple(("update", name) for name in "ab"), held, {0: dict.fromkeys(held, "x")})] * 2
    plan = made(offers)  # 36 elements, the first 18 of them on rank 0
    assert plan.turns == {"a": (0, 2), "b": (2, 1)}
    assert Plan.decode(plan.encode({})).turns == plan.turns
    assert made([offer(held)] * 2).turns == {}


def test_updates_and_moments_tell_replicas_apart_only_where_nothing_else_was_counted() -> None:
    row = np.zeros(SUMS)
    row[ZERO + 5] = 3.0
    told = dict.fromkeys((("update", "a"), ("optimizer", "a.exp_avg")), row)
    assert row_digests(["a"], told)["a"] != ""
    assert row_digests(["a"], {("update", "a"): row * 0})["a"] == ""
    beside = {("gradient", "a"): row}
    assert row_digests(["a"], {**told, **beside}) == row_digests(["a"], beside)
