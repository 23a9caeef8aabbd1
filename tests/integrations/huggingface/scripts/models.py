"""What the scripts train: a small classifier that returns its loss, as Trainer likes it, and its data."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.utils.data import Dataset

BATCH, ACCUMULATE, CLIP, LR = 4, 2, 0.5, 0.1
STEPS, SAVED_AT = 6, 3


class Classifier(nn.Module):
    """Two layers; the loss comes first in what it returns.

    Args:
        most: with more samples at a time it fails as a GPU without memory does.
    """

    def __init__(self, most: int = BATCH) -> None:
        super().__init__()
        self.most = most
        torch.manual_seed(0)
        self.body = nn.Sequential(nn.Linear(8, 16), nn.ReLU())
        self.head = nn.Linear(16, 4)

    def forward(self, x: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        if len(x) > self.most:
            raise RuntimeError("CUDA out of memory.")
        logits = self.head(self.body(x))
        return nn.functional.cross_entropy(logits, labels), logits


class Points(Dataset[dict[str, Tensor]]):
    """Random points, the same in every process."""

    def __init__(self, count: int) -> None:
        generator = torch.Generator().manual_seed(1)
        self.x = torch.randn(count, 8, generator=generator)
        self.labels = torch.randint(0, 4, (count,), generator=generator)

    def __len__(self) -> int:
        return len(self.x)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        return {"x": self.x[index], "labels": self.labels[index]}


def batch_of(points: Points, index: int) -> dict[str, Tensor]:
    """The batch with this index, in order."""
    place = slice(index * BATCH, (index + 1) * BATCH)
    return {"x": points.x[place], "labels": points.labels[place]}
