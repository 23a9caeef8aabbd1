"""A sample as the buffers of a turn: what MAX merges, what SUM merges, and now and then elements to be added up."""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import torch

from torchtrack.histogram import NUM_BUCKETS, ZERO, Histogram
from torchtrack.watch.plan import OWN_ELEMENTS, Plan, Summed, base_name, format_covers
from torchtrack.watch.rows import MAXES, SUMS, Counted

if TYPE_CHECKING:
    from torchtrack.watch.sample import Sample

HEADER: Final = 8
"""Numbers before the rows of the MAX buffer: sample, -sample, plan, -plan, whether a rank asks for another plan, the
interval a rank wants, the latest step of a rank, and what a rank asks of a comparison of replicas."""
_SIDES: Final = ((0, ZERO), (ZERO + 1, NUM_BUCKETS))
"""The buckets below zero and those above it."""
MAX_COLUMNS: Final = MAXES + 1 + 2 * len(_SIDES)
STAGES: Final = ("step", "pre_clip", "skipped")


class Packed:
    """A sample as the buffers of a turn; their size follows from the plan alone, so that it is the same on all ranks.

    sums: [world size] who is present, then rows x (328 counts, sum, sum of squares).
    maxes: the header, then rows x (max, -min, number of the stage, then for each side of zero -first, end: which
        buckets have been counted into).

    Most buckets are empty, on every rank: once MAX has told where a row has any, only those go through SUM.
    """

    def __init__(self, plan: Plan, counted: Counted | None) -> None:
        self._plan = plan
        rows = {key: i for i, key in enumerate(plan.rows)}
        self.sums = np.zeros(plan.world_size + len(rows) * SUMS)
        self.maxes = np.full(HEADER + len(rows) * MAX_COLUMNS, -np.inf)
        self.rest: Counted | None = None
        self.replan = 0.0
        if counted is None:
            return
        fits = [key in rows and planned for key, planned in zip(counted.keys, counted.planned, strict=True)]
        shared = [i for i, fit in enumerate(fits) if fit]
        alone = [i for i, fit in enumerate(fits) if not fit]
        into = [rows[counted.keys[i]] for i in shared]
        self._sums()[into] = counted.sums[shared]
        self._maxes()[into, :MAXES] = counted.maxes[shared]
        self._maxes()[into, MAXES] = [STAGES.index(counted.stages[i]) for i in shared]
        self._maxes()[into, MAXES + 1 :] = _windows(counted.sums[shared])
        if alone:
            self.rest = counted.select(alone)
            # A piece of an update too large to be kept at once is left out of every plan.
            self.replan = float(any(counted.planned[i] or counted.keys[i][0] != "update" for i in alone))

    def _sums(self) -> np.ndarray[Any, Any]:
        return self.sums[self._plan.world_size :].reshape(-1, SUMS)

    def _maxes(self) -> np.ndarray[Any, Any]:
        return self.maxes[HEADER:].reshape(-1, MAX_COLUMNS)

    def occupied(self) -> np.ndarray[Any, Any]:
        """Which of `sums` may differ from 0 on any rank, in the same order on all; once MAX has been merged."""
        windows = self._maxes()[:, MAXES + 1 :, None]
        some = np.ones(len(self.sums), bool)
        rows = some[self._plan.world_size :].reshape(-1, SUMS)
        for side, (begin, end) in enumerate(_SIDES):
            place = np.arange(begin, end)
            rows[:, begin:end] = (place >= -windows[:, 2 * side]) & (place < windows[:, 2 * side + 1])
        return np.flatnonzero(some)

    @property
    def all_present(self) -> bool:
        """Whether every rank gave its part; after the all-reduce."""
        return bool((self.sums[: self._plan.world_size] > 0).all())

    def merged(self) -> Counted | None:
        """The merged rows after both all-reduces; None if this rank cannot tell what they cover."""
        present = np.flatnonzero(self.sums[: self._plan.world_size] > 0).tolist()
        sums, maxes, numels = self._sums(), self._maxes(), list(self._plan.row_numels)
        covers = [""] * len(numels)
        for i in self._plan.own_rows:
            numels[i] = int(sums[i, :NUM_BUCKETS].sum())
        if len(present) < self._plan.world_size:
            for i, key in enumerate(self._plan.rows):
                cover = "" if key[0] in OWN_ELEMENTS else self._plan.covers(base_name(key), present)
                if cover is None:
                    return None
                covers[i] = cover
        return Counted(
            list(self._plan.rows),
            sums,
            maxes[:, :MAXES],
            numels,
            covers,
            [STAGES[stage] for stage in maxes[:, MAXES].clip(min=0.0).astype(int).tolist()],
            [True] * len(covers),
            len(present),
        )


def _windows(sums: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """[rows, 2 * sides]: -first and end of the buckets on each side that have been counted into; -inf for none."""
    found = np.full((len(sums), 2 * len(_SIDES)), -np.inf)
    for side, (begin, end) in enumerate(_SIDES):
        some = sums[:, begin:end] > 0
        has = some.any(1)
        found[has, 2 * side] = -(begin + some.argmax(1)[has])
        found[has, 2 * side + 1] = end - some[:, ::-1].argmax(1)[has]
    return found


class Sums:
    """The third buffer, where a plan has gradients that are added up before they are counted: their elements."""

    def __init__(self, plan: Plan, rank: int, sample: Sample) -> None:
        self._plan = plan
        self._ends = list(itertools.accumulate((s.count for s in plan.summed), initial=0))
        self.values = np.zeros(self._ends[-1])
        self._stages: dict[str, str] = {}
        for summed, begin in zip(plan.summed, self._ends, strict=False):
            if rank in summed.ranks and summed.name in sample.summands:
                self._stages[summed.name], copy = sample.summands[summed.name]
                self.values[begin : begin + summed.count] = copy.numpy()

    def counted(self) -> Counted:
        """The rows of the sums, after the all-reduce."""
        rows = [self._row(s, begin) for s, begin in zip(self._plan.summed, self._ends, strict=False)]
        return Counted.joined(rows).added_up()

    def _row(self, summed: Summed, begin: int) -> Counted:
        values = torch.from_numpy(self.values[begin : begin + summed.count]).to(getattr(torch, summed.dtype))
        histogram = Histogram.of(values.double().numpy())
        whole = sum(other.count for other in self._plan.summed if other.name == summed.name) == summed.numel
        return Counted(
            [("gradient", summed.name)],
            np.concatenate([histogram.counts, [histogram.sum, histogram.sum_sq]])[None],
            np.array([[histogram.max, -histogram.min]]),
            [summed.numel],
            ["" if whole else format_covers([(summed.key, 0, summed.count)])],
            [self._stages.get(summed.name, "step")],
            [True],
            self._plan.world_size,
        )
