"""What is held of the watched parameters: read anew whenever it may have changed, and only then."""

from __future__ import annotations

import fnmatch
import sys
from collections.abc import Sequence
from itertools import chain
from operator import methodcaller
from typing import Any, Final

from torch import nn
from torch.nn.parameter import is_lazy

from torchtrack.watch import layout
from torchtrack.watch.layout import Held

_VALUES: Final = methodcaller("values")


class Holdings:
    """The watched parameters of some models, by identity.

    Args:
        models: prefix and module of each.
        include: patterns (as in fnmatch) of names to watch; empty for all.
        exclude: patterns of names to leave out.
    """

    def __init__(
        self, models: Sequence[tuple[str, nn.Module]], include: Sequence[str] = (), exclude: Sequence[str] = ()
    ) -> None:
        self._models = list(models)
        self._include, self._exclude = tuple(include), tuple(exclude)
        self.last: dict[int, list[Held]] = {}
        """What `now` returned last."""
        self._seen: _Seen | None = None

    def now(self) -> dict[int, list[Held]]:
        """Id of every watched parameter -> what is held of it. The same object as before if nothing has changed."""
        if self._seen is None or not self._seen.is_current():
            self.last, self._seen = self._read(), self._look()
        return self.last

    def wants(self, name: str) -> bool:
        """Whether a parameter of this name is watched."""
        if not self._include and not self._exclude:
            return True
        return not (self._include and not matches(name, self._include)) and not matches(name, self._exclude)

    def forget(self) -> None:
        """Let go of what was read."""
        self._models, self.last, self._seen = [], {}, None

    def _read(self) -> dict[int, list[Held]]:
        by_id: dict[int, list[Held]] = {}
        for prefix, model in self._models:
            for held in layout.held_by(model, prefix):
                before = by_id.get(id(held.parameter))
                if before is not None and (held.part is None or held in before):
                    continue  # shared between two models
                if self.wants(held.name):
                    by_id.setdefault(id(held.parameter), []).append(held)
        return by_id

    def _look(self) -> _Seen | None:
        """Every module as it is now; None if some keep parameters that do not show in them."""
        fully_sharded = sys.modules.get("torch.distributed.fsdp")
        modules = [module for _, model in self._models for module in model.modules()]
        for module in modules:
            hides = fully_sharded is not None and isinstance(
                module, (fully_sharded.FSDPModule, fully_sharded.FullyShardedDataParallel)
            )
            if hides or any(p is not None and is_lazy(p) for p in module._parameters.values()):
                return None
        return _Seen(modules)


class _Seen:
    """What modules had registered. Whoever is registered stays alive, so that no other can have its identity."""

    def __init__(self, modules: Sequence[nn.Module]) -> None:
        self._modules = list(modules)
        self._registered, self._kept = self._look()

    def is_current(self) -> bool:
        """Whether they still have."""
        return self._look()[0] == self._registered

    def _look(self) -> tuple[tuple[list[Any], ...], list[Any]]:
        """Class of each module, how much it has, then of all name and identity; without Python for each of them."""
        tables = [table for module in self._modules for table in (module._parameters, module._modules)]
        values = [*chain.from_iterable(map(_VALUES, tables))]
        classes, sizes, names = [*map(type, self._modules)], [*map(len, tables)], [*chain.from_iterable(tables)]
        return (classes, sizes, names, [*map(id, values)]), values


def matches(name: str, patterns: Sequence[str]) -> bool:
    """Whether a name matches any of some patterns, as in fnmatch."""
    return any(fnmatch.fnmatchcase(name, pattern) for pattern in patterns)
