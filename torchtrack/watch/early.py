"""Gradients that a black box measured before they were clipped, and whether these are still what the step uses."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

from torchtrack.watch import layout
from torchtrack.watch.drain import HostCopy
from torchtrack.watch.layout import Held


class Part(NamedTuple):
    """What was measured in one go: the rows, which of the results are theirs, and the results."""

    rows: list[int]
    picks: list[int] | slice
    copy: HostCopy


class _Clipped(NamedTuple):
    """Gradients as they were before a clipping, and how to tell that nothing has happened to each since."""

    part: Part
    held: list[Held]
    marks: list[tuple[int, int]]


class Early:
    """What was measured since the last step. **Threads:** the training thread."""

    def __init__(self) -> None:
        self._every: list[_Clipped] = []

    def missing(self, held: Sequence[Held]) -> list[Held]:
        """Which have yet to be measured: a second clipping finds those of the first one clipped already."""
        self._every = [early for early in self._every if early.marks == _marks(early.held)]
        already = {id(h) for early in self._every for h in early.held}
        return [h for h in held if id(h) not in already]

    def measured(self, found: Iterable[tuple[Part, list[Held]]]) -> None:
        """They are about to be clipped."""
        self._every += [_Clipped(part, held, []) for part, held in found]

    def clipped(self) -> None:
        """A clipping is over: how the gradients are now that were measured before it, or before an earlier one."""
        self._every = [early._replace(marks=_marks(early.held)) for early in self._every]

    def take(self, held: list[Held]) -> tuple[list[Part], list[Held]]:
        """What there is of the gradients that a step uses, if they have not changed since; those left to measure."""
        if not self._every:
            return [], held
        every, self._every = self._every, []
        if len(every) == 1 and every[0].held == held and every[0].marks == _marks(held):
            return [every[0].part], []
        parts, wanted = [], {id(h) for h in held}
        for early in every:
            now = _marks(early.held)
            mine = [i for i, h in enumerate(early.held) if id(h) in wanted and early.marks[i : i + 1] == [now[i]]]
            parts.append(early.part._replace(rows=[early.part.rows[i] for i in mine], picks=mine))
            wanted -= {id(early.held[i]) for i in mine}
            if any(id(h) not in wanted and i not in mine for i, h in enumerate(early.held)):
                self._every.append(early)  # of other optimizers too
        return parts, [h for h in held if id(h) in wanted]


def _marks(held: Sequence[Held]) -> list[tuple[int, int]]:
    """Tells gradients that something has happened to from those as they were; it may err only over freed ones."""
    marks = []
    for each in held:
        gradient = each.parameter.grad
        if gradient is None or gradient.is_inference():
            marks.append((0, 0))
        elif type(gradient) in layout.PLAIN or not layout.is_dtensor(gradient):
            marks.append((id(gradient), gradient._version))
        else:
            marks.append((id(gradient), layout.local_part(gradient)._version))
    return marks
