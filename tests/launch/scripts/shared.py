"""Two optimizers step one model, whose average is kept; part of it is recomputed; a forked child trains before."""

from __future__ import annotations

import os
import weakref

import torch
from digest import digest
from torch.optim.swa_utils import AveragedModel
from torch.utils.checkpoint import checkpoint


def train(steps: int) -> tuple[object, object]:
    torch.manual_seed(steps)
    model = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.Linear(8, 1))
    average = AveragedModel(model)
    groups = [{"params": [model[0].bias], "lr": 0.2}, {"params": list(model[1].parameters()), "name": "head"}]
    for_weight, for_rest = torch.optim.SGD([model[0].weight], lr=0.1), torch.optim.AdamW(groups, lr=0.01)
    for _ in range(steps):
        loss = checkpoint(model[1], model[0](torch.randn(4, 4)), use_reentrant=True).square().mean()
        for optimizer in (for_weight, for_rest):
            optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 0.1)
        for optimizer in (for_weight, for_rest):
            optimizer.step()
        average.update_parameters(model)
        print("loss", loss.item(), flush=True)
    print(digest(average.parameters()), flush=True)
    return weakref.ref(model)(), weakref.ref(model[0].weight)()


def main() -> None:
    child = os.fork()
    if child == 0:
        train(2)
        return
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
    model, weight = map(weakref.ref, train(4))
    print(model(), weight())


if __name__ == "__main__":
    main()
