"""What ranks leave that end in every way: their last steps as they were, and where their code was."""

from __future__ import annotations

import functools
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import torchtrack
from tests.runs import until
from torchtrack.api.run import Run
from torchtrack.journal import ring
from torchtrack.sidecar.client import Sidecar

SCRIPT = Path(__file__).parent / "scripts" / "blackbox.py"
STATUS = {
    "term": -signal.SIGTERM,
    "abort": -signal.SIGABRT,
    "kill": -signal.SIGKILL,
    "exit": 3,
    "raise": 1,
    "orphan": -signal.SIGKILL,
    "end": 0,
    "finish": 0,
}
BAD = [way for way, status in STATUS.items() if status]


@pytest.fixture(scope="module")
def jobs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder of runs for each way; each job has ended as its name says."""
    folder = tmp_path_factory.mktemp("jobs")
    environ = {**os.environ, "TORCHTRACK_SIDECAR": "1", "TORCH_FR_BUFFER_SIZE": "50", "OMP_NUM_THREADS": "1"}
    with (
        (folder / "stderr").open("w") as stderr,
        subprocess.Popen(
            [sys.executable, str(SCRIPT), str(folder), *STATUS],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=stderr,
            env=environ,
            text=True,
        ) as process,
    ):
        assert process.stdin is not None
        assert process.stdout is not None
        lines = [line.split() for line in iter(process.stdout.readline, "done\n") if line]
        assert lines == [[way, str(int(status))] for way, status in STATUS.items() for _ in range(2)]
        for way in STATUS:
            if way != "orphan":
                until(functools.partial(is_settled, folder, way))
        process.stdin.close()
    yield folder
    for file in run_of(folder, "orphan").blackbox_files():
        if not file.is_salvaged:
            file.path.unlink()


def run_of(folder: Path, way: str) -> Run:
    return torchtrack.Api(folder / ("orphan" if way == "orphan" else "runs")).run(way)


def is_settled(folder: Path, way: str) -> bool:
    return all(file.is_salvaged for file in run_of(folder, way).blackbox_files())


def stacks(folder: Path, way: str) -> list[str]:
    files = run_of(folder, way).blackbox_files()
    return [file.path.read_text() for file in files if file.path.suffix == ".stacks"]


@pytest.mark.parametrize("way", BAD)
def test_the_last_steps_of_every_rank_are_there_bit_by_bit(jobs: Path, way: str) -> None:
    rows = run_of(jobs, way).blackbox().to_pylist()
    for rank in range(2):
        truth = json.loads(Path(f"{jobs / way}-{rank}.json").read_text())
        columns = ("step", "name", "norm", "absmax", "nonfinite")
        found = [[row[key] for key in columns] for row in rows if row["rank"] == rank]
        assert repr(found) == repr(truth)  # a NaN is like itself only in text
        assert truth[-1][0] == 11


@pytest.mark.parametrize("way", ["end", "finish"])
def test_who_ended_well_leaves_nothing(jobs: Path, way: str) -> None:
    assert run_of(jobs, way).blackbox_files() == []


@pytest.mark.parametrize("way", ["abort", "raise"])
def test_there_are_python_stacks_of_the_script_where_there_was_time(jobs: Path, way: str) -> None:
    found = stacks(jobs, way)
    assert len(found) == 2
    assert all("scripts/blackbox.py" in text for text in found)
    if way == "raise":
        assert all("ArithmeticError: the loss is gone" in text for text in found)


def test_sigterm_ends_a_rank_that_is_in_the_middle_of_c_code_and_leaves_its_stacks(jobs: Path) -> None:
    found = stacks(jobs, "term")  # that it died of the signal, the fixture has seen
    assert len(found) == 2
    assert all(f'"{SCRIPT}", line' in text and " in end\n" in text for text in found)


def test_a_forked_child_that_is_terminated_writes_nothing_into_its_parents_stacks(jobs: Path) -> None:
    assert [Path(f"{jobs / 'exit'}-{rank}.worker").read_text() for rank in range(2)] == ["0", "0"]


def test_the_flight_recorder_is_asked_for_the_collectives(jobs: Path) -> None:
    dumps = [file for file in run_of(jobs, "raise").blackbox_files() if file.path.name.endswith(".flight.json")]
    assert [file.rank for file in dumps] == [0, 1]
    assert all(json.loads(file.path.read_text())["entries"] for file in dumps)


def test_what_a_dead_sidecar_left_is_salvaged_by_the_next(jobs: Path) -> None:
    run = run_of(jobs, "orphan")
    left = [file for file in run.blackbox_files() if file.path.suffix == ".ttb"]
    assert [(file.rank, file.is_salvaged, file.is_live) for file in left] == [(0, False, False), (1, False, False)]
    before = run.blackbox()
    client = Sidecar(jobs / "orphan", timeout_s=30.0)
    assert client.register("ab" * 8, run.uid, os.getpid())
    until(lambda: all(file.is_salvaged for file in run.blackbox_files()))
    assert run.blackbox() == before or repr(run.blackbox().to_pylist()) == repr(before.to_pylist())
    assert not any(ring.left_by(file.stream) for file in left)
    client.close()
