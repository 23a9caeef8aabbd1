"""Which ranks merge with which."""

from __future__ import annotations

import random

import pytest

from torchtrack.watch.tree import FAN_OUT, Members, digest, levels, path

Tree = list[list[Members]]


def sizes(tree: Tree) -> list[list[int]]:
    return [[len(group) for group in level] for level in tree]


def assert_sound(tree: Tree, world_size: int) -> None:
    """Everybody belongs to one group of the lowest level, the leaders of a level make up the next, rank 0 leads all."""
    members = list(range(world_size))
    for level in tree:
        assert sorted(rank for group in level for rank in group) == sorted(members)
        assert all(1 <= len(group) <= FAN_OUT for group in level)
        members = [group[0] for group in level]
    assert members == [0]


@pytest.mark.parametrize("world_size", [1, 2, FAN_OUT])
def test_a_small_job_is_one_group_whatever_its_nodes(world_size: int) -> None:
    assert levels(world_size, [rank % 2 for rank in range(world_size)]) == [[tuple(range(world_size))]]


def test_the_ranks_of_a_node_come_first_then_their_leaders() -> None:
    tree = levels(40, [rank // 8 for rank in range(40)])
    assert tree == [[tuple(range(first, first + 8)) for first in range(0, 40, 8)], [(0, 8, 16, 24, 32)]]


def test_ranks_that_are_dealt_to_the_nodes_in_turn_still_meet_on_their_node() -> None:
    assert levels(20, [rank % 2 for rank in range(20)]) == [
        [tuple(range(0, 20, 2)), tuple(range(1, 20, 2))],
        [(0, 1)],
    ]


def test_where_nodes_are_unknown_ranks_next_to_each_other_meet() -> None:
    assert sizes(levels(256)) == [[16] * 16, [16]]
    assert levels(40) == levels(40, [0] * 40) == levels(40, [0] * 39)
    assert [group[0] for group in levels(40)[0]] == [0, 13, 26]


def test_nodes_of_one_rank_are_led_by_that_rank() -> None:
    assert sizes(levels(40, list(range(40)))) == [[1] * 40, [13, 13, 14], [3]]


def test_ten_thousand_ranks_have_four_levels_and_no_large_group() -> None:
    tree = levels(10_000, [rank // 8 for rank in range(10_000)])
    assert [len(level) for level in tree] == [1250, 79, 5, 1]
    assert_sound(tree, 10_000)
    connections = [sum(len(group) - 1 for group in path(rank, tree)) for rank in range(0, 10_000, 100)]
    assert max(connections) == connections[0] == 7 + 14 + 14 + 4


def test_any_nodes_give_a_sound_tree(rng: random.Random) -> None:
    for _ in range(200):
        world_size = rng.randrange(1, 700)
        nodes = [rng.randrange(rng.randrange(1, world_size + 1)) for _ in range(world_size)]
        tree = levels(world_size, nodes)
        assert_sound(tree, world_size)
        if world_size > FAN_OUT:
            assert all(len({nodes[rank] for rank in group}) == 1 for group in tree[0])


def test_the_path_of_a_rank_ends_where_it_does_not_lead() -> None:
    tree = levels(40, [rank // 8 for rank in range(40)])
    assert path(9, tree) == [tuple(range(8, 16))]
    assert path(8, tree) == [tuple(range(8, 16)), (0, 8, 16, 24, 32)]
    assert path(0, tree) == [tuple(range(8)), (0, 8, 16, 24, 32)]


def test_other_nodes_give_another_digest() -> None:
    trees = [levels(40), levels(40, [rank // 8 for rank in range(40)]), levels(40, [rank // 10 for rank in range(40)])]
    assert len({digest(tree) for tree in trees}) == 3
    assert digest(levels(40)) == digest(levels(40))
