"""What a value becomes; what log() makes of it is in test_logbook.py."""

from __future__ import annotations

import importlib
import math
from typing import Any

import numpy as np
import pytest
import torch

from torchtrack.histogram import Histogram
from torchtrack.media import Pending, Table
from torchtrack.values import Deferred, Text, convert, encodable, flatten


def test_flatten_joins_names_and_keeps_order() -> None:
    nested: dict[Any, Any] = {"b": 1, "a": {"x": 2, 7: {"y": 3}}, "c": {}, "d": 4}

    assert list(flatten(nested)) == [("b", 1), ("a/x", 2), ("a/7/y", 3), ("d", 4)]


def test_flatten_ends_at_a_dict_that_holds_itself() -> None:
    endless: dict[str, Any] = {}
    endless["e"] = endless
    ((name, value),) = flatten(endless)

    assert name.count("e") <= 20
    assert value is endless


@pytest.mark.parametrize(
    ("text", "kept"), [("abc", "abc"), ("\u00fc\U0001f600", "\u00fc\U0001f600"), ("a\ud800", "a?")]
)
def test_encodable_replaces_lone_surrogates_only(text: str, kept: str) -> None:
    assert encodable(text) == kept
    assert encodable(text).encode()


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
