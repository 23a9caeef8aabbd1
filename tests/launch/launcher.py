"""Runs scripts plainly and launched; what they print, and what their runs have."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import torchtrack
from tests.runs import own, until
from torchtrack.api.run import Run

PYTHON = [sys.executable]
MODULE = [sys.executable, "-m", "torchtrack.launch"]
COMMAND = [sys.executable, "-m", "torchtrack.cli", "launch"]
TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
ACCELERATE = [sys.executable, "-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes=2"]
ACCELERATE += ["--num_machines=1", "--mixed_precision=no", "--dynamo_backend=no", "--main_process_port=0"]


def path(script: str) -> str:
    return str(Path(__file__).parent / "scripts" / script)


class Done(NamedTuple):
    """How a process has ended."""

    code: int
    out: str
    err: str


class Launcher:
    """Runs a script plainly and launched in the same folder, both at once where that is two processes."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.environ = {
            **os.environ,
            "OMP_NUM_THREADS": "1",
            "PYTHONPATH": str(Path(torchtrack.__file__).parent.parent),
            "WANDB_DIR": str(folder),
            "WANDB_SILENT": "true",
        }
        self._started: list[subprocess.Popen[str]] = []

    def start(self, command: Sequence[str]) -> subprocess.Popen[str]:
        process = subprocess.Popen(
            command,
            cwd=self.folder,
            env=self.environ,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        self._started.append(process)
        return process

    def close(self) -> None:
        """End what a failed test has left running."""
        for process in self._started:
            if process.poll() is None:
                process.kill()
                process.communicate()

    def end(self, process: subprocess.Popen[str]) -> Done:
        out, err = process.communicate("what is typed", timeout=120)
        return Done(process.returncode, out, err)

    def both(self, plainly: Sequence[str], launched: Sequence[str]) -> tuple[Done, Done]:
        several = any(list(plainly[: len(words)]) == words for words in (TORCHRUN, ACCELERATE))
        if several:  # four that end at once on few cores: torch's own abort now and then
            return self.end(self.start(plainly)), self.end(self.start(launched))
        processes = self.start(plainly), self.start(launched)
        return self.end(processes[0]), self.end(processes[1])

    def compare(self, plainly: Sequence[str], launched: Sequence[str]) -> str:
        """What both printed, which has to be the same, as has the exit code, which has to be 0."""
        plain, done = self.both(plainly, launched)
        assert plain.code == 0, plain.err
        assert (done.code, done.out) == (0, plain.out), done.err
        assert "failed and goes on" not in done.err, done.err
        return done.out

    def signalled(
        self, plainly: Sequence[str], launched: Sequence[str], number: signal.Signals, *, ranks: int = 1
    ) -> tuple[Done, Done]:
        """Both, sent a signal once each of their ranks has said that it has trained and what it recorded is on disk."""
        processes = self.start(plainly), self.start(launched)
        for process in processes:
            assert process.stdout is not None
            assert [process.stdout.readline() for _ in range(ranks)] == ["trained\n"] * ranks
        until(lambda: sum(len(run.history(ranks="all")) for run in self.runs() if "loss" in own(run)) == ranks)
        for process in processes:
            process.send_signal(number)
        return self.end(processes[0]), self.end(processes[1])

    def runs(self) -> list[Run]:
        folder = self.folder / "runs"
        return torchtrack.Api(folder).runs() if folder.exists() else []

    def run(self) -> Run:
        (run,) = self.runs()
        assert run.state == "finished"
        return run


def printed(out: str, word: str = "loss") -> list[list[float]]:
    """The numbers behind a word, one list a line."""
    return [[float(number) for number in line.split()[1:]] for line in out.splitlines() if line.startswith(f"{word} ")]


def flat(lines: list[list[float]]) -> list[float]:
    return [number for line in lines for number in line]


def norms(run: Run, kind: str = "gradient") -> dict[str, list[float]]:
    """Name -> the norm at each sampled step; every row has to tell of the whole tensor, with a histogram."""
    found: dict[str, list[float]] = {}
    for row in run.tensors(kind=kind).to_pylist():
        assert row["coverage"] == 1.0
        assert sum(row["counts"]) == row["numel"]
        found.setdefault(row["name"], []).append(row["norm"])
    return found
