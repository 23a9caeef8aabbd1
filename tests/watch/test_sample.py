"""What the training thread hands over."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from torchtrack.histogram import Histogram
from torchtrack.recorder import Ticket
from torchtrack.watch import kernels
from torchtrack.watch.drain import HostCopy
from torchtrack.watch.place import Place
from torchtrack.watch.sample import Part, Sample


def whole(numel: int) -> Place:
    return Place((0, numel), ("", 0, numel), numel, planned=False)


def part_of(stage: str, tensors: dict[tuple[str, str], torch.Tensor], zeros: int = 0) -> Part:
    part = Part(stage, [(key, whole(tensor.numel() + zeros)) for key, tensor in tensors.items()])
    part.implied_zeros = dict.fromkeys(range(len(tensors)), zeros)
    counts, moments = kernels.choose(torch.device("cpu"))(list(tensors.values()))
    part.counts, part.moments = HostCopy(counts), HostCopy(moments)
    return part


A, B = ("gradient", "a"), ("gradient", "b")


def test_only_the_rows_asked_for_are_told() -> None:
    part = part_of("pre_clip", {A: torch.ones(2), B: torch.full((3,), 5.0)})
    counted = part.counted([1])
    assert (counted.keys, counted.numels, counted.stages, counted.covers) == ([B], [3], ["pre_clip"], [""])
    assert counted.sums[0, :328].tolist() == Histogram.of([5.0] * 3).counts.tolist()
    assert counted.maxes.tolist() == [[5.0, -5.0]]


@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_zeros_that_are_not_stored_are_counted_every_time_the_same(sign: float) -> None:
    part = part_of("step", {A: torch.tensor([1.0, 2.0]) * sign}, zeros=3)
    for _ in range(2):
        counted = part.counted([0])
        truth = Histogram.of([sign, 2 * sign, 0.0, 0.0, 0.0])
        assert counted.sums[0, :328].tolist() == truth.counts.tolist()
        assert counted.maxes[0].tolist() == [truth.max, -truth.min]


def test_a_range_becomes_the_covers_of_its_row() -> None:
    part = part_of("step", {A: torch.ones(2)})
    part.rows = [(A, Place((0, 2), ("1/2d0", 4, 6), 9, planned=False))]
    assert part.counted([0]).covers == ["1/2d0:4-6"]


def sample_of(*picks: tuple[Part, list[int]], **changes: Any) -> Sample:
    return Sample(0, Ticket(), None, list(picks), **changes)


def test_a_sample_joins_the_rows_of_its_parts_each_with_its_stage() -> None:
    clipped = part_of("pre_clip", {A: torch.ones(2), B: torch.ones(2)})
    stepped = part_of("step", {B: torch.ones(2)})
    counted = sample_of((clipped, [0]), (stepped, [0]), (stepped, [])).counted()
    assert list(zip(counted.keys, counted.stages, strict=True)) == [(A, "pre_clip"), (B, "step")]
    assert counted.sums.shape == (2, 330)
    assert counted.maxes.shape == (2, 2)


@pytest.mark.parametrize(
    ("changes", "stage"),
    [
        ({"skipped": True}, "skipped"),
        ({"found_inf": HostCopy(torch.tensor(1.0))}, "skipped"),
        ({"found_inf": HostCopy(torch.tensor(0.0))}, "step"),
    ],
)
def test_a_step_that_was_not_taken_makes_all_its_rows_skipped(changes: dict[str, Any], stage: str) -> None:
    assert sample_of((part_of("step", {A: torch.ones(2)}), [0]), **changes).counted().stages == [stage]


def test_a_sample_without_rows_is_empty() -> None:
    counted = sample_of().counted()
    assert (counted.keys, counted.sums.shape, counted.maxes.shape) == ([], (0, 330), (0, 2))


class Late(HostCopy):
    """A copy that arrives when told."""

    arrived = False

    def ready(self) -> bool:
        return self.arrived


@pytest.mark.parametrize("late", ["counts", "moments", "found_inf", "scalar"])
def test_a_sample_is_ready_when_all_of_it_has_arrived(late: str) -> None:
    copy = Late(
        torch.zeros(1, 328) if late == "counts" else torch.zeros(1, 4) if late == "moments" else torch.zeros(())
    )
    part = part_of("step", {A: torch.ones(2)})
    sample = sample_of((part, [0]), found_inf=HostCopy(torch.zeros(())), scalars=[("x", HostCopy(torch.ones(())))])
    assert sample.ready()
    if late in ("counts", "moments"):
        setattr(part, late, copy)
    elif late == "found_inf":
        sample.found_inf = copy
    else:
        sample.scalars.append(("y", copy))
    assert not sample.ready()
    copy.arrived = True
    assert sample.ready()
