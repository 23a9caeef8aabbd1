"""The opt-in merge on the device: over the backend that training uses, with the two methods of `Group`.

Not the default, since it can harm training. NCCL wants the collectives of all groups in one order, which a thread
beside training does not keep by itself, and a collective that some rank does not join ends the process when the
watchdog finds it, ten minutes later. Whoever opts in says that all ranks take every sample.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist

from torchtrack.watch.drain import HostCopy
from torchtrack.watch.group import SLAB_BYTES, finish


class DeviceGroup:
    """All-reduces of float64 tensors by the default backend of a device.

    **Threads:** made on the training thread, in `watch`, on all ranks in the same order, since `new_group` is
    collective and may wait for them; used by the merge thread, which polls.

    Args:
        device: where tensors are reduced.
        give_up: asked while waiting; True ends the wait with TimeoutError.

    Raises:
        ValueError: torch.distributed is not initialised.
    """

    def __init__(self, device: torch.device, give_up: Callable[[], bool]) -> None:
        self.rank, self.world_size = dist.get_rank(), dist.get_world_size()
        self._device, self._give_up = device, give_up
        self._group = dist.new_group()
        self._stream: Any = None
        if device.type != "cpu":
            self._stream = torch.get_device_module(device.type).Stream(device)  # not behind what training has queued
        self._pending: Any = None
        """What an all-reduce works on, until it has ended well."""

    @property
    def broken(self) -> bool:
        """Whether an all-reduce has failed. Another would meet the rest of it on ranks that come late."""
        return self._pending is not None

    def all_reduce(self, tensor: torch.Tensor, op: str, timeout_s: float) -> None:
        """Reduce a contiguous tensor in place, in slabs of at most 8 MiB. After a failure its content is undefined.

        Args:
            tensor: float64, on the CPU.
            op: "sum" or "max".
            timeout_s: for all of it.

        Raises:
            RuntimeError: a rank was lost, or the group is `broken`.
            TimeoutError: a rank did not come in time.
        """
        if self.broken:
            raise RuntimeError("an earlier merge on the device has failed, and its group cannot be used again")
        deadline = time.monotonic() + timeout_s
        reduce_op = dist.ReduceOp.SUM if op == "sum" else dist.ReduceOp.MAX
        for slab in tensor.view(-1).split(SLAB_BYTES // 8):
            with self._beside():
                moved = slab.to(self._device, non_blocking=True)
                work = dist.all_reduce(moved, reduce_op, group=self._group, async_op=True)
                self._pending = (work, moved)
                finish(work.is_completed, deadline, self._give_up)
                work.wait()
                copy = HostCopy(moved)
            finish(copy.ready, deadline, self._give_up)
            slab.copy_(torch.from_numpy(copy.numpy()))
            self._pending = None

    def close(self) -> None:
        """Nothing: the group ends with the user's `destroy_process_group`, and until then may be used again."""

    def _beside(self) -> contextlib.AbstractContextManager[Any]:
        if self._stream is None:
            return contextlib.nullcontext()
        stream: contextlib.AbstractContextManager[Any] = torch.get_device_module(self._device.type).stream(self._stream)
        return stream
