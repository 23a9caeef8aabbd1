"""What adapters of optimizers that are not torch's tell of."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from tests.watch.conftest import Watched, assert_same, histogram
from torchtrack.histogram import Histogram
from torchtrack.watch import Shard, Watcher


@pytest.fixture
def watcher(watched: Watched) -> Watcher:
    found = watched.run.watch(nn.Linear(2, 2), log_freq=2)
    assert found is not None
    return found


def test_what_is_observed_is_counted_at_sampled_steps_only(watched: Watched, watcher: Watcher) -> None:
    tensors = [torch.randn(5), torch.randn(5), torch.randn(5)]
    for tensor in tensors:
        if watcher.is_due():
            watcher.observe("layer.weight", tensor)
        watcher.step()
        watched.run.log({"loss": 0.0})
    rows = watched.rows("gradient")
    assert [(row["sample"], row["step"], row["stage"]) for row in rows] == [(0, 0, "step"), (2, 2, "step")]
    for row, tensor in zip(rows, tensors[::2], strict=True):
        assert_same(row, Histogram.of(tensor))


def test_a_tensor_observed_at_a_step_that_is_not_sampled_is_not_counted(watched: Watched, watcher: Watcher) -> None:
    watcher.step()
    watcher.observe("layer.weight", torch.ones(3))
    watcher.step()
    assert watched.rows() == []


def test_a_shard_says_which_part_of_the_whole_it_is(watched: Watched, watcher: Watcher) -> None:
    watcher.observe("a", torch.ones(3), shard=Shard(10, 4))
    watcher.observe("b", torch.ones(3), kind="parameter", shard=Shard(12, key="tp1"))
    watcher.step()
    rows = {row["name"]: row for row in watched.rows()}
    assert (rows["a"]["covers"], rows["a"]["numel"], rows["a"]["count"]) == (":4-7", 10, 3)
    assert (rows["b"]["covers"], rows["b"]["coverage"]) == ("tp1:0-3", 0.25)


def test_a_skipped_step_is_labelled_and_a_scale_is_taken_off(watched: Watched, watcher: Watcher) -> None:
    watcher.observe("a", torch.tensor([4.0, float("inf")]), multiplier=torch.tensor(0.25))
    watcher.step(skipped=True)
    [row] = watched.rows()
    assert (row["stage"], row["max"], row["pos_infs"]) == ("skipped", 1.0, 1)
    assert histogram(row).counts.sum() == 2


@pytest.mark.parametrize(
    "arguments",
    [
        {"name": "a", "tensor": torch.ones(2), "kind": "weights"},
        {"name": "a", "tensor": torch.ones(2), "stage": "later"},
        {"name": "a", "tensor": None},
    ],
)
@pytest.mark.usefixtures("expect_internal_failures")
def test_a_wrong_argument_is_told_and_harms_nothing(
    watched: Watched, watcher: Watcher, arguments: dict[str, Any]
) -> None:
    watcher.observe(**arguments)
    watcher.observe("b", torch.ones(2))
    watcher.step()
    assert [row["name"] for row in watched.rows()] == ["b"]


def test_integers_are_left_out_with_a_warning(
    watched: Watched, watcher: Watcher, caplog: pytest.LogCaptureFixture
) -> None:
    watcher.observe("a", torch.ones(2, dtype=torch.int32))
    watcher.step()
    assert watched.rows() == []
    assert "only real floating point" in caplog.text
