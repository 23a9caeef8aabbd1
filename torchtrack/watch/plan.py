"""Who counts what: one plan from all ranks' metadata, by which every element is counted by exactly one rank.

Each rank offers which region of which tensor it holds, and what it counted there. Ranks that hold the same region and
counted the same are replicas (DDP, the replicated dimension of HSDP, LayerNorm beside tensor parallelism); placements
alone cannot tell, since a tensor may be replicated over mesh dimensions it does not know of. The regions that one set
of replicas holds are laid end to end and cut into one range a rank: with W replicas each reads 1/W of the data.
Ranks that hold one region under one name but counted otherwise (experts, unsynchronised models) hold parts of something
larger: each is counted, and the tensor is as large as all of them together.
"""

from __future__ import annotations

import functools
import hashlib
import itertools
import json
import math
import zlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np

from torchtrack.histogram import NUM_BUCKETS, ZERO
from torchtrack.watch.layout import Region, Summand

RowKey = tuple[str, str]
"""(kind, name) of a row."""
KEPT_ELEMENTS: Final = 1 << 24
"""So many elements of parameters a rank keeps before a step at most, to tell what it changes: 64 MiB of float32."""
Turns = Mapping[str, tuple[int, int]]
"""By parameter: its first turn, and how many follow each other in which a piece of it is kept."""
MAX_SUMMED: Final = 1 << 20
"""Elements that travel whole because they have to be added up first: 8 MiB, the LayerNorms of a large model."""
OWN_ELEMENTS: Final = frozenset(("activation",))
"""Kinds whose elements are each rank's own, a new number of them at every sample."""


def base_name(key: RowKey) -> str:
    """The parameter, or the module, that a row tells of: a moment of an optimizer is laid out as its parameter."""
    kind, name = key
    return name.rpartition(".")[0] if kind == "optimizer" else name


def row_digests(names: Iterable[str], counts: Mapping[RowKey, Any]) -> dict[str, str]:
    """A fingerprint a tensor of what was counted in it: equal on replicas; "" where equality would say nothing.

    A parameter that is still constant, with a gradient of zeros or none, looks the same on ranks that go different ways
    later. Updates and moments tell only where nothing else was counted: they are not there at every sample.

    Args:
        names: parameters.
        counts: (kind, name) -> bucket counts and extremes; a kind that was not measured is absent.
    """
    digests = {}
    others: dict[str, list[Any]] = {}
    for key in sorted(key for key in counts if key[0] in ("optimizer", "update")):
        others.setdefault(base_name(key), []).append(counts[key])
    for name in names:
        gradient, parameter = counts.get(("gradient", name)), counts.get(("parameter", name))
        varied = parameter is not None and np.count_nonzero(parameter[:NUM_BUCKETS]) > 1
        told = [gradient, parameter]
        if gradient is None and parameter is None:
            told = others.get(name, [])
        moved = any(row is not None and row is not parameter and row[:NUM_BUCKETS].sum() > row[ZERO] for row in told)
        fingerprint = hashlib.blake2s(digest_size=6)
        for row in told:
            fingerprint.update(b"-" if row is None else row.tobytes())
        digests[name] = fingerprint.hexdigest() if moved or varied else ""
    return digests


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


@dataclass(frozen=True, slots=True)
class Replicas:
    """A region and the ranks that hold it."""

    name: str
    key: str
    lo: int
    count: int
    ranks: tuple[int, ...]


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
        regions: who holds what; known to the rank that made the plan only.
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
    regions: tuple[Replicas, ...] | None = None
    turns: Turns = field(default_factory=dict)

    def covers(self, name: str, ranks: Sequence[int]) -> str | None:
        """The `covers` column of a row that these ranks' counts are merged in; None where this rank cannot tell.

        "" if that is the whole tensor.
        """
        if len(ranks) == self.world_size or not self.numels.get(name, 0):
            return ""
        if self.regions is None:
            return None
        present, spans = set(ranks), []
        for rank, share in self._counted_by.get(name, ()):
            if rank in present:
                spans.append((share.key, share.lo, share.hi))
        return format_covers(spans) if sum(hi - lo for _, lo, hi in spans) < self.numels[name] else ""

    @functools.cached_property
    def _counted_by(self) -> dict[str, list[tuple[int, Share]]]:
        """By name: each rank that counts a part of it, and which."""
        by_name: dict[str, list[tuple[int, Share]]] = {}
        for name, rank, share in _shared_out(self.regions or ()):
            by_name.setdefault(name, []).append((rank, share))
        return by_name

    def encode(self, shares: Mapping[str, Share]) -> bytes:
        """As bytes for a rank whose shares these are."""
        content = [self.rows, self.numels, self.start, self.world_size, self.digest, self.nodes, self.turns]
        content.append([[s.name, s.numel, s.key, s.count, s.dtype, s.ranks] for s in self.summed])
        cut = {name: [share.key, share.count, share.at, share.lo, share.hi] for name, share in shares.items()}
        return zlib.compress(json.dumps([*content, cut]).encode())

    @classmethod
    def decode(cls, data: bytes) -> Plan:
        """From the bytes of the rank that made it."""
        rows, numels, start, world_size, digest, nodes, turns, summed, cut = json.loads(zlib.decompress(data))
        shares = {name: Share(*share) for name, share in cut.items()}
        turns = {name: (first, pieces) for name, (first, pieces) in turns.items()}
        keys = tuple((kind, name) for kind, name in rows)
        return cls(keys, numels, start, world_size, digest, tuple(nodes), _summed(summed), shares, turns=turns)

    def shares_by_rank(self) -> list[dict[str, Share]]:
        """What each rank counts of what it holds, by rank; of a plan whose regions are known."""
        by_rank: list[dict[str, Share]] = [{} for _ in range(self.world_size)]
        for region in self.regions or ():
            for rank in region.ranks:
                by_rank[rank][region.name] = Share(region.key, region.count, 0, region.lo, region.lo)
        for name, rank, share in _shared_out(self.regions or ()):
            by_rank[rank][name] = share
        return by_rank


def _summed(content: Iterable[Any]) -> tuple[Summed, ...]:
    return tuple(
        Summed(name, numel, key, count, dtype, tuple(ranks)) for name, numel, key, count, dtype, ranks in content
    )


def _shared_out(regions: Sequence[Replicas]) -> Iterable[tuple[str, int, Share]]:
    """Each region cut among its replicas; what one set of replicas holds is balanced as a whole."""
    sets: dict[tuple[int, ...], list[Replicas]] = {}
    for region in regions:
        sets.setdefault(region.ranks, []).append(region)
    for ranks, held in sets.items():
        total = sum(region.count for region in held)
        cuts = [total * i // len(ranks) for i in range(len(ranks) + 1)]
        begin, first = 0, 0
        for region in held:
            end = begin + region.count
            while cuts[first + 1] <= begin and first + 1 < len(ranks):
                first += 1
            place = first
            while place < len(ranks) and cuts[place] < end:
                lo, hi = max(cuts[place], begin) - begin, min(cuts[place + 1], end) - begin
                if lo < hi:
                    yield region.name, ranks[place], Share(region.key, region.count, lo, region.lo + lo, region.lo + hi)
                place += 1
            begin = end


def take_turns(
    sizes: Iterable[tuple[str, int, int]], limit: int, first: int = 0, loads: Mapping[int, int] | None = None
) -> Turns:
    """Who keeps what at which turn, so that no rank keeps more than `limit` elements at once.

    Args:
        sizes: name, rank, and how many elements of the name the rank would keep.
        limit: elements; a name of which a rank has more takes several turns, alone.
        first: the number of the first turn.
        loads: by rank, what is kept at that turn already.
    """
    by_name: dict[str, dict[int, int]] = {}
    for name, rank, size in sizes:
        by_name.setdefault(name, {})[rank] = size
    turns: dict[str, tuple[int, int]] = {}
    turn, loads = first, dict(loads or {})
    for name, by_rank in sorted(by_name.items()):
        pieces = max(1, *(-(-size // limit) for size in by_rank.values()))
        if loads and (pieces > 1 or any(loads.get(rank, 0) + size > limit for rank, size in by_rank.items())):
            turn, loads = turn + 1, {}
        turns[name] = turn, pieces
        if pieces > 1:
            turn += pieces
        else:
            loads |= {rank: loads.get(rank, 0) + size for rank, size in by_rank.items()}
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


@dataclass(frozen=True, slots=True)
class Offer:
    """What one rank publishes so that a plan can be made."""

    next_sample: int
    """The sample it will capture next."""
    rows: tuple[RowKey, ...]
    """What it has counted so far."""
    held: dict[str, Region]
    """By parameter: which part of it is here."""
    samples: dict[int, dict[str, str]]
    """Digests of its last wholly counted samples."""
    node: int = 0
    """The node it runs on."""
    summands: dict[str, Summand] = field(default_factory=dict)
    """By parameter: what is here of a gradient that is yet to be added up."""

    def encode(self) -> bytes:
        """As bytes for the exchange."""
        held = {name: [r.numel, r.key, r.lo, r.count] for name, r in self.held.items()}
        summands = {name: [s.numel, s.key, s.place, s.count, s.dtype] for name, s in self.summands.items()}
        content = [self.next_sample, self.rows, held, list(self.samples.items()), self.node, summands]
        return zlib.compress(json.dumps(content).encode())

    @classmethod
    def decode(cls, data: bytes) -> Offer:
        """From the bytes of another rank."""
        next_sample, rows, held, samples, node, summands = json.loads(zlib.decompress(data))
        return cls(
            next_sample,
            tuple((kind, name) for kind, name in rows),
            {name: Region(*region) for name, region in held.items()},
            {int(number): digests for number, digests in samples},
            node,
            {name: Summand(*summand) for name, summand in summands.items()},
        )


def agree(offers: Sequence[Offer]) -> Plan | None:
    """The plan that follows from all ranks' offers, with its regions. None if no sample is common yet.

    Optimizers may take turns, so a tensor is judged by the last common sample it was counted in. A tensor that was not
    counted yet, or in which replicas cannot be told from tensors that are only equal so far, is left out.
    """
    common = set(offers[0].samples).intersection(*(offer.samples for offer in offers[1:]))
    if not common:
        return None
    newest = sorted(common, reverse=True)
    regions: list[Replicas] = []
    numels: dict[str, int] = {}
    for name in sorted(set[str]().union(*(offer.held for offer in offers))):
        found = _replicas(name, offers, newest)
        if found:
            regions += found
            numels[name] = sum(region.count for region in found)
    wanted = set[RowKey]().union(*(offer.rows for offer in offers))
    rows = tuple(sorted(key for key in wanted if key[0] in OWN_ELEMENTS or base_name(key) in numels))
    start = max(offer.next_sample for offer in offers) + 1
    summed = tuple(_to_add_up(offers))
    described: list[Any] = [[r.name, r.key, r.lo, r.count, r.ranks] for r in regions]
    described += [[s.name, s.key, s.count, s.dtype, s.ranks] for s in summed]
    content = json.dumps([rows, described, start, len(offers)]).encode()
    digest = int.from_bytes(hashlib.blake2s(content, digest_size=6).digest(), "little")
    nodes = tuple(offer.node for offer in offers)
    updated = {name for kind, name in rows if kind == "update"}
    kept = ((name, rank, share.hi - share.lo) for name, rank, share in _shared_out(regions) if name in updated)
    turns = take_turns(kept, KEPT_ELEMENTS)
    return Plan(rows, numels, start, len(offers), digest, nodes, summed, {}, tuple(regions), turns)


def _to_add_up(offers: Sequence[Offer]) -> Iterable[Summed]:
    """Every sum whose summands are all there, the smallest first while they fit: they travel as they are."""
    found: dict[tuple[str, int, str, int, str], dict[str, int]] = {}
    for rank, offer in enumerate(offers):
        for name, s in offer.summands.items():
            found.setdefault((name, s.numel, s.key, s.count, s.dtype), {}).setdefault(s.place, rank)
    room = MAX_SUMMED
    for (name, numel, key, count, dtype), places in sorted(found.items(), key=lambda item: (item[0][3], item[0])):
        terms = math.prod(int(part.split("/")[1]) for part in next(iter(places)).split("+"))
        room -= count
        if room >= 0 and len(places) == terms:
            yield Summed(name, numel, key, count, dtype, tuple(sorted(places.values())))


def _replicas(name: str, offers: Sequence[Offer], newest: Sequence[int]) -> list[Replicas]:
    """The distinct regions of a tensor, each with the ranks that hold it; empty if they cannot be told yet."""
    holders = [rank for rank, offer in enumerate(offers) if name in offer.held and offer.held[name].count]
    sample = next((n for n in newest if any(name in offers[rank].samples[n] for rank in holders)), None)
    if sample is None:
        return []
    by_region: dict[tuple[str, int, int], dict[str, list[int]]] = {}
    for rank in holders:
        region = offers[rank].held[name]
        digest = offers[rank].samples[sample].get(name, "")
        by_region.setdefault((region.key, region.lo, region.count), {}).setdefault(digest, []).append(rank)
    found = []
    for (key, lo, count), classes in sorted(by_region.items()):
        if len(classes) == 1 and "" not in classes:
            found.append(Replicas(name, key, lo, count, tuple(next(iter(classes.values())))))
            continue
        sharded = key != "" or lo > 0
        if "" in classes and not (sharded and len(classes) == 1) and sum(map(len, classes.values())) > 1:
            return []  # equal so far, or not counted on some rank: it may be either
        for ranks in classes.values():
            own = key if len(classes) == 1 else f"{key}@rank{ranks[0]}"
            found.append(Replicas(name, own, lo, count, tuple(ranks)))
    return found if _is_disjoint(found) else []


def _is_disjoint(regions: Sequence[Replicas]) -> bool:
    """Whether no element is in two regions: ranks that hold the whole beside ranks that hold a shard make no plan."""
    spans = sorted((region.key, region.lo, region.lo + region.count) for region in regions)
    return all(a[0] != b[0] or a[2] <= b[1] for a, b in itertools.pairwise(spans))
