"""Small modules for real Trainers, and the same training as a plain loop."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import lightning as L
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import torchtrack

QUIET: dict[str, Any] = {"enable_progress_bar": False, "enable_model_summary": False, "accelerator": "cpu"}
CLIP = 0.01


def samples(count: int = 64) -> torch.Tensor:
    return torch.randn(count, 8, generator=torch.Generator().manual_seed(1))


def loader(batch_size: int = 4, count: int = 64) -> DataLoader[Any]:
    return DataLoader(TensorDataset(samples(count)), batch_size=batch_size)


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 3))


class Automatic(L.LightningModule):
    def __init__(self, lr: float = 0.1) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.lr = lr
        self.net = network()

    def training_step(self, batch: list[torch.Tensor], batch_idx: int) -> torch.Tensor:
        loss: torch.Tensor = self.net(batch[0]).square().mean()
        self.log("loss", loss)
        return loss

    def train_dataloader(self) -> DataLoader[Any]:
        """The samples in their order, dealt out to the ranks; Lightning's own sampler shuffles."""
        return DataLoader(TensorDataset(samples()[self.trainer.global_rank :: self.trainer.world_size]), batch_size=4)

    def validation_step(self, batch: list[torch.Tensor], batch_idx: int) -> None:
        self.log("val_loss", self.net(batch[0]).square().mean(), sync_dist=True)

    def test_step(self, batch: list[torch.Tensor], batch_idx: int) -> None:
        self.log("test_loss", self.net(batch[0]).square().mean(), sync_dist=True)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=self.lr)


class Sharded(Automatic):
    """Under ModelParallelStrategy."""

    def configure_model(self) -> None:
        from torch.distributed.fsdp import FSDPModule, fully_shard

        if not isinstance(self.net, FSDPModule):  # Lightning calls this once more for each entry point
            mesh = self.device_mesh["data_parallel"]  # type: ignore[index]
            for module in self.net:
                if isinstance(module, nn.Linear):
                    fully_shard(module, mesh=mesh)
            fully_shard(self.net, mesh=mesh)


class Manual(L.LightningModule):
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


def plain(batch_size: int, micro: int = 1, clip: float | None = None) -> Iterator[dict[str, torch.Tensor]]:
    """The gradients before clipping of each step of the same training, without Lightning."""
    net = network()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    for batch in samples().split(batch_size):
        optimizer.zero_grad()
        for part in batch.split(len(batch) // micro):
            (net(part).square().mean() / micro).backward()
        yield {f"net.{name}": p.grad.clone() for name, p in net.named_parameters() if p.grad is not None}
        if clip is not None:
            nn.utils.clip_grad_norm_(net.parameters(), clip)
        optimizer.step()


def norms(run: Any) -> dict[tuple[int, str], float]:
    """(step, name) -> norm of each gradient row of a run."""
    return {(row["step"], row["name"]): row["norm"] for row in run.tensors(kind="gradient").to_pylist()}


def only_run(folder: Any) -> Any:
    (run,) = torchtrack.Api(folder).runs()
    return run
