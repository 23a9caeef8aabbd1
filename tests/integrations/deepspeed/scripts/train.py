"""A user's script on two ranks: `train.py RUNS` trains at each stage of ZeRO on a CPU, each a run of its own."""

from __future__ import annotations

import sys
from typing import Any

import deepspeed
import torch
import torch.distributed as dist
from torch import Tensor, nn

import torchtrack
import torchtrack_deepspeed
from tests.integrations.deepspeed.ways import CLIPPED, WAYS
from tests.integrations.plain import BATCH, CLIP, Way, network, samples


class Model(nn.Module):
    """The network, and its loss."""

    def __init__(self) -> None:
        super().__init__()
        self.net = network()

    def forward(self, batch: Tensor) -> Tensor:
        return torch.as_tensor(self.net(batch).square().mean())


def train(way: Way, runs: str) -> None:
    config: dict[str, Any] = {
        "train_micro_batch_size_per_gpu": BATCH,
        "gradient_accumulation_steps": way.accumulate,
        "zero_allow_untested_optimizer": True,
        "zero_optimization": {"stage": int(way.name[-1])},
        "gradient_clipping": CLIP if way.name in CLIPPED else 0.0,
        "bf16": {"enabled": way.dtype is not None},
        "steps_per_print": 1000,
    }
    model = Model()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    engine, *_ = deepspeed.initialize(model=model, optimizer=optimizer, config=config)
    run = torchtrack.init(project=way.name, dir=runs, system_interval=0)
    torchtrack_deepspeed.watch(run, engine, log_freq=1)
    for batch in samples()[dist.get_rank() :: way.ranks].split(BATCH):
        loss = engine(batch.to(way.dtype or batch.dtype))
        engine.backward(loss)
        steps = engine.is_gradient_accumulation_boundary()
        engine.step()
        if steps:
            run.log({"loss": loss, "norm": float(engine.get_global_grad_norm() or 0.0)})
    run.finish()


if __name__ == "__main__":
    deepspeed.init_distributed("gloo")
    for way in WAYS.values():
        train(way, sys.argv[1])
    dist.destroy_process_group()
