"""Ends as it is told to, after one step."""

from __future__ import annotations

import sys

import torch


def train(how: str) -> None:
    model = torch.nn.Linear(2, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    (model(torch.ones(1, 2)).sum() * 0).backward()
    optimizer.step()
    print("trained", flush=True)
    if how == "exception":
        raise KeyError(how)
    sys.exit(7)


train(sys.argv[1])
