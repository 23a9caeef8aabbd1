"""A sample as the two buffers of a turn: what MAX merges, and what SUM merges."""

from __future__ import annotations

from typing import Any, Final

import numpy as np

from torchtrack.histogram import NUM_BUCKETS
from torchtrack.watch.plan import OWN_ELEMENTS, Plan, base_name
from torchtrack.watch.rows import MAXES, SUMS, Counted

HEADER: Final = 5
"""Numbers before the rows of the MAX buffer: sample, -sample, plan, -plan, whether a rank asks for another plan."""
MAX_COLUMNS: Final = MAXES + 1
STAGES: Final = ("step", "pre_clip", "skipped")


class Packed:
    """A sample as the buffers of a turn; their size follows from the plan alone, so that it is the same on all ranks.

    sums: [world size] who is present, then rows x (328 counts, sum, sum of squares).
    maxes: the header, then rows x (max, -min, number of the stage).
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
        if alone:
            self.rest = counted.select(alone)
            # A piece of an update too large to be kept at once is left out of every plan.
            self.replan = float(any(counted.planned[i] or counted.keys[i][0] != "update" for i in alone))

    def _sums(self) -> np.ndarray[Any, Any]:
        return self.sums[self._plan.world_size :].reshape(-1, SUMS)

    def _maxes(self) -> np.ndarray[Any, Any]:
        return self.maxes[HEADER:].reshape(-1, MAX_COLUMNS)

    def merged(self) -> Counted | None:
        """The merged rows after both all-reduces; None if this rank cannot tell what they cover."""
        present = np.flatnonzero(self.sums[: self._plan.world_size] > 0).tolist()
        sums, maxes, covers, numels = self._sums(), self._maxes(), [], []
        for i, key in enumerate(self._plan.rows):
            own = key[0] in OWN_ELEMENTS
            cover = "" if own else self._plan.covers(base_name(key), present)
            if cover is None:
                return None
            covers.append(cover)
            numels.append(int(sums[i, :NUM_BUCKETS].sum()) if own else self._plan.numels[base_name(key)])
        return Counted(
            list(self._plan.rows),
            sums,
            maxes[:, :MAXES],
            numels,
            covers,
            [STAGES[int(max(stage, 0))] for stage in maxes[:, MAXES]],
            [True] * len(covers),
            len(present),
        )
