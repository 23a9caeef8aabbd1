"""What a value becomes; what log() makes of it is in test_logbook.py."""

from __future__ import annotations

import importlib
import math
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.tensor import DTensor, Partial, Placement, Replicate, Shard
from torch.testing._internal.distributed.fake_pg import FakeStore

from torchtrack.histogram import Histogram
from torchtrack.media import Pending, Table
from torchtrack.values import Deferred, Text, convert, flatten


def test_flatten_joins_names_and_keeps_order() -> None:
    nested: dict[Any, Any] = {"b": 1, "a": {"x": 2, 7: {"y": 3}}, "c": {}, "d": 4}

    assert list(flatten(nested)) == [("b", 1), ("a/x", 2), ("a/7/y", 3), ("d", 4)]


def test_flatten_ends_at_a_dict_that_holds_itself() -> None:
    endless: dict[str, Any] = {}
    endless["e"] = endless
    ((name, value),) = flatten(endless)

    assert name.count("e") <= 20
    assert value is endless


def test_numbers_become_floats_and_nothing_else() -> None:
    for value in (1, True, 0.5, np.float32(2), np.int64(3), torch.tensor(4), torch.tensor([[5.0]])):
        assert type(convert(value)) is float
    assert math.isnan(convert(float("nan")))  # type: ignore[arg-type]


def test_what_float64_cannot_hold_becomes_text() -> None:
    assert convert(2**53 + 1) == Text(str(2**53 + 1))
    assert convert(torch.tensor(-(2**60))) == Text(str(-(2**60)))
    assert convert(np.array(2**60)) == Text(str(2**60))
    assert convert(None) == Text(None)


def test_other_things_keep_their_kind() -> None:
    histogram = Histogram.of([1.0])
    media = convert([Table(columns=["a"]), Table(columns=["b"])])

    assert convert(histogram) is histogram
    assert isinstance(media, tuple)
    assert [type(medium) for medium in media] == [Pending, Pending]


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (object(), "object cannot be logged; log() takes numbers"),
        (np.zeros((2, 3)), "an array of shape (2, 3) is no single number; log torchtrack.Histogram.of(array)"),
        (torch.zeros(0), "a tensor of shape (0,) is no single number"),
        (torch.tensor(1j), "a complex tensor is no real number"),
        (1j, "complex cannot be logged"),
        ("x" * (2**20 + 1), "a text of 1048577 characters; at most 1048576 are recorded"),
    ],
)
def test_a_refusal_says_what_to_do(value: Any, message: str) -> None:
    with pytest.raises((TypeError, ValueError)) as raised:
        convert(value)

    assert message in str(raised.value)


class Elsewhere(torch.Tensor):
    """A tensor whose number must not be asked for: it would wait for the device."""

    @property
    def device(self) -> torch.device:  # type: ignore[override]
        return torch.device("cuda")

    def item(self) -> Any:
        raise AssertionError("the host waits for the device here")


def test_a_tensor_on_a_device_is_copied_at_once_and_never_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    drain = importlib.import_module("torchtrack.watch.drain")
    copied: list[torch.Tensor] = []
    monkeypatch.setattr(drain, "snapshot", copied.append)
    value = convert(torch.ones((), requires_grad=True).as_subclass(Elsewhere))

    assert isinstance(value, Deferred)
    assert [tensor.requires_grad for tensor in copied] == [False]


@pytest.fixture(scope="module")
def mesh() -> Iterator[DeviceMesh]:
    """2 x 3 ranks, of which this process is one and the others are pretended."""
    torch.distributed.init_process_group("fake", rank=0, world_size=6, store=FakeStore())
    yield init_device_mesh("cpu", (2, 3), mesh_dim_names=("dp", "tp"))
    torch.distributed.destroy_process_group()


class NormPartial(Partial):
    """As torch has one for gradient norms: it says "sum", and means a root of a sum of powers."""


def placed(mesh: DeviceMesh, *placements: Placement, local: Any = 2.0) -> Any:
    return DTensor.from_local(torch.tensor(local), mesh, placements, run_check=False)


@pytest.mark.parametrize(
    ("placements", "reduce"),
    [
        ((Partial("sum"), Partial("sum")), "sum"),
        ((Partial("avg"), Partial("avg")), "mean"),
        ((Replicate(), Partial("avg")), "mean"),
        ((Partial("max"), Replicate()), "max"),
        ((Partial("min"), Partial("min")), "min"),
    ],
)
def test_a_partial_dtensor_gives_its_local_part_with_its_reduction(
    mesh: DeviceMesh, placements: tuple[Placement, ...], reduce: str
) -> None:
    value = convert(placed(mesh, *placements))

    assert isinstance(value, Deferred)
    assert (value.reduce, value.partial) == (reduce, True)


def test_a_replicated_dtensor_is_the_whole_value(mesh: DeviceMesh) -> None:
    value = convert(placed(mesh, Replicate(), Replicate()))

    assert isinstance(value, Deferred)
    assert (value.reduce, value.partial) == (None, False)


@pytest.mark.parametrize(
    "placements",
    [
        (NormPartial(), NormPartial()),
        (Replicate(), NormPartial("max")),
        (Partial("sum"), Partial("avg")),
        (Partial("product"), Partial("product")),
        (Replicate(), Partial("sum")),  # the parts of both replicas would be summed
    ],
)
def test_a_dtensor_readers_could_not_put_together_is_refused(
    mesh: DeviceMesh, placements: tuple[Placement, ...]
) -> None:
    with pytest.raises(TypeError, match=r"cannot be put together later; log x\.full_tensor\(\)"):
        convert(placed(mesh, *placements))


def test_a_sum_over_some_of_the_ranks_is_refused(mesh: DeviceMesh) -> None:
    with pytest.raises(TypeError, match="full_tensor"):
        convert(placed(mesh["tp"], Partial("sum")))


def test_a_sharded_dtensor_of_one_element_is_refused_without_asking_other_ranks(mesh: DeviceMesh) -> None:
    one = torch.Size((1,))
    value = DTensor.from_local(torch.zeros(1), mesh, [Replicate(), Shard(0)], run_check=False, shape=one, stride=(1,))
    with pytest.raises(TypeError, match="full_tensor"):
        convert(value)
