"""Both names of Lightning in one interpreter: neither is there, then `pytorch_lightning` alone, then both.

The second rank runs this file too.
"""

from __future__ import annotations

import importlib
import sys
import warnings
from typing import Any

import pytest
import torch
from torch.utils.data import DataLoader, TensorDataset

import torchtrack
from tests.integrations.plain import BATCH, CLIP, network, samples

warnings.simplefilter("ignore")  # Lightning warns of its own use of torch
NAMES = ("lightning", "pytorch_lightning")


def adapter() -> Any:
    """The adapter, imported anew."""
    for name in [name for name in sys.modules if name.partition(".")[0] == "torchtrack_lightning"]:
        del sys.modules[name]
    return importlib.import_module("torchtrack_lightning")


def train(framework: Any, made: Any) -> None:
    """As people do, with the logger and the callback."""

    class Module(framework.LightningModule):  # type: ignore[misc]  # either of two
        def __init__(self, lr: float = 0.1) -> None:
            super().__init__()
            self.save_hyperparameters()
            self.net = network()

        def training_step(self, batch: list[torch.Tensor], batch_idx: int) -> Any:
            loss = self.net(batch[0]).square().mean()
            self.log("loss", loss)
            return loss

        def train_dataloader(self) -> Any:
            dealt = samples()[self.trainer.global_rank :: self.trainer.world_size]
            return DataLoader(TensorDataset(dealt), BATCH)

        def configure_optimizers(self) -> Any:
            return torch.optim.SGD(self.parameters(), lr=self.hparams.lr)

    trainer = framework.Trainer(
        accelerator="cpu",
        devices=2,
        strategy="ddp",
        use_distributed_sampler=False,
        max_epochs=1,
        accumulate_grad_batches=3,
        gradient_clip_val=CLIP,
        logger=made.TorchtrackLogger(project=framework.__name__, system_interval=0),
        callbacks=[made.TorchtrackCallback(log_freq=1)],
        log_every_n_steps=1,
        enable_progress_bar=False,
    )
    trainer.fit(Module())
    torchtrack.finish()


def main() -> None:
    sys.modules.update(dict.fromkeys(NAMES))  # type: ignore[arg-type]  # None: it is not to be found
    alone = adapter()
    with pytest.raises(ImportError, match=r"pip install 'torchtrack\[lightning\]'.*pip install pytorch-lightning"):
        _ = alone.TorchtrackLogger
    for name in NAMES:
        del sys.modules[name]

    adapter()
    assert set(NAMES).isdisjoint(sys.modules)  # not before a class is asked for

    other = importlib.import_module("pytorch_lightning")
    train(other, adapter())
    assert "lightning" not in sys.modules

    both = [other, importlib.import_module("lightning.pytorch")]
    made = adapter()
    for framework in both:
        assert issubclass(made.TorchtrackLogger, framework.loggers.Logger)
        assert issubclass(made.TorchtrackCallback, framework.Callback)
        train(framework, made)


if __name__ == "__main__":
    main()
