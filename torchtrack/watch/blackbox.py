"""The black box: norm, absmax and non-finite count of every gradient at every optimizer step, in a ring on the node.

    hooks (every step) -> two multi-tensor launches -> HostCopy -> journal.ring -> salvaged by the sidecar

Values are those of the gradients that lie on this rank, as the step uses them. On an accelerator nothing waits: a step
is written when its copy has arrived, as a rule at the next one, and the count says only whether there is any.
"""

from __future__ import annotations

import faulthandler
import os
import signal
import sys
import time
import traceback
import weakref
from collections import deque
from collections.abc import Sequence
from typing import IO, TYPE_CHECKING, Any, Final, NamedTuple

import numpy as np
import torch
from torch import nn
from torch.optim.optimizer import Optimizer

from torchtrack import guard
from torchtrack.journal import ring
from torchtrack.watch import hooks, layout
from torchtrack.watch.drain import HostCopy
from torchtrack.watch.holdings import Holdings
from torchtrack.watch.layout import Held

if TYPE_CHECKING:
    from torchtrack.recorder import Recorder

_PENDING: Final = 8
"""So many steps may be on their way from the device; further ones are left out."""


class _Taken(NamedTuple):
    """What one optimizer step gave: rows and, for each device, norms and absolute maxima."""

    number: int
    step: int
    time_ns: int
    measured: list[tuple[list[int], HostCopy, list[torch.Tensor]]]

    def ready(self) -> bool:
        """Whether it is on the host."""
        return all(copy.ready() for _, copy, _ in self.measured)


class BlackBox:
    """Listens to every optimizer step. **Threads:** the training thread.

    Args:
        models: prefix and module of each watched model.
        recorder: whose step the records carry.
        stream: of this process.
        ordinal: number of the watch.
        rank: of this process, as the flight recorder of PyTorch names its file.
        include: patterns of names to watch.
        exclude: patterns of names to leave out.
    """

    def __init__(
        self,
        models: Sequence[tuple[str, nn.Module]],
        recorder: Recorder,
        stream: int,
        ordinal: int,
        rank: int,
        include: Sequence[str] = (),
        exclude: Sequence[str] = (),
    ) -> None:
        self._holdings = Holdings(models, include, exclude)
        self._recorder = recorder
        self._place = stream, ordinal
        trace = os.environ.get("TORCH_NCCL_DEBUG_INFO_TEMP_FILE", "/tmp/nccl_trace_rank_")  # noqa: S108
        self._about = {"flight_recorder": f"{trace}{rank}", "start_ns": time.time_ns()}
        self._known: weakref.WeakKeyDictionary[Optimizer, tuple[list[int], list[Held]]] = weakref.WeakKeyDictionary()
        self._round: weakref.WeakSet[Optimizer] = weakref.WeakSet()
        self._number = -1
        self._written = -1
        self._rows: dict[str, int] = {}
        self._ring: ring.Ring | None = None
        self._broken = False
        self._pending: deque[_Taken] = deque()
        self._stacks: IO[bytes] | None = None
        self._handler: Any = None
        hooks.add(self)

    # -- hooks.Listener ---------------------------------------------------------------------------------------------

    def begin(self, optimizer: Optimizer) -> bool:
        """Every step is looked at."""
        del optimizer
        return not self._broken

    def gradients_final(self, optimizer: Optimizer) -> None:
        """Measure what the step uses."""
        self._drain()
        held = self._held(optimizer)
        if not held or not self._open():
            return
        if optimizer in self._round or self._number < 0:
            self._number += 1
            self._round.clear()
        self._round.add(optimizer)
        if len(self._pending) < _PENDING:
            self._pending.append(_Taken(self._number, self._recorder.step, time.time_ns(), self._measure(held)))
        self._drain()

    def skipped(self, optimizer: Optimizer) -> None:
        """A step that the scaler left out is one too: it is where the gradients are not finite."""
        self.gradients_final(optimizer)

    def clipping(self, parameters: list[torch.Tensor]) -> hooks.Clipped | None:
        """Not of interest."""

    def stepped(self, optimizer: Optimizer) -> None:
        """Not of interest."""

    # -- inside -----------------------------------------------------------------------------------------------------

    def _held(self, optimizer: Optimizer) -> list[Held]:
        """What is watched of an optimizer's parameters; looked up anew when these are others."""
        stepped = [p for group in optimizer.param_groups for p in group["params"]]
        ids = [id(p) for p in stepped]
        known = self._known.get(optimizer)
        if known is None or known[0] != ids:
            by_id = self._holdings.now()
            if not self._rows:
                names = [held.name for several in by_id.values() for held in several]
                self._rows = {name: row for row, name in enumerate(names)}
            held = [h for p in stepped for h in by_id.get(id(p), ()) if h.name in self._rows]
            known = self._known[optimizer] = ids, held
        return known[1]

    def _open(self) -> bool:
        if self._ring is None and not self._broken:
            self._broken = not guard.attempt("the black box", self._make)
        return self._ring is not None

    def _make(self) -> None:
        stream, ordinal = self._place
        self._ring = made = ring.Ring(stream, ordinal, list(self._rows), self._about)
        path = made.path.with_suffix(".stacks")
        self._stacks = os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600), "wb", 0)
        self._handler = signal.getsignal(signal.SIGTERM)
        faulthandler.register(signal.SIGTERM, self._stacks, all_threads=True, chain=True)

    @torch.no_grad()
    def _measure(self, held: Sequence[Held]) -> list[tuple[list[int], HostCopy, list[torch.Tensor]]]:
        groups: dict[torch.device, tuple[list[int], list[torch.Tensor]]] = {}
        for each in held:
            gradient = each.parameter.grad
            if gradient is None or not gradient.is_floating_point() or layout.is_partial(gradient):
                continue
            local = each.local(gradient)
            if local.layout is torch.strided and local.numel() and not local.is_meta:
                rows, tensors = groups.setdefault(local.device, ([], []))
                rows.append(self._rows[each.name])
                tensors.append(local)
        measured = []
        for device, (rows, tensors) in groups.items():
            norms, largest = torch._foreach_norm(tensors, 2), torch._foreach_norm(tensors, float("inf"))
            packed = torch.stack([*norms, *largest]) if _one_type(norms) else _stacked([*norms, *largest])
            measured.append((rows, HostCopy(packed), tensors if device.type == "cpu" else []))
        return measured

    def _drain(self) -> None:
        while self._pending and self._pending[0].ready():
            taken = self._pending.popleft()
            if self._ring is None:
                return
            out = self._ring.rows
            if taken.number != self._written:
                out[:] = (np.nan, np.nan, ring.ABSENT)
                self._written = taken.number
            for rows, copy, tensors in taken.measured:
                norms, largest = copy.numpy().reshape(2, -1)
                out["norm"][rows], out["absmax"][rows] = norms, largest
                broken = np.flatnonzero(~np.isfinite(largest))
                out["nonfinite"][rows] = 0
                for i in broken.tolist():
                    out["nonfinite"][rows[i]] = _nonfinite(tensors[i]) if tensors else 1
            self._ring.write(taken.number, taken.step, taken.time_ns, out)

    def stop(self, *, keep: bool = False) -> None:
        """Stop listening. The files are removed, or kept with the stacks of all threads for the sidecar."""
        hooks.remove(self)
        self._holdings.forget()
        self._known.clear()
        self._drain()
        self._pending.clear()
        made, self._ring = self._ring, None
        stacks, self._stacks = self._stacks, None
        if made is None:
            return
        if stacks is not None:
            if signal.getsignal(signal.SIGTERM) is self._handler:  # else it would take the user's away
                faulthandler.unregister(signal.SIGTERM)
            if keep:
                error = sys.exc_info()[1] or getattr(sys, "last_value", None)
                stacks.write("".join(traceback.format_exception(error)).encode() if error is not None else b"")
                faulthandler.dump_traceback(stacks, all_threads=True)
            stacks.close()
        if not keep:
            made.path.with_suffix(".stacks").unlink(missing_ok=True)
        made.close(remove=not keep)


def _one_type(tensors: Sequence[torch.Tensor]) -> bool:
    return all(tensor.dtype is tensors[0].dtype for tensor in tensors)


def _stacked(tensors: Sequence[torch.Tensor]) -> torch.Tensor:
    return torch.stack([tensor.float() for tensor in tensors])


@torch.no_grad()
def _nonfinite(tensor: torch.Tensor) -> int:
    return min(int(tensor.numel() - torch.isfinite(tensor).sum()), ring.ABSENT - 1)
