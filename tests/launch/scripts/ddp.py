"""DistributedDataParallel that begins to accumulate; every rank prints to a file of its own."""

from __future__ import annotations

import sys
from pathlib import Path

import torch
import torch.distributed as dist
from digest import digest
from torch.nn.parallel import DistributedDataParallel


def main(folder: Path) -> None:
    dist.init_process_group("gloo")
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(8, 16), torch.nn.ReLU(), torch.nn.Linear(16, 1))
    wrapped = DistributedDataParallel(model)
    optimizer = torch.optim.SGD(wrapped.parameters(), lr=0.1)
    lines = []
    for step in range(6):
        torch.manual_seed(100 * step + dist.get_rank())
        calls = []
        for _ in range(1 if step < 3 else 3):
            loss = wrapped(torch.randn(4, 8)).square().mean()
            loss.backward()
            calls.append(str(loss.item()))
        lines.append(f"loss {' '.join(calls)}")
        optimizer.step()
        optimizer.zero_grad()
    lines.append(digest(model.parameters()))
    (folder / f"rank{dist.get_rank()}.txt").write_text("\n".join(lines))
    if dist.get_rank() == 0:
        print(digest(model.parameters()))
    del wrapped  # before its group: were the reducer the last to hold it, it would wait for gloo's thread under the GIL
    dist.destroy_process_group()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
