"""Parameters by layer: few enough groups to tell something of each at every sample."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

MAX_LAYERS: Final = 256
_DEPTH: Final = 2


def layers_of(names: Sequence[str]) -> dict[str, list[int]]:
    """Layer -> which of some names are in it, in the order of their first.

    A layer is a name up to its first number (`model.layers.3` of `model.layers.3.mlp.up.weight`); without one the
    module, at most two deep (`model.embed`). Every name in it begins with it. With more than `MAX_LAYERS` of them there
    are none: nobody would read them.
    """
    layers: dict[str, list[int]] = {}
    for i, name in enumerate(names):
        layers.setdefault(_layer_of(name), []).append(i)
    return layers if len(layers) <= MAX_LAYERS else {}


def _layer_of(name: str) -> str:
    model, slash, path = name.rpartition("/")
    parts = path.split(".")
    number = next((i for i, part in enumerate(parts) if part.isdecimal()), None)
    end = min(_DEPTH, max(1, len(parts) - 1)) if number is None else number + 1
    return model + slash + ".".join(parts[:end])
