"""Where two runs part."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import torchtrack
from tests.stability import layouts, steps, training
from torchtrack.stability.difference import difference
from torchtrack.testing import ranks

WEIGHT = np.random.default_rng(0).normal(0, 0.1, 1000)


def samples(*values: dict[str, Any], kind: str = "gradient") -> dict[tuple[int, int], Any]:
    return {(at, 0): {kind: steps.tensors(held)} for at, held in enumerate(values)}


def test_a_distance_is_in_octaves() -> None:
    found = difference(samples({"a": WEIGHT}), samples({"a": WEIGHT * 4}))
    assert found.parted[0].distance == pytest.approx(2.0)
    assert found.parted[0].norm_ratio == pytest.approx(4.0)


def test_the_first_sample_that_differs_is_named_the_furthest_tensor_first() -> None:
    same = {"a": WEIGHT, "b": WEIGHT}
    found = difference(samples(same, same, same), samples(same, same, {"a": WEIGHT * 2, "b": WEIGHT * 8}))
    assert [(part.step, part.name) for part in found.parted] == [(2, "b"), (2, "a")]
    assert (found.last_step, found.samples) == (1, 2)


def test_a_nan_in_one_run_is_infinitely_far() -> None:
    found = difference(samples({"a": WEIGHT}), samples({"a": np.append(WEIGHT[:-1], np.nan)}))
    assert found.parted[0].distance == np.inf


def test_gradients_that_are_rounding_do_not_part_runs() -> None:
    found = difference(samples({"a": WEIGHT, "b": WEIGHT * 1e-9}), samples({"a": WEIGHT, "b": WEIGHT * 3e-9}))
    assert (found.parted, found.rounding) == ((), ("b",))


def test_parameters_at_the_start_are_compared_exactly() -> None:
    other = np.random.default_rng(1).normal(0, 0.1, 100_000)
    one = np.random.default_rng(2).normal(0, 0.1, 100_000)
    assert difference(samples({"a": one}), samples({"a": other})).parted == ()
    assert difference(samples({"a": one}, kind="parameter"), samples({"a": other}, kind="parameter")).parted


def test_runs_without_anything_in_common_are_refused() -> None:
    with pytest.raises(ValueError, match="no tensor: one has a, the other b in common"):
        difference(samples({"a": WEIGHT}), samples({"b": WEIGHT}))
    with pytest.raises(ValueError, match="tolerance=0"):
        difference(samples({"a": WEIGHT}), samples({"a": WEIGHT}), 0)


def test_runs_equal_but_for_one_layers_initialisation_name_that_layer(tmp_path: Path) -> None:
    other = training.model()
    torch.manual_seed(9)
    other[2].reset_parameters()  # type: ignore[operator]
    one, two, three = (training.train(tmp_path, 8, net=net) for net in (None, None, other))
    same = one.diff(two)
    assert (same.parted, same.last_step, same.samples) == ((), 7, 8)
    parted = one.diff(three).parted
    assert {(part.step, part.kind, part.name) for part in parted} == {
        (0, "parameter", "2.weight"),
        (0, "parameter", "2.bias"),
    }


def test_a_run_that_left_out_a_step_is_compared_at_the_steps_of_the_other() -> None:
    one, two, three = ({"gradient": steps.tensors({"a": WEIGHT * size})} for size in (1, 2, 4))
    first = {(0, 0): one, (1, 0): two, (2, 0): three}
    second = {(1, 0): one, (1, 1): two, (2, 0): three}  # nothing was logged at step 0
    assert difference(first, second).parted == ()


def test_layouts_frequencies_and_holes_of_one_seed_are_the_same_and_what_differs_is_named(tmp_path: Path) -> None:
    names = ["ddp", "fsdp2", "tensor parallel"]
    uids = ranks(2, init=True).run(layouts.train_layouts, tmp_path, names, {})[0]
    uids |= {
        "one rank": layouts.alone(tmp_path),
        "seldom": layouts.alone(tmp_path, log_freq=3),
        "with a hole": layouts.alone(tmp_path, gap=True),
        "gradients": layouts.alone(tmp_path, log="gradients"),
        "other start": layouts.alone(tmp_path, other="1.up.weight"),
        "other rate": layouts.alone(tmp_path, lr=2e-2),
    }
    runs = {name: torchtrack.Api(tmp_path).run(uid) for name, uid in uids.items()}
    found = {name: runs["ddp"].diff(run) for name, run in runs.items()}

    last = {name: one.last_step for name, one in found.items() if not one.parted}
    same = {"ddp", "fsdp2", "tensor parallel", "one rank", "with a hole", "gradients"}
    assert last == {**dict.fromkeys(same, layouts.STEPS - 1), "seldom": 6}
    assert found["ddp"].furthest is not None
    assert found["ddp"].furthest.distance == 0
    assert (found["seldom"].samples, found["with a hole"].samples) == (3, 6)
    [other] = found["other start"].parted
    assert (other.step, other.kind, other.name) == (0, "parameter", "1.up.weight")
    assert (found["other rate"].last_step, found["other rate"].parted[0].step) == (0, 1)
