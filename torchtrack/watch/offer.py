"""What a rank offers so that a plan can be made: which regions it holds, and a fingerprint of what it counted there."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np

from torchtrack.histogram import NUM_BUCKETS, ZERO
from torchtrack.watch.layout import Region, Summand
from torchtrack.watch.message import Ints, compressed, pack, unpack
from torchtrack.watch.plan import RowKey, base_name

NOTHING_TOLD: Final = 0
"""The digest of what would look the same on ranks that are no replicas."""
NOT_COUNTED: Final = -1
"""In place of a digest: the tensor was not counted in that sample."""


def row_digests(names: Iterable[str], counts: Mapping[RowKey, Any]) -> dict[str, int]:
    """A fingerprint a tensor of what was counted in it: equal on replicas; 0 where equality would say nothing.

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
        digests[name] = int.from_bytes(fingerprint.digest(), "little") if moved or varied else NOTHING_TOLD
    return digests


@dataclass(frozen=True, slots=True)
class Offer:
    """What one rank publishes so that a plan can be made."""

    next_sample: int
    """The sample it will capture next."""
    rows: tuple[RowKey, ...]
    """What it has counted so far."""
    held: dict[str, Region]
    """By parameter: which part of it is here."""
    samples: dict[int, dict[str, int]]
    """Digests of its last wholly counted samples."""
    node: int = 0
    """The node it runs on."""
    summands: dict[str, Summand] = field(default_factory=dict)
    """By parameter: what is here of a gradient that is yet to be added up."""

    def encode(self) -> bytes:
        """As bytes for the exchange."""
        names = sorted(self.held)
        regions = [self.held[name] for name in names]
        keys = sorted({region.key for region in regions})
        place = {key: i for i, key in enumerate(keys)}
        columns = [[place[r.key] for r in regions], [r.lo for r in regions], [r.count for r in regions]]
        columns += [[digests.get(name, NOT_COUNTED) for name in names] for digests in self.samples.values()]
        summands = [[name, s.numel, s.key, s.place, s.count, s.dtype] for name, s in self.summands.items()]
        texts = compressed(names), compressed(self.rows), compressed(summands)
        return pack([self.next_sample, self.node, list(self.samples), keys], texts, np.array(columns, np.int64))


@dataclass(frozen=True, slots=True, eq=False)
class Received:
    """An offer as the rank reads it that makes the plan: columns with an entry a tensor.

    Attributes:
        next_sample: the sample the rank will capture next.
        node: the node it runs on.
        names: what it holds. Ranks that hold the same share this one list, and `rows` and `summands` likewise.
        rows: [kind, name] of what it has counted so far.
        summands: fields of a `Summand`, after the name.
        keys: the shards it holds.
        key: by name: which of the keys.
        lo: by name: the first element here.
        count: by name: how many elements.
        samples: by sample and name: the digest.
    """

    next_sample: int
    node: int
    names: list[str]
    rows: list[list[str]]
    summands: list[list[Any]]
    keys: list[str]
    key: Ints
    lo: Ints
    count: Ints
    samples: dict[int, Ints]


def read_offers(messages: Sequence[bytes]) -> list[Received]:
    """The offers of all ranks, by rank."""
    seen: dict[bytes, Any] = {}
    offers = []
    for message in messages:
        (next_sample, node, samples, keys), texts, (key, lo, count, *digests) = unpack(message, seen)
        names, rows, summands = texts
        told = dict(zip(samples, digests, strict=True))
        offers.append(Received(next_sample, node, names, rows, summands, keys, key, lo, count, told))
    return offers
