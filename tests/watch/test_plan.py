"""Who counts what: every element by exactly one rank, whatever the ranks hold."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from torchtrack.api.tensors import parse_covers
from torchtrack.histogram import ZERO
from torchtrack.watch import agreement
from torchtrack.watch.agreement import MAX_SUMMED, agree
from torchtrack.watch.layout import Region, Summand
from torchtrack.watch.offer import NOT_COUNTED, Offer, read_offers, row_digests
from torchtrack.watch.plan import Plan, Share, Summed, format_covers
from torchtrack.watch.rows import SUMS

NAMES = [f"layer{i}.weight" for i in range(6)]
sizes = st.dictionaries(st.sampled_from(NAMES), st.integers(0, 60), min_size=1)
worlds = st.integers(1, 9)


def whole(numel: int) -> Region:
    return Region(numel, "", 0, numel)


def offer(held: dict[str, Region], digest: int = 7, sample: int = 0, next_sample: int = 1) -> Offer:
    rows = tuple(("gradient", name) for name in held)
    return Offer(next_sample, rows, held, {sample: dict.fromkeys(held, digest)})


def made(offers: list[Offer]) -> Plan:
    plan = agree(read_offers([each.encode() for each in offers]))
    assert plan is not None
    return plan


def shares_by_rank(plan: Plan) -> list[dict[str, Share]]:
    return [plan.shares_of(rank) for rank in range(plan.world_size)]


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
    shares = plan.shares_of(rank)
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
    for mine, shares in zip(held, shares_by_rank(plan), strict=True):
        for name, share in shares.items():
            region = mine[name]
            assert (share.key, share.count) == (region.key, region.count)
            assert region.lo + share.at == share.lo
            assert 0 <= share.at <= share.at + share.hi - share.lo <= region.count


@given(sizes, worlds)
def test_replicas_share_the_work_evenly(numels: dict[str, int], world_size: int) -> None:
    plan = made([offer({name: whole(n) for name, n in numels.items()})] * world_size)
    work = [sum(s.hi - s.lo for s in shares.values()) for shares in shares_by_rank(plan)]
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


@st.composite
def disorder(draw: st.DrawFn) -> list[Offer]:
    """Ranks that hold anything, counted at some samples, replicas or not: regions that overlap, experts, no digests."""
    numbers = draw(st.lists(st.integers(0, 3), min_size=1, max_size=3, unique=True))
    places = st.tuples(
        st.sampled_from(["", "", "0/2d0", "1/2d0"]), st.sampled_from([0, 0, 0, 4]), st.sampled_from([0, 3, 4, 4])
    )
    sets = draw(st.lists(st.dictionaries(st.sampled_from("abcd"), places), min_size=1, max_size=3))
    offers = []
    for _ in range(draw(worlds)):
        held = {name: Region(8, *place) for name, place in draw(st.sampled_from(sets)).items()}
        digests = st.dictionaries(st.sampled_from("abcd"), st.sampled_from([7, 7, 7, 8, 0]))
        offers.append(Offer(1, (), held, {number: draw(digests) for number in numbers}))
    return offers


def regions_by_definition(name: str, offers: list[Offer]) -> list[tuple[str, Region, list[int]]]:
    """Regions of a tensor, each with its key in the plan and the ranks that hold it."""
    holders = [rank for rank, each in enumerate(offers) if name in each.held and each.held[name].count]
    samples = sorted(offers[0].samples, reverse=True)
    sample = next((n for n in samples if any(name in offers[rank].samples[n] for rank in holders)), None)
    if sample is None:
        return []
    by_region: dict[tuple[str, int, int], dict[int, list[int]]] = {}
    for rank in holders:
        region = offers[rank].held[name]
        contents = by_region.setdefault((region.key, region.lo, region.count), {})
        contents.setdefault(offers[rank].samples[sample].get(name, 0), []).append(rank)
    found: list[tuple[str, Region, list[int]]] = []
    for (key, lo, count), contents in sorted(by_region.items()):
        known_by_metadata = len(contents) == 1 and (key != "" or lo > 0)
        if 0 in contents and not known_by_metadata and sum(map(len, contents.values())) > 1:
            return []
        for ranks in contents.values():
            own = key if len(contents) == 1 else f"{key}@rank{ranks[0]}"
            found.append((own, Region(8, key, lo, count), ranks))
    told = [(key, i) for key, region, _ in found for i in range(region.lo, region.lo + region.count)]
    return found if len(told) == len(set(told)) else []


def shares_by_definition(offers: list[Offer]) -> list[dict[str, Share]]:
    """Element by element: what a set of ranks holds is laid end to end and cut into as many."""
    shares: list[dict[str, Share]] = [{} for _ in offers]
    sets: dict[tuple[int, ...], list[tuple[str, str, Region]]] = {}
    for name in "abcd":
        for key, region, ranks in regions_by_definition(name, offers):
            sets.setdefault(tuple(ranks), []).append((name, key, region))
    for holders, regions in sets.items():
        elements = [(name, key, i) for name, key, region in regions for i in range(region.count)]
        cuts = [len(elements) * i // len(holders) for i in range(len(holders) + 1)]
        for place, rank in enumerate(holders):
            mine = elements[cuts[place] : cuts[place + 1]]
            for name, key, region in regions:
                at = [i for n, k, i in mine if (n, k) == (name, key)] or [0]
                end = at[-1] + 1 if (name, key, at[0]) in mine else at[0]
                shares[rank][name] = Share(key, region.count, at[0], region.lo + at[0], region.lo + end)
    return shares


@settings(max_examples=500)
@given(disorder())
def test_a_plan_is_what_its_definition_says_for_ranks_that_hold_anything(offers: list[Offer]) -> None:
    assert shares_by_rank(made(offers)) == shares_by_definition(offers)


def test_neighbouring_ranges_are_told_as_one() -> None:
    assert format_covers([("", 4, 6), ("", 0, 4), ("0/2d0", 1, 3), ("", 8, 9)]) == ":0-6,8-9;0/2d0:1-3"


def test_covers_of_many_tensors_on_many_ranks_takes_no_time_for_each_pair() -> None:
    plan = made([offer({f"layer{i:03}": whole(1000) for i in range(500)})] * 128)
    ranks = [rank for rank in range(128) if rank != 100]
    incomplete = [name for name in plan.numels if plan.covers(name, ranks)]
    assert len(incomplete) in (4, 5)


def test_a_rank_that_did_not_make_the_plan_cannot_tell_what_others_counted() -> None:
    plan = made([offer({"a": whole(4)})] * 3)
    told = Plan.decode(plan.encode(1))
    assert told.covers("a", [0, 1, 2]) == ""
    assert told.covers("a", [0, 1]) is None


@given(jobs())
def test_a_plan_survives_its_encoding(held: list[dict[str, Region]]) -> None:
    plan = made([offer(mine) for mine in held])
    for rank in range(len(held)):
        assert Plan.decode(plan.encode(rank)) == replace(plan, shares=plan.shares_of(rank), division=None)


@given(jobs(), st.lists(st.integers(0, 9), unique=True))
def test_an_offer_survives_its_encoding(held: list[dict[str, Region]], samples: list[int]) -> None:
    for node, mine in enumerate(held):
        digests = {sample: dict.fromkeys(sorted(mine)[:sample], sample * 2**40) for sample in samples}
        (read,) = read_offers([Offer(5, (("gradient", "a"),), mine, digests, node).encode()])
        assert (read.next_sample, read.rows, read.node, read.summands) == (5, [["gradient", "a"]], node, [])
        keys = [read.keys[i] for i in read.key]
        regions = zip(read.names, keys, read.lo.tolist(), read.count.tolist(), strict=True)
        assert sorted(regions) == sorted((name, r.key, r.lo, r.count) for name, r in mine.items())
        for sample, told in read.samples.items():
            found = {
                name: digest for name, digest in zip(read.names, told.tolist(), strict=True) if digest != NOT_COUNTED
            }
            assert found == digests.pop(sample)
        assert digests == {}


@given(jobs())
def test_a_plan_begins_after_what_any_rank_may_have_counted(held: list[dict[str, Region]]) -> None:
    plan = made([offer(mine, next_sample=1 + 3 * rank) for rank, mine in enumerate(held)])
    assert plan.start > 1 + 3 * (len(held) - 1)


def test_without_a_common_sample_there_is_no_plan() -> None:
    offers = [offer({"a": whole(3)}, sample=sample) for sample in (0, 1)]
    assert agree(read_offers([each.encode() for each in offers])) is None


def test_tensors_of_one_name_that_were_counted_otherwise_are_parts_of_a_larger_whole() -> None:
    first = Offer(3, (), {"same": whole(4), "other": whole(5)}, {2: {"same": 7, "other": 7}})
    second = Offer(4, (), {"same": whole(4), "other": whole(5)}, {2: {"same": 7, "other": 8}})
    plan = made([first, second])
    assert plan.numels == {"same": 4, "other": 10}
    assert [shares["other"].hi - shares["other"].lo for shares in shares_by_rank(plan)] == [5, 5]
    assert (plan.start, plan.world_size) == (5, 2)


def test_experts_replicated_over_some_ranks_are_counted_once_for_each_expert() -> None:
    digests = [7, 8, 7, 8]
    plan = made([offer({"expert.weight": whole(8)}, digest) for digest in digests])
    assert plan.numels == {"expert.weight": 16}
    assert [s["expert.weight"].hi - s["expert.weight"].lo for s in shares_by_rank(plan)] == [4, 4, 4, 4]


def test_tensors_of_which_equality_would_say_nothing_are_left_out() -> None:
    assert made([offer({"a": whole(4)}, 0), offer({"a": whole(4)}, 0)]).numels == {}


def test_a_shard_that_metadata_tells_needs_no_fingerprint() -> None:
    held = [{"a": Region(8, f"{rank % 2}/2d0", 0, 4)} for rank in range(4)]
    plan = made([offer(mine, 0) for mine in held])
    assert plan.numels == {"a": 8}
    assert [s["a"].hi - s["a"].lo for s in shares_by_rank(plan)] == [2, 2, 2, 2]


def test_what_only_one_rank_holds_needs_no_fingerprint() -> None:
    plan = made([offer({"first": whole(3)}, 0), offer({"last": whole(5)}, 0)])
    assert plan.numels == {"first": 3, "last": 5}


def test_the_whole_beside_a_shard_of_it_makes_no_plan_for_it() -> None:
    held = [{"a": whole(8)}, {"a": Region(8, "", 0, 4)}, {"a": Region(8, "", 4, 4)}]
    assert made([offer(mine) for mine in held]).numels == {}


def test_a_tensor_is_judged_by_the_last_common_sample_it_was_counted_in() -> None:
    """Two optimizers take turns: a sample holds the tensors of one of them."""
    held = {"generator": whole(4), "discriminator": whole(6)}
    one = Offer(4, (), held, {2: {"generator": 7}, 3: {"discriminator": 7}})
    two = Offer(4, (), held, {2: {"generator": 7}, 3: {"discriminator": 8}})
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
    plan = made([Offer(1, rows, held, {0: {"a.weight": 7}})] * 2)
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
    monkeypatch.setattr(agreement, "KEPT_ELEMENTS", 10)
    held = {name: whole(12) for name in "abc"}
    offers = [Offer(1, tuple(("update", name) for name in "ab"), held, {0: dict.fromkeys(held, 7)})] * 2
    plan = made(offers)  # 36 elements, the first 18 of them on rank 0
    assert plan.turns == {"a": (0, 2), "b": (2, 1)}
    assert Plan.decode(plan.encode(1)).turns == plan.turns
    assert made([offer(held)] * 2).turns == {}


def test_updates_and_moments_tell_replicas_apart_only_where_nothing_else_was_counted() -> None:
    row = np.zeros(SUMS)
    row[ZERO + 5] = 3.0
    told = dict.fromkeys((("update", "a"), ("optimizer", "a.exp_avg")), row)
    assert row_digests(["a"], told)["a"] != 0
    assert row_digests(["a"], {("update", "a"): row * 0})["a"] == 0
    beside = {("gradient", "a"): row}
    assert row_digests(["a"], {**told, **beside}) == row_digests(["a"], beside)
