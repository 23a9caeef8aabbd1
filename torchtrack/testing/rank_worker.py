"""One live rank of the pool: waits for a function, runs it as a rank of a torchrun job, answers, waits again.

Started by `torchtrack.testing.ranks` with a socket; it ends when the socket closes.
"""

from __future__ import annotations

import faulthandler
import importlib
import importlib.util
import os
import random
import reprlib
import sys
import traceback
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing.connection import Connection
from multiprocessing.reduction import ForkingPickler
from pathlib import Path
from types import FrameType, ModuleType, TracebackType
from typing import Any

from torchtrack import guard
from torchtrack.testing import leaks


@dataclass(frozen=True)
class Target:
    """Where a function is found: by file, since test folders are no packages."""

    module: str
    path: str
    name: str
    decorated: bool


@dataclass(frozen=True)
class Rules:
    """What the caller asked for; see `torchtrack.testing.ranks.ranks`."""

    init: bool
    allow_failures: bool
    timeout_s: float
    grace_s: float = 10.0
    """How long what is just ending may take to be gone."""


@dataclass(frozen=True)
class Job:
    """The surroundings one rank runs in."""

    environment: dict[str, str]
    folder: str
    filters: list[Any]
    rules: Rules


@dataclass(frozen=True)
class Answer:
    """What a rank says when it is done; `reusable` if it may run the next test."""

    value: Any = None
    error: str | None = None
    reusable: bool = True


class _Outcome:
    """A context that keeps whatever its body raises, be it KeyboardInterrupt: the parent is to hear of all of it."""

    error: BaseException | None = None

    def __enter__(self) -> _Outcome:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> bool:
        self.error = error
        return True


def serve(fd: int) -> None:
    """Answer jobs until the parent closes the socket."""
    import torch.distributed  # noqa: F401  # the seconds this takes are what the pool saves each test

    connection = Connection(fd)
    connection.send("ready")
    while True:
        try:
            target: Target = connection.recv()
        except (EOFError, ConnectionError):
            return
        answer = _answer(target, connection)
        try:
            connection.send(answer)
        except (EOFError, ConnectionError):
            return


def _answer(target: Target, connection: Connection) -> Answer:
    value: Any = None
    before = leaks.snapshot()
    with _Outcome() as outcome:
        # The module comes first: the arguments may be of its classes.
        function = _load(target)
        job, args, kwargs = connection.recv()
        faulthandler.dump_traceback_later(job.rules.timeout_s, exit=True)  # a rank that hangs says where, and ends
        value = _run(function, job, args, kwargs)
        ForkingPickler.dumps(value)  # here, where its failure is told as this rank's
    faulthandler.cancel_dump_traceback_later()
    sys.stdout.flush()
    sys.stderr.flush()
    if outcome.error is None:
        return Answer(value)
    text = _explain(outcome.error, target.path)
    leaks.restore(before)
    return Answer(error=text, reusable=not leaks.since(before, grace_s=0.2))


def _load(target: Target) -> Callable[..., Any]:
    found = getattr(sys.modules.get(target.module) or _import(target), target.name)
    function: Callable[..., Any] = found.__wrapped__ if target.decorated else found
    return function


def _import(target: Target) -> ModuleType:
    spec = importlib.util.spec_from_file_location(target.module, target.path)
    if spec is None or spec.loader is None:
        raise ImportError(f"cannot load {target.module} from {target.path}")
    module = importlib.util.module_from_spec(spec)
    sys.modules[target.module] = module
    spec.loader.exec_module(module)
    return module


def _run(function: Callable[..., Any], job: Job, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    import torch
    from torch import distributed

    os.environ.clear()
    os.environ.update(job.environment)
    os.chdir(job.folder)
    torch.manual_seed(0)
    random.seed(0)
    guard.failures.clear()
    before = leaks.snapshot()
    with warnings.catch_warnings():
        warnings.filters[:] = job.filters  # type: ignore[index]  # the parent's, "error" under pytest
        if job.rules.init:
            distributed.init_process_group("gloo")
        try:
            value = function(*args, **kwargs)
        finally:
            if job.rules.init and distributed.is_initialized():
                distributed.destroy_process_group()
    left = leaks.since(before, job.rules.grace_s)
    if left:
        raise AssertionError("this rank left behind:\n  " + "\n  ".join(left))
    if guard.failures and not job.rules.allow_failures:
        raise AssertionError(f"torchtrack failed inside and went on: {dict(guard.failures)}")
    return value


def _explain(error: BaseException, path: str) -> str:
    """The traceback, with the variables of the test's own frames: these processes have no assertion rewriting."""
    text = "".join(traceback.format_exception(type(error), error, error.__traceback__))
    frames: list[FrameType] = [frame for frame, _ in traceback.walk_tb(error.__traceback__)]
    own = [frame for frame in frames if Path(frame.f_code.co_filename) == Path(path)]
    if own:
        short = reprlib.Repr()
        short.maxother = short.maxstring = 120
        text += "".join(f"    {name} = {short.repr(value)}\n" for name, value in own[-1].f_locals.items())
    return text
