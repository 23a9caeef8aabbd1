"""What is put around torch when a process makes its first optimizer: pass-throughs that tell the recording.

Arguments, results and exceptions are those of the original, tracebacks too. A shim's own frame is not compiled, what it
calls of torch's is treated as without it, and what it calls of ours never is.
"""

from __future__ import annotations

import functools
import os
import sys
from collections.abc import Callable
from typing import Any

import torch
from torch._compile import _disable_dynamo
from torch._dynamo.decorators import skip
from torch.utils.data import dataloader

from torchtrack import guard
from torchtrack.launch import frames
from torchtrack.launch.options import Options
from torchtrack.launch.recording import Recording
from torchtrack.watch import hooks

_SHARDED_SCALER = "torch.distributed.fsdp.sharded_grad_scaler"


class _Process:
    """What this process records; None before it makes an optimizer."""

    recording: Recording | None = None


def install() -> None:
    """Look at what this process trains from now on."""
    if _Process.recording is not None:
        return
    _Process.recording = recording = Recording(Options.from_environment())
    hooks.add(recording, after_steps=True, last=True)
    torch.autograd.backward = _around_backward(torch.autograd.backward)
    patch_scaler(torch.amp.GradScaler)
    sharded = getattr(sys.modules.get(_SHARDED_SCALER), "ShardedGradScaler", None)
    if sharded is not None:
        patch_scaler(sharded)
    loading: Any = dataloader._BaseDataLoaderIter
    loading.__next__ = _around_next(loading.__next__)
    os.register_at_fork(after_in_child=_after_fork_in_child)


def patch_scaler(scaler: Any) -> None:
    """Learn what this class of gradient scaler scales."""
    if not hasattr(scaler.scale, "_torchtrack"):
        scaler.scale = _around_scale(scaler.scale)
        scaler.scale._torchtrack = True


def _after_fork_in_child() -> None:
    """A child of a process that records is a helper of it; one of a process that does not may train by itself."""
    parents = _Process.recording
    if parents is not None:
        _Process.recording = child = parents.in_child()
        if child is not None:
            guard.attempt("fork", hooks.add, child, after_steps=True, last=True)


@_disable_dynamo
def _tell(method: str, *args: Any, **kwargs: Any) -> Any:
    """Call a method of the recording; None if it failed or there is none."""
    result: list[Any] = []
    if _Process.recording is not None:
        call = getattr(_Process.recording, method)
        guard.attempt("launch", lambda: result.append(call(*args, **kwargs)))
    return result[0] if result else None


def _around_backward(original: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(original)
    def backward(tensors: Any, *args: Any, **kwargs: Any) -> Any:
        call = _tell("before_backward", tensors)
        try:
            result = original(tensors, *args, **kwargs)
        except BaseException as error:
            frames.leave_out(error)
            raise
        if call is not None:
            _tell("after_backward", call)
        return result

    return skip(backward)


def _around_scale(original: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(original)
    def scale(self: Any, outputs: Any) -> Any:
        try:
            scaled = original(self, outputs)
        except BaseException as error:
            frames.leave_out(error)
            raise
        _tell("scaled", outputs, scaled)
        return scaled

    return skip(scale)


def _around_next(original: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(original)
    def following(self: Any) -> Any:
        _tell("before_batch")
        try:
            batch = original(self)
        except BaseException as error:
            _tell("after_batch", delivered=False)
            frames.leave_out(error)
            raise
        _tell("after_batch", delivered=True)
        return batch

    return following
