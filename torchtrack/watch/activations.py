"""What modules put out: counted as it comes, in the forward passes whose optimizer step will be sampled.

A forward hook sees the output of each module without children (or of those that are asked for by name). It is counted
at once, on its device, and added to what the module put out before in the same step, so nothing of it is kept alive.

Hooks are there only while the next step is due. With one exception: a hook that never ran stays. It costs nothing, and
if its module lies inside a compiled function, whose guards saw it, taking it away would compile that anew.
"""

from __future__ import annotations

import contextlib
import logging
import os
import weakref
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Final

import torch
from torch import nn
from torch._compile import _disable_dynamo
from torch.utils._python_dispatch import _disable_current_modes

from torchtrack import guard
from torchtrack.watch import hooks, kernels, layout
from torchtrack.watch.drain import HostCopy
from torchtrack.watch.place import Place
from torchtrack.watch.sample import Part

_SAY_AFTER: Final = 2
"""So many samples in a row without activations are worth a word: the first may have begun in the middle of a step."""
logger = logging.getLogger("torchtrack")


class Activations:
    """Counts the outputs of the modules of some models.

    **Threads:** `nn.DataParallel` runs modules in threads of its own, each with a device of its own; all else is called
    on the training thread.

    Args:
        models: prefix and module of each model.
        wanted: whether a module is asked for, by its name, or None for every module without children.
        excluded: whether a module is left out, by its name.
    """

    def __init__(
        self,
        models: Sequence[tuple[str, nn.Module]],
        wanted: Callable[[str], bool] | None,
        excluded: Callable[[str], bool],
    ) -> None:
        self.armed = False
        self._models = list(models)
        self._wanted, self._excluded = wanted, excluded
        self._hooks: weakref.WeakKeyDictionary[nn.Module, tuple[Any, _Hook]] = weakref.WeakKeyDictionary()
        self._counted: dict[tuple[str, torch.device], tuple[torch.Tensor, torch.Tensor, int]] = {}
        self._told = False
        self._empty = 0
        self._pid = os.getpid()

    def renew(self, *, due: bool) -> None:
        """Forget what was counted, and look at modules from now on if the next step is due."""
        self._counted.clear()
        self.armed = due
        if due:
            for name, module in self._modules():
                if module not in self._hooks:
                    hook = _Hook(self, name)
                    self._hooks[module] = module.register_forward_hook(hook), hook
        else:
            self._remove(lambda hook: hook.ran)

    def stop(self) -> None:
        """Take every hook away."""
        self.armed = False
        self._counted.clear()
        self._remove(lambda _: True)
        self._models = []

    def take(self, rank: int, world_size: int, *, planned: bool) -> list[Part]:
        """What was counted since the last `renew`, a part a device.

        Args:
            rank: of this process: what it counted is its own.
            world_size: ranks that may count as much each.
            planned: whether the sample is one to merge.
        """
        self._empty = 0 if self._counted else self._empty + 1
        if self._empty == _SAY_AFTER:
            self._tell("no module ran outside of torch.compile")
        by_device: dict[torch.device, list[tuple[str, torch.Tensor, torch.Tensor, int]]] = {}
        for (name, device), counted in self._counted.items():
            by_device.setdefault(device, []).append((name, *counted))
        self._counted.clear()
        parts = []
        for rows in by_device.values():
            part = Part("step")
            for name, _, _, numel in rows:
                place = Place((0, numel), (f"rank{rank}", 0, numel), numel * world_size, planned)
                part.rows.append((("activation", name), place))
            part.counts = HostCopy(torch.cat([counts for _, counts, _, _ in rows]))
            part.moments = HostCopy(torch.cat([moments for _, _, moments, _ in rows]))
            parts.append(part)
        return parts

    @_disable_dynamo
    def count(self, name: str, module: nn.Module, output: Any) -> None:
        """Add an output of a forward pass in training: not in evaluation, in a backward pass or in a forked process."""
        if not (self.armed and module.training and torch.is_grad_enabled()) or os.getpid() != self._pid:
            return
        if hooks.backward_pass() is not None or hooks.is_capturing():
            return
        tensor = _first_tensor(output)
        if tensor is None or layout.is_partial(tensor):
            return
        local = layout.local_part(tensor) if layout.is_dtensor(tensor) else tensor
        if not _is_countable(local):
            return
        # A dispatch mode of the user's (selective checkpointing keeps what operators return) must not see ours.
        with torch.no_grad(), _disable_current_modes():
            counts, moments = kernels.choose(local.device)([layout.flat(local.detach(), whole=True)], None)
            before = self._counted.get((name, local.device))
            numel = local.numel()
            if before is not None:
                counts, moments, numel = counts + before[0], _added(moments, before[1]), numel + before[2]
        self._counted[name, local.device] = counts, moments, numel

    def _modules(self) -> Iterator[tuple[str, nn.Module]]:
        for prefix, model in self._models:
            if _is_compiled_outside(model):
                self._tell(f"{prefix}{layout.class_name(layout.unwrap(model))} is compiled")
                continue
            inside = ""
            for path, module in layout.unwrap(model).named_modules():
                if inside and path.startswith(inside):
                    continue
                if _is_compiled(module):
                    inside = f"{path}."
                    self._tell(f"{prefix}{path or layout.class_name(module)} is compiled")
                    if path:
                        continue
                    break
                name = prefix + (layout.strip(path) or layout.class_name(module))
                chosen = self._wanted(name) if self._wanted else next(module.children(), None) is None
                if chosen and not self._excluded(name) and not isinstance(module, torch.jit.ScriptModule):
                    yield name, module

    def _remove(self, which: Callable[[_Hook], bool]) -> None:
        for module, (handle, hook) in list(self._hooks.items()):
            if which(hook):
                handle.remove()
                del self._hooks[module]

    def _tell(self, why: str) -> None:
        if not self._told:
            self._told = True
            logger.warning("torchtrack watch leaves out activations: %s; compiled code calls no hooks", why)


class _Hook:
    """The forward hook of one module. A copy of the module, or what is read from a file, has one that does nothing."""

    def __init__(self, activations: Activations, name: str) -> None:
        self._activations, self._name = activations, name
        self.ran = False

    def __call__(self, module: nn.Module, _: Any, output: Any) -> None:
        if torch.compiler.is_compiling():
            return
        self.ran = True
        guard.attempt("watch", self._activations.count, self._name, module, output)

    def __reduce__(self) -> tuple[Any, ...]:
        return getattr, (contextlib.nullcontext(), "__exit__")


def _first_tensor(output: Any) -> torch.Tensor | None:
    """The output itself, or the first tensor of a tuple, list or mapping, at any depth."""
    if isinstance(output, torch.Tensor):
        return output
    values = output.values() if isinstance(output, dict) else output if isinstance(output, (tuple, list)) else ()
    return next((tensor for value in values if (tensor := _first_tensor(value)) is not None), None)


def _is_countable(tensor: torch.Tensor) -> bool:
    inside_functorch = torch._C._functorch.is_functorch_wrapped_tensor(tensor)  # vmap, grad: no numbers of its own
    dense = tensor.layout is torch.strided and not tensor.is_nested
    return tensor.is_floating_point() and dense and tensor.numel() > 0 and not tensor.is_meta and not inside_functorch


def _added(moments: torch.Tensor, before: torch.Tensor) -> torch.Tensor:
    """Sum, sum of squares, min and max of both together; [1, 4]."""
    lowest, highest = torch.minimum(moments[:, 2:3], before[:, 2:3]), torch.maximum(moments[:, 3:], before[:, 3:])
    return torch.cat([moments[:, :2] + before[:, :2], lowest, highest], 1)


def _is_compiled(module: nn.Module) -> bool:
    """Whether `torch.compile` wraps this module, or `module.compile()` was called."""
    return isinstance(getattr(module, "_orig_mod", None), nn.Module) or module._compiled_call_impl is not None


def _is_compiled_outside(model: nn.Module) -> bool:
    """Whether a wrapper around the user's module is compiled."""
    inner = layout.unwrap(model)
    while model is not inner:
        if _is_compiled(model):
            return True
        model = next(model.children())
    return False
