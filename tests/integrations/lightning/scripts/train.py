"""A user's script: `train.py WAY...` trains in these ways one after another, each a run of its own.

Lightning's launcher starts the second rank at the first of them, unless torchrun has.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.fabric import Fabric
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import nn

import torchtrack
from tests.integrations.lightning.models import QUIET, loader
from tests.integrations.lightning.plain import BATCH, CLIP, Way, network, samples
from tests.integrations.lightning.ways import WAYS, callback, module, options
from torchtrack_lightning import TorchtrackLogger

TRAINER: dict[str, Any] = {"devices": 2, "log_every_n_steps": 1, "use_distributed_sampler": False, **QUIET}


def train(way: Way) -> None:
    trainer = L.Trainer(
        **TRAINER | options(way),
        max_epochs=way.epochs,
        logger=TorchtrackLogger(project=way.name, system_interval=0),
        callbacks=[callback()],
        enable_checkpointing=False,
    )
    model = module(way)
    trainer.fit(model, val_dataloaders=loader() if way.name == "ddp" else None)
    if way.name == "ddp":
        trainer.test(model, loader(), verbose=False)


def resumed(way: Way) -> None:
    """An epoch, then the others from its checkpoint."""
    for epochs in (1, way.epochs):
        saved = Path("saved") / "last.ckpt"
        trainer = L.Trainer(
            **TRAINER | options(way),
            max_epochs=epochs,
            logger=TorchtrackLogger(project=way.name, id="mine", system_interval=0),
            callbacks=[callback(), ModelCheckpoint(dirpath=saved.parent, save_last=True)],
        )
        trainer.fit(module(way), ckpt_path=saved if epochs > 1 else None)
        torchtrack.finish()


class Holder(nn.Module):
    """What the network is called in the modules of the Trainer."""

    def __init__(self) -> None:
        super().__init__()
        self.net = network()

    def forward(self, batch: torch.Tensor) -> torch.Tensor:
        return torch.as_tensor(self.net(batch))


def fabric(way: Way) -> None:
    logger = TorchtrackLogger(project=way.name, system_interval=0)
    made = Fabric(accelerator="cpu", devices=2, strategy="ddp", loggers=logger)
    made.launch()
    holder = Holder()
    model, optimizer = made.setup(holder, torch.optim.SGD(holder.parameters(), lr=0.1))
    logger.experiment.watch(model, log_freq=1)
    for index, batch in enumerate(samples()[made.global_rank :: 2].split(BATCH)):
        last = (index + 1) % way.accumulate == 0
        with made.no_backward_sync(model, enabled=not last):
            loss = model(batch).square().mean()
            made.backward(loss / way.accumulate)
        if last:
            made.clip_gradients(model, optimizer, max_norm=CLIP)
            optimizer.step()
            optimizer.zero_grad()
            made.log_dict({"loss": loss, "rank": float(made.global_rank)}, step=index // way.accumulate)


if __name__ == "__main__":
    for name in sys.argv[1:]:
        {"resumed": resumed, "fabric": fabric}.get(name, train)(WAYS[name])
        torchtrack.finish()
