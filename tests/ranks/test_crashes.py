"""Ranks that die: training ends as it would without us, and what was recorded before is there, each element once."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

import torchtrack
from torchtrack.testing import torchrun

SCRIPTS = Path(__file__).parent / "scripts"
SIDECAR = {"TORCHTRACK_SIDECAR": "1"}
Start = Callable[..., list[subprocess.Popen[str]]]


@pytest.fixture
def start() -> Iterator[Start]:
    """Start two ranks of a script without torchrun; those that are left when the test ends are killed."""
    started: list[subprocess.Popen[str]] = []

    def start(script: str, *args: str) -> list[subprocess.Popen[str]]:
        for rank in range(2):
            place = {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2", "OMP_NUM_THREADS": "1"}
            command = [sys.executable, str(SCRIPTS / script), *args]
            pipe = subprocess.PIPE
            started.append(subprocess.Popen(command, env={**os.environ, **place}, stdin=pipe, stdout=pipe, text=True))
        return started

    yield start
    for process in started:
        process.kill()
        process.communicate()


@pytest.mark.parametrize("victim", [0, 1])
@pytest.mark.parametrize("when", ["posted", "completed"])
def test_a_rank_killed_inside_a_merge_never_makes_a_count_double(
    tmp_path: Path, start: Start, when: str, victim: int
) -> None:
    folder = tmp_path / "runs"
    codes = [process.wait() for process in start("replicas.py", str(folder), f"{folder}.store", when, str(victim))]
    assert codes[victim] == -9
    assert codes[1 - victim] == 0
    told = json.loads(Path(f"{folder}-{1 - victim}.json").read_text())
    rows: list[dict[str, Any]] = torchtrack.Api(folder).run(told["uid"]).tensors("gradient").to_pylist()
    assert len({(row["sample"], row["name"]) for row in rows}) == len(rows)
    torn = Counter[int]()
    for row in rows:
        truth = told["truth"][f"{row['sample']} {row['name']}"]
        counts = dict(zip(row["buckets"], row["counts"], strict=True))
        assert all(count <= truth[bucket] for bucket, count in counts.items())
        if row["coverage"] == 1.0:
            assert sum(counts.values()) == sum(truth)
        else:
            torn[row["sample"]] += 1
    assert {row["sample"] for row in rows} == {int(key.split()[0]) for key in told["truth"]}
    assert len(torn) <= 3  # the sample of the merge, and those that were counted by halves when the peer was lost


def test_a_rank_that_ends_in_an_unfinished_merge_exits_at_once_with_its_rows(tmp_path: Path, start: Start) -> None:
    folder = tmp_path / "runs"
    zero, one = start("alone_at_the_end.py", str(folder), f"{folder}.store")
    uid = zero.communicate()[0].strip()
    assert one.poll() is None
    one.communicate()
    assert (zero.returncode, one.returncode) == (0, 0)
    rows = torchtrack.Api(folder).run(uid).tensors("gradient").to_pylist()
    last = [row for row in rows if row["sample"] == max(row["sample"] for row in rows)]
    assert sum(row["count"] for row in last) == (16 * 3 + 3) // 2  # the half that this rank counted
    assert all(row["coverage"] <= 1.0 for row in last)


def states(folder: Path, how: str) -> list[Any]:
    """By rank: the trained weights and the random state."""
    return [torch.load(f"{folder}-{rank}-{how}.pt") for rank in range(2)]


def assert_equal(plain: list[Any], recorded: list[Any]) -> None:
    for one, other in zip(plain, recorded, strict=True):
        assert all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


@pytest.fixture(scope="module")
def bare(tmp_path_factory: pytest.TempPathFactory) -> list[Any]:
    """What training ends with when nothing is recorded."""
    folder = tmp_path_factory.mktemp("bare") / "runs"
    done = torchrun(SCRIPTS / "ddp.py", str(folder), "bare")
    assert done.returncode == 0, done.stderr
    return states(folder, "bare")


def test_watched_training_ends_with_the_same_weights_and_random_states(tmp_path: Path, bare: list[Any]) -> None:
    folder = tmp_path / "runs"
    done = torchrun(SCRIPTS / "ddp.py", str(folder), "watched", env=SIDECAR)
    assert done.returncode == 0, done.stderr
    assert_equal(bare, states(folder, "watched"))


def test_a_killed_rank_leaves_its_rows_and_the_run_says_who_was_killed(tmp_path: Path) -> None:
    folder = tmp_path / "runs"
    unwatched = torchrun(SCRIPTS / "ddp.py", str(folder), "bare-killed")
    watched = torchrun(SCRIPTS / "ddp.py", str(folder), "killed", env=SIDECAR)
    assert watched.returncode == unwatched.returncode != 0
    [run] = torchtrack.Api(folder).runs()
    assert (run.state, run.attempts[0].why) == ("killed", "rank 1: signal 9")
    history = run.history(["loss"], ranks=1)
    assert history["loss"].to_pylist() == [float(step) for step in range(21)]


@pytest.mark.timeout(120)
def test_a_restart_is_the_next_attempt_and_a_resume_on_four_ranks_the_one_after(
    tmp_path: Path, bare: list[Any]
) -> None:
    folder = tmp_path / "runs"
    watched = torchrun(SCRIPTS / "ddp.py", str(folder), "exits", max_restarts=1, env=SIDECAR)
    assert watched.returncode == 0, watched.stderr
    [run] = torchtrack.Api(folder).runs()
    assert [(a.number, a.world_size, a.state) for a in run.attempts] == [(1, 2, "failed"), (2, 2, "finished")]
    assert run.attempts[0].why.startswith("rank 1: exit code 3")
    assert_equal(bare, states(folder, "exits"))
    resumed = torchrun(SCRIPTS / "resume.py", str(folder), run.id, nproc=4, env=SIDECAR)
    assert resumed.returncode == 0, resumed.stderr
    [run] = torchtrack.Api(folder).runs()
    assert [(a.number, a.world_size) for a in run.attempts] == [(1, 2), (2, 2), (3, 4)]
    losses = dict(zip(*(run.history(["loss"])[column].to_pylist() for column in ("step", "loss")), strict=True))
    assert losses == {**{float(step): float(step) for step in range(25)}, 25: 125.0, 26: 126.0, 27: 127.0}
