"""What a step changes: parameters kept before it, and the difference counted after it.

Not all of them are kept: `KEPT_ELEMENTS` bounds the memory, and the parameters of an optimizer take turns from one of
its samples to the next. Whose turn it is has to be the same on all ranks that share a tensor: under a plan it is part
of the plan, and without one it follows from the sizes of what lies here.
"""

from __future__ import annotations

import weakref
from collections.abc import Mapping, Sequence
from typing import Final, NamedTuple

import numpy as np
import torch
from torch.optim.optimizer import Optimizer

from torchtrack.watch import kernels
from torchtrack.watch.drain import HostCopy
from torchtrack.watch.layout import Held
from torchtrack.watch.place import Place, elements, place_of
from torchtrack.watch.plan import KEPT_ELEMENTS, Plan, Turns, take_turns
from torchtrack.watch.sample import Part

_WIDE: Final = (torch.float32, torch.float64)


class Kept(NamedTuple):
    """Elements of a parameter as they were before the step, in float32 or float64."""

    held: Held
    place: Place
    before: torch.Tensor


class Updates:
    """Chooses what to keep before a sampled step, and counts what the step did to it."""

    def __init__(self) -> None:
        self._samples: weakref.WeakKeyDictionary[Optimizer, int] = weakref.WeakKeyDictionary()

    @torch.no_grad()
    def keep(self, optimizer: Optimizer, own: Sequence[Held], plan: Plan | None) -> list[Kept]:
        """Copy those of an optimizer's parameters whose turn it is, and whose step has a gradient to use."""
        number = self._samples.get(optimizer, 0)
        self._samples[optimizer] = number + 1
        here: dict[str, tuple[Held, torch.Tensor, Place]] = {}
        for held in own:
            local = held.local(held.parameter)
            if _is_countable(local):
                here[held.name] = held, local, place_of(held, held.parameter, local, plan)
        turns = _turns({name: place for name, (_, _, place) in here.items()}, plan)
        kept = []
        for name, piece in _whose_turn(turns, number):
            held, local, place = here[name]
            place = place.piece(piece, turns[name][1])
            if held.parameter.grad is not None and place.cut[0] < place.cut[1]:
                view = elements(local, place.cut)[0]
                wide = view.dtype if view.dtype in _WIDE else torch.float32
                kept.append(Kept(held, place, view.to(wide, copy=True)))
        return kept


@torch.no_grad()
def changes(kept: Sequence[Kept]) -> list[Part]:
    """Count parameters minus what was kept of them, which is overwritten: one kernel call a device."""
    parts: dict[torch.device, tuple[Part, list[torch.Tensor]]] = {}
    for held, place, before in kept:
        local = held.local(held.parameter)
        after = elements(local, place.cut)[0]
        if after.shape != before.shape or after.device != before.device:
            continue  # the step put another tensor in its place
        torch.sub(after if after.element_size() > 1 else after.float(), before, out=before)
        part, views = parts.setdefault(before.device, (Part("step"), []))
        part.rows.append((("update", held.name), place))
        views.append(before)
    for device, (part, views) in parts.items():
        counts, moments = kernels.choose(device)(views, None)
        part.counts, part.moments = HostCopy(counts), HostCopy(moments)
    return [part for part, _ in parts.values()]


def _is_countable(local: torch.Tensor) -> bool:
    return local.is_floating_point() and local.layout is torch.strided and local.device.type != "meta"


def _turns(places: Mapping[str, Place], plan: Plan | None) -> Turns:
    """The turn of every name: as planned, or by what lies here, beginning with what room the last planned turn has."""
    planned = {name: plan.turns[name] for name in places if name in plan.turns} if plan is not None else {}
    sizes = {name: place.cut[1] - place.cut[0] for name, place in places.items()}
    last = max((turn + pieces - 1 for turn, pieces in planned.values()), default=0)
    load = sum(-(-sizes[name] // n) for name, (turn, n) in planned.items() if turn + n - 1 == last)
    here = [name for name in sizes if name not in planned]
    table = np.array([[sizes[name]] for name in here], np.int64).reshape(-1, 1)
    return {**planned, **take_turns(here, table, KEPT_ELEMENTS, last, load)}


def _whose_turn(turns: Turns, number: int) -> list[tuple[str, int]]:
    """(name, piece) of what is kept at one sample of an optimizer."""
    by_turn: dict[int, list[tuple[str, int]]] = {}
    for name, (first, pieces) in turns.items():
        for piece in range(pieces):
            by_turn.setdefault(first + piece, []).append((name, piece))
    order = sorted(by_turn)
    return by_turn[order[number % len(order)]] if order else []
