"""What a rule is given: everything that all ranks recorded of one step, as numpy columns."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, NamedTuple

import numpy as np
import numpy.typing as npt

from torchtrack.histogram import NUM_BUCKETS, ZERO

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]
Bools = npt.NDArray[np.bool_]

MAGNITUDES: Final = 165
"""Columns of `Tensors.magnitudes`, both signs together: zero, underflow, 160 regular, overflow, infinite, NaN."""
_MAGNITUDE_OF: Final = np.append(np.abs(np.arange(NUM_BUCKETS - 1) - ZERO), MAGNITUDES - 1)


@dataclass(frozen=True)
class Tensors:
    """The rows of one kind at one sample, merged over ranks; one element a tensor in every column."""

    names: tuple[str, ...]
    count: Floats
    sum_sq: Floats
    absmax: Floats
    """Of the finite values; NaN if there are none."""
    zeros: Floats
    nonfinite: Floats
    skipped: Bools
    """Whether a gradient scaler left the step out."""
    row: Ints
    """Of each bucket that is not empty: the tensor it is of,"""
    bucket: Ints
    """its id,"""
    counts: Floats
    """and the elements in it."""

    @functools.cached_property
    def norm(self) -> Floats:
        """L2 norm of the finite values."""
        norms: Floats = np.sqrt(self.sum_sq)
        return norms

    @functools.cached_property
    def magnitudes(self) -> Floats:
        """Elements by size, [tensors, MAGNITUDES]; regular bucket k, from `histogram.edges`, is column 2 + k."""
        cell = self.row * MAGNITUDES + _MAGNITUDE_OF[self.bucket]
        flat: Floats = np.bincount(cell, self.counts, len(self.names) * MAGNITUDES).astype(np.float64)
        return flat.reshape(len(self.names), MAGNITUDES)


@dataclass(frozen=True)
class Facts:
    """What is known of a model beside its rows."""

    order: tuple[str, ...] = ()
    """Names of the parameters, as the forward pass meets them if it goes as they were registered."""
    formats: Mapping[str, str] = field(default_factory=dict)
    """Of parameters that are kept in a narrow format: "fp16", "bf16", "e4m3" or "e5m2"."""
    peers: Mapping[int, str] = field(default_factory=dict)
    """By rank a text that is equal for ranks which compute the same on other data: those can be compared."""
    data_parallel: bool = False
    """Whether the model is known to average its gradients over all ranks, so that each reads data of its own."""


class Seen(NamedTuple):
    """An event of `watch`, one of `api.findings.SEEN`."""

    rank: int
    type: str
    data: Mapping[str, Any]


@dataclass(frozen=True)
class Step:
    """One step of the run."""

    step: int
    scalars: Mapping[str, float] = field(default_factory=dict)
    """Metrics, combined over ranks."""
    ranks: Mapping[str, Mapping[int, float]] = field(default_factory=dict)
    """Those that more than one rank logged, by rank."""
    tensors: Mapping[str, Tensors] = field(default_factory=dict)
    """Rows by kind, if the step was sampled."""
    marks: Sequence[str] = ()
    """What the user marked here."""
    seen: Sequence[Seen] = ()
    """What `watch` saw on the ranks themselves, before rows were merged."""
    facts: Facts = Facts()  # frozen


def comparable(values: Mapping[int, float], peers: Mapping[int, str]) -> dict[str, dict[int, float]]:
    """The values of ranks that can be compared, where there is more than one; all, where that is not known of each."""
    known = values.keys() <= peers.keys()
    groups: dict[str, dict[int, float]] = {}
    for rank, value in values.items():
        groups.setdefault(peers[rank] if known else "", {})[rank] = value
    return {key: own for key, own in groups.items() if len(own) > 1}


def from_flat(columns: Mapping[str, Any], row: Ints, bucket: Ints, counts: npt.NDArray[Any]) -> Tensors:
    """Rows of the tensors table, of one kind and sample, a row a name.

    Args:
        columns: those of `records.TENSORS` as arrays or lists, but for `buckets` and `counts`.
        row: of each non-empty bucket, in ascending order, the number of its row.
        bucket: its id.
        counts: what it holds.
    """
    low, high = (np.asarray(columns[name], np.float64) for name in ("min", "max"))
    finite = high >= low
    return Tensors(
        names=tuple(columns["name"]),
        count=np.asarray(columns["count"], np.float64),
        sum_sq=np.asarray(columns["sum_sq"], np.float64),
        absmax=np.where(finite, np.maximum(np.abs(low), np.abs(high)), np.nan),
        zeros=np.asarray(columns["zeros"], np.float64),
        nonfinite=sum(
            (np.asarray(columns[n], np.float64) for n in ("nans", "pos_infs", "neg_infs")), np.zeros(len(low))
        ),
        skipped=np.asarray([stage == "skipped" for stage in columns["stage"]], np.bool_),
        row=row,
        bucket=bucket,
        counts=counts.astype(np.float64),
    )
