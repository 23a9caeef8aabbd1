"""What a piece of code left behind in this process: threads, children, open files, variables, hooks.

    before = leaks.snapshot()
    ...
    assert not leaks.since(before)

A library with background threads needs this from its first day, in the process of the test and in each of its ranks.
"""

from __future__ import annotations

import contextlib
import gc
import os
import signal
import sys
import tempfile
import threading
import time
from dataclasses import dataclass
from multiprocessing import resource_tracker
from operator import attrgetter
from pathlib import Path
from typing import Final

import psutil

exempt_processes: Final[set[int]] = set()
"""Process ids that are meant to outlive a test: the pool of `torchtrack.testing.ranks` enters its own here."""

ENDING_THREADS: Final = frozenset({"torchtrack kernel loader", "tqdm_monitor", "AnyIO worker thread"})
"""Names of threads that a process has once, and that end by themselves or with it: torch's compiler starts tqdm's, a
server those of AnyIO."""

ENDING_PROCESS: Final = "import os; os.nice(19); from torchtrack.watch.kernels import compile; compile.main()"
"""What a child process that ends by itself likewise was told to run."""

_IGNORED_VARIABLES: Final = frozenset({"TORCHINDUCTOR_CACHE_DIR", "PYTEST_CURRENT_TEST"})
_SIGNALS: Final = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2)
_HOOK_TABLES: Final = (
    ("torch.optim.optimizer", "_global_optimizer_pre_hooks"),
    ("torch.optim.optimizer", "_global_optimizer_post_hooks"),
    ("torch.nn.modules.module", "_global_forward_pre_hooks"),
    ("torch.nn.modules.module", "_global_forward_hooks"),
    ("torch.nn.modules.module", "_global_backward_pre_hooks"),
    ("torch.nn.modules.module", "_global_backward_hooks"),
    ("torch.nn.modules.module", "_global_module_registration_hooks"),
    ("torch.nn.modules.module", "_global_parameter_registration_hooks"),
)
_REPLACEABLE: Final = (
    ("sys", "excepthook"),
    ("torch.nn.utils", "clip_grad_norm_"),
    ("torch.nn.utils", "clip_grad_value_"),
    ("torch.nn.utils", "clip_grads_with_norm_"),
    ("torch.nn.utils.clip_grad", "clip_grad_norm_"),
    ("torch.nn.utils.clip_grad", "clip_grad_value_"),
    ("torch.nn.utils.clip_grad", "_clip_grads_with_norm_"),
    ("torch.amp.grad_scaler", "GradScaler.step"),
    ("torch.distributed.fsdp.fully_sharded_data_parallel", "FullyShardedDataParallel.clip_grad_norm_"),
)


@dataclass(frozen=True)
class Snapshot:
    """The state of this process at one moment."""

    threads: frozenset[threading.Thread]
    processes: frozenset[int]
    files: frozenset[tuple[str, int]]
    variables: dict[str, str]
    folder: str
    hooks: dict[str, object]
    signals: dict[signal.Signals, object]
    process_group: bool
    active_run: object


def snapshot() -> Snapshot:
    """What there is now."""
    return Snapshot(
        threads=frozenset(thread for thread in threading.enumerate() if thread.name not in ENDING_THREADS),
        processes=frozenset(psutil.pids()),  # of the machine: who is whose child is asked only of those that are new
        files=_files(),
        variables={name: value for name, value in os.environ.items() if name not in _IGNORED_VARIABLES},
        folder=str(Path.cwd()),
        hooks=_hooks(),
        signals={number: signal.getsignal(number) for number in _SIGNALS},
        process_group=_process_group(),
        active_run=_active_run(),
    )


def since(before: Snapshot, grace_s: float = 10.0) -> list[str]:
    """What is left over since a snapshot, one sentence a leak; empty when there is nothing.

    Threads and children that are just ending have `grace_s` seconds to be gone.
    """
    deadline = time.monotonic() + grace_s
    now = snapshot()
    while _passing(before, now) and time.monotonic() < deadline:
        gc.collect()  # an object in a reference cycle may hold the file or the thread
        threading.Event().wait(0.02)
        now = snapshot()
    return _passing(before, now) + _lasting(before, now)


def restore(before: Snapshot) -> None:
    """Put back what can be put back, so that one leak is not reported by every later test."""
    for name in set(os.environ) - set(before.variables) - _IGNORED_VARIABLES:
        del os.environ[name]
    os.environ.update(before.variables)
    os.chdir(before.folder)
    for number, handler in before.signals.items():
        if signal.getsignal(number) is not handler:
            signal.signal(number, handler)  # type: ignore[arg-type]  # what getsignal gave
    if _process_group() and not before.process_group:
        from torch import distributed

        distributed.destroy_process_group()
    leaked = _children(frozenset(psutil.pids()) - before.processes)
    for child in leaked:
        try:
            child.kill()
        except psutil.NoSuchProcess:
            continue
    psutil.wait_procs(leaked, timeout=5)


def _passing(before: Snapshot, now: Snapshot) -> list[str]:
    """What may yet go away by itself."""
    found = [f"thread {thread.name!r} is alive" for thread in now.threads - before.threads]
    found += [_describe(child) for child in _children(now.processes - before.processes)]
    found += [f"file {path} is open (fd {fd})" for path, fd in now.files - before.files]
    return sorted(found)


def _lasting(before: Snapshot, now: Snapshot) -> list[str]:
    """What stays until somebody puts it back."""
    found = [f"environment variable {name} was set" for name in now.variables.keys() - before.variables.keys()]
    found += [f"environment variable {name} was removed" for name in before.variables.keys() - now.variables.keys()]
    for name in before.variables.keys() & now.variables.keys():
        if before.variables[name] != now.variables[name]:
            found.append(f"environment variable {name} was changed")
    if now.folder != before.folder:
        found.append(f"the working directory is {now.folder}, was {before.folder}")
    for name, value in now.hooks.items():
        absent = () if isinstance(value, tuple) else value  # torch was imported meanwhile
        if before.hooks.get(name, absent) != value:
            found.append(f"{name} was changed and not put back")
    found += [f"the handler of {n.name} was changed" for n, h in now.signals.items() if before.signals[n] is not h]
    if now.process_group and not before.process_group:
        found.append("torch.distributed is still initialised")
    if now.active_run is not before.active_run and now.active_run is not None:
        found.append("a torchtrack run is still active")
    return sorted(found)


def _children(new: frozenset[int]) -> list[psutil.Process]:
    """Those of the new processes that descend from this one and are not meant to outlive a test."""
    # The resource tracker of multiprocessing is started once and lives as long as the interpreter.
    tracker = getattr(getattr(resource_tracker, "_resource_tracker", None), "_pid", None)
    found = []
    for pid in new - {tracker}:
        with contextlib.suppress(psutil.NoSuchProcess):
            child = psutil.Process(pid)
            parents = {parent.pid for parent in child.parents()}
            if os.getpid() in parents and not _exempt(child, parents):
                found.append(child)
    return found


def _exempt(child: psutil.Process, parents: set[int]) -> bool:
    if exempt_processes & {child.pid, *parents}:
        return True
    with contextlib.suppress(psutil.Error):  # one that has ended has no command line
        return ENDING_PROCESS in child.cmdline()
    return False


def _describe(child: psutil.Process) -> str:
    try:
        status = child.status()
        command = "" if status == psutil.STATUS_ZOMBIE else " ".join(child.cmdline())[:200]
    except psutil.Error:
        return f"process {child.pid} was a child"
    return f"process {child.pid} is a child ({status}) {command}".rstrip()


def _files() -> frozenset[tuple[str, int]]:
    # Only what lies in the temporary folder, where tests write: libraries keep fonts and caches open elsewhere, and the
    # interpreter itself may lie there.
    temporary = str(Path(tempfile.gettempdir()).resolve())
    files = psutil.Process().open_files()
    return frozenset(
        (f.path, f.fd) for f in files if f.path.startswith(temporary) and not f.path.startswith(sys.prefix)
    )


def _hooks() -> dict[str, object]:
    found: dict[str, object] = {}
    for module, name in _HOOK_TABLES:
        if module in sys.modules:
            found[f"{module}.{name}"] = tuple(getattr(sys.modules[module], name, {}).values())
    for module, path in _REPLACEABLE:
        if module in sys.modules:
            try:
                found[f"{module}.{path}"] = attrgetter(path)(sys.modules[module])
            except AttributeError:
                continue  # a private name this torch has not
    if getattr(sys.excepthook, "__module__", "").startswith("torch."):
        del found["sys.excepthook"]  # init_process_group's own, which it never takes back
    return found


def _process_group() -> bool:
    distributed = sys.modules.get("torch.distributed")
    return bool(distributed and distributed.is_available() and distributed.is_initialized())


def _active_run() -> object:
    active = sys.modules.get("torchtrack.active")
    return active.active() if active else None
