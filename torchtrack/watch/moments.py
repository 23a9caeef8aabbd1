"""What an optimizer remembers of a parameter: the tensors of its state that are shaped as the parameter."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch.optim.optimizer import Optimizer


def moments(optimizer: Optimizer, parameter: torch.Tensor) -> Iterator[tuple[str, torch.Tensor]]:
    """(key, tensor) of each moment: `exp_avg`, `exp_avg_sq`, `momentum_buffer` and the like; none before a first step.

    The count of steps is none, though it is shaped as a parameter without dimensions.
    """
    for key, value in optimizer.state.get(parameter, {}).items():
        if isinstance(value, torch.Tensor) and key != "step" and value.shape == parameter.shape:
            yield key, value
