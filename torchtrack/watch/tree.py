"""Which ranks merge with which: groups of bounded size, the ranks of a node first, then their leaders, up to rank 0.

A group of all ranks would connect each with every other: 10,000 ranks would need 50 million connections. In a tree no
rank has more than `FAN_OUT - 1` connections a level, and most have those to their own node alone.
"""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Sequence
from typing import Final

FAN_OUT: Final = 16
"""Ranks of one group at most. A job of no more than these is one group, as if there were no tree."""

Members = tuple[int, ...]
"""Ranks of one group; the first leads it."""


def levels(world_size: int, nodes: Sequence[int] | None = None) -> list[list[Members]]:
    """The groups of every level, the lowest first; the last level is one group, led by rank 0.

    Args:
        world_size: number of ranks.
        nodes: a number of the node a rank runs on, by rank; nodes may have different sizes and their ranks any order.
            None, or another length than `world_size`: unknown, then ranks next to each other form the lowest groups.

    Returns:
        A level is a partition of the ranks that lead a group of the level below; all ranks in the lowest one. A group
        may have one member.
    """
    if world_size <= FAN_OUT:
        return [[tuple(range(world_size))]]
    known = nodes if nodes is not None and len(nodes) == world_size else [0] * world_size
    by_node: dict[int, list[int]] = {}
    for rank, node in enumerate(known):
        by_node.setdefault(node, []).append(rank)
    found = [[group for ranks in by_node.values() for group in _split(ranks)]]
    while len(found[-1]) > 1:
        found.append(_split([group[0] for group in found[-1]]))
    return found


def path(rank: int, tree: Sequence[Sequence[Members]]) -> list[Members]:
    """The groups a rank is a member of, the lowest first: one, and one more for every level it leads a group in."""
    groups = []
    for level in tree:
        group = next(group for group in level if rank in group)
        groups.append(group)
        if group[0] != rank:
            break
    return groups


def digest(tree: Sequence[Sequence[Members]]) -> str:
    """A fingerprint: ranks that imagine different trees must not connect to each other."""
    return hashlib.blake2s(repr(tree).encode(), digest_size=6).hexdigest()


def _split(ranks: Sequence[int]) -> list[Members]:
    """As few groups as the fan-out allows, of nearly equal size; order is kept."""
    count = -(-len(ranks) // FAN_OUT)
    ends = [len(ranks) * i // count for i in range(count + 1)]
    return [tuple(ranks[lo:hi]) for lo, hi in itertools.pairwise(ends)]
