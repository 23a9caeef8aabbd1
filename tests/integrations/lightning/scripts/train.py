"""A user's script: fit, then test, under the strategy that it is told."""

from __future__ import annotations

import sys
from typing import Any

import lightning as L
from lightning.pytorch.strategies import ModelParallelStrategy

from tests.integrations.lightning.models import CLIP, QUIET, Automatic, Sharded, loader
from torchtrack_lightning import TorchtrackCallback, TorchtrackLogger


def main(kind: str) -> None:
    sharded = kind == "sharded"
    strategy: Any = ModelParallelStrategy(data_parallel_size=2, tensor_parallel_size=1) if sharded else kind
    trainer = L.Trainer(
        devices=2,
        strategy=strategy,
        max_epochs=1,
        log_every_n_steps=1,
        accumulate_grad_batches=2,
        gradient_clip_val=None if sharded else CLIP,
        logger=TorchtrackLogger(project="ranks", system_interval=0),
        callbacks=[TorchtrackCallback(log_freq=1)],
        enable_checkpointing=False,
        use_distributed_sampler=False,
        **QUIET,
    )
    module = Sharded() if sharded else Automatic()
    trainer.fit(module, val_dataloaders=loader())
    trainer.test(module, loader(), verbose=False)


if __name__ == "__main__":
    main(sys.argv[1])
