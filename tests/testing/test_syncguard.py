"""What SyncGuard calls a wait, and what it lets pass."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode

from tests.rules.test_layers import loaded_by
from torchtrack.testing import SyncGuard

Operator = Callable[[torch.Tensor], object]

WAITS: dict[str, Operator] = {
    "bincount": lambda x: x.to(torch.int32).bincount(minlength=4),
    "mask": lambda x: x.index_put_((x > 0,), torch.zeros((), device=x.device)),
    "histc of a range from the data": lambda x: torch.histc(x, 10),
    "copy to the host": lambda x: x.cpu(),
    "copy to the host that only claims not to wait": lambda x: x.to("cpu", non_blocking=True),
    "upload": lambda x: torch.ones(3).to(x.device),
    "segment_reduce that checks": lambda x: torch.segment_reduce(x, "sum", lengths=x[:4].to(torch.int64)),
    "a number in a new tensor": lambda x: torch.tensor(2.0, device=x.device),
    "a tensor as a condition": lambda x: bool(x.sum() > 0),
    "inverse that checks": lambda x: torch.linalg.inv(x.view(8, 8)),
    "repeat_interleave": lambda x: x.repeat_interleave(torch.ones_like(x, dtype=torch.int64)),
}
PASSES: dict[str, Operator] = {
    "histc of a given range": lambda x: torch.histc(x.to(torch.int32), 10, 0, 10),
    "reduction": lambda x: x.sum(),
    "gather": lambda x: x[torch.zeros(3, dtype=torch.int64, device=x.device)],
    "slice": lambda x: x[2:5].fill_(0.0),
    "a number in a filled tensor": lambda x: torch.full((), 2.0, device=x.device),
    "where": lambda x: torch.where(x > 0, x, 0.0),
    "repeat_interleave of a known size": lambda x: x.repeat_interleave(x.to(torch.int64), output_size=9),
    "work on the host": lambda _: torch.ones(3).histc(10),
}


@pytest.fixture(autouse=True)
def _inductor_cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))  # a fake tensor's error has torch set it for good


def run(operator: Operator) -> SyncGuard:
    guard = SyncGuard()
    with FakeTensorMode(allow_non_fake_inputs=True):
        x = torch.empty(64, device="lazy:0")
        with guard:
            try:
                operator(x)
            except RuntimeError:  # what depends on data has no shape on a fake device; the guard has seen it before
                assert guard.violations
    return guard


@pytest.mark.parametrize("operator", WAITS.values(), ids=WAITS)
def test_it_reports_what_waits(operator: Operator) -> None:
    assert run(operator).violations


@pytest.mark.parametrize("operator", PASSES.values(), ids=PASSES)
def test_it_lets_pass_what_does_not_wait(operator: Operator) -> None:
    assert run(operator).violations == []


Copy = Callable[[torch.Tensor, torch.Tensor], object]
COPIES: dict[str, Copy] = {
    "whole": lambda host, x: host.copy_(x, non_blocking=True),
    "into a part": lambda host, x: host[2:4].copy_(x[:2], non_blocking=True),
}


@pytest.mark.parametrize("copy", COPIES.values(), ids=COPIES)
@pytest.mark.parametrize("told", [True, False], ids=["told", "seen"])
def test_a_copy_into_pinned_memory_that_does_not_wait_is_counted(copy: Copy, told: bool) -> None:
    with FakeTensorMode():
        plain, x = torch.empty(8), torch.empty(8, device="lazy:0")
        with SyncGuard(pinned=[plain]) as guard:
            copy(plain if told else torch.empty(8, pin_memory=True), x)
        assert (guard.violations, guard.copies_to_host) == ([], 1)


def test_a_copy_into_pinned_memory_that_waits_is_reported() -> None:
    with FakeTensorMode(), SyncGuard() as guard:
        torch.empty(8, pin_memory=True).copy_(torch.empty(8, device="lazy:0"))
    assert guard.violations == ["aten.copy_.default: copy lazy -> cpu, non_blocking=False, pinned=True"]


def test_an_upload_from_pinned_memory_passes() -> None:
    with FakeTensorMode(), SyncGuard() as guard:
        torch.empty(8, pin_memory=True).to("lazy:0", non_blocking=True)
    assert (guard.violations, guard.copies_to_host) == ([], 0)


def test_a_whole_training_step_runs_under_it() -> None:
    with FakeTensorMode():
        model = nn.TransformerEncoderLayer(16, 2, 32, batch_first=True, device="lazy:0")
        optimizer = torch.optim.AdamW(model.parameters(), foreach=True)
        with SyncGuard() as guard:
            model(torch.empty(2, 4, 16, device="lazy:0")).sum().backward()
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
    assert guard.violations == []
    assert guard.launches["aten._foreach_addcdiv_.ScalarList"] == 1


def test_it_is_loaded_when_it_is_asked_for() -> None:
    assert "torch" not in loaded_by("torchtrack.testing")


def test_it_judges_a_cpu_as_if_it_were_an_accelerator() -> None:
    with SyncGuard(device_types={"cpu"}) as guard:
        torch.ones(3).nonzero()
        torch.ones(3).sum().item()
    why = "the host needs data of the device"
    assert guard.violations == [f"aten.nonzero.default: {why}", f"aten._local_scalar_dense.default: {why}"]


def test_views_and_empty_tensors_launch_nothing() -> None:
    with SyncGuard(device_types={"cpu"}) as guard:
        x = torch.empty(8)
        x.view(2, 4)[:, 1].add_(1.0)
        torch.cat([x] * 129)
    assert guard.launches == {"aten.add_.Tensor": 1, "aten.cat.default": 2}
