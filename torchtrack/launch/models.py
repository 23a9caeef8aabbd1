"""Which modules own what an optimizer steps, found among all objects of the process, and what they are called."""

from __future__ import annotations

import gc
import re
import sys
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

import torch
from torch import nn
from torch.optim.optimizer import Optimizer

from torchtrack import guard
from torchtrack.watch import layout


class Found(NamedTuple):
    """A module that is part of no other, and the parameters it owns."""

    model: nn.Module
    owned: dict[int, str]
    """Id of what an optimizer would step -> its name."""


class Scan:
    """The modules and optimizers there are. Takes as long as a full garbage collection: done for a new optimizer.

    Args:
        known: optimizers that are meant in any case.
    """

    def __init__(self, known: Sequence[Optimizer] = ()) -> None:
        modules: list[nn.Module] = []
        self.optimizers = list(known)
        for thing in gc.get_objects():
            kinds = type(thing).__mro__  # not isinstance: a proxy's __class__ would run code of the user's
            if nn.Module in kinds:
                modules.append(thing)
            elif Optimizer in kinds and all(thing is not other for other in known):
                self.optimizers.append(thing)
        inner = {id(child) for module in modules for child in _children(module)}
        self._roots = [module for module in modules if id(module) not in inner]
        self._names = {id(value): name for name, value in list(vars(sys.modules["__main__"]).items())}

    def owners(self, parameters: Iterable[torch.Tensor]) -> list[nn.Module]:
        """The modules that own these parameters between them, the one with most of them first."""
        wanted = {id(p) for p in parameters}
        candidates = [Found(root, _owned(root)) for root in self._roots]
        found = [candidate for candidate in candidates if wanted & candidate.owned.keys()]
        chosen = []
        while found:
            best = max(found, key=lambda f: (len(wanted & f.owned.keys()), self._named(f.model), -len(f.owned)))
            chosen.append(best.model)
            wanted -= best.owned.keys()
            found = [f for f in found if wanted & f.owned.keys()]
        return chosen

    def name(self, model: nn.Module) -> str:
        """The script's own word for a model: the variable that holds it, else its class."""
        inner = layout.unwrap(model)
        variable = self._names.get(id(model)) or self._names.get(id(inner))
        return variable or re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", layout.class_name(inner)).lower()

    def _named(self, model: nn.Module) -> bool:
        return id(model) in self._names or id(layout.unwrap(model)) in self._names


def are_parts_of_one(models: Sequence[nn.Module]) -> bool:
    """Whether these are the stages of a pipeline, which share neither a class nor a name with anything else."""
    names = [name for model in models for name in _owned(model).values()]
    return len({layout.class_name(layout.unwrap(model)) for model in models}) == 1 and len(set(names)) == len(names)


def parameters_of(optimizer: Optimizer) -> list[torch.Tensor]:
    """All that an optimizer steps."""
    return [p for group in optimizer.param_groups for p in group["params"]]


def _children(module: nn.Module) -> Iterator[object]:
    children = module.__dict__.get("_modules")  # missing in one that is being made
    return iter(children.values()) if children is not None else iter(())


def _owned(root: nn.Module) -> dict[int, str]:
    owned = guard.outcome(lambda: {id(held.parameter): held.name for held in layout.held_by(root)})
    return owned if isinstance(owned, dict) else {}
