"""Who counts what: one plan from all ranks' metadata, by which every element is counted by exactly one rank.

Made by `torchtrack.watch.agreement` on rank 0, told to the others through the store.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np

from torchtrack.watch.message import Ints, compressed, pack, unpack

RowKey = tuple[str, str]
"""(kind, name) of a row."""
Turns = Mapping[str, tuple[int, int]]
"""By parameter: its first turn, and how many follow each other in which a piece of it is kept."""
KEPT_ELEMENTS: Final = 1 << 24
"""So many elements of parameters a rank keeps before a step at most, to tell what it changes: 64 MiB of float32."""
OWN_ELEMENTS: Final = frozenset(("activation",))
"""Kinds whose elements are each rank's own, a new number of them at every sample."""


def base_name(key: RowKey) -> str:
    """The parameter, or the module, that a row tells of: a moment of an optimizer is laid out as its parameter."""
    kind, name = key
    return name.rpartition(".")[0] if kind == "optimizer" else name


@dataclass(frozen=True, slots=True)
class Share:
    """What one rank counts of a tensor it holds.

    Attributes:
        key: the shard it holds.
        count: how many elements of it.
        at: the first of these that it counts.
        lo, hi: what it counts, as elements of the shard; equal if its replicas count all.
    """

    key: str
    count: int
    at: int
    lo: int
    hi: int


@dataclass(frozen=True, eq=False)
class Division:
    """What every rank counts: columns with an entry for each tensor and rank that holds a part of it, by name and rank.

    Attributes:
        keys: the shards.
        name: which of the plan's tensors, in the order of `Plan.numels`.
        rank: who holds it.
        key: which of the shards.
        count: elements of the shard there.
        at, lo, hi: what the rank counts of them, as in `Share`.
    """

    keys: Sequence[str]
    name: Ints
    rank: Ints
    key: Ints
    count: Ints
    at: Ints
    lo: Ints
    hi: Ints

    def of(self, rank: int) -> tuple[list[str], Ints]:
        """A rank's own entries: the shards it holds, and rows of name, shard, count, at, lo, hi."""
        order, ranks = self._by_rank
        begin, end = np.searchsorted(ranks, (rank, rank + 1))
        own = order[begin:end]
        used, key = np.unique(self.key[own], return_inverse=True)
        columns = (column[own] for column in (self.count, self.at, self.lo, self.hi))
        return [self.keys[i] for i in used], np.stack([self.name[own], key, *columns])

    def of_name(self, name: int) -> slice:
        """Where the entries of a tensor are."""
        begin, end = np.searchsorted(self.name, (name, name + 1))
        return slice(int(begin), int(end))

    def counted(self) -> Division:
        """Without the entries of ranks that leave a tensor to its other replicas."""
        some = self.lo < self.hi
        columns = (self.name, self.rank, self.key, self.count, self.at, self.lo, self.hi)
        return Division(self.keys, *(column[some] for column in columns))

    @functools.cached_property
    def _by_rank(self) -> tuple[Ints, Ints]:
        """The entries in the order of ranks, and whose they are."""
        order = np.argsort(self.rank, kind="stable")
        return order, self.rank[order]


@dataclass(frozen=True, slots=True)
class Summed:
    """A shard of a gradient whose summands are added up before it can be counted.

    Attributes:
        name: the parameter.
        numel: elements of the whole tensor.
        key: which shard of it.
        count: elements of the shard.
        dtype: what the sum is rounded to.
        ranks: who gives a summand; one of those that hold the same.
    """

    name: str
    numel: int
    key: str
    count: int
    dtype: str
    ranks: tuple[int, ...]


@dataclass(frozen=True)
class Plan:
    """Who counts what, the same on every rank but for the shares.

    Attributes:
        rows: (kind, name) of what is merged, sorted.
        numels: by parameter, the elements of the whole tensor.
        start: the first sample it holds for.
        world_size: ranks that share the work.
        digest: 48-bit number of all of it; two ranks merge only under equal plans.
        nodes: on which node each rank runs.
        summed: what has to be added up first, in the order of the buffer.
        shares: by parameter, what this rank counts.
        division: what every rank counts; known to the rank that made the plan only.
        turns: by parameter, at which turn its update is counted.
    """

    rows: tuple[RowKey, ...]
    numels: dict[str, int]
    start: int
    world_size: int
    digest: int
    nodes: tuple[int, ...]
    summed: tuple[Summed, ...]
    shares: dict[str, Share]
    division: Division | None = None
    turns: Turns = field(default_factory=dict)

    def covers(self, name: str, ranks: Sequence[int]) -> str | None:
        """The `covers` column of a row that these ranks' counts are merged in; None where this rank cannot tell.

        "" if that is the whole tensor.
        """
        if len(ranks) == self.world_size or not self.numels.get(name, 0):
            return ""
        if self.division is None:
            return None
        held = self.division.of_name(self._places[name])
        key, lo, hi = (column[held] for column in (self.division.key, self.division.lo, self.division.hi))
        there = np.isin(self.division.rank[held], ranks) & (lo < hi)
        if (hi - lo)[there].sum() == self.numels[name]:
            return ""
        spans = zip(key[there].tolist(), lo[there].tolist(), hi[there].tolist(), strict=True)
        return format_covers((self.division.keys[i], begin, end) for i, begin, end in spans)

    def encode(self, rank: int) -> bytes:
        """As bytes for a rank; on the rank that made the plan."""
        keys, columns = self._division_of(rank)
        return pack([keys], [self._common], columns)

    @classmethod
    def decode(cls, data: bytes) -> Plan:
        """From the bytes of the rank that made it."""
        (keys,), (common,), columns = unpack(data, {})
        rows, numels, start, world_size, digest, nodes, turns, summed = common
        return cls(
            tuple((kind, name) for kind, name in rows),
            numels,
            start,
            world_size,
            digest,
            tuple(nodes),
            tuple(Summed(name, n, key, count, dtype, tuple(ranks)) for name, n, key, count, dtype, ranks in summed),
            _shares(list(numels), keys, columns),
            turns={name: (first, pieces) for name, (first, pieces) in turns.items()},
        )

    def shares_of(self, rank: int) -> dict[str, Share]:
        """What a rank counts of what it holds; on the rank that made the plan."""
        return _shares(list(self.numels), *self._division_of(rank))

    def _division_of(self, rank: int) -> tuple[list[str], Ints]:
        assert self.division is not None  # noqa: S101  # only rank 0 tells others their shares
        return self.division.of(rank)

    @functools.cached_property
    def row_numels(self) -> tuple[int, ...]:
        """By row, the elements of the whole tensor; 0 where each rank has its own."""
        return tuple(0 if key[0] in OWN_ELEMENTS else self.numels[base_name(key)] for key in self.rows)

    @functools.cached_property
    def own_rows(self) -> tuple[int, ...]:
        """Which rows are of elements that are each rank's own."""
        return tuple(i for i, (kind, _) in enumerate(self.rows) if kind in OWN_ELEMENTS)

    @functools.cached_property
    def _places(self) -> dict[str, int]:
        return {name: i for i, name in enumerate(self.numels)}

    @functools.cached_property
    def _common(self) -> bytes:
        """What is the same for every rank."""
        summed = [[s.name, s.numel, s.key, s.count, s.dtype, s.ranks] for s in self.summed]
        content = [self.rows, self.numels, self.start, self.world_size, self.digest, self.nodes, self.turns, summed]
        return compressed(content)


def _shares(names: Sequence[str], keys: Sequence[str], columns: Ints) -> dict[str, Share]:
    return {names[name]: Share(keys[key], *numbers) for name, key, *numbers in columns.T.tolist()}


def take_turns(names: Sequence[str], sizes: Ints, limit: int, first: int = 0, load: int = 0) -> Turns:
    """Who keeps what at which turn, so that no rank keeps more than `limit` elements at once.

    Args:
        names: parameters.
        sizes: [name, rank] how many elements of the name the rank would keep.
        limit: elements; a name of which a rank has more takes several turns, alone.
        first: the number of the first turn.
        load: what each rank keeps at that turn already.
    """
    order = sorted(range(len(names)), key=names.__getitem__)
    sizes = sizes[order]
    pieces = np.maximum(1, -(-sizes.max(axis=1, initial=0) // limit)).tolist()
    turns: dict[str, tuple[int, int]] = {}
    turn, begin, taken = first, 0, load > 0
    for end in [*(i for i, n in enumerate(pieces) if n > 1), len(order)]:
        totals = np.cumsum(sizes[begin:end], axis=0)
        ahead: Any = -load  # the total before this turn
        while begin < end:
            fit = int((totals - ahead <= limit).all(axis=1).sum())
            turns |= {names[i]: (turn, 1) for i in order[begin : begin + fit]}
            begin, taken = begin + fit, True
            if begin < end:
                turn, ahead, totals = turn + 1, totals[fit - 1] if fit else 0, totals[fit:]
        if end < len(order):
            turn += taken
            turns[names[order[end]]] = turn, pieces[end]
            turn, begin, taken, load = turn + pieces[end], end + 1, False, 0
    return turns


def format_covers(spans: Iterable[tuple[str, int, int]]) -> str:
    """The text of a `covers` column: a shard key and half-open ranges of its elements, shards joined by `;`."""
    merged: list[tuple[str, list[list[int]]]] = []
    for key, lo, hi in sorted(spans):
        if not merged or merged[-1][0] != key:
            merged.append((key, []))
        ranges = merged[-1][1]
        if ranges and ranges[-1][1] == lo:
            ranges[-1][1] = hi
        else:
            ranges.append([lo, hi])
    return ";".join(f"{key}:" + ",".join(f"{lo}-{hi}" for lo, hi in ranges) for key, ranges in merged) or ":0-0"
