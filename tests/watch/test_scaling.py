"""Gradients under a gradient scaler are counted unscaled, also those of a step that is left out."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn.utils import clip_grad_norm_

from tests.watch.conftest import (
    Watched,
    assert_same,
    backward,
    gradients,
    parameters,
    scaled_step,
)
from torchtrack.histogram import Histogram


@pytest.mark.parametrize("fused", [False, True], ids=["", "fused"])
@pytest.mark.parametrize("clip", [False, True], ids=["", "clipped"])
@pytest.mark.parametrize("bad", [False, True], ids=["", "inf"])
def test_under_a_scaler_the_unscaled_gradients_are_counted_once(
    watched: Watched, model: nn.Module, fused: bool, clip: bool, bad: bool
) -> None:
    watched.watch(model)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01, fused=fused)
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    scaler.scale(torch.ones(()))
    before = parameters(model)
    used = scaled_step(model, optimizer, scaler, clip=clip, bad=bad)
    assert (parameters(model) == before) == bad
    rows = watched.check("gradient", [used], "skipped" if bad else "pre_clip" if clip else "step")
    assert sum(row["pos_infs"] for row in rows) == int(bad)
    held = watched.rows("parameter")
    assert {row["name"] for row in held} == set(before)
    for row in held:
        assert_same(row, before[row["name"]])


def test_a_skipped_step_counts_as_one(watched: Watched, model: nn.Module) -> None:
    watched.watch(model, log="gradients", log_freq=2)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    scaler.scale(torch.ones(()))
    used = [scaled_step(model, optimizer, scaler, clip=False, bad=step in (1, 2)) for step in range(5)]
    rows = watched.check("gradient", used[::2], ["step", "skipped", "step"])
    assert sorted({row["sample"] for row in rows}) == [0, 2, 4]


def test_a_scale_that_is_no_power_of_two_is_divided_out_exactly(watched: Watched, model: nn.Module) -> None:
    watched.watch(model)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01, fused=True)
    scaler = torch.amp.GradScaler("cpu", init_scale=1000.0)
    scaler.scale(torch.ones(()))
    backward(model, scale=1000.0)
    inverse = torch.tensor(1000.0).double().reciprocal().float()
    used = {name: Histogram.of(p.grad * inverse) for name, p in model.named_parameters() if p.grad is not None}
    scaler.step(optimizer)
    watched.check("gradient", [used], "step")


def test_clipping_still_scaled_gradients_of_a_fused_optimizer_is_counted_unscaled_at_the_step(
    watched: Watched, model: nn.Module
) -> None:
    watched.watch(model)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01, fused=True)
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    scaler.scale(torch.ones(()))
    backward(model, scale=1024.0)
    clip_grad_norm_(model.parameters(), 0.5)
    used = gradients(model, 1 / 1024)
    scaler.step(optimizer)
    watched.check("gradient", [used], "step")


def test_a_disabled_scaler_changes_nothing(watched: Watched, model: nn.Module) -> None:
    watched.watch(model)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    scaler = torch.amp.GradScaler("cpu", enabled=False)
    backward(model)
    used = gradients(model)
    scaler.step(optimizer)
    watched.check("gradient", [used], "step")
