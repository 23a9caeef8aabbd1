"""An Accelerate script that accumulates and clips; its main process prints."""

from __future__ import annotations

import torch
from accelerate import Accelerator
from digest import digest
from torch.utils.data import DataLoader, TensorDataset

ACCUMULATE = 2


def main() -> None:
    accelerator = Accelerator(cpu=True, gradient_accumulation_steps=ACCUMULATE)
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(8, 16), torch.nn.ReLU(), torch.nn.Linear(16, 1))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    loader = DataLoader(TensorDataset(torch.randn(64, 8)), batch_size=4)
    model, optimizer, loader = accelerator.prepare(model, optimizer, loader)
    calls: list[float] = []
    for (x,) in loader:
        with accelerator.accumulate(model):
            loss = model(x).square().mean()
            accelerator.backward(loss)
            calls.append(loss.item() / ACCUMULATE)
            if accelerator.sync_gradients:
                accelerator.clip_grad_norm_(model.parameters(), 0.1)
                accelerator.print("calls", *calls)
                calls.clear()
            optimizer.step()
            optimizer.zero_grad()
    accelerator.print(digest(accelerator.unwrap_model(model).parameters()))
    accelerator.end_training()


if __name__ == "__main__":
    main()
