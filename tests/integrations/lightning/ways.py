"""Ways to train on two ranks, and Lightning's options for each."""

from __future__ import annotations

from typing import Any, Final

import lightning as L
import torch
from lightning.pytorch.plugins.precision import MixedPrecision
from lightning.pytorch.strategies import ModelParallelStrategy
from torch import nn

from tests.integrations.lightning.models import Automatic, Clipped, FSDPOnCPU, Manual, Sharded, ShardedManual
from tests.integrations.plain import CLIP, Way
from torchtrack_lightning import TorchtrackCallback

WAYS: Final = {
    way.name: way
    for way in (
        Way("ddp", accumulate=3, clip="norm"),  # 8 batches a rank: the third step has two
        Way("resumed", accumulate=3, clip="norm", epochs=2),
        Way("value", clip="value"),
        Way("manual", parts=(("g", 0.1), ("d", 0.2)), clip="norm", clipped="d"),
        Way("bf16", clip="norm", dtype=torch.bfloat16),
        Way("fp16", clip="norm", dtype=torch.float16, scaled=True),
        Way("fsdp", accumulate=2, clip="norm"),
        Way("fsdp_value", clip="value"),
        Way("fsdp2", accumulate=2, clip="norm", every_batch=True),
        Way("fsdp2_resumed", accumulate=2, clip="norm", every_batch=True, epochs=2),
        Way("fsdp2_manual", parts=(("g", 0.1), ("d", 0.2)), clip="norm", clipped="d"),
        Way("fsdp2_bf16", clip="norm", dtype=torch.bfloat16),
        Way("fabric", accumulate=2, clip="norm"),
        Way("fabric_fsdp2", accumulate=2, clip="norm"),
    )
}


def module(way: Way) -> L.LightningModule:
    made: dict[str, type[L.LightningModule]] = {"manual": Manual, "fsdp": Clipped, "fsdp2_manual": ShardedManual}
    return made.get(way.name, Sharded if way.name.startswith("fsdp2") else Automatic)()


def options(way: Way) -> dict[str, Any]:
    """Arguments of the Trainer."""
    found: dict[str, Any] = {"strategy": "ddp", "accumulate_grad_batches": way.accumulate}
    if way.clip and not way.clipped:
        found |= {"gradient_clip_val": CLIP, "gradient_clip_algorithm": way.clip}
    if way.name.startswith("fsdp"):
        found["strategy"] = FSDPOnCPU(auto_wrap_policy={nn.Linear})
    if way.name.startswith("fsdp2"):
        found["strategy"] = ModelParallelStrategy(data_parallel_size=2, tensor_parallel_size=1)
    if way.name == "manual":  # each backward pass is of one of the two networks
        found["strategy"] = "ddp_find_unused_parameters_true"
    if way.dtype is torch.bfloat16:
        found["precision"] = "bf16-mixed"
    if way.name == "fp16":  # Trainer(precision="16-mixed") makes this bf16-mixed on a CPU
        found["plugins"] = MixedPrecision("16-mixed", "cpu")
    return found


def callback() -> TorchtrackCallback:
    return TorchtrackCallback(log_freq=1)
