"""Real trainings with one fault each: the finding names step, tensor and rank, and nothing else is critical."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import torchtrack
from tests.stability.faults import Case, other_rank, train_all
from tests.stability.training import AT, by_rule, train
from torchtrack.api import Finding
from torchtrack.testing import ranks


def only_critical(found: list[Finding]) -> list[str]:
    return [finding.rule for finding in found if finding.severity == "critical"]


def test_a_nan_in_one_layers_gradient_is_blamed_on_that_layer_at_that_step(tmp_path: Path) -> None:
    def fault(step: int, net: nn.Module, optimizer: torch.optim.Optimizer) -> None:
        if step == AT:
            net.get_parameter("2.weight").grad[3, 4] = math.nan  # type: ignore[index]

    found = train(tmp_path, AT + 10, before_step=fault).findings()
    blamed = by_rule(found)["non_finite"]
    assert (blamed.first_step, blamed.names, blamed.kind) == (AT, ("2.weight",), "gradient")
    assert only_critical(found) == ["non_finite"]


@pytest.mark.parametrize(("optimizer", "lr"), [("sgd", 0.03), ("adamw", 1e-3)])
@pytest.mark.parametrize("log", [("gradients", "parameters", "updates"), ("gradients",)])
def test_a_learning_rate_times_a_hundred_is_found_within_five_steps(
    tmp_path: Path, optimizer: str, lr: float, log: tuple[str, ...]
) -> None:
    def fault(step: int, net: nn.Module, optimizer: torch.optim.Optimizer) -> None:
        if step >= AT:
            for group in optimizer.param_groups:
                group["lr"] *= 100

    found = train(tmp_path, AT + 20, optimizer=optimizer, lr=lr, log=log, before_step=fault).findings()
    graver = [finding for finding in found if finding.severity != "info"]
    first = graver[0]
    assert first.rule in ("update_ratio", "gradient_spike", "loss_spike")
    assert AT <= first.first_step <= AT + 5
    assert "lr went from" in first.why
    assert len(graver) == 1


def test_a_layer_whose_gradient_is_zeroed_is_found_within_two_samples(tmp_path: Path) -> None:
    def fault(step: int, net: nn.Module, optimizer: torch.optim.Optimizer) -> None:
        if step >= AT:
            net.get_parameter("2.weight").grad.zero_()  # type: ignore[union-attr]

    found = train(tmp_path, AT + 2, before_step=fault).findings()
    dead = by_rule(found)["dead_layer"]
    assert (dead.first_step, dead.names) == (AT, ("2.weight",))
    assert only_critical(found) == []


def test_fp16_underflow_is_found_in_its_first_sample(tmp_path: Path) -> None:
    healthy = train(tmp_path / "a", 3, lr=1e-4, dtype=torch.float16, optimizer="sgd", scale=16.0)
    assert "format_headroom" not in by_rule(healthy.findings())
    broken = train(tmp_path / "b", 1, lr=1e-4, dtype=torch.float16, optimizer="sgd", scale=2.0**-14)
    found = by_rule(broken.findings())["format_headroom"]
    assert (found.first_step, found.evidence["format"]) == (0, "fp16")
    assert "0.weight" in found.names
    (weight,) = broken.headroom("e5m2", name="0.weight")
    assert weight.underflow[0] > 0.5


def test_bf16_weights_that_small_steps_leave_as_they_are_are_found_in_eight_samples(tmp_path: Path) -> None:
    healthy = train(tmp_path / "a", 9, lr=1e-2, dtype=torch.bfloat16)
    assert "update_lost" not in by_rule(healthy.findings())
    found = by_rule(train(tmp_path / "b", 9, lr=1e-6, dtype=torch.bfloat16).findings())["update_lost"]
    assert (found.severity, found.first_step) == ("warning", 7)


CASES = {
    "healthy": Case(),
    "nan": Case("nan", rank=2, layer="0.weight", seed=1, optimizer="sgd", clip=True, at=17, steps=22),
    "nan under fsdp2": Case("nan", rank=3, layer="4.bias", wrapper="fsdp2", dtype="mixed", steps=20),
    "nan after the average": Case("late nan", rank=1, layer="2.bias", dtype="bfloat16", clip=True, at=19, steps=24),
    "nan after the average under fsdp2": Case("late nan", rank=2, layer="2.weight", wrapper="fsdp2", steps=20),
    "flipped bit": Case("flip", rank=3, layer="2.weight", seed=2, steps=24),
    "doubled loss": Case("doubles", rank=0, seed=3),
    "doubled loss under fsdp2, not logged": Case("doubles unseen", rank=2, wrapper="fsdp2", seed=4),
    "sleep": Case("sleeps", rank=1),
    "sleep in the optimizer under fsdp2": Case("sleeps", rank=2, wrapper="fsdp2", phase="optimizer", log="gradients"),
    "healthy, plain watch": Case(says=False, log_freq=100),
    "healthy under fsdp2, plain watch": Case(says=False, log_freq=100, wrapper="fsdp2"),
    "sleep, plain watch": Case("sleeps", rank=3, says=False, log_freq=100),
    "sleep in the forward pass under fsdp2, plain watch": Case(
        "sleeps", rank=2, wrapper="fsdp2", phase="forward", says=False, log_freq=100
    ),
    "sleep before the step, plain watch": Case("sleeps", rank=0, phase="optimizer", says=False, log_freq=100),
    "replayed batches": Case("replays", rank=1, steps=22),
    "replayed batches, late": Case("lags", rank=3, wrapper="fsdp2", steps=22),
    "zeroed layer": Case("zeroed", layer="2.weight", wrapper="fsdp2", dtype="bfloat16", steps=20),
    "rate": Case("rate", optimizer="sgd", clip=True, seed=63),
}
"""All of them are trained in one job of four ranks."""
EXPECTED = {
    # fault: rule, steps until it begins at most, and whether it names tensor and rank
    "nan": ("non_finite", 0, True, True),
    "late nan": ("non_finite", 0, True, True),
    "flip": ("replica_divergence", 10, True, True),
    "doubles": ("rank_skew", 2, False, True),
    "doubles unseen": ("rank_skew", 2, False, True),
    "sleeps": ("straggler", 8, False, True),
    "replays": ("replayed_batches", 0, False, True),
    "lags": ("replayed_batches", 0, False, True),
    "zeroed": ("dead_layer", 0, True, False),
    "rate": ("gradient_spike", 5, False, False),
}


@pytest.fixture(scope="module")
def trained() -> dict[str, str]:
    """The run of each case, once they are trained."""
    return {}


@pytest.fixture
def found(request: pytest.FixtureRequest, trained: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> Any:
    """What the rules say of a case."""
    folder = tmp_path_factory.getbasetemp() / "faults"
    if not trained:
        uids = ranks(4, init=True).run(train_all, folder, list(CASES.values()))[0]
        trained |= dict(zip(CASES, uids, strict=True))
    return torchtrack.Api(folder).run(trained[request.param]).findings()


@pytest.mark.parametrize(("found", "case"), CASES.items(), indirect=["found"], ids=CASES)
def test_a_fault_on_real_ranks_is_found_with_its_step_tensor_and_rank_and_nothing_else_is_critical(
    found: list[Finding], case: Case
) -> None:
    if not case.fault:
        assert only_critical(found) == []
        return
    rule, within, names_tensor, names_rank = EXPECTED[case.fault]
    first = by_rule(found)[rule]
    assert abs(first.first_step - case.at) <= within
    ranks_of = {case.rank, other_rank(case.rank)} if case.fault == "replays" else {case.rank}
    assert set(first.ranks) == (ranks_of if names_rank else set())
    if names_tensor:
        assert first.names[0] == case.layer
    if case.fault == "sleeps":
        assert first.names == (f"phase/{case.phase if case.says else 'own'}_s",)
    assert [finding for finding in found if finding.severity == "critical" and finding is not first] == []


@pytest.mark.parametrize(("optimizer", "lr"), [("sgd", 0.03), ("adamw", 3e-3)])
@pytest.mark.parametrize("warmup", [0, 20])
def test_healthy_training_has_no_more_than_notes(tmp_path: Path, optimizer: str, lr: float, warmup: int) -> None:
    # benchmarks/stability_false_alarms.py has the whole table
    found = train(tmp_path, 120, optimizer=optimizer, lr=lr, warmup=warmup, log_freq=2).findings()
    assert [finding for finding in found if finding.severity != "info"] == []
