"""A user's script whose ranks are processes that Lightning forks or spawns from this one."""

from __future__ import annotations

from typing import Any

import lightning as L

import torchtrack
from tests.integrations.lightning.models import QUIET, loader
from tests.integrations.lightning.ways import WAYS, callback, module, options
from torchtrack_lightning import TorchtrackLogger


def trainer(way: str, strategy: str, logger: TorchtrackLogger, **more: Any) -> L.Trainer:
    return L.Trainer(
        **options(WAYS[way]) | {"strategy": strategy},
        devices=2,
        max_epochs=1,
        log_every_n_steps=1,
        use_distributed_sampler=False,
        enable_checkpointing=False,
        logger=logger,
        **QUIET,
        **more,
    )


def forked() -> None:
    """As in a notebook."""
    way, logger = "value", TorchtrackLogger(project="ddp_notebook", system_interval=0)
    assert logger.experiment.project == "ddp_notebook"  # asked for once before fit, as the guide says
    used, model = trainer(way, "ddp_notebook", logger, callbacks=[callback()]), module(WAYS[way])
    used.fit(model)
    used.test(model, loader(), verbose=False)
    torchtrack.finish()


def spawned() -> None:
    """The test after it forks, to save the time of two more interpreters."""
    way, logger = "ddp", TorchtrackLogger(project="ddp_spawn", system_interval=0)
    model = module(WAYS[way])
    trainer(way, "ddp_spawn", logger, callbacks=[callback()]).fit(model, val_dataloaders=loader())
    trainer(way, "ddp_fork", logger).test(model, loader(), verbose=False)
    torchtrack.finish()


if __name__ == "__main__":
    forked()
    spawned()
