"""Counted tensors as rows of the table."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tests.watch.conftest import histogram
from torchtrack import records
from torchtrack.histogram import Histogram
from torchtrack.watch import kernels
from torchtrack.watch.rows import Counted, tensors_batch

CPU = torch.device("cpu")


def counted(tensors: dict[tuple[str, str], torch.Tensor], **changes: Any) -> Counted:
    counts, moments = kernels.choose(CPU)([tensor.reshape(-1) for tensor in tensors.values()])
    n = len(tensors)
    values: dict[str, Any] = {
        "keys": list(tensors),
        "sums": np.concatenate([counts.numpy(), moments[:, :2].numpy()], 1),
        "maxes": np.stack([moments[:, 3].numpy(), -moments[:, 2].numpy()], 1),
        "numels": [tensor.numel() for tensor in tensors.values()],
        "covers": [""] * n,
        "stages": ["step"] * n,
        "planned": [False] * n,
    }
    return Counted(**{**values, **changes})


def rows_of(part: Counted, sample: int = 3, step: int = 30) -> list[dict[str, Any]]:
    batch = tensors_batch(part, sample, step, 1_700_000_000_123_456_789)
    if batch is None:
        return []
    assert batch.schema == records.TENSORS
    batch.validate(full=True)
    return batch.to_pylist()  # type: ignore[no-any-return]


@given(st.lists(st.lists(st.floats(width=32), max_size=20), max_size=6))
def test_a_batch_tells_the_histogram_of_each_tensor(values: list[list[float]]) -> None:
    tensors = {("gradient", f"t{i}"): torch.tensor(v, dtype=torch.float32) for i, v in enumerate(values)}
    rows = rows_of(counted(tensors)) if tensors else []
    full = {name: t for (_, name), t in tensors.items() if t.numel()}
    assert [row["name"] for row in rows] == list(full)
    for row in rows:
        truth, got = Histogram.of(full[row["name"]]), histogram(row)
        assert got.counts.tolist() == truth.counts.tolist()
        assert (got.min, got.max) == (truth.min, truth.max)
        assert row["count"] == row["numel"] == truth.count
        assert (row["zeros"], row["nans"]) == (truth.zeros, truth.nans)
        assert (row["pos_infs"], row["neg_infs"]) == (truth.pos_infs, truth.neg_infs)


def test_a_row_says_when_what_and_by_whom() -> None:
    part = counted({("parameter", "w"): torch.ones(4)}, numels=[9], covers=[":0-4"], stages=["pre_clip"], ranks=2)
    (row,) = rows_of(part)
    names = ("sample", "step", "kind", "name", "stage", "ranks", "numel", "covers", "count")
    assert [row[name] for name in names] == [3, 30, "parameter", "w", "pre_clip", 2, 9, ":0-4", 4]
    assert row["time"].isoformat() == "2023-11-14T22:13:20.123456+00:00"


def test_rows_that_counted_nothing_are_left_out() -> None:
    part = counted(
        {("gradient", "a"): torch.ones(0), ("gradient", "b"): torch.ones(2), ("gradient", "c"): torch.ones(0)}
    )
    assert [row["name"] for row in rows_of(part)] == ["b"]
    assert tensors_batch(part.select([0, 2]), 0, 0, 0) is None


def test_select_keeps_everything_of_a_row() -> None:
    part = counted({("gradient", "a"): torch.ones(3), ("parameter", "b"): -torch.ones(2)}, covers=["", ":0-2"], ranks=4)
    chosen = part.select([1])
    assert rows_of(chosen) == rows_of(part)[1:]
    assert chosen.ranks == 4


def test_the_norm_of_a_kind_is_over_all_its_tensors() -> None:
    part = counted(
        {
            ("gradient", "a"): torch.tensor([3.0]),
            ("gradient", "b"): torch.tensor([4.0]),
            ("parameter", "a"): torch.ones(4),
        }
    )
    assert part.norm("gradient") == 5.0
    assert part.norm("parameter") == 2.0
    assert part.norm("update") is None


@pytest.mark.parametrize(
    ("bad", "norm"), [(math.inf, math.inf), (-math.inf, math.inf), (math.nan, math.nan)], ids=["inf", "-inf", "nan"]
)
def test_the_norm_is_not_finite_if_an_element_is_not(bad: float, norm: float) -> None:
    part = counted({("gradient", "a"): torch.tensor([3.0]), ("gradient", "b"): torch.tensor([bad, 1.0])})
    assert part.norm("gradient") == pytest.approx(norm, nan_ok=True)


def test_there_is_no_norm_of_tensors_counted_in_part() -> None:
    part = counted({("gradient", "a"): torch.ones(2), ("gradient", "b"): torch.ones(2)}, covers=["", ":0-2"])
    assert part.norm("gradient") is None


def test_the_update_ratio_is_over_parameters_whose_update_was_counted_whole() -> None:
    part = counted(
        {
            ("parameter", "a"): torch.tensor([3.0, 4.0]),
            ("parameter", "b"): torch.ones(100),
            ("parameter", "c"): torch.ones(100),
            ("update", "a"): torch.tensor([1.0, 0.0]),
            ("update", "b"): torch.ones(50),
            ("update", "c"): torch.ones(0),  # a row of the plan whose turn it is not
        },
        covers=["", "", "", "", ":0-50", ""],
        numels=[2, 100, 100, 2, 100, 100],
    )
    assert part.update_ratio() == 0.2
    assert part.select([0, 1, 2]).update_ratio() is None
    assert part.select([3, 4]).update_ratio() is None


def test_the_update_ratio_of_parameters_that_are_all_zero_is_left_out() -> None:
    part = counted({("parameter", "a"): torch.zeros(2), ("update", "a"): torch.ones(2)})
    assert part.update_ratio() is None
