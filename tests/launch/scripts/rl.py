"""Environments in forked processes and in a program of their own, whose models only act; a learner that trains."""

from __future__ import annotations

import multiprocessing
import subprocess
import sys
from multiprocessing.connection import Connection

import torch
from digest import digest
from torch.distributions import Categorical

ACTOR = (
    "import torch; print(torch.nn.Linear(2, 2).weight.shape, torch.optim.SGD([torch.zeros(1)], lr=1.0).defaults['lr'])"
)


def environment(pipe: Connection, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    while pipe.recv() is not None:
        pipe.send(torch.randn(4, generator=generator).tolist())
    pipe.send("done")


def main() -> None:
    context = multiprocessing.get_context("fork")
    ends = [context.Pipe() for _ in range(2)]
    workers = [context.Process(target=environment, args=(end, i)) for i, (_, end) in enumerate(ends)]
    for worker in workers:
        worker.start()
    torch.manual_seed(0)
    policy = torch.nn.Sequential(torch.nn.Linear(4, 16), torch.nn.Tanh(), torch.nn.Linear(16, 2))
    optimizer = torch.optim.Adam(policy.parameters(), lr=0.01)
    for _ in range(5):
        for ours, _ in ends:
            ours.send("step")
        seen = torch.tensor([ours.recv() for ours, _ in ends])
        choice = Categorical(logits=policy(seen))
        action = choice.sample()
        loss = -(choice.log_prob(action) * seen.sum(1)).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        print("loss", loss.item())
    print(subprocess.run([sys.executable, "-c", ACTOR], capture_output=True, text=True, check=True).stdout)
    for ours, _ in ends:
        ours.send(None)
        print(ours.recv())
    for worker in workers:
        worker.join()
    print([worker.exitcode for worker in workers], digest(policy.parameters()))


if __name__ == "__main__":
    main()
