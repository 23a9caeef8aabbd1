"""Small modules for real Trainers; `plain.plain` is the same training without Lightning."""

from __future__ import annotations

from typing import Any

import lightning as L
import torch
from lightning.pytorch.strategies import FSDPStrategy
from torch import nn
from torch.distributed.fsdp import FSDPModule, FullyShardedDataParallel, fully_shard
from torch.utils.data import DataLoader, TensorDataset

from tests.integrations.plain import BATCH, CLIP, network, samples

QUIET: dict[str, Any] = {"enable_progress_bar": False, "enable_model_summary": False, "accelerator": "cpu"}


def loader(batch_size: int = BATCH, count: int = 64) -> DataLoader[Any]:
    return DataLoader(TensorDataset(samples(count)), batch_size=batch_size)


class Dealt(L.LightningModule):
    """The samples in their order, dealt out to the ranks; Lightning's own sampler shuffles."""

    def train_dataloader(self) -> DataLoader[Any]:
        return DataLoader(
            TensorDataset(samples()[self.trainer.global_rank :: self.trainer.world_size]), batch_size=BATCH
        )


class Automatic(Dealt):
    def __init__(self, lr: float = 0.1) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.lr = lr
        self.net = network()

    def training_step(self, batch: list[torch.Tensor], batch_idx: int) -> torch.Tensor:
        loss: torch.Tensor = self.net(batch[0]).square().mean()
        self.log("loss", loss)
        return loss

    def validation_step(self, batch: list[torch.Tensor], batch_idx: int) -> None:
        self.log("val_loss", self.net(batch[0]).square().mean(), sync_dist=True)

    def test_step(self, batch: list[torch.Tensor], batch_idx: int) -> None:
        self.log("test_loss", self.net(batch[0]).square().mean(), sync_dist=True)

    def predict_step(self, batch: list[torch.Tensor], batch_idx: int) -> torch.Tensor:
        return torch.as_tensor(self.net(batch[0]))

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=self.lr)


class Manual(Dealt):
    """Two optimizers in a batch, as in a GAN; the second is clipped."""

    def __init__(self) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.g, self.d = network(), network()

    def training_step(self, batch: list[torch.Tensor], batch_idx: int) -> None:
        for optimizer, part in zip(self.optimizers(), (self.g, self.d), strict=True):
            loss = part(batch[0]).square().mean()
            optimizer.zero_grad()
            self.manual_backward(loss)
            if part is self.d:
                self.clip_gradients(optimizer, gradient_clip_val=CLIP, gradient_clip_algorithm="norm")
            optimizer.step()
            self.log("loss", loss)

    def configure_optimizers(self) -> list[torch.optim.Optimizer]:
        return [torch.optim.SGD(self.g.parameters(), lr=0.1), torch.optim.SGD(self.d.parameters(), lr=0.2)]


class FSDPOnCPU(FSDPStrategy):
    """FSDP1 without a GPU, for these tests: Lightning refuses `FSDPStrategy` itself there, by its exact type.

    Lightning also leaves the device to torch, which then wants a GPU. The rest is what Lightning does on GPUs: launch,
    optimizers, accumulation, clipping, checkpoints. No run of `FSDPStrategy` on a GPU stands behind these tests.
    """

    def _setup_model(self, model: nn.Module) -> nn.Module:
        return FullyShardedDataParallel(
            model, device_id=torch.device("cpu"), sharding_strategy=self.sharding_strategy, **self.kwargs
        )


class Clipped(Automatic):
    """Under FSDP1, where Lightning leaves it to the module to clip by norm."""

    def configure_gradient_clipping(
        self, optimizer: Any, gradient_clip_val: Any = None, gradient_clip_algorithm: str | None = None
    ) -> None:
        self.trainer.model.clip_grad_norm_(gradient_clip_val)  # type: ignore[union-attr, operator]


def shard(net: nn.Sequential, mesh: Any) -> None:
    """By `fully_shard`, layer by layer, once: Lightning asks for it anew at each entry point."""
    if not isinstance(net, FSDPModule):
        for module in net:
            if isinstance(module, nn.Linear):
                fully_shard(module, mesh=mesh["data_parallel"])
        fully_shard(net, mesh=mesh["data_parallel"])


class Sharded(Automatic):
    """Under ModelParallelStrategy, which leaves `fully_shard` to the module."""

    def configure_model(self) -> None:
        shard(self.net, self.device_mesh)


class ShardedManual(Manual):
    """Two networks and two optimizers, each of them sharded."""

    def configure_model(self) -> None:
        shard(self.g, self.device_mesh)
        shard(self.d, self.device_mesh)
