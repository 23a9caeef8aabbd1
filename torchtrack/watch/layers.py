"""Parameters by layer: few enough groups to tell something of each at every sample."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Final

MAX_LAYERS: Final = 256
_DEPTH: Final = 2
_KNOWN: Final = 8
"""So many lists of names are remembered: those of a model, from one sample to the next."""


def layers_of(names: Sequence[str]) -> dict[str, list[int]]:
    """Layer -> which of some names are in it, in the order of their first.

    A layer is a name up to its first number (`model.layers.3` of `model.layers.3.mlp.up.weight`); without one the
    module, at most two deep (`model.embed`). Every name in it begins with it. With more than `MAX_LAYERS` of them there
    are none: nobody would read them.
    """
    return {layer: list(rows) for layer, rows in _layers_of(tuple(names))}


@functools.lru_cache(_KNOWN)
def _layers_of(names: tuple[str, ...]) -> tuple[tuple[str, tuple[int, ...]], ...]:
    layers: dict[str, list[int]] = {}
    for i, name in enumerate(names):
        layers.setdefault(_layer_of(name), []).append(i)
    return tuple((layer, tuple(rows)) for layer, rows in layers.items()) if len(layers) <= MAX_LAYERS else ()


def _layer_of(name: str) -> str:
    model, slash, path = name.rpartition("/")
    parts = path.split(".")
    number = next((i for i, part in enumerate(parts) if part.isdecimal()), None)
    end = min(_DEPTH, max(1, len(parts) - 1)) if number is None else number + 1
    return model + slash + ".".join(parts[:end])
