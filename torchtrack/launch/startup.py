"""In every Python process below `torchtrack launch`: wait, at next to no cost, until it imports and makes an optimizer.

Nothing here imports torch, or anything that is slow to import.
"""

from __future__ import annotations

import functools
import os
import sys
from typing import TYPE_CHECKING, Any, Final

from torchtrack.launch import frames

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from importlib.machinery import ModuleSpec
    from types import ModuleType

VARIABLE: Final = "TORCHTRACK_LAUNCH"
"""Holds the options of the launch as JSON; a process without it is left alone."""


def begin() -> None:
    """Wait for what this process may import. Called once, before its script."""
    if os.environ.get(VARIABLE):
        calls: dict[str, Callable[[Any], None]] = {
            "argparse": _listen_to_argparse,
            "torch.optim.optimizer": _await_optimizer,
            "torch.distributed.fsdp.sharded_grad_scaler": _patch_sharded_scaler,
        }
        for name in [name for name in calls if name in sys.modules]:
            _guarded(calls.pop(name), sys.modules[name])
        sys.meta_path.insert(0, Waiting(calls))


class Waiting:
    """A finder that finds what the others find, and has a call made once such a module has been executed.

    Args:
        calls: module name -> what is called with the module.
    """

    def __init__(self, calls: Mapping[str, Callable[[ModuleType], None]]) -> None:
        self._calls = dict(calls)

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> ModuleSpec | None:
        """What the other finders find; None for modules nobody waits for."""
        if name not in self._calls:
            return None
        others = (finder.find_spec(name, path, target) for finder in sys.meta_path if finder is not self)
        spec = next((spec for spec in others if spec is not None), None)
        if spec is not None:
            _after_execution(spec.loader, self._calls.pop(name))
        return spec


def _after_execution(loader: Any, call: Callable[[ModuleType], None]) -> None:
    """Have this loader, made for one module, make a call at its end; then it is as it was."""
    if isinstance(loader, type) or not hasattr(loader, "__dict__"):
        return

    def exec_module(module: ModuleType) -> None:
        del loader.exec_module
        try:
            loader.exec_module(module)
        except BaseException as error:
            frames.leave_out(error)
            raise
        _guarded(call, module)

    loader.exec_module = exec_module


def _guarded(call: Callable[..., None], *args: Any) -> None:
    from torchtrack import guard

    guard.attempt("launch", call, *args)


def _listen_to_argparse(module: Any) -> None:
    from torchtrack.launch import command_line

    command_line.listen(module.ArgumentParser)


def _await_optimizer(module: Any) -> None:
    """Be called when the first optimizer is made; then `Optimizer.__init__` is as it was."""
    owner = module.Optimizer
    original = owner.__init__

    @functools.wraps(original)
    def made(self: Any, *args: Any, **kwargs: Any) -> None:
        if owner.__init__ is made:
            owner.__init__ = original
            _guarded(_install)
        try:
            original(self, *args, **kwargs)
        except BaseException as error:
            frames.leave_out(error)
            raise

    owner.__init__ = made


def _install() -> None:
    from torchtrack.launch import shims

    shims.install()


def _patch_sharded_scaler(module: Any) -> None:
    shims = sys.modules.get("torchtrack.launch.shims")  # which looks itself when it is installed
    if shims is not None:
        shims.patch_scaler(module.ShardedGradScaler)
