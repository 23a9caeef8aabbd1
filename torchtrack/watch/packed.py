"""A sample as the two buffers of a turn: what MAX merges, and what SUM merges."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

import numpy as np

from torchtrack.watch import layout
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

    def __init__(self, plan: layout.Plan, kinds: Sequence[str], counted: Counted | None) -> None:
        self._plan = plan
        self._keys = [(kind, name) for kind in kinds for name in plan.names]
        rows = {key: i for i, key in enumerate(self._keys)}
        self.sums = np.zeros(plan.world_size + len(rows) * SUMS)
        self.maxes = np.full(HEADER + len(rows) * MAX_COLUMNS, -np.inf)
        self.rest: Counted | None = None
        self.replan = 0.0
        if counted is None:
            return
        fits = [
            key in rows and numel == plan.numel(key[1]) for key, numel in zip(counted.keys, counted.numels, strict=True)
        ]
        shared = [i for i, fit in enumerate(fits) if fit]
        alone = [i for i, fit in enumerate(fits) if not fit]
        into = [rows[counted.keys[i]] for i in shared]
        self._sums()[into] = counted.sums[shared]
        self._maxes()[into, :MAXES] = counted.maxes[shared]
        self._maxes()[into, MAXES] = [STAGES.index(counted.stages[i]) for i in shared]
        if alone:
            self.rest = counted.select(alone)
            self.replan = float(any(name not in plan.distinct for _, name in self.rest.keys))

    def _sums(self) -> np.ndarray[Any, Any]:
        return self.sums[self._plan.world_size :].reshape(-1, SUMS)

    def _maxes(self) -> np.ndarray[Any, Any]:
        return self.maxes[HEADER:].reshape(-1, MAX_COLUMNS)

    def merged(self) -> Counted:
        """The merged rows after both all-reduces."""
        present = np.flatnonzero(self.sums[: self._plan.world_size] > 0).tolist()
        whole = len(present) == self._plan.world_size
        maxes = self._maxes()
        return Counted(
            list(self._keys),
            self._sums(),
            maxes[:, :MAXES],
            [self._plan.numel(name) for _, name in self._keys],
            ["" if whole else self._plan.covers(name, present) for _, name in self._keys],
            [STAGES[int(max(stage, 0))] for stage in maxes[:, MAXES]],
            len(present),
        )
