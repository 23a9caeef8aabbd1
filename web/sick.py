"""The example's training with a fault, for the picture of what the page shows of one: a NaN in one layer of rank 1.

torchrun --standalone --nproc-per-node=2 web/sick.py max_steps=92 log_freq=2
"""

from __future__ import annotations

import itertools
import os
import runpy
from pathlib import Path

import torch
from torch import nn

EXAMPLE = Path(__file__).resolve().parents[1] / "examples" / "ddp" / "train.py"
LAYER = "blocks.2.mlp.2"
RANK = 1
AT = 160
"""Of the layer's backward passes, of which a step has two."""


def fault() -> None:
    """From then on the layer's gradient holds a NaN on one rank, before ranks are averaged."""
    passes = itertools.count()

    def spoil(gradient: torch.Tensor) -> torch.Tensor:
        return gradient.index_fill(0, torch.tensor([7]), float("nan")) if next(passes) >= AT else gradient

    found: list[nn.Module] = []

    def look(module: nn.Module, inputs: tuple[torch.Tensor, ...]) -> None:
        del inputs
        if type(module).__name__ == "GPT" and not found:
            found.append(module)
            weight: torch.Tensor = module.get_submodule(LAYER).get_parameter("weight")
            weight.register_hook(spoil)  # type: ignore[no-untyped-call]

    nn.modules.module.register_module_forward_pre_hook(look)


if __name__ == "__main__":
    if os.environ.get("RANK") == str(RANK):
        fault()
    runpy.run_path(str(EXAMPLE), run_name="__main__")
