"""Kernels: from a list of tensors to the counts and moments of each, in one read of the data.

A kernel is called as `kernel(tensors, multiplier)`.

- `tensors`: 1-D floating tensors on one device, of any mix of float32, bfloat16, float16, float64 and float8; they may
  require grad, be empty or strided. They are never changed.
- `multiplier`: None, or a 0-dim tensor on the same device; each element is multiplied by it, in float32 (float64 for
  float64), before anything else is read off it.
- It returns float64 `[n, 328]`, whole numbers, the counts of `torchtrack.histogram`, and float64 `[n, 4]`, the sum, sum
  of squares, min and max of the finite elements (0, 0, +inf, -inf if there are none), both on the tensors' device.
- The sum is good to 1e-7 of the sum of the magnitudes, the sum of squares to 1e-7, min and max are exact.
- **On an accelerator it never waits for the device** and its temporaries are bounded whatever the tensors' size.
- It records no autograd graph, draws no random numbers, and works under `torch.use_deterministic_algorithms(True)`.
- **It is called from one thread at a time per device, on that device's current stream.** It keeps no state.

`torchtrack.testing.kernels` is the suite that every kernel passes.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import torch

from torchtrack.watch.kernels import reference


class Kernel(Protocol):
    """What computes the statistics; the contract is this module's docstring."""

    def __call__(
        self, tensors: Sequence[torch.Tensor], multiplier: torch.Tensor | None = None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Counts float64 [n, 328] and moments float64 [n, 4] of n tensors."""
        ...


def choose(device: torch.device) -> Kernel:  # noqa: ARG001  # every device has the reference kernel only
    """The fastest kernel there is for a device."""
    return reference.statistics
