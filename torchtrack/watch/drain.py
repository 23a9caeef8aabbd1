"""From the device to the host without a synchronisation: the only place where watch crosses that border.

On an accelerator the copy goes to pinned memory on the current stream and an event behind it is polled. On the CPU the
numbers are there at once. Never waits: who needs the numbers asks `ready` and comes back.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch


class Known:
    """A number that is on the host already, beside those that are on their way."""

    __slots__ = ("_number",)

    def __init__(self, number: float) -> None:
        self._number = number

    def ready(self) -> bool:
        """Always."""
        return True

    def value(self) -> float:
        """The number."""
        return self._number


class HostCopy:
    """A tensor on its way to the host.

    Args:
        tensor: owned by the caller of this class: nobody writes to it any more (a fresh result or a clone).
    """

    __slots__ = ("_event", "_host")

    def __init__(self, tensor: torch.Tensor) -> None:
        self._event: Any = None
        self._host = tensor
        if tensor.device.type != "cpu":
            self._host = torch.empty(tensor.shape, dtype=tensor.dtype, device="cpu", pin_memory=True)
            self._host.copy_(tensor, non_blocking=True)
            self._event = torch.get_device_module(tensor.device.type).Event()
            self._event.record(torch.get_device_module(tensor.device.type).current_stream(tensor.device))

    @property
    def is_here(self) -> bool:
        """Whether the tensor lay on the host already."""
        return self._event is None

    def ready(self) -> bool:
        """Whether the numbers have arrived."""
        return self._event is None or bool(self._event.query())

    def numpy(self) -> np.ndarray[Any, Any]:
        """The numbers, once `ready`; float64 for floating tensors."""
        host = self._host.detach()
        return (host.double() if host.is_floating_point() else host).numpy()

    def value(self) -> float:
        """The number of a tensor with one element, once `ready`."""
        return float(self._host.item())


def snapshot(tensor: torch.Tensor) -> HostCopy:
    """A copy of a tensor that the user goes on using: cloned at once on its stream, resolved later."""
    return HostCopy(tensor.detach().clone())
