"""What is held of the watched parameters: read anew whenever it may have changed, and only then."""

from __future__ import annotations

import fnmatch
import sys
from collections.abc import Sequence

from torch import nn
from torch.nn.parameter import is_lazy

from torchtrack.watch import layout
from torchtrack.watch.layout import Held


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
        self._seen: list[_Seen] | None = None

    def now(self) -> dict[int, list[Held]]:
        """Id of every watched parameter -> what is held of it. The same object as before if nothing has changed."""
        if self._seen is None or not all(seen.is_current() for seen in self._seen):
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

    def _look(self) -> list[_Seen] | None:
        """Every module as it is now; None if some keep parameters that do not show in them."""
        fully_sharded = sys.modules.get("torch.distributed.fsdp")
        seen = []
        for _, model in self._models:
            for module in model.modules():
                hides = fully_sharded is not None and isinstance(
                    module, (fully_sharded.FSDPModule, fully_sharded.FullyShardedDataParallel)
                )
                if hides or any(p is not None and is_lazy(p) for p in module._parameters.values()):
                    return None
                seen.append(_Seen(module))
        return seen


class _Seen:
    """What a module had registered. Whoever is registered stays alive, so that no other can have its identity."""

    __slots__ = ("_class", "_kept", "_module", "_modules", "_parameters")

    def __init__(self, module: nn.Module) -> None:
        self._module, self._class = module, module.__class__
        self._parameters, self._modules = _registered(module)
        self._kept = [*module._parameters.values(), *module._modules.values()]

    def is_current(self) -> bool:
        """Whether it still has."""
        module = self._module
        return module.__class__ is self._class and _registered(module) == (self._parameters, self._modules)


def _registered(module: nn.Module) -> tuple[list[tuple[str, int]], list[tuple[str, int]]]:
    """Name and identity of each parameter and module."""
    parameters, modules = module._parameters, module._modules
    return [*zip(parameters, map(id, parameters.values()), strict=True)], [
        *zip(modules, map(id, modules.values()), strict=True)
    ]


def matches(name: str, patterns: Sequence[str]) -> bool:
    """Whether a name matches any of some patterns, as in fnmatch."""
    return any(fnmatch.fnmatchcase(name, pattern) for pattern in patterns)
