"""Kernels: from a list of tensors to the counts and moments of each, in one read of the data.

A kernel is called as `kernel(tensors, multiplier)`.

- `tensors`: floating tensors on one device, each contiguous, or 1-D of any stride, of any mix of float32, bfloat16,
  float16, float64 and float8; they may require grad or be empty. They are never changed.
- `multiplier`: None, or a 0-dim tensor on the same device; each element is multiplied by it, in float32 (float64 for
  float64), before anything else is read off it.
- It returns float64 `[n, 328]`, whole numbers, the counts of `torchtrack.histogram`, and float64 `[n, 4]`, the sum, sum
  of squares, min and max of the finite elements (0, 0, +inf, -inf if there are none), both on the tensors' device.
- Counts, min and max are the same whichever kernel took them. The sum is good to 1e-7 of the sum of the magnitudes, the
  sum of squares to 1e-7.
- **On an accelerator it never waits for the device** and its temporaries are bounded whatever the tensors' size.
- It records no autograd graph, draws no random numbers, and works under `torch.use_deterministic_algorithms(True)`.
- **It is called from one thread at a time per device, on that device's current stream.** It keeps no state that shows.

`choose_norms` gives another one, `norms(tensors)`, for the black box and for each rank's own gradients: see
`reference.norms`.

`torchtrack.testing.kernels` is the suite that every kernel passes.

A fast kernel has to be compiled, or loaded from disk: some seconds, or half of one. `prepare` has a thread do that
while the training goes on with the reference kernel; `choose` gives the fast one from the moment it is ready. The
thread has it compiled in another process and ends by itself. While it loads, a fork waits for it, since a child would
inherit locks, and so does the end of the interpreter.
"""

from __future__ import annotations

import importlib
import importlib.util
import logging
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Final, Protocol

import torch

from torchtrack import guard
from torchtrack.watch.kernels import compile, reference  # noqa: A004  # the word for it

THREAD: Final = "torchtrack kernel loader"
_FAST: Final = {"cpu": ("numba", "'torchtrack[cpu]'"), "cuda": ("triton", "triton")}
"""Device type (ROCm is cuda too) -> the package it takes, which the module here is named after, and what to install."""
logger = logging.getLogger("torchtrack")


class Kernel(Protocol):
    """What computes the statistics; the contract is this module's docstring."""

    def __call__(
        self, tensors: Sequence[torch.Tensor], multiplier: torch.Tensor | None = None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Counts float64 [n, 328] and moments float64 [n, 4] of n tensors."""
        ...


_chosen: dict[str, Kernel] = {}
_norms: dict[str, Callable[[Sequence[torch.Tensor]], torch.Tensor]] = {}
_loaders: list[threading.Thread] = []
_loading = threading.RLock()
"""Held while a package is imported here: not across a fork."""
_LOOK_S: Final = 0.05
_lock = threading.Lock()


def choose(device: torch.device) -> Kernel:
    """The fastest kernel that is ready for a device. Costs a look into a dict; the first call begins to `prepare`."""
    kernel = _chosen.get(device.type)
    if kernel is None:
        prepare(device)
        kernel = _chosen[device.type]
    return kernel


def choose_norms(device: torch.device) -> Callable[[Sequence[torch.Tensor]], torch.Tensor]:
    """The fastest way to the norms of tensors that is ready for a device; nothing is prepared here."""
    return _norms.get(device.type, reference.norms)


def fast_norms(device: torch.device) -> Callable[[Sequence[torch.Tensor]], torch.Tensor] | None:
    """The same where it is compiled; None where it would be no faster than torch's own norms."""
    return _norms.get(device.type)


def prepare(device: torch.device) -> None:
    """Begin to make the fastest kernel of a device ready, if nobody has; returns at once. To be called by `watch`."""
    with _lock:
        if device.type in _chosen:
            return
        _chosen[device.type] = reference.statistics
        if device.type in _FAST:
            # Not a daemon: an interpreter that ends in the middle of the compiler's work would crash.
            thread = threading.Thread(target=_load, args=(device,), name=THREAD, daemon=False)
            thread.start()
            _loaders.append(thread)


def wait() -> None:
    """Wait until whatever `prepare` began is ready: for tests and benchmarks."""
    for thread in list(_loaders):
        if thread is not threading.current_thread():
            thread.join()


def _load(device: torch.device) -> None:
    package, install = _FAST[device.type]
    kernel: Any = guard.outcome(importlib.util.find_spec, package)
    if kernel is None or isinstance(kernel, ValueError):  # the latter if it was made unavailable
        kernel = ModuleNotFoundError(package)
    if not isinstance(kernel, Exception):
        if package == "numba":
            _compile_elsewhere()
        if not threading.main_thread().is_alive():
            return  # the script is over: do not hold it up
        kernel = guard.outcome(_ready, package, device)
    if isinstance(kernel, ModuleNotFoundError):
        logger.log(
            logging.WARNING if os.environ.get("LOCAL_RANK", "0") == "0" else logging.DEBUG,  # once a node
            "torchtrack watch counts with plain torch operators on %s; pip install %s makes that several times cheaper",
            device.type,
            install,
        )
    elif isinstance(kernel, Exception):
        logger.warning("torchtrack watch counts with plain torch operators, as %s fails here: %s", package, kernel)
    else:
        _chosen[device.type] = kernel


def _ready(package: str, device: torch.device) -> Kernel:
    """Import the module of a package, which loads what was compiled, or have it compile."""
    with _loading:
        module = importlib.import_module(f"{__name__}.{package}")
    if hasattr(module, "prepare"):
        module.prepare(device)
    if hasattr(module, "norms"):
        _norms[device.type] = module.norms
    kernel: Kernel = module.statistics
    return kernel


def _compile_elsewhere() -> None:
    """Have the kernel compiled by another process, if it is not yet; what that cannot do is done here."""
    if not compile.is_needed() or getattr(sys, "frozen", False) or not sys.executable:
        return
    nothing = subprocess.DEVNULL
    root = str(Path(__file__).parents[3])
    environ = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, (os.environ.get("PYTHONPATH"), root)))}
    command = [sys.executable, "-c", compile.COMMAND]
    try:
        process = subprocess.Popen(command, stdin=nothing, stdout=nothing, stderr=nothing, env=environ)
    except OSError:
        return
    while process.poll() is None and threading.main_thread().is_alive():  # plain operators count meanwhile
        time.sleep(_LOOK_S)


def _after_fork_in_child() -> None:
    global _loading
    _loading = threading.RLock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(
        before=lambda: _loading.acquire(),
        after_in_parent=lambda: _loading.release(),
        after_in_child=_after_fork_in_child,
    )
