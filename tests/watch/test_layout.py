"""Whose rows, and who counts them."""

from __future__ import annotations

import itertools
import json
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from torchtrack.api.tensors import parse_covers
from torchtrack.watch import layout
from torchtrack.watch.layout import Offer, Plan, agree

sizes = st.dictionaries(st.sampled_from([f"layer{i}.weight" for i in range(8)]), st.integers(0, 60), min_size=1)
worlds = st.integers(1, 12)


def plan_of(numels: dict[str, int], world_size: int) -> Plan:
    names = tuple(sorted(numels))
    return Plan(names, tuple(numels[name] for name in names), {}, 1, world_size, 0)


@given(sizes, worlds)
def test_every_element_is_counted_by_exactly_one_rank(numels: dict[str, int], world_size: int) -> None:
    plan = plan_of(numels, world_size)
    by_rank = [plan.ranges(rank) for rank in range(world_size)]
    for name, numel in numels.items():
        counted = np.zeros(numel, int)
        for ranges in by_rank:
            lo, hi = ranges[name]
            assert 0 <= lo <= hi <= numel
            counted[lo:hi] += 1
        assert counted.tolist() == [1] * numel


@given(sizes, worlds)
def test_no_rank_counts_more_than_its_share(numels: dict[str, int], world_size: int) -> None:
    plan = plan_of(numels, world_size)
    work = [sum(hi - lo for lo, hi in plan.ranges(rank).values()) for rank in range(world_size)]
    assert max(work) - min(work) <= 1


@given(sizes, worlds, st.data())
def test_covers_tells_what_some_of_the_ranks_counted(
    numels: dict[str, int], world_size: int, data: st.DataObject
) -> None:
    plan = plan_of(numels, world_size)
    ranks = data.draw(st.lists(st.integers(0, world_size - 1), unique=True))
    for name, numel in numels.items():
        expected = {i for rank in ranks for i in range(*plan.ranges(rank)[name])}
        text = plan.covers(name, ranks)
        if text == "":
            assert len(expected) == numel
        else:
            spans = [] if text == ":" else parse_covers(text)[":"]
            assert {i for lo, hi in spans for i in range(lo, hi)} == expected
            assert all(a[1] < b[0] for a, b in itertools.pairwise(spans))


def test_covers_of_all_ranks_is_the_whole_tensor() -> None:
    plan = plan_of({"a": 7, "b": 0, "c": 1}, 5)
    assert [plan.covers(name, range(5)) for name in plan.names] == ["", "", ""]


def test_covers_of_many_tensors_on_many_ranks_takes_no_time_for_each_pair() -> None:
    plan = plan_of({f"layer{i}": 1000 for i in range(500)}, 128)
    ranks = [rank for rank in range(128) if rank != 100]
    incomplete = [name for name in plan.names if plan.covers(name, ranks)]
    assert len(incomplete) in (4, 5)


digests = st.dictionaries(st.sampled_from("abcd"), st.sampled_from(["x", "y"]), max_size=4)
offers = st.builds(
    Offer,
    st.integers(0, 50),
    st.dictionaries(st.sampled_from("abcd"), st.integers(0, 9), max_size=4),
    st.dictionaries(st.integers(0, 9), digests, max_size=4),
)


@given(offers)
def test_an_offer_survives_its_encoding(offer: Offer) -> None:
    assert Offer.decode(offer.encode()) == offer


@given(st.lists(offers, min_size=1, max_size=4), st.randoms(use_true_random=False))
def test_ranks_agree_whatever_the_order_of_dicts_and_offers(given_offers: list[Offer], random: object) -> None:
    def shuffled(mapping: dict) -> dict:  # type: ignore[type-arg]
        items = list(mapping.items())
        random.shuffle(items)  # type: ignore[attr-defined]
        return dict(items)

    others = [
        Offer(o.next_sample, shuffled(o.numels), shuffled({n: shuffled(d) for n, d in o.samples.items()}))
        for o in given_offers
    ]
    random.shuffle(others)  # type: ignore[attr-defined]
    assert agree(others) == agree(given_offers)


@given(st.lists(offers, min_size=1, max_size=4))
def test_a_plan_begins_after_what_any_rank_may_have_counted(given_offers: list[Offer]) -> None:
    plan = agree(given_offers)
    if plan is not None:
        assert plan.start > max(offer.next_sample for offer in given_offers)
        assert not set(plan.names) & set(plan.distinct)


def test_without_a_common_sample_there_is_no_plan() -> None:
    assert agree([Offer(1, {"a": 3}, {0: {"a": "x"}}), Offer(2, {"a": 3}, {1: {"a": "x"}})]) is None


def test_equal_tensors_are_shared_out_and_others_are_parts_of_a_whole() -> None:
    first = Offer(3, {"same": 4, "other": 5, "longer": 6, "alone": 7}, {2: {"same": "x", "other": "x", "longer": "x"}})
    second = Offer(4, {"same": 4, "other": 5, "longer": 8}, {2: {"same": "x", "other": "y", "longer": "x"}})
    plan = agree([first, second])
    assert plan is not None
    assert (plan.names, plan.numels) == (("same",), (4,))
    assert plan.distinct == {"other": 10, "longer": 14}
    assert (plan.start, plan.world_size) == (5, 2)


def test_a_tensor_is_judged_by_the_last_common_sample_it_was_counted_in() -> None:
    """Two optimizers take turns: a sample holds the tensors of one of them."""
    numels = {"generator": 4, "discriminator": 6}
    one = Offer(4, numels, {2: {"generator": "x"}, 3: {"discriminator": "x"}})
    two = Offer(4, numels, {2: {"generator": "x"}, 3: {"discriminator": "y"}})
    same, differing = agree([one, one]), agree([one, two])
    assert same is not None
    assert differing is not None
    assert same.names == ("discriminator", "generator")
    assert (differing.names, differing.distinct) == (("generator",), {"discriminator": 12})


def test_plans_of_other_content_have_other_digests() -> None:
    base = Offer(1, {"a": 3}, {0: {"a": "x"}})
    others = [
        Offer(2, {"a": 3}, {0: {"a": "x"}}),
        Offer(1, {"b": 3}, {0: {"b": "x"}}),
        Offer(1, {"a": 4}, {0: {"a": "x"}}),
    ]
    plans = [agree([offer, offer]) for offer in (base, *others)] + [agree([base])]
    assert len({plan.digest for plan in plans if plan is not None}) == 5
    assert all(float(plan.digest) == plan.digest for plan in plans if plan is not None)


def test_a_digest_tells_counts_of_each_kind_apart() -> None:
    row, other = np.arange(4.0), np.ones(4)
    every = [
        layout.row_digests(["a"], counts)["a"]
        for counts in (
            {("gradient", "a"): row}, {("parameter", "a"): row}, {("gradient", "a"): other}, {},
            {("gradient", "a"): row, ("parameter", "a"): other}, {("gradient", "a"): other, ("parameter", "a"): row},
        )
    ]  # fmt: skip
    assert len(set(every)) == 6
    json.dumps(every)


@pytest.mark.parametrize(
    ("name", "stripped"),
    [
        ("a.weight", "a.weight"),
        ("_orig_mod.a.weight", "a.weight"),
        ("a._checkpoint_wrapped_module.b._fsdp_wrapped_module.weight", "a.b.weight"),
        ("my_orig_mod.weight", "my_orig_mod.weight"),
    ],
)
def test_wrappers_do_not_show_in_names(name: str, stripped: str) -> None:
    assert layout.strip(name) == stripped


def test_unwrap_finds_the_users_module_in_any_nesting() -> None:
    model = nn.Linear(2, 2)
    compiled: Any = torch.compile(nn.DataParallel(model), backend="eager")
    assert layout.unwrap(nn.DataParallel(compiled)) is model


def test_a_dense_tensor_of_a_usual_layout_is_flattened_without_a_copy() -> None:
    x = torch.randn(2, 3, 4, 5)
    for tensor in (x, x.reshape(6, 20).t(), x.to(memory_format=torch.channels_last)):
        view = layout.flat(tensor, whole=True)
        assert view.data_ptr() == tensor.data_ptr()
        assert view.sort().values.equal(tensor.reshape(-1).sort().values)


def test_a_part_is_taken_in_the_order_of_the_elements_whatever_the_layout() -> None:
    x = torch.randn(2, 3, 4, 5)
    for tensor in (x, x.reshape(6, 20).t(), x.to(memory_format=torch.channels_last), x[:, ::2]):
        assert layout.flat(tensor, whole=False).equal(tensor.contiguous().view(-1))
