"""A model, a loop, argparse, a schedule, clipping. Prints what pickle and the interpreter say of its main module."""

from __future__ import annotations

import argparse
import inspect
import os
import pickle
import random
import sys

import torch
from digest import digest


class Net(torch.nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.first = torch.nn.Linear(8, width)
        self.last = torch.nn.Linear(width, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.last(self.first(x).relu())


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--lr", type=float, default=0.1)
    parser.add_argument("--width", type=int, default=16)
    parser.add_argument("--api-key", default="not-for-eyes")
    args = parser.parse_args()
    torch.manual_seed(0)
    random.seed(0)
    model = Net(args.width)
    optimizer = torch.optim.AdamW(model.parameters(), lr=args.lr)
    schedule = torch.optim.lr_scheduler.LinearLR(optimizer, start_factor=0.5, total_iters=4)
    loader = torch.utils.data.DataLoader(torch.randn(24, 8), batch_size=4, shuffle=True)
    for x in loader:
        print("lr", optimizer.param_groups[0]["lr"])
        loss = model(x).square().mean()
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 0.1)
        optimizer.step()
        schedule.step()
        print("loss", loss.item())
    print(digest(model.parameters()), random.random(), torch.rand(()).item())
    copy = pickle.loads(pickle.dumps(model))
    print(type(copy) is Net, digest(copy.parameters()), sorted(vars(copy)))
    print(sys.argv, sys.path, sys.flags.utf8_mode, __file__, __spec__, Net.__module__)
    print(inspect.getsource(Net.forward), torch.is_tensor(loss), sorted(name for name in globals() if "tt" in name))
    print(sys.stdin.read(), os.getcwd() == os.path.abspath("."))


if __name__ == "__main__":
    main()
