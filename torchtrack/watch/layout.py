"""Whose rows, and who counts them: names of parameters, and one plan from all ranks' metadata.

Replicas of a tensor (DDP) are equal, so one of them has to be counted, not each. The plan cuts the flat elements of all
replicated tensors, laid end to end, into one range a rank: every element is counted by exactly one rank and each rank
reads 1/W of the data. Whether tensors are replicas is told by what the ranks measured, not by a wrapper's type: their
bucket counts of one common sample are equal.
"""

from __future__ import annotations

import functools
import hashlib
import itertools
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import torch
from torch import nn
from torch.nn.parameter import is_lazy

KINDS: Final = ("gradient", "parameter")
_NAMED_WRAPPERS: Final = ("_fsdp_wrapped_module", "_checkpoint_wrapped_module", "_orig_mod")


def unwrap(model: nn.Module) -> nn.Module:
    """The user's module inside DistributedDataParallel, DataParallel and torch.compile wrappers."""
    while True:
        if isinstance(model, (nn.parallel.DistributedDataParallel, nn.DataParallel)):
            model = model.module
        elif isinstance(inner := getattr(model, "_orig_mod", None), nn.Module):
            model = inner
        else:
            return model


def named_parameters(model: nn.Module, prefix: str = "") -> Iterator[tuple[str, nn.Parameter]]:
    """Names as the user's module has them, without wrapper prefixes; a tied weight once, under its first name.

    A lazy module's parameters come when its first input has given them a shape.
    """
    for name, parameter in unwrap(model).named_parameters():
        if not is_lazy(parameter):
            yield prefix + strip(name), parameter


def strip(name: str) -> str:
    """A parameter name without the parts that wrappers put into it."""
    if not any(wrapper in name for wrapper in _NAMED_WRAPPERS):
        return name
    return ".".join(part for part in name.split(".") if part not in _NAMED_WRAPPERS)


def flat(tensor: torch.Tensor, *, whole: bool) -> torch.Tensor:
    """The elements as a 1-D view. Without a copy where the layout allows; the order is free only if all are read.

    Args:
        tensor: dense, any layout.
        whole: every element will be counted, so that their order does not matter.
    """
    if tensor.is_contiguous():
        return tensor.view(-1)
    if whole and tensor.dim() == 2 and tensor.t().is_contiguous():
        return tensor.t().view(-1)
    if whole and tensor.dim() == 4 and tensor.is_contiguous(memory_format=torch.channels_last):
        return tensor.permute(0, 2, 3, 1).view(-1)
    return tensor.reshape(-1)


def row_digests(names: Sequence[str], counts: Mapping[tuple[str, str], Any]) -> dict[str, str]:
    """A fingerprint a tensor of what was counted in it: equal on replicas.

    Args:
        names: tensors.
        counts: (kind, name) -> bucket counts; a kind that was not measured is absent.
    """
    digests = {}
    for name in names:
        fingerprint = hashlib.blake2s(digest_size=6)
        for kind in KINDS:
            row = counts.get((kind, name))
            fingerprint.update(b"-" if row is None else row.tobytes())
        digests[name] = fingerprint.hexdigest()
    return digests


@dataclass(frozen=True)
class Plan:
    """Who counts what, the same on every rank.

    Attributes:
        names: tensors that are replicated over all ranks, sorted.
        numels: number of elements of each.
        distinct: name -> elements on all ranks together, for tensors of one name whose values differ between ranks.
        start: the first sample it holds for.
        world_size: ranks that share the work.
        digest: 48-bit number of all of it; two ranks merge only under equal plans.
    """

    names: tuple[str, ...]
    numels: tuple[int, ...]
    distinct: dict[str, int]
    start: int
    world_size: int
    digest: int

    @functools.cached_property
    def _places(self) -> dict[str, tuple[int, int]]:
        """By name: where it begins when all are laid end to end, and its number of elements."""
        begins = itertools.accumulate(self.numels, initial=0)
        return {name: (begin, numel) for name, begin, numel in zip(self.names, begins, self.numels, strict=False)}

    def _share(self, name: str, rank: int) -> tuple[int, int]:
        begin, numel = self._places[name]
        total = sum(self._places[self.names[-1]])
        first, last = total * rank // self.world_size, total * (rank + 1) // self.world_size
        return min(max(first - begin, 0), numel), min(max(last - begin, 0), numel)

    def numel(self, name: str) -> int:
        """Elements of a tensor that is shared out."""
        return self._places[name][1]

    def ranges(self, rank: int) -> dict[str, tuple[int, int]]:
        """By name: [lo, hi) of the flat tensor that this rank counts; an empty range if none of it."""
        return {name: self._share(name, rank) for name in self.names}

    def covers(self, name: str, ranks: Sequence[int]) -> str:
        """The `covers` column of a row that these ranks' counts are merged in; "" if that is the whole tensor."""
        numel = self._places[name][1]
        parts: list[list[int]] = []
        for rank in sorted(ranks):
            lo, hi = self._share(name, rank)
            if lo < hi and parts and parts[-1][1] == lo:
                parts[-1][1] = hi
            elif lo < hi:
                parts.append([lo, hi])
        if parts == [[0, numel]] or numel == 0:
            return ""
        return format_covers("", parts)


def format_covers(key: str, parts: Sequence[Sequence[int]]) -> str:
    """The text of a `covers` column: a shard key and half-open ranges of the flat tensor."""
    return f"{key}:" + ",".join(f"{lo}-{hi}" for lo, hi in parts)


@dataclass(frozen=True, slots=True)
class Offer:
    """What one rank publishes so that a plan can be made."""

    next_sample: int
    """The sample it will capture next."""
    numels: dict[str, int]
    """Elements of every watched dense tensor it holds."""
    samples: dict[int, dict[str, str]]
    """Digests of its last wholly counted samples."""

    def encode(self) -> bytes:
        """As bytes for the exchange."""
        return json.dumps([self.next_sample, self.numels, list(self.samples.items())]).encode()

    @classmethod
    def decode(cls, data: bytes) -> Offer:
        """From the bytes of another rank."""
        next_sample, numels, samples = json.loads(data)
        return cls(next_sample, numels, {int(number): digests for number, digests in samples})


def agree(offers: Sequence[Offer]) -> Plan | None:
    """The plan that follows from all ranks' offers; the same for the same offers. None if no sample is common yet.

    A tensor is shared out if every rank holds it with the same number of elements and the same counts. A tensor that
    every rank holds with other values is no replica: each rank's is a part of its own. Optimizers may take turns, so a
    tensor is judged by the last common sample it was counted in.
    """
    common = set(offers[0].samples).intersection(*(offer.samples for offer in offers[1:]))
    if not common:
        return None
    newest = sorted(common, reverse=True)
    held = set(offers[0].numels).intersection(*(offer.numels for offer in offers[1:]))
    replicated, distinct = [], {}
    for name in sorted(held):
        sample = next((n for n in newest if any(name in offer.samples[n] for offer in offers)), newest[0])
        seen = {(offer.numels[name], offer.samples[sample].get(name)) for offer in offers}
        if len(seen) == 1 and None not in next(iter(seen)):
            replicated.append(name)
        elif len(seen) > 1:
            distinct[name] = sum(offer.numels[name] for offer in offers)
    names = tuple(replicated)
    numels = tuple(offers[0].numels[name] for name in names)
    start = max(offer.next_sample for offer in offers) + 1
    content = json.dumps([names, numels, distinct, start, len(offers)]).encode()
    digest = int.from_bytes(hashlib.blake2s(content, digest_size=6).digest(), "little")
    return Plan(names, numels, distinct, start, len(offers), digest)
