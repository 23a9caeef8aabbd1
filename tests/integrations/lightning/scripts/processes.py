"""A user's script whose ranks are processes that Lightning makes of this one: `processes.py forked`, or `spawned`."""

from __future__ import annotations

import sys
from typing import Any

import lightning as L
from lightning.pytorch.callbacks import ModelCheckpoint

import torchtrack
from tests.integrations.lightning.models import QUIET, loader
from tests.integrations.lightning.ways import WAYS, callback, module, options
from torchtrack_lightning import TorchtrackLogger


def trainer(way: str, strategy: str, logger: TorchtrackLogger, **more: Any) -> L.Trainer:
    return L.Trainer(
        **options(WAYS[way]) | {"strategy": strategy, "max_epochs": 1, **more},
        devices=2,
        log_every_n_steps=1,
        use_distributed_sampler=False,
        logger=logger,
        **QUIET,
    )


def forked() -> None:
    """As in a notebook."""
    way, logger = "value", TorchtrackLogger(project="ddp_notebook", system_interval=0)
    assert logger.experiment.project == "ddp_notebook"  # asked for once before fit, as the guide says
    used, model = (
        trainer(way, "ddp_notebook", logger, callbacks=[callback()], enable_checkpointing=False),
        module(WAYS[way]),
    )
    used.fit(model)
    used.test(model, loader(), verbose=False)
    torchtrack.finish()


def spawned() -> None:
    """The second epoch, from the checkpoint of the first. That one forks, to save the time of two interpreters."""
    way = "resumed"
    for epochs, strategy in ((1, "ddp_fork"), (WAYS[way].epochs, "ddp_spawn")):
        logger = TorchtrackLogger(project="ddp_spawn", id="spawned", system_interval=0)
        assert logger.experiment.id == "spawned"
        saved = ModelCheckpoint(dirpath="saved", save_last=True)
        used = trainer(way, strategy, logger, callbacks=[callback(), saved], max_epochs=epochs)
        model = module(WAYS[way])
        if epochs == 1:
            used.fit(model, val_dataloaders=loader())
            used.test(model, loader(), verbose=False)
        else:
            used.fit(model, ckpt_path="saved/last.ckpt")
        torchtrack.finish()


if __name__ == "__main__":
    {"forked": forked, "spawned": spawned}[sys.argv[1]]()
