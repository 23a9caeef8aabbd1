"""Real trainings with one fault each: the finding names step, tensor and rank, and nothing else is critical."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from torch import nn

import torchtrack
from tests.stability.training import AT, by_rule, train, train_on_ranks
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


@pytest.mark.parametrize("world_size", [2, 4])
def test_a_rank_with_a_doubled_loss_is_found_within_twenty_steps(tmp_path: Path, world_size: int) -> None:
    uid = ranks(world_size, init=True).run(train_on_ranks, tmp_path, AT + 20, fault="doubles")[0]
    found = torchtrack.Api(tmp_path).run(uid).findings()
    skew = by_rule(found)["rank_skew"]
    assert skew.ranks == (world_size - 1,)
    assert abs(skew.first_step - AT) <= 1
    assert {finding.rule for finding in found if finding.severity != "info"} <= {"rank_skew", "straggler"}


def test_a_rank_that_sleeps_is_found_within_twenty_steps_and_not_those_that_wait(tmp_path: Path) -> None:
    uid = ranks(2, init=True).run(train_on_ranks, tmp_path, AT + 20, fault="sleeps")[0]
    run = torchtrack.Api(tmp_path).run(uid)
    slow = by_rule(run.findings())["straggler"]
    assert (slow.ranks, slow.names) == ((1,), ("phase/data_s",))


def test_a_nan_on_one_rank_is_found_in_the_tensor_it_came_from(tmp_path: Path) -> None:
    uid = ranks(2, init=True).run(train_on_ranks, tmp_path, AT + 5, fault="nan")[0]
    found = torchtrack.Api(tmp_path).run(uid).findings()
    blamed = by_rule(found)["non_finite"]
    assert (blamed.first_step, blamed.names, blamed.ranks) == (AT, ("2.weight",), (1,))
    assert "rank 1" in blamed.why
    assert only_critical(found) == ["non_finite"]


@pytest.mark.parametrize(("optimizer", "lr"), [("sgd", 0.03), ("adamw", 3e-3)])
@pytest.mark.parametrize("warmup", [0, 20])
def test_healthy_training_has_no_more_than_notes(tmp_path: Path, optimizer: str, lr: float, warmup: int) -> None:
    # benchmarks/stability_false_alarms.py has the whole table
    found = train(tmp_path, 120, optimizer=optimizer, lr=lr, warmup=warmup, log_freq=2).findings()
    assert [finding for finding in found if finding.severity != "info"] == []
