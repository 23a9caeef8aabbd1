"""Data loaders with workers, forked and spawned, which import this file; batches say what the workers had."""

from __future__ import annotations

import multiprocessing as mp
import sys

import torch
from digest import digest
from torch.utils.data import DataLoader, Dataset


class Squares(Dataset[torch.Tensor]):
    def __len__(self) -> int:
        return 8

    def __getitem__(self, index: int) -> torch.Tensor:
        recorded = "torchtrack.run" in sys.modules and mp.parent_process() is None
        return torch.tensor([float(index), float(index**2), torch.rand(()).item(), float(recorded)])


def main() -> None:
    torch.manual_seed(0)
    model = torch.nn.Linear(4, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-4)
    for start in ("fork", "spawn"):
        for x in DataLoader(Squares(), batch_size=2, num_workers=1, multiprocessing_context=start):
            loss = model(x).mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            print("loss", loss.item())
    print(digest(model.parameters()))


if __name__ == "__main__":
    main()
