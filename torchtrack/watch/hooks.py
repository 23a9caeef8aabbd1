"""When: the points of a training step where gradients are final, found without touching the user's code.

Process-wide and installed once, with the first watcher; the last `remove` puts back what is still ours. The points:

    clip          `clip_grad_norm_` and `clip_grad_value_`, in whatever way they were imported, just before they clip
    step          a top-level `Optimizer.step`, before it changes anything; with a closure, after its first call
    stepped       the end of that step; hooked only while a watcher needs it
    skipped       `GradScaler.step` that did not step, because a gradient is not finite
    (a judge)     at `step`, before the others: it may set what the optimizer goes by, or have the step raise
    (nothing on unwatched optimizers, and one counter on steps that are not sampled)

All shims pass through: arguments, return values and exceptions are those of the original, but for what a judge raises.
"""

from __future__ import annotations

import functools
import logging
import os
import sys
import threading
import weakref
from collections.abc import Callable, Iterable
from types import FrameType
from typing import Any, Final, Protocol, runtime_checkable

import torch
import torch.nn.utils as grad_utils
from torch._compile import _disable_dynamo
from torch.nn.utils import clip_grad
from torch.optim.optimizer import Optimizer, register_optimizer_step_post_hook, register_optimizer_step_pre_hook

from torchtrack import guard

_OPTIMIZER_FILE: Final = Optimizer.profile_hook_step.__code__.co_filename
logger = logging.getLogger("torchtrack")


Clipped = Callable[["float | None", "torch.Tensor | None"], None]
"""Called after a clipping: the norm it clipped to and the one there was; None and None if it was by value."""


class Listener(Protocol):
    """What a watcher does at each point. Called on the training thread; exceptions are caught around every call."""

    def clipping(self, parameters: list[torch.Tensor]) -> Clipped | None:
        """Gradients of these parameters are about to be clipped. What it returns is called when they have been."""

    def begin(self, optimizer: Optimizer) -> bool:
        """A top-level step begins. True: it is sampled, call `gradients_final`."""

    def gradients_final(self, optimizer: Optimizer) -> None:
        """The gradients this step will use are there and the parameters are unchanged."""

    def skipped(self, optimizer: Optimizer) -> None:
        """The gradient scaler left this step out."""

    def stepped(self, optimizer: Optimizer) -> None:
        """The step has ended, if `after_step` was called as it began. Does not come if the step raised."""


@runtime_checkable
class Judging(Protocol):
    """A listener that may stop a step: the one thing here that may raise into training, since the user asked for it."""

    def judge(self, optimizer: Optimizer) -> Exception | None:
        """Gradients are final, and nobody has been told yet. What it returns is raised once all have been."""


class _Inside(threading.local):
    """What this thread is in the middle of: one way to clip may use another; a scaler's step knows its loss scale."""

    clip = False
    loss_scale: torch.Tensor | None = None
    verdict: Exception | None = None


class _Installed:
    """What is installed in this process: the listeners, the hook's handle and the shims with their originals.

    Each installation is one of these. A shim that somebody wrapped outlives its installation, and asks its own one,
    which has no listeners any more, so that a second installation around it does not see everything twice.
    """

    def __init__(self) -> None:
        self.listeners: list[Listener] = []
        self.handles: list[Any] = []
        self.last: Listener | None = None
        self.of_steps: list[Listener] = []
        self.after_steps: Any = None
        self.stepping: weakref.WeakKeyDictionary[Optimizer, list[Listener]] = weakref.WeakKeyDictionary()
        self.shims: list[tuple[Any, str, Any, Any]] = []
        self.stepped = threading.local()
        self.inside = _Inside()
        self.fsdp1 = False


_lock = threading.Lock()
_installed = _Installed()


def add(listener: Listener, *, after_steps: bool = False, last: bool = False) -> None:
    """Tell a listener from now on.

    Args:
        listener: who is told.
        after_steps: whether it may ask for `stepped`: a second hook on every step.
        last: at each point tell it after all others, those that come later too.
    """
    with _lock:
        if not _installed.listeners:
            _install()
        _installed.last = listener if last else _installed.last
        _installed.listeners[:] = sorted([*_installed.listeners, listener], key=lambda one: one is _installed.last)
        if after_steps:
            _installed.of_steps.append(listener)
            if _installed.after_steps is None:
                _installed.after_steps = register_optimizer_step_post_hook(_after_step)


def remove(listener: Listener) -> None:
    """Tell it no more. The last one takes the hooks and shims with it."""
    with _lock:
        if listener in _installed.listeners:
            _installed.listeners.remove(listener)
            if listener in _installed.of_steps:
                _installed.of_steps.remove(listener)
                if not _installed.of_steps:
                    _remove_after_steps()
            if not _installed.listeners:
                _uninstall()


def active() -> int:
    """How many listeners, hooks and shims are installed; 0 when nothing is left behind."""
    after_steps = _installed.after_steps is not None
    return len(_installed.listeners) + len(_installed.handles) + len(_installed.shims) + after_steps


def _each(where: str, method: str, *args: Any) -> list[tuple[Listener, Any]]:
    results = []
    for listener in list(_installed.listeners):
        result: list[Any] = []
        call = getattr(listener, method)
        guard.attempt(where, lambda call=call, result=result: result.append(call(*args)))
        results.append((listener, result[0] if result else None))
    return results


# -- the optimizer ----------------------------------------------------------------------------------------------------


def enclosing_optimizer(depth: int = 1) -> Optimizer | None:
    """The optimizer whose step is under way around the caller; read from the stack, so never stale.

    Args:
        depth: 1 for the innermost one, 2 for the one around that.
    """
    frame: FrameType | None = sys._getframe(1)
    found = 0
    while frame is not None:
        code = frame.f_code
        if code.co_name == "wrapper" and code.co_filename == _OPTIMIZER_FILE:
            found += 1
            if found == depth:
                optimizer = frame.f_locals.get("self")
                return optimizer if isinstance(optimizer, Optimizer) else None
        frame = frame.f_back
    return None


def _is_part_of(optimizer: Optimizer, outer: Optimizer) -> bool:
    held = {id(p) for group in outer.param_groups for p in group["params"]}
    return all(id(p) in held for group in optimizer.param_groups for p in group["params"])


def _makes_state(optimizer: Optimizer) -> bool:
    """Whether the step under way is torch's own, of zeros.

    `torch.distributed.checkpoint` has an optimizer make it that has no state yet, to load one into it or to save it.
    """
    rates = [group.get("lr") for group in optimizer.param_groups]
    if any(isinstance(rate, (int, float)) and rate for rate in rates):  # it sets them to 0
        return False
    frame: FrameType | None = sys._getframe(1)
    while frame is not None:
        if frame.f_code.co_name == "_init_optim_state":
            return True
        frame = frame.f_back
    return False


def backward_pass() -> int | None:
    """Autograd's number of the backward pass around the caller, in which no optimizer's closure runs; None outside."""
    task = torch._C._current_graph_task_id()
    return None if task < 0 else task


def loss_scale() -> torch.Tensor | None:
    """What the gradient scaler whose step is under way has multiplied the loss by; None outside of one."""
    return _installed.inside.loss_scale


def after_backward(call: Callable[[], None]) -> None:
    """Have something called when the backward pass under way has ended."""
    engine: Any = torch.autograd.Variable._execution_engine
    engine.queue_callback(lambda: guard.attempt("watch", call))


def is_capturing() -> bool:
    """Whether a CUDA graph is being recorded: what is done now would be done at every replay."""
    return bool(torch.cuda.is_initialized() and torch.cuda.is_current_stream_capturing())  # type: ignore[no-untyped-call]


@_disable_dynamo
def _before_step(optimizer: Optimizer, args: Any, kwargs: Any) -> tuple[Any, Any] | None:
    changed: list[tuple[Any, Any]] = []
    guard.attempt("optimizer hook", lambda: changed.extend(_begin(optimizer, args, kwargs)))
    _carry_out()
    return changed[0] if changed else None


def _begin(optimizer: Optimizer, args: Any, kwargs: Any) -> Iterable[tuple[Any, Any]]:
    outer = enclosing_optimizer(2)  # the first is its own
    if outer is not None and (outer is optimizer or _is_part_of(optimizer, outer)):
        return []
    if _makes_state(optimizer):
        return []
    _installed.stepped.any = True
    if _installed.stepping:
        _installed.stepping.pop(optimizer, None)  # of a step that raised
    if is_capturing():
        return []
    sampling = [listener for listener, armed in _each("watch", "begin", optimizer) if armed]
    if not sampling:
        return []
    if not _installed.fsdp1:
        _install_for_fsdp1()
    closure = kwargs.get("closure") or (args[1] if len(args) > 1 and callable(args[1]) else None)
    if closure is None:
        _final(sampling, optimizer)
        return []

    @functools.wraps(closure)
    def observed(*inner: Any, **named: Any) -> Any:
        result = closure(*inner, **named)
        _final(sampling, optimizer)
        _carry_out()
        sampling.clear()  # LBFGS calls the closure again: only its first gradients belong to the unchanged parameters
        return result

    if kwargs.get("closure") is not None:
        return [(args, {**kwargs, "closure": observed})]
    return [((args[0], observed, *args[2:]), kwargs)]


def _final(sampling: list[Listener], optimizer: Optimizer) -> None:
    for judging in [listener for listener in sampling if isinstance(listener, Judging)]:
        guard.attempt("watch", _judge, judging, optimizer)
    for listener in sampling:
        guard.attempt("watch", listener.gradients_final, optimizer)


def _judge(judging: Judging, optimizer: Optimizer) -> None:
    _installed.inside.verdict = judging.judge(optimizer) or _installed.inside.verdict


def _carry_out() -> None:
    """Raise what a judge said, outside of everything that catches."""
    verdict, _installed.inside.verdict = _installed.inside.verdict, None
    if verdict is not None:
        raise verdict


def after_step(optimizer: Optimizer, listener: Listener) -> None:
    """Have `stepped` called when the step that has just begun ends; of a listener added with `after_steps`."""
    listeners = _installed.stepping.setdefault(optimizer, [])
    if listener not in listeners:
        listeners.append(listener)


@_disable_dynamo
def _after_step(optimizer: Optimizer, args: Any, kwargs: Any) -> None:
    del args, kwargs
    if _installed.stepping:
        guard.attempt("optimizer hook", _end, optimizer)


def _end(optimizer: Optimizer) -> None:
    if optimizer in _installed.stepping and enclosing_optimizer(2) is not optimizer:  # not the end of super().step()
        for listener in _installed.stepping.pop(optimizer):
            guard.attempt("watch", listener.stepped, optimizer)


# -- clipping and scaling ---------------------------------------------------------------------------------------------


def _around_clip(original: Callable[..., Any], norms: Callable[..., Norms]) -> Callable[..., Any]:
    """A pass-through of a function that clips the gradients of its first argument."""
    installed = _installed

    @functools.wraps(original)
    def shim(parameters: Any, *args: Any, **kwargs: Any) -> Any:
        if torch.compiler.is_compiling() or not installed.listeners or is_capturing() or installed.inside.clip:
            return original(parameters, *args, **kwargs)
        held = [parameters] if isinstance(parameters, torch.Tensor) else list(parameters)  # a generator runs only once
        return _clip(installed, held, lambda: original(held, *args, **kwargs), lambda _: norms(*args, **kwargs))

    return shim


def _around_module_clip(original: Callable[..., Any]) -> Callable[..., Any]:
    """The same for `FullyShardedDataParallel.clip_grad_norm_`, a method with arithmetic of its own."""
    installed = _installed

    @functools.wraps(original)
    def clip_grad_norm_(self: Any, max_norm: Any, *args: Any, **kwargs: Any) -> Any:
        if torch.compiler.is_compiling() or not installed.listeners or is_capturing() or installed.inside.clip:
            return original(self, max_norm, *args, **kwargs)
        held = list(self.parameters())
        return _clip(
            installed,
            held,
            lambda: original(self, max_norm, *args, **kwargs),
            lambda total: (float(max_norm), total) if isinstance(total, torch.Tensor) else (None, None),
        )

    return clip_grad_norm_


def _clip(
    installed: _Installed,
    parameters: list[torch.Tensor],
    original: Callable[[], Any],
    norms: Callable[[Any], Norms],
) -> Any:
    clipped: list[Clipped] = [then for _, then in _each("watch", "clipping", parameters) if then is not None]
    installed.inside.clip = True
    try:
        result = original()
    finally:
        installed.inside.clip = False
    for then in clipped:
        guard.attempt("watch", lambda then=then: then(*norms(result)))
    return result


Norms = tuple["float | None", "torch.Tensor | None"]


def _given_norms(*args: Any, **kwargs: Any) -> Norms:
    max_norm = kwargs["max_norm"] if "max_norm" in kwargs else (args[0] if args else None)
    total = kwargs["total_norm"] if "total_norm" in kwargs else (args[1] if len(args) > 1 else None)
    return (float(max_norm), total) if max_norm is not None and isinstance(total, torch.Tensor) else (None, None)


def _no_norms(*args: Any, **kwargs: Any) -> Norms:
    del args, kwargs
    return None, None


def _around_scaler_step(original: Callable[..., Any]) -> Callable[..., Any]:
    installed = _installed

    @functools.wraps(original)
    def step(self: Any, optimizer: Any, *args: Any, **kwargs: Any) -> Any:
        if not installed.listeners:
            return original(self, optimizer, *args, **kwargs)
        installed.stepped.any = False
        installed.inside.loss_scale = getattr(self, "_scale", None)
        try:
            result = original(self, optimizer, *args, **kwargs)
            if not installed.stepped.any and isinstance(optimizer, Optimizer):
                _each("watch", "skipped", optimizer)
        finally:
            installed.inside.loss_scale = None
        return result

    return step


def _install() -> None:
    _installed.handles = [register_optimizer_step_pre_hook(_before_step)]
    norm, value = getattr(clip_grad, "_clip_grads_with_norm_", None), clip_grad.clip_grad_value_
    if norm is None:
        logger.warning("torchtrack: this torch has no _clip_grads_with_norm_; clipped gradients are seen at the step")
    else:
        shim = _around_clip(norm, _given_norms)
        _shim(clip_grad, "_clip_grads_with_norm_", shim)
        _shim(grad_utils, "clip_grads_with_norm_", shim)
    shim = _around_clip(value, _no_norms)
    _shim(clip_grad, "clip_grad_value_", shim)
    _shim(grad_utils, "clip_grad_value_", shim)
    _shim(torch.amp.GradScaler, "step", _around_scaler_step(torch.amp.GradScaler.step))
    _install_for_fsdp1()


def _install_for_fsdp1() -> None:
    """Also for a module that is imported after the first `watch`: asked at sampled steps."""
    module = sys.modules.get("torch.distributed.fsdp.fully_sharded_data_parallel")
    if module is not None and not _installed.fsdp1:
        _installed.fsdp1 = True
        owner = module.FullyShardedDataParallel
        _shim(owner, "clip_grad_norm_", _around_module_clip(owner.clip_grad_norm_))


def _shim(owner: Any, name: str, shim: Any) -> None:
    if hasattr(owner, name):
        _installed.shims.append((owner, name, getattr(owner, name), shim))
        setattr(owner, name, shim)


def _remove_after_steps() -> None:
    handle, _installed.after_steps = _installed.after_steps, None
    if handle is not None:
        handle.remove()


def _uninstall() -> None:
    global _installed
    _remove_after_steps()
    for handle in _installed.handles:
        handle.remove()
    for owner, name, original, shim in reversed(_installed.shims):
        if getattr(owner, name) is shim:
            setattr(owner, name, original)
    _installed = _Installed()


def _after_fork_in_child() -> None:
    """The listeners are the parent's: their threads are not here, and a lock of theirs may have been held."""
    global _lock
    _lock = threading.Lock()
    _uninstall()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork_in_child)
