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
from lightning.fabric.strategies.model_parallel import ModelParallelStrategy as FabricModelParallelStrategy
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.strategies import ModelParallelStrategy
from lightning.pytorch.tuner.tuning import Tuner
from torch import nn

import torchtrack
from tests.integrations.lightning.models import QUIET, loader, shard
from tests.integrations.lightning.ways import WAYS, callback, module, options
from tests.integrations.plain import BATCH, CLIP, Way, network, samples
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
    (everything if way.name in ("ddp", "fsdp2") else L.Trainer.fit)(trainer, module(way))


def everything(trainer: L.Trainer, model: L.LightningModule) -> None:
    """All that a Trainer does, but what Lightning cannot: it finds no batch size on ranks, and no rate on shards."""
    if not isinstance(trainer.strategy, ModelParallelStrategy):
        Tuner(trainer).lr_find(model, num_training=5, max_lr=0.1, update_attr=False)
    trainer.fit(model, val_dataloaders=loader())
    trainer.validate(model, loader(), verbose=False)
    trainer.test(model, loader(), verbose=False)
    trainer.predict(model, loader())


def resumed(way: Way) -> None:
    """An epoch, then the others from its checkpoint."""
    for epochs in (1, way.epochs):
        saved = Path(f"saved_{way.name}") / "last.ckpt"
        trainer = L.Trainer(
            **TRAINER | options(way),
            max_epochs=epochs,
            logger=TorchtrackLogger(project=way.name, id=f"mine_{way.name}", system_interval=0),
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


def sharded(holder: Holder, mesh: Any) -> Holder:
    shard(holder.net, mesh)
    return holder


def fabric(way: Way) -> None:
    logger = TorchtrackLogger(project=way.name, system_interval=0)
    strategy: Any = "ddp" if way.name == "fabric" else FabricModelParallelStrategy(sharded, 2, 1)
    made = Fabric(accelerator="cpu", devices=2, strategy=strategy, loggers=logger)
    made.launch()
    model = made.setup_module(Holder())
    optimizer: Any = made.setup_optimizers(torch.optim.SGD(model.parameters(), lr=0.1))
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
        by = fabric if name.startswith("fabric") else resumed if name.endswith("resumed") else train
        by(WAYS[name])
        torchtrack.finish()
