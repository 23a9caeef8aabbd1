"""Tests on real ranks: processes with torchrun's environment and gloo between them.

    @ranks(2)
    def test_ranks_agree_on_one_run(tmp_path):
        run = torchtrack.init(dir=tmp_path)
        ...

    def test_each_rank_knows_its_number():
        assert ranks(4).run(rank_number) == [0, 1, 2, 3]

The processes live as long as the session, with torch imported: a test costs milliseconds, not seconds. Each call
has an environment of its own: a fresh agent store (a TCPStore on a port the system chose), MASTER_ADDR and MASTER_PORT,
a new TORCHELASTIC_RUN_ID, the caller's working directory, other variables and warning filters. A rank that raises, ends
or exceeds `timeout_s` fails the call with every rank's traceback and output, and its processes are replaced.

The function and its arguments travel between processes: a function at the top level of a module, arguments that can be
pickled (`tmp_path`, parametrised values; not `monkeypatch`). A test that kills ranks uses `torchrun` instead.
"""

from __future__ import annotations

import atexit
import functools
import inspect
import os
import socket
import subprocess
import sys
import tempfile
import time
import uuid
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from multiprocessing.reduction import ForkingPickler
from pathlib import Path
from typing import Any, Final, ParamSpec, TypeVar

import psutil

from torchtrack.testing import leaks
from torchtrack.testing.rank_worker import Answer, Job, Rules, Target

_P = ParamSpec("_P")
_T = TypeVar("_T")

_START_TIMEOUT_S: Final = 120.0
_GRACE_S: Final = 3.0
"""How long the other ranks may go on once one has failed: most of them only wait for it."""


class RankError(AssertionError):
    """A rank raised, ended or hung; the message holds what each rank said."""


@dataclass(frozen=True, kw_only=True)
class Ranks:
    """How many ranks, and how they run. Made by `ranks`."""

    size: int
    rules: Rules

    def __call__(self, function: Callable[_P, object]) -> Callable[_P, None]:
        """Decorate a test: its body runs on every rank, what it returns is dropped."""

        @functools.wraps(function)
        def test(*args: _P.args, **kwargs: _P.kwargs) -> None:
            self._run(_target(function, decorated=True), args, kwargs)

        return test

    def run(self, function: Callable[_P, _T], *args: _P.args, **kwargs: _P.kwargs) -> list[_T]:
        """Run a function on every rank and return what each returned, by rank."""
        return self._run(_target(function, decorated=False), args, kwargs)

    def _run(self, target: Target, args: tuple[Any, ...], kwargs: dict[str, Any]) -> list[Any]:
        from torch.distributed import TCPStore  # type: ignore[attr-defined]  # exported, but not declared

        store = TCPStore("127.0.0.1", 0, None, is_master=True, wait_for_workers=False)  # the agent's, as in torchrun
        orders = [
            _packed(Job(environment, str(Path.cwd()), list(warnings.filters), self.rules), args, kwargs)
            for environment in _environments(self.size, store.port)
        ]
        workers = _pool.take(self.size)
        for worker, order in zip(workers, orders, strict=True):
            worker.send(target, order)
        return _pool.gather(workers, self.rules.timeout_s)


def ranks(size: int, *, init: bool = False, allow_failures: bool = False, timeout_s: float = 120.0) -> Ranks:
    """Run a test on `size` real processes.

    Args:
        size: how many ranks, one process each.
        init: call `init_process_group("gloo")` before the body and destroy the group after it.
        allow_failures: the body makes torchtrack fail inside on purpose (`torchtrack.guard.failures`).
        timeout_s: a rank that takes longer writes its stack and ends.

    Raises:
        ValueError: `size` is below 1.
    """
    if size < 1:
        raise ValueError(f"ranks({size}): a job has at least one rank")
    return Ranks(size=size, rules=Rules(init, allow_failures, timeout_s))


def close_pool() -> None:
    """End every rank process of this session. Called at the exit of the interpreter at the latest."""
    _pool.close()


def torchrun(
    script: Path,
    *args: str,
    nproc: int = 2,
    max_restarts: int = 0,
    env: Mapping[str, str] | None = None,
    cwd: Path | None = None,
    timeout_s: float = 120.0,
) -> subprocess.CompletedProcess[str]:
    """Run a script under the real torchrun, for tests whose ranks die or restart.

    Args:
        script: the training script.
        args: its arguments.
        nproc: how many ranks.
        max_restarts: how often torchrun may start them again.
        env: variables beside those of this process.
        cwd: where it runs.
        timeout_s: after this the whole tree of processes is killed.

    Returns:
        The exit code of torchrun and what all ranks printed.

    Raises:
        subprocess.TimeoutExpired: it took longer than `timeout_s`.
    """
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={nproc}"]
    command += [f"--max-restarts={max_restarts}", str(script), *args]
    variables = {**os.environ, "OMP_NUM_THREADS": "1", **(env or {})}
    if max_restarts:
        # The agent's store outlives its workers; gloo would read the addresses of the dead ones from it.
        variables.setdefault("TORCH_DISABLE_SHARE_RDZV_TCP_STORE", "1")
    with subprocess.Popen(
        command, env=variables, cwd=cwd, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as agent:
        try:
            stdout, stderr = agent.communicate(timeout=timeout_s)
        except subprocess.TimeoutExpired:
            _kill_tree(agent.pid)
            stdout, stderr = agent.communicate()
            raise subprocess.TimeoutExpired(command, timeout_s, stdout, stderr) from None
    return subprocess.CompletedProcess(command, agent.returncode, stdout, stderr)


class _Worker:
    """One live rank process, its socket and the file its output goes to."""

    def __init__(self) -> None:
        ours, theirs = socket.socketpair()
        self.output = tempfile.TemporaryFile(mode="w+", prefix="torchtrack-rank-")  # noqa: SIM115  # closed by close()
        start = (
            f"import sys; sys.path[:] = {sys.path!r}; "
            f"from torchtrack.testing.rank_worker import serve; serve({theirs.fileno()})"
        )
        self.process = subprocess.Popen(
            [sys.executable, "-c", start],
            pass_fds=[theirs.fileno()],
            stdin=subprocess.DEVNULL,
            stdout=self.output,
            stderr=self.output,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
            start_new_session=True,
        )
        leaks.exempt_processes.add(self.process.pid)
        theirs.close()
        self.connection = Connection(ours.detach())
        self.answered = False  # it still has to say "ready"

    def ready(self) -> None:
        """Wait until torch is imported."""
        if self.answered:
            return
        if not self.connection.poll(_START_TIMEOUT_S) or self.connection.recv() != "ready":
            raise RankError(f"a rank process did not start:\n{self.said()}")
        self.answered = True

    def send(self, target: Target, order: memoryview) -> None:
        """Give the process its next call."""
        self.output.seek(0)
        self.output.truncate()
        self.connection.send(target)
        self.connection.send_bytes(order)

    def said(self) -> str:
        """What the process has printed during this call."""
        self.output.seek(0)
        return self.output.read()

    def close(self) -> None:
        """Kill and reap the process."""
        self.connection.close()
        self.process.kill()
        self.process.wait()
        self.output.close()
        leaks.exempt_processes.discard(self.process.pid)


class _Pool:
    """The rank processes of this session: started when first needed, thrown away after a failure."""

    def __init__(self) -> None:
        self._workers: list[_Worker] = []
        self._owner = os.getpid()

    def take(self, size: int) -> list[_Worker]:
        """The first `size` processes, started if need be and ready."""
        while len(self._workers) < size:
            self._workers.append(_Worker())
        workers = self._workers[:size]
        for worker in workers:
            worker.ready()
        return workers

    def gather(self, workers: list[_Worker], timeout_s: float) -> list[Any]:
        """Every rank's value, in order. After the first failure the others have a moment to say why they failed too."""
        answers: dict[int, Answer] = {}
        waiting: dict[object, int] = {worker.connection: rank for rank, worker in enumerate(workers)}
        deadline = time.monotonic() + timeout_s + _GRACE_S
        while waiting and time.monotonic() < deadline:
            unanswered = [workers[rank].connection for rank in waiting.values()]
            for connection in wait(unanswered, timeout=deadline - time.monotonic()):
                rank = waiting.pop(connection)
                answers[rank] = _receive(workers[rank])
                if answers[rank].error is not None:
                    deadline = min(deadline, time.monotonic() + _GRACE_S)
        for rank in waiting.values():
            answers[rank] = Answer(error="no answer: it was waiting for the others, or hung", reusable=False)
        said = [worker.said() for worker in workers]
        self._drop([worker for rank, worker in enumerate(workers) if not answers[rank].reusable])
        if any(answer.error is not None for answer in answers.values()):
            raise RankError(_report([answers[rank].error for rank in range(len(workers))], said))
        for rank, text in enumerate(said):
            sys.stdout.writelines(f"[rank {rank}] {line}\n" for line in text.splitlines())
        return [answers[rank].value for rank in range(len(workers))]

    def close(self) -> None:
        """End all of them, unless this is a forked child: they are its parent's."""
        if self._owner == os.getpid():
            self._drop(list(self._workers))

    def _drop(self, workers: list[_Worker]) -> None:
        for worker in workers:
            self._workers.remove(worker)
            worker.close()


def _receive(worker: _Worker) -> Answer:
    try:
        answer: Answer = worker.connection.recv()
    except (EOFError, ConnectionError):
        code = worker.process.wait()
        how = f"signal {-code}" if code < 0 else f"exit code {code}"
        return Answer(error=f"the process ended with {how}", reusable=False)
    return answer


def _report(errors: Sequence[str | None], said: Sequence[str]) -> str:
    parts = [f"{sum(error is not None for error in errors)} of {len(errors)} ranks failed"]
    for rank, (error, text) in enumerate(zip(errors, said, strict=True)):
        if error is not None:
            parts.append(f"--- rank {rank}: {error.rstrip()}")
        if text.strip():
            parts.append(f"--- rank {rank} printed:\n{text.rstrip()}")
    return "\n".join(parts)


def _target(function: Callable[..., Any], *, decorated: bool) -> Target:
    if not inspect.isfunction(function) or not function.__qualname__.isidentifier():
        raise ValueError(f"ranks: {function.__qualname__} must be a function at the top level of a module")
    path = Path(function.__code__.co_filename).resolve()
    # A process of the pool has a __main__ of its own.
    module = "__ranks_main__" if function.__module__ == "__main__" else function.__module__
    return Target(module, str(path), function.__name__, decorated)


def _packed(job: Job, args: tuple[Any, ...], kwargs: dict[str, Any]) -> memoryview:
    # Before anything is sent: a process must not be left waiting for the second half of an order.
    try:
        return ForkingPickler.dumps((job, args, kwargs))
    except (TypeError, AttributeError, ValueError) as error:
        raise TypeError(f"ranks: what the test is called with must be picklable: {error}") from error


def _environments(size: int, port: int) -> list[dict[str, str]]:
    """The variables torchrun gives the ranks of a node, beside those of this process."""
    job = {
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "WORLD_SIZE": str(size),
        "LOCAL_WORLD_SIZE": str(size),
        "GROUP_RANK": "0",
        "GROUP_WORLD_SIZE": "1",
        "ROLE_NAME": "default",
        "ROLE_WORLD_SIZE": str(size),
        "TORCHELASTIC_RUN_ID": str(uuid.uuid4()),
        "TORCHELASTIC_RESTART_COUNT": "0",
        "TORCHELASTIC_MAX_RESTARTS": "0",
        "TORCHELASTIC_SIGNALS_TO_HANDLE": "SIGTERM,SIGINT,SIGHUP,SIGQUIT",
        "TORCHELASTIC_USE_AGENT_STORE": "True",
        "OMP_NUM_THREADS": "1",
    }
    return [{**os.environ, **job, "RANK": str(r), "LOCAL_RANK": str(r), "ROLE_RANK": str(r)} for r in range(size)]


def _kill_tree(pid: int) -> None:
    # torchrun's workers lead sessions of their own: the agent's group does not hold them.
    try:
        tree = [*psutil.Process(pid).children(recursive=True), psutil.Process(pid)]
    except psutil.NoSuchProcess:
        return
    for process in tree:
        try:
            process.kill()
        except psutil.NoSuchProcess:
            continue
    psutil.wait_procs(tree, timeout=5)


_pool: Final = _Pool()
atexit.register(close_pool)
