"""How a plan follows from the offers of all ranks.

Ranks that hold the same region and counted the same are replicas (DDP, the replicated dimension of HSDP, LayerNorm
beside tensor parallelism); placements alone cannot tell, since a tensor may be replicated over mesh dimensions it does
not know of. The regions that one set of replicas holds are laid end to end and cut into one range a rank: with W
replicas each reads 1/W of the data. Ranks that hold one region under one name but counted otherwise (experts,
unsynchronised models) hold parts of something larger: each is counted, and the tensor is as large as all of them.

Rank 0 does this beside its training, for every tensor of every rank. So these are columns of a table here, worked on in
numpy; Python sees names, shards and sets of ranks.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterable, Sequence
from dataclasses import astuple, dataclass, replace
from typing import Any, Final

import numpy as np

from torchtrack.watch.message import Ints
from torchtrack.watch.offer import NOT_COUNTED, NOTHING_TOLD, Received
from torchtrack.watch.plan import KEPT_ELEMENTS, OWN_ELEMENTS, Division, Plan, Summed, base_name, take_turns

MAX_SUMMED: Final = 1 << 20
"""Elements that travel whole because they have to be added up first: 8 MiB, the LayerNorms of a large model."""
Bools = np.ndarray[Any, np.dtype[np.bool_]]


def agree(offers: Sequence[Received]) -> Plan | None:
    """The plan that follows from all ranks' offers, with its division. None if no sample is common yet.

    Optimizers may take turns, so a tensor is judged by the last common sample it was counted in. A tensor that was not
    counted yet, or in which replicas cannot be told from tensors that are only equal so far, is left out.
    """
    common = set(offers[0].samples).intersection(*(offer.samples for offer in offers[1:]))
    if not common:
        return None
    names = sorted(set[str]().union(*_distinct(offer.names for offer in offers)))
    keys, held = _held(names, offers, sorted(common, reverse=True))
    keys, held = _told_apart(keys, held)
    planned, held_name = np.unique(held.name, return_inverse=True)
    names = [names[i] for i in planned]
    division = _share_out(replace(held, name=held_name), keys, len(offers))
    sizes = np.zeros((len(names), len(offers)), np.int64)
    sizes[division.name, division.rank] = division.hi - division.lo
    numels = dict(zip(names, sizes.sum(axis=1).tolist(), strict=True))
    wanted = {(kind, name) for rows in _distinct(offer.rows for offer in offers) for kind, name in rows}
    rows = tuple(sorted(key for key in wanted if key[0] in OWN_ELEMENTS or base_name(key) in numels))
    updated = {name for kind, name in rows if kind == "update"}
    turning = [i for i, name in enumerate(names) if name in updated]
    summed = tuple(_to_add_up(offers))
    start = max(offer.next_sample for offer in offers) + 1
    return Plan(
        rows=rows,
        numels=numels,
        start=start,
        world_size=len(offers),
        digest=_digest([rows, names, start, len(offers), [astuple(s) for s in summed]], division),
        nodes=tuple(offer.node for offer in offers),
        summed=summed,
        shares={},
        division=division,
        turns=take_turns([names[i] for i in turning], sizes[turning], KEPT_ELEMENTS),
    )


def _distinct(texts: Iterable[list[Any]]) -> list[list[Any]]:
    """Each list once, of those that ranks share."""
    return list({id(text): text for text in texts}.values())


def _digest(content: list[Any], division: Division) -> int:
    told = hashlib.blake2b(json.dumps([content, division.keys]).encode(), digest_size=6)
    for column in (division.name, division.rank, division.key, division.lo, division.hi):
        told.update(column.tobytes())
    return int.from_bytes(told.digest(), "little")


@dataclass(frozen=True, slots=True, eq=False)
class _Held:
    """Which rank holds what: columns with an entry a tensor and rank.

    They are in the order of name, region, digest, rank: regions are runs of entries, and replicas are runs in these.
    """

    name: Ints
    key: Ints
    lo: Ints
    count: Ints
    digest: Ints
    rank: Ints

    def select(self, which: Any) -> _Held:
        """Some of the entries, by mask or number."""
        return _Held(*(getattr(self, column)[which] for column in self.__slots__))


def _begins(*columns: Ints) -> Bools:
    """Where a run of entries begins that are equal in all of these columns."""
    begins = np.ones(len(columns[0]), np.bool_)
    begins[1:] = np.any([column[1:] != column[:-1] for column in columns], axis=0)
    return begins


def _held(names: Sequence[str], offers: Sequence[Received], newest: Sequence[int]) -> tuple[list[str], _Held]:
    """The shards there are, sorted, and what each rank holds of tensors that some sample tells of."""
    number = {name: i for i, name in enumerate(names)}
    lists = {id(offer.names): offer.names for offer in offers}
    places = {which: np.array([number[name] for name in held], np.int64) for which, held in lists.items()}
    into = [places[id(offer.names)] for offer in offers]
    keys = sorted(set[str]().union(*(offer.keys for offer in offers)))
    numbers = {key: i for i, key in enumerate(keys)}
    key, lo, count, digest = np.zeros((4, len(offers), len(names)), np.int64)
    for rank, (offer, place) in enumerate(zip(offers, into, strict=True)):
        key[rank, place] = np.array([numbers[own] for own in offer.keys], np.int64)[offer.key]
        lo[rank, place], count[rank, place] = offer.lo, offer.count
    open_: Bools = np.any(count > 0, axis=0, keepdims=True)[0]
    told = np.empty_like(digest)
    for sample in newest:
        if not open_.any():
            break
        told[:] = NOT_COUNTED
        for rank, (offer, place) in enumerate(zip(offers, into, strict=True)):
            told[rank, place] = offer.samples[sample]
        here = open_ & np.any((told != NOT_COUNTED) & (count > 0), axis=0)
        told[told == NOT_COUNTED] = NOTHING_TOLD
        digest[:, here] = told[:, here]
        open_ &= ~here
    by, of = np.nonzero((count > 0).T & ~open_[:, None])
    key, lo, count, digest = (column[of, by] for column in (key, lo, count, digest))
    held = _Held(by, key, lo, count, digest, of)
    return keys, held.select(np.lexsort((held.digest, held.count, held.lo, held.key, held.name)))


def _told_apart(keys: Sequence[str], held: _Held) -> tuple[list[str], _Held]:
    """Without tensors whose replicas cannot be told; a region that ranks hold different contents of has a key of each.

    Ranks that hold the whole beside ranks that hold a shard make no plan either: no element may be in two regions.
    """
    starts = _begins(held.name, held.key, held.lo, held.count)
    apart = starts | _begins(held.digest)
    region = held.select(starts)
    of = np.cumsum(starts) - 1
    holders, contents = np.bincount(of), np.bincount(of[apart])
    sharded = (np.array(keys)[region.key] != "") | (region.lo > 0)
    # What tells nothing comes first: equal so far, or not counted on some rank. It may be either.
    unclear = (region.digest == NOTHING_TOLD) & ~(sharded & (contents == 1)) & (holders > 1)
    one = region.select(contents == 1)
    overlap = ~_begins(one.name, one.key)
    overlap[1:] &= one.lo[1:] < (one.lo + one.count)[:-1]
    left_out = np.concatenate([region.name[unclear], one.name[overlap]])
    first = held.rank[apart][np.cumsum(apart) - 1]
    width = int(held.rank.max(initial=0)) + 1
    split = contents[of] > 1
    owners, own = np.unique(held.key[split] * width + first[split], return_inverse=True)
    held.key[split] = len(keys) + own
    every = [*keys, *(f"{keys[owner // width]}@rank{owner % width}" for owner in owners.tolist())]
    return every, held.select(~np.isin(held.name, left_out))


def _share_out(held: _Held, keys: Sequence[str], world_size: int) -> Division:
    """Each region cut among its replicas; what one set of replicas holds is balanced as a whole."""
    starts = _begins(held.name, held.key, held.lo, held.count)
    begin, of = np.flatnonzero(starts), np.cumsum(starts) - 1
    replicas, count = np.bincount(of), held.count[begin]
    sets = _sets_of_ranks(held.rank, begin, replicas, world_size)
    order = np.argsort(sets, kind="stable")
    ends = np.cumsum(count[order])
    runs = _begins(sets[order])
    run = np.cumsum(runs) - 1
    ahead = (ends - count[order])[runs]
    total, offset = np.empty_like(count), np.empty_like(count)
    total[order] = np.append(ahead, count.sum())[run + 1] - ahead[run]
    offset[order] = ends - count[order] - ahead[run]
    place = np.arange(len(of)) - begin[of]  # among the replicas
    total, offset, replicas = total[of], offset[of], replicas[of]
    at = np.clip(total * place // replicas - offset, 0, held.count)
    end = np.clip(total * (place + 1) // replicas - offset, 0, held.count)
    at, end = np.where(at < end, (at, end), 0)
    return Division(keys, held.name, held.rank, held.key, held.count, at, held.lo + at, held.lo + end)


def _sets_of_ranks(rank: Ints, begin: Ints, size: Ints, world_size: int) -> Ints:
    """By region: a number for the set of ranks that hold it."""
    sets = rank[begin]  # a rank alone
    numbers: dict[bytes, int] = {}
    many = size > 1
    ranges = zip(begin[many].tolist(), (begin + size)[many].tolist(), strict=True)
    for region, (lo, hi) in zip(np.flatnonzero(many).tolist(), ranges, strict=True):
        sets[region] = numbers.setdefault(rank[lo:hi].tobytes(), world_size + len(numbers))
    return sets


def _to_add_up(offers: Sequence[Received]) -> Iterable[Summed]:
    """Every sum whose summands are all there, the smallest first while they fit: they travel as they are."""
    found: dict[tuple[str, int, str, int, str], dict[str, int]] = {}
    asked: set[int] = set()
    for rank, offer in enumerate(offers):
        if id(offer.summands) in asked:
            continue  # replicas of these summands
        asked.add(id(offer.summands))
        for name, numel, key, place, count, dtype in offer.summands:
            found.setdefault((name, numel, key, count, dtype), {}).setdefault(place, rank)
    room = MAX_SUMMED
    for (name, numel, key, count, dtype), places in sorted(found.items(), key=lambda item: (item[0][3], item[0])):
        terms = math.prod(int(part.split("/")[1]) for part in next(iter(places)).split("+"))
        room -= count
        if room >= 0 and len(places) == terms:
            yield Summed(name, numel, key, count, dtype, tuple(sorted(places.values())))
