"""What a GPU would run: its kernels against the suite, and whole steps under torch's own guard against waiting."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from tests.watch.conftest import Watched
from torchtrack.histogram import Histogram
from torchtrack.testing.kernels import CASES, Case, check
from torchtrack.watch import kernels
from torchtrack.watch.kernels import reference

pytestmark = [
    pytest.mark.cuda,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU"),
]


@pytest.fixture(scope="module")
def device() -> torch.device:
    device = torch.device("cuda", torch.cuda.current_device())
    kernels.prepare(device)
    kernels.wait()
    return device


@pytest.mark.parametrize("case", CASES, ids=str)
def test_the_reference_conforms(device: torch.device, case: Case) -> None:
    check(reference.statistics, case, device)


@pytest.mark.parametrize("case", CASES, ids=str)
def test_the_chosen_kernel_conforms(device: torch.device, case: Case) -> None:
    check(kernels.choose(device), case, device)


def test_a_watched_step_waits_for_nothing_and_counts_what_it_used(device: torch.device, watched: Watched) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(64, 256), nn.ReLU(), nn.Linear(256, 8)).to(device)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    watched.watch(model)
    used = []
    for _ in range(3):
        optimizer.zero_grad()
        model(torch.ones(4, 64, device=device)).square().mean().backward()
        used.append({name: Histogram.of(p.grad.cpu()) for name, p in model.named_parameters() if p.grad is not None})
        torch.cuda.set_sync_debug_mode("error")
        try:
            nn.utils.clip_grad_norm_(model.parameters(), 0.5)
            optimizer.step()
        finally:
            torch.cuda.set_sync_debug_mode("default")
    watched.check("gradient", used, "pre_clip")
