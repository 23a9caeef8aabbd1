"""An agent: one trial of a sweep after the other, by a function of this process or by a program of its own."""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import re
import shlex
import signal
import subprocess
import sys
import threading
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Final

from torchtrack import guard
from torchtrack.active import active
from torchtrack.run import in_words, say
from torchtrack.sweeps.sweep import Sweep, Trial

MAX_FAILURES: Final = 3
"""In a row, after which an agent stops: the next trial would fail too."""
_LOOK_S: Final = 2.0
"""How often a trial is compared with the others, where a sweep stops some early."""
PATIENCE_S: Final = 30.0


def work(
    sweep: Sweep,
    function: Callable[[], Any] | None = None,
    count: int | None = None,
    *,
    max_failures: int = MAX_FAILURES,
    patience_s: float = PATIENCE_S,
) -> int:
    """Run trials until the sweep is over.

    Args:
        sweep: which.
        function: called once a trial, in this thread; it calls `init`, whose config has the trial's parameters. An
            exception ends its trial, not the agent. None runs the program that the sweep's configuration names.
        count: trials at most.
        max_failures: trials that fail in a row after which the agent stops.
        patience_s: seconds that a program may take to end when it is told to.

    Returns:
        How many were run.

    Raises:
        ValueError: no function is given, and the sweep names no program; or this is one of several ranks.
    """
    if int(os.environ.get("WORLD_SIZE") or 1) > 1:
        raise ValueError(
            "an agent in a torchrun job would draw a trial for each rank: start it outside, with torchrun in the "
            'sweep\'s command, like ["torchrun", "--nproc-per-node", "4", "${program}", "${args}"]'
        )
    if function is None and not sweep.plan.program:
        raise ValueError("this sweep names no program: give the agent a function, or the configuration program: FILE")
    done = failures = 0
    while (count is None or done < count) and failures < max_failures:
        trial = sweep.draw()
        if trial is None:
            say(f"sweep {sweep.name} is over{_best(sweep)}")
            return done
        told = ", ".join(f"{'.'.join(place)}={value}" for place, value in trial.values.items())
        say(f"sweep {sweep.name}, trial {trial.number}: {told}")
        with _Early(sweep, trial) as early:
            well = _call(function, trial, early) if function else _start(sweep, trial, early, patience_s)
        failures = 0 if well else failures + 1
        done += 1
    if failures >= max_failures:
        say(f"sweep {sweep.name}: the agent stops, since {failures} trials in a row have failed; the last ones say why")
    return done


def _best(sweep: Sweep) -> str:
    best = sweep.best() if sweep.plan.metric else None
    if best is None:
        return ""
    told = ", ".join(f"{'.'.join(place)}={value}" for place, value in best.trial.values.items())
    return f"; the best {sweep.plan.metric} is {best.value:.6g}, of trial {best.trial.number}: {told}"


class _Early:
    """Watches a trial and has it stopped where the sweep's rule says so."""

    def __init__(self, sweep: Sweep, trial: Trial) -> None:
        self.stopped = False
        """Whether it was."""
        self._sweep, self._trial = sweep, trial
        self._over = threading.Event()
        self._lock = threading.Lock()
        self._end: Callable[[], object] | None = None
        self._thread: threading.Thread | None = None

    def __enter__(self) -> _Early:
        if self._sweep.plan.early_terminate is not None:
            self._thread = threading.Thread(target=self._watch, name="torchtrack-early", daemon=True)
            self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        if self._thread is not None:
            self._thread.join()

    @contextlib.contextmanager
    def by(self, end: Callable[[], object]) -> Iterator[None]:
        """Within this the trial runs, and is ended so."""
        with self._lock:
            self._end = end
        try:
            yield
        finally:
            with self._lock:
                self._end = None

    def _watch(self) -> None:
        while not self._over.wait(_LOOK_S):
            guard.attempt("stopping a trial early", self._look)
            if self.stopped:
                return

    def _look(self) -> None:
        rule, plan = self._sweep.plan.early_terminate, self._sweep.plan
        histories = self._sweep.histories()
        mine = histories.pop(self._trial.number, [])
        if rule is None or not rule.stops(mine, list(histories.values()), smaller_is_better=plan.goal == "minimize"):
            return
        with self._lock:
            if self._end is not None:
                self.stopped = True
                say(f"sweep {self._sweep.name}: trial {self._trial.number} is stopped early: others are better by now")
                self._end()


class _Stopped(BaseException):
    """A trial is to end; nobody's `except Exception` is to keep it."""


def _call(function: Callable[[], Any], trial: Trial, early: _Early) -> bool:
    """Whether the function returned, or was stopped."""
    wrong: BaseException | None = None
    with _environment(trial.environ):
        try:
            with early.by(_interrupter()):
                found = guard.outcome(function)
                wrong = found if isinstance(found, Exception) else None
        except _Stopped:
            pass
        except SystemExit as error:
            wrong = error if error.code not in (None, 0) else None
        run = active()
        if run is not None:
            run._end("exception" if wrong else "finish", in_words(wrong) if wrong else None)
    if wrong is not None:
        say(f"trial {trial.number} failed:")
        traceback.print_exception(wrong)
    return wrong is None


def _interrupter() -> Callable[[], object]:
    """What raises in this thread, at its next line of Python, when another thread calls it."""
    thread = threading.get_ident()
    return lambda: ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(thread), ctypes.py_object(_Stopped))


@contextlib.contextmanager
def _environment(changes: Mapping[str, str]) -> Iterator[None]:
    before = {name: os.environ.get(name) for name in changes}
    os.environ.update(changes)
    try:
        yield
    finally:
        for name, value in before.items():
            os.environ.pop(name) if value is None else os.environ.update({name: value})


def _start(sweep: Sweep, trial: Trial, early: _Early, patience_s: float) -> bool:
    """Whether the program ended with 0, or was stopped."""
    words = command(sweep.plan.command, str(sweep.plan.program), trial)
    say(f"  {shlex.join(words)}")
    process = subprocess.Popen(words, env={**os.environ, **trial.environ})
    try:
        with early.by(process.terminate), _handing_on(process):
            code = process.wait()
    finally:
        if process.poll() is None:  # Ctrl-C went to both; the program is not left behind
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(patience_s)
            process.kill()
            process.wait()
    return code == 0 or (early.stopped and code == -signal.SIGTERM)


@contextlib.contextmanager
def _handing_on(process: subprocess.Popen[bytes]) -> Iterator[None]:
    """A scheduler tells the agent alone that time is up: the program is told too, and the agent leaves after it."""

    def leave(number: int, _: object) -> None:
        process.terminate()
        raise SystemExit(128 + number)

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, leave)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def command(template: Sequence[str], program: str, trial: Trial) -> list[str]:
    """The words that start a trial.

    Args:
        template: words in which `${env}`, `${interpreter}`, `${program}`, `${args}`, `${args_no_hyphens}`,
            `${args_no_boolean_flags}`, `${args_json}` and `${envvar:NAME}` stand for what they are called.
        program: the script.
        trial: whose parameters are the arguments.
    """
    flat = {".".join(place): value for place, value in trial.values.items()}
    given = {name: _word(value) for name, value in flat.items()}
    lists = {
        "${env}": ["/usr/bin/env"],
        "${interpreter}": [sys.executable],
        "${program}": [program],
        "${args}": [f"--{name}={value}" for name, value in given.items()],
        "${args_no_hyphens}": [f"{name}={value}" for name, value in given.items()],
        "${args_no_boolean_flags}": [
            f"--{name}" if value is True else f"--{name}={given[name]}"
            for name, value in flat.items()
            if value is not False
        ],
        "${args_json}": [json.dumps(trial.parameters)],
    }
    found: list[str] = []
    for word in template:
        found += lists.get(word) or [re.sub(r"\$\{envvar:(\w+)\}", lambda name: os.environ.get(name[1], ""), word)]
    return found


def _word(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value) if isinstance(value, (list, dict)) else str(value)
