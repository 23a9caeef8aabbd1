"""What a value passed to log() becomes: a number, a text, a number still on a device, a histogram, or media."""

from __future__ import annotations

import math
import numbers
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from torchtrack.columns import PLAIN, is_exact
from torchtrack.histogram import Histogram
from torchtrack.media import Medium, Pending, as_media, is_a
from torchtrack.records import encodable

if TYPE_CHECKING:
    from torchtrack.recorder import Later

REDUCES: Final = ("mean", "sum", "min", "max")
_MAX_TEXT: Final = 1 << 20
_MAX_DEPTH: Final = 16
_WAYS: Final = {"sum": "sum", "avg": "mean", "min": "min", "max": "max"}
"""The `reduce` of each reduction of a partial DTensor that readers can do."""


@dataclass(frozen=True, slots=True)
class Text:
    """A string, None, or an integer float64 cannot hold."""

    text: str | None


@dataclass(frozen=True, slots=True)
class Deferred:
    """A number on its way from a device; `partial` and `reduce` as its DTensor placement says."""

    later: Later
    reduce: str | None = None
    partial: bool = False


Value = float | Text | Deferred | Histogram | tuple[Pending, ...]


def flatten(metrics: Mapping[Any, Any], prefix: str = "", depth: int = 0) -> Iterator[tuple[str, Any]]:
    """Nested dicts as one level, names joined by "/"."""
    for key, value in metrics.items():
        name = encodable(f"{prefix}{key}")
        if isinstance(value, Mapping) and depth < _MAX_DEPTH:
            yield from flatten(value, f"{name}/", depth + 1)
        else:
            yield name, value
        if isinstance(value, Medium):
            yield from value.beside(name).items()


def convert(value: Any) -> Value:
    """The value as one of the things that can be recorded.

    Raises:
        TypeError: it is none of them; the message says what to do.
        ValueError: it is one of them but too large or malformed.
    """
    if value is None:
        return Text(None)
    if isinstance(value, (str, bytes)):
        if len(value) > _MAX_TEXT:
            raise ValueError(f"a text of {len(value)} characters; at most {_MAX_TEXT} are recorded")
        return Text(encodable(value) if isinstance(value, str) else value.decode("utf-8", "backslashreplace"))
    if type(value) in PLAIN or isinstance(value, np.generic):
        return _number(value.item() if isinstance(value, np.generic) else value)
    if isinstance(value, Histogram):
        return value
    if is_a(value, "torch", "Tensor"):
        return _tensor(value)
    if isinstance(value, np.ndarray):
        return _array(value)
    media = as_media(value)
    if media is not None:
        return tuple(medium.snapshot() for medium in media)
    if isinstance(value, numbers.Real):
        return _number(int(value)) if isinstance(value, numbers.Integral) else float(value)
    raise TypeError(
        f"{type(value).__name__} cannot be logged; log() takes numbers, strings, 0-dim tensors and arrays, nested "
        "dicts, torchtrack.Histogram, Image, Audio, Table and figures"
    )


def _number(value: Any) -> float | Text:
    if isinstance(value, (complex, bytes, str)):
        raise TypeError(f"{type(value).__name__} {value!r} is no real number; log its parts")
    if isinstance(value, int) and not is_exact(value):
        return Text(str(value))
    return float(value)


def _array(value: np.ndarray[Any, Any]) -> float | Text:
    if value.size != 1:
        raise TypeError(
            f"an array of shape {value.shape} is no single number; log torchtrack.Histogram.of(array), its mean, or an "
            "Image"
        )
    return _number(value.reshape(()).item())


def _tensor(value: Any) -> float | Text | Deferred:
    if value.numel() != 1:
        raise TypeError(
            f"a tensor of shape {tuple(value.shape)} is no single number; log torchtrack.Histogram.of(tensor), "
            "tensor.mean(), or an Image"
        )
    if value.is_complex():
        raise TypeError("a complex tensor is no real number; log its real and imaginary part")
    reduce = None
    placements = getattr(value, "placements", None)
    if placements is not None:
        reduce = _reduction(value.device_mesh, placements)
        value = value.detach().to_local()
    value = value.detach().reshape(())
    if value.device.type == "cpu" and placements is None:
        return _number(value.item())
    from torchtrack.watch.drain import snapshot

    return Deferred(snapshot(value), reduce, partial=reduce is not None)


def _reduction(mesh: Any, placements: Any) -> str | None:
    """How the local values of a DTensor make up the whole; None if each is the whole.

    Raises:
        TypeError: readers cannot do that. A subclass of Partial has a reduction of its own, whatever its `reduce_op`;
            a sum over more ranks than hold a part would count some twice.
    """
    from torch.distributed import get_world_size
    from torch.distributed.tensor import Partial, Replicate

    parts = [placement for placement in placements if type(placement) is Partial]
    ways = {_WAYS.get(part.reduce_op) for part in parts}
    others = any(type(placement) not in (Partial, Replicate) for placement in placements)
    summed = math.prod(mesh.size(i) for i, placement in enumerate(placements) if type(placement) is Partial)
    if others or None in ways or len(ways) > 1 or ("sum" in ways and summed != get_world_size()):
        raise TypeError(f"a DTensor placed {tuple(placements)} cannot be put together later; log x.full_tensor()")
    return ways.pop() if ways else None
