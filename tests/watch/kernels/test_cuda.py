"""What only a GPU can tell: `make test-cuda`. Nothing here has run yet; see docs/gpu.md."""

from __future__ import annotations

from collections.abc import Iterator
from types import ModuleType

import pytest
import torch
from torch import nn

import torchtrack
from torchtrack.testing.kernels import CASES, Case, check, mixed
from torchtrack.watch import kernels
from torchtrack.watch.kernels import reference

pytestmark = [
    pytest.mark.cuda,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU is here"),
    pytest.mark.timeout(600),
]
GPU = torch.device("cuda", 0)


@pytest.fixture(scope="module")
def triton() -> ModuleType:
    pytest.importorskip("triton")
    from torchtrack.watch.kernels import triton

    triton.prepare(GPU)
    return triton


@pytest.fixture
def _no_waiting() -> Iterator[None]:
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    yield
    torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize("case", CASES, ids=str)
def test_triton_conforms(triton: ModuleType, case: Case) -> None:
    check(triton.statistics, case, GPU)
    assert not triton._broken


@pytest.mark.parametrize("case", CASES, ids=str)
def test_the_reference_conforms(case: Case) -> None:
    check(reference.statistics, case, GPU)


def test_both_count_alike(triton: ModuleType) -> None:
    tensors = [mixed(n, dtype).to(GPU) for n in (0, 7, 4097, 3_000_001) for dtype in triton.KINDS]
    for multiplier in (None, torch.tensor(1 / 3, device=GPU)):
        ours, theirs = triton.statistics(tensors, multiplier), reference.statistics(tensors, multiplier)
        assert torch.equal(ours[0], theirs[0])
        assert torch.equal(ours[1][:, 2:], theirs[1][:, 2:])


@pytest.mark.parametrize("way", ["triton", "reference"])
def test_no_kernel_waits(way: str, triton: ModuleType, request: pytest.FixtureRequest) -> None:
    kernel = triton.statistics if way == "triton" else reference.statistics
    tensors = [mixed(n, dtype).to(GPU) for n in (7, 300_000) for dtype in triton.KINDS]
    multiplier = torch.tensor(0.5, device=GPU)
    kernel(tensors, multiplier)  # memory is allocated, which may wait
    request.getfixturevalue("_no_waiting")
    for _ in range(3):
        kernel(tensors, multiplier)


def test_a_watched_step_waits_for_nothing(request: pytest.FixtureRequest) -> None:
    kernels.prepare(GPU)
    kernels.wait()
    model = nn.Sequential(nn.Linear(512, 512), nn.LayerNorm(512), nn.Linear(512, 512)).to(GPU)
    optimizer = torch.optim.AdamW(model.parameters())
    data = torch.randn(8, 512, device=GPU)
    with torchtrack.init(system_interval=0) as run:
        run.watch(model, log="all", log_freq=1)
        for step in range(6):
            if step == 3:
                request.getfixturevalue("_no_waiting")
            model(data).square().mean().backward()
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            run.log({"step": step})
            optimizer.zero_grad()
        torch.cuda.set_sync_debug_mode("default")
        uid, folder = run.uid, run.dir
    rows = torchtrack.Api(folder).run(uid).tensors().to_pylist()
    assert len({row["sample"] for row in rows}) == 6
    assert all(row["count"] == row["numel"] for row in rows)
