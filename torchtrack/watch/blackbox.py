"""The black box: norm, absmax and non-finite count of every gradient at optimizer steps, in a ring on the node.

    hooks (every step) -> one read of the gradients -> HostCopy -> journal.ring -> salvaged by the sidecar

Values are those of the gradients that lie on this rank, accumulated and averaged, before they are clipped. On an
accelerator nothing waits: a step is written when its copy has arrived, as a rule at the next one, and the count says
only whether there is any. Which steps are kept, and why not all by default: docs/adr/0009-black-box.md.
"""

from __future__ import annotations

import json
import math
import time
import weakref
from collections import deque
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import numpy as np
import torch
from torch import nn
from torch.optim.optimizer import Optimizer

from torchtrack import guard, records
from torchtrack.journal import ring
from torchtrack.watch import flight, hooks, kernels, layout, stacks
from torchtrack.watch.drain import HostCopy, snapshot
from torchtrack.watch.early import Early, Part
from torchtrack.watch.holdings import Holdings
from torchtrack.watch.layout import Held
from torchtrack.watch.schedule import Schedule

if TYPE_CHECKING:
    from torchtrack.recorder import Recorder

SHARE: Final = 0.003
"""Of the training time, what it may take unless it is told to look at every step."""
STALL_S: Final = 300.0
"""Without a step for so long, and for `_STALL_STEPS` times the usual, a run stalls: before collectives time out."""
_STALL_STEPS: Final = 30.0
_PENDING: Final = 8
"""So many steps may be on their way from the device; further ones are left out."""
_WINDOW: Final = 64
_SPIKE: Final = 8.0
"""A norm of so many times the median of the last `_WINDOW` is a spike; of the first quarter of them none is."""
_UNCLAIMED_CLIPS: Final = 8
"""So many clippings are looked at before any optimizer has stepped; a hand-written update has none."""
_UNSEEN: Final = 1.25
"""What a look costs in all, over what it measures of itself: the gradients it read push other data out of the caches,
and hooks are called (`benchmarks/blackbox.py`)."""
_NO_ROW: Final = (math.nan, math.nan, ring.ABSENT)
_UNSETTLED: Final = 2
"""So many steps tell nothing of what later ones take: memory is new, and code is loaded."""
_KEEPING_S: Final = 5.0
"""For so long the sidecar may yet have to copy what it was told to keep."""
_NAMED: Final = 8
_KEPT: Final = 4
"""How often what led up to a spike or a non-finite value is kept: the first ones say why."""


class Order(NamedTuple):
    """How a black box is to be kept."""

    stream: int
    """Of this process."""
    every: bool
    """Look at every step, whatever it costs."""
    about: dict[str, Any]
    """What the ring says of itself; see `journal.ring`."""
    keep: Callable[[str], None]
    """Has the last steps of all ranks of this node kept, for a reason such as "spike-120". Must not wait."""
    redact: Callable[[str], str]
    """Takes credentials out of a text."""


class _Taken:
    """What one step gave, until it has arrived on the host."""

    def __init__(self, number: int, step: int, *, skipped: bool) -> None:
        self.number, self.step, self.time_ns, self.skipped = number, step, time.time_ns(), skipped
        self.parts: list[Part] = []
        self.scale: HostCopy | None = None
        """What the gradients still have to be divided by."""
        self.found_inf: HostCopy | None = None
        """Not 0 if the optimizer leaves the step out by itself."""
        self.events: list[tuple[Any, Any]] = []

    def ready(self) -> bool:
        """Whether all of it is on the host."""
        copies = [part.copy for part in self.parts] + [
            copy for copy in (self.scale, self.found_inf) if copy is not None
        ]
        return all(copy.ready() for copy in copies)


class BlackBox:
    """Listens to every optimizer step. **Threads:** the training thread, but for `look`.

    Args:
        models: prefix and module of each watched model.
        recorder: whose step the records carry.
        ordinal: number of the watch.
        order: how it is to be kept.
        sampled: the schedule of the watch, whose samples are looked at in any case.
        include: patterns of names to watch.
        exclude: patterns of names to leave out.
    """

    def __init__(
        self,
        models: Sequence[tuple[str, nn.Module]],
        recorder: Recorder,
        ordinal: int,
        order: Order,
        sampled: Schedule,
        include: Sequence[str] = (),
        exclude: Sequence[str] = (),
    ) -> None:
        self.trains: Callable[[], bool] | None = None
        """As `Watcher.only_while` was told."""
        self._holdings = Holdings(models, include, exclude)
        self._recorder, self._ordinal, self._order = recorder, ordinal, order
        self.schedule = Schedule(1, None if order.every else SHARE)
        self._sampled = sampled
        self._known: weakref.WeakKeyDictionary[Optimizer, tuple[list[int], list[Held]]] = weakref.WeakKeyDictionary()
        self._round: weakref.WeakSet[Optimizer] = weakref.WeakSet()
        self._number, self._written = -1, -1
        self._due = False
        self._cost_s = self._ahead_s = self._spent_s = self._device_s = 0.0
        """What the step under way has cost, what its clipping did, what was spent since it began, on the device."""
        self._unclaimed = 0
        self._last_s = time.perf_counter()
        self._rows: dict[str, int] = {}
        self._ring: ring.Ring | None = None
        self._broken = False
        self._early = Early()
        self._pending: deque[_Taken] = deque()
        self._task = -1
        self._norms: deque[float] = deque(maxlen=_WINDOW)
        self._kept = self._quiet = 0
        self._kept_s = -math.inf
        self._unjudged: int | None = None
        self._squares = 0.0
        self._bad: set[int] = set()
        """Of the step that was written last: the squared norm of all, and the rows that are not finite."""
        self._lost = False
        """Whether that was told of the steps before it too."""
        self._stalled = False
        hooks.add(self)

    # -- hooks.Listener ---------------------------------------------------------------------------------------------

    def begin(self, optimizer: Optimizer) -> bool:
        """Count a step; True if it is looked at."""
        if self._broken or (self.trains is not None and not self.trains()):
            return False
        known = self._known.get(optimizer)
        if not (known[1] if known else self._held(optimizer)):
            return False
        if self._number < 0 or optimizer in self._round:
            self._next()
        self._round.add(optimizer)
        return self._due

    def gradients_final(self, optimizer: Optimizer) -> None:
        """Measure what the step uses."""
        self._take(optimizer, skipped=False)

    def skipped(self, optimizer: Optimizer) -> None:
        """A step that the scaler left out is one too: it is where the gradients are not finite."""
        if self.begin(optimizer):
            self._take(optimizer, skipped=True)

    def clipping(self, parameters: list[torch.Tensor]) -> hooks.Clipped | None:
        """Measure gradients before they are clipped, if the step they belong to is looked at."""
        if self._broken or (self.trains is not None and not self.trains()) or not self._is_due_next():
            return None
        begin = time.perf_counter()
        self._unclaimed += self._number < 0
        by_id = self._holdings.last or self._holdings.now()
        todo = self._early.missing([held for p in parameters for held in by_id.get(id(p), ())])
        if todo and self._name(by_id):
            self._early.measured(self._measure(todo, []))
        self._charge(begin)
        return self._clipped

    def stepped(self, optimizer: Optimizer) -> None:
        """Not of interest."""

    # -- which steps ------------------------------------------------------------------------------------------------

    def _next(self) -> None:
        """The next step begins."""
        self._judge()
        now = time.perf_counter()
        if self._due and self._number >= _UNSETTLED:
            self.schedule.sampled(_UNSEEN * max(self._cost_s, self._device_s))
            self.schedule.agree(self.schedule.wanted(), self.schedule.now)
        self.schedule.took(self._spent_s)
        self.schedule.began(now)
        self._last_s, self._spent_s, self._device_s = now, 0.0, 0.0
        self._cost_s, self._ahead_s = self._ahead_s, 0.0
        self._number += 1
        self._round.clear()
        self._due = self._is_due(self._number)

    def _is_due(self, number: int) -> bool:
        return self.schedule.is_due(number) or number % self._sampled.interval == 0

    def _is_due_next(self) -> bool:
        """Whether the step is looked at that what is clipped now belongs to."""
        if self._number < 0:
            return self._unclaimed < _UNCLAIMED_CLIPS
        if hooks.enclosing_optimizer() is not None:
            return self._due
        waiting = any(held and optimizer not in self._round for optimizer, (_, held) in self._known.items())
        return self._due if waiting else self._is_due(self._number + 1)

    def _held(self, optimizer: Optimizer) -> list[Held]:
        """What is watched of an optimizer's parameters; looked up anew when these are others."""
        stepped = [p for group in optimizer.param_groups for p in group["params"]]
        ids = [id(p) for p in stepped]
        known = self._known.get(optimizer)
        if known is None or known[0] != ids:
            by_id = self._holdings.now()
            self._name(by_id)
            held = [h for p in stepped for h in by_id.get(id(p), ()) if h.name in self._rows]
            known = self._known[optimizer] = ids, held
        return known[1]

    def _name(self, by_id: dict[int, list[Held]]) -> bool:
        """Give every tensor its row; with one that a model gets later the file is made anew, with what it held."""
        names = (held.name for several in by_id.values() for held in several)
        fresh = [name for name in dict.fromkeys(names) if name not in self._rows]
        self._rows |= {name: row for row, name in enumerate(fresh, len(self._rows))}
        if fresh and self._ring is not None and not self._broken:
            self._broken = not guard.attempt("the black box", self._widen, self._ring)
        return bool(self._rows)

    # -- measuring --------------------------------------------------------------------------------------------------

    def _take(self, optimizer: Optimizer, *, skipped: bool) -> None:
        begin, task = time.perf_counter(), hooks.backward_pass()
        if task is None:
            self._drain()
        held = self._held(optimizer)
        if held and self._open() and (taken := self._taken(skipped=skipped)) is not None:
            scale, found_inf = getattr(optimizer, "grad_scale", None), getattr(optimizer, "found_inf", None)
            taken.scale = snapshot(scale) if isinstance(scale, torch.Tensor) else None
            taken.found_inf = snapshot(found_inf) if isinstance(found_inf, torch.Tensor) else None
            parts, todo = self._early.take(held)
            taken.parts += parts
            taken.parts += [part for part, _ in self._measure(todo, taken.events)]
            if task is None:
                self._drain()
            elif task != self._task:  # each parameter has an optimizer of its own: one record for all of them
                self._task = task
                hooks.after_backward(self._drain)
        took = time.perf_counter() - begin
        self._spent_s += took
        self._cost_s += took

    def _taken(self, *, skipped: bool) -> _Taken | None:
        """The record of the step under way; None if too many are still on the device."""
        if self._pending and self._pending[-1].number == self._number:
            return self._pending[-1]
        if len(self._pending) >= _PENDING:
            return None
        self._pending.append(_Taken(self._number, self._recorder.step, skipped=skipped))
        return self._pending[-1]

    def _clipped(self, *_: object) -> None:
        """A clipping is over."""
        begin = time.perf_counter()
        self._early.clipped()
        self._charge(begin)

    def _charge(self, begin: float) -> None:
        """Count the time since then to the step that the clipping belongs to: as a rule the one to come."""
        took = time.perf_counter() - begin
        self._spent_s += took
        if hooks.enclosing_optimizer() is None:
            self._ahead_s += took
        else:
            self._cost_s += took

    @torch.no_grad()
    def _measure(self, held: Sequence[Held], events: list[tuple[Any, Any]]) -> list[tuple[Part, list[Held]]]:
        groups: dict[torch.device, tuple[list[Held], list[torch.Tensor]]] = {}
        for each in held:
            local = _local(each)
            if local is not None and each.name in self._rows:
                names, tensors = groups.setdefault(local.device, ([], []))
                names.append(each)
                tensors.append(local)
        measured = []
        for device, (names, tensors) in groups.items():
            timed = self.schedule.budget is not None and device.type != "cpu"
            before = _event(device) if timed else None
            copy = HostCopy(kernels.choose_norms(device)(tensors))
            if timed:
                events.append((before, _event(device)))
            part = Part([self._rows[each.name] for each in names], slice(None), copy)
            measured.append((part, names))
        return measured

    # -- writing ----------------------------------------------------------------------------------------------------

    def _open(self) -> bool:
        if self._ring is None and not self._broken:
            self._broken = not guard.attempt("the black box", self._make)
        return self._ring is not None

    def _widen(self, before: ring.Ring) -> None:
        """A ring with more rows, in the place of the one before."""
        self._ring = None
        records = ring.read(before.path.read_bytes())[1]
        before.close(remove=True)
        made = self._ring = ring.Ring(self._order.stream, self._ordinal, list(self._rows), self._order.about)
        for rows, write in [(r.rows, r) for r in records] + [(before.rows, None)]:
            made.rows[:] = _NO_ROW
            made.rows[: len(rows)] = rows
            if write is not None:
                made.write(write.number, write.step, write.time_ns, made.rows, skipped=write.skipped)

    def _make(self) -> None:
        made = ring.Ring(self._order.stream, self._ordinal, list(self._rows), self._order.about)
        try:
            stacks.begin(self._order.stream)
        except OSError:
            made.close(remove=True)
            raise
        self._ring = made

    def _drain(self) -> None:
        """Write what has arrived."""
        while self._pending and self._pending[0].ready():
            taken = self._pending.popleft()
            if self._ring is None:
                return
            out = self._ring.rows
            if taken.number != self._written:
                self._judge()
                self._squares, self._bad = 0.0, set()
                out[:] = _NO_ROW
                self._written = taken.number
            scale = 1.0 if taken.scale is None else taken.scale.value()
            for part in taken.parts:
                values = part.copy.numpy()[part.picks]
                norms, sizes = values[:, 0] / scale, values[:, 1] / scale
                bad = values[:, 2] if values.shape[1] > 2 else ~np.isfinite(values[:, 1])
                out["norm"][part.rows], out["absmax"][part.rows] = norms, sizes
                out["nonfinite"][part.rows] = np.minimum(bad, ring.ABSENT - 1)
                self._squares += float(norms @ norms)
                self._bad.update(np.asarray(part.rows)[bad > 0].tolist())
            skipped = taken.skipped or (taken.found_inf is not None and taken.found_inf.value() > 0)
            self._ring.write(taken.number, taken.step, taken.time_ns, out, skipped=skipped)
            self._device_s = sum(before.elapsed_time(behind) for before, behind in taken.events) / 1e3
            self._unjudged = None if skipped else taken.step

    def _judge(self) -> None:
        """Have the last steps kept if the one that was written last, whole by now, is where something began."""
        step, self._unjudged = self._unjudged, None
        if self._ring is None or step is None:
            return
        if self._bad and not self._lost:
            self._tell(step)
        self._lost = bool(self._bad)
        norm, known, self._quiet = math.sqrt(self._squares), self._norms, self._quiet - 1
        why = "nonfinite" if self._bad else ""
        if not why and len(known) >= _WINDOW // 4 and norm > _SPIKE * min(known) and norm > _SPIKE * np.median(known):
            why = "spike"
        if math.isfinite(norm):
            known.append(norm)
        if why and self._quiet <= 0 and self._kept < _KEPT:
            self._kept, self._quiet = self._kept + 1, ring.STEPS
            self._keep(f"{why}-{step}")

    def _tell(self, step: int) -> None:
        """Say which gradients are not finite, the last of the forward pass first: a sample may be far away."""
        names = [name for name, row in reversed(self._rows.items()) if row in self._bad]
        found = {"kind": "gradient", "first": names[0], "names": names[:_NAMED], "count": len(names)}
        event = {"time": time.time_ns() // 1000, "step": step, "type": "nonfinite_boxed", "json": json.dumps(found)}
        self._recorder.put(records.Table.EVENTS, lambda: event)

    def _keep(self, why: str) -> None:
        self._kept_s = time.perf_counter()
        self._order.keep(why)

    def look(self) -> None:
        """See whether training still steps; if not, write where it is. **Threads:** any, now and then."""
        idle_s = time.perf_counter() - self._last_s
        if self._ring is None or idle_s < max(STALL_S, _STALL_STEPS * self.schedule.step_s):
            self._stalled = False
        elif not self._stalled:
            self._stalled = True
            stacks.write(f"no optimizer step for {idle_s:.0f} s")
            flight.dump(self._order.stream)
            self._keep(f"stall-{self._recorder.step}")

    def stop(self, reason: str = "") -> None:
        """Stop listening.

        Args:
            reason: "exception" leaves the files for the sidecar, with stacks; "exit" leaves them, for it knows the
                exit code; all else removes them.
        """
        hooks.remove(self)
        self._holdings.forget()
        self.trains = None
        self._known.clear()
        self._early = Early()
        self._drain()
        self._pending.clear()
        made, self._ring = self._ring, None
        if made is None:
            return
        stays = reason in ("exception", "exit") or time.perf_counter() - self._kept_s < _KEEPING_S
        if reason == "exception":
            stacks.write("an exception ended the run", self._order.redact(stacks.last_error()))
            flight.dump(self._order.stream)
        stacks.end(remove=not stays)
        made.close(remove=not stays)


def _local(held: Held) -> torch.Tensor | None:
    """What lies here of a gradient, if it can be measured."""
    gradient = held.parameter.grad
    if gradient is None or not gradient.is_floating_point():
        return None
    if type(gradient) in layout.PLAIN and held.part is None:
        local = gradient
    elif layout.is_partial(gradient):
        return None
    else:
        local = held.local(gradient)
    return local if local.layout is torch.strided and local.numel() and not local.is_meta else None


def _event(device: torch.device) -> Any:
    module = torch.get_device_module(device.type)
    event = module.Event(enable_timing=True)
    event.record(module.current_stream(device))
    return event
