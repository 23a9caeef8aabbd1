"""Ranks that die: training ends as it would without us, and what was recorded before is there, each element once."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch

import torchtrack
from tests.ranks.scripts import ddp, resume
from torchtrack.testing import ranks, torchrun

SCRIPTS = Path(__file__).parent / "scripts"
SIDECAR = {"TORCHTRACK_SIDECAR": "1"}
KILLED = ["posted-0", "posted-1", "completed-0", "completed-1"]


def forked(script: str, *args: str) -> tuple[list[str], str]:
    """Run a script that forks the ranks of its jobs; how they ended, a line each job, and what they said."""
    command = [sys.executable, str(SCRIPTS / script), *args]
    environ = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=environ, capture_output=True, text=True, check=False)
    return [line for line in done.stdout.splitlines() if line.startswith("ended")], done.stderr


@pytest.fixture(scope="module")
def merging(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of runs for each job in which a rank was killed inside a merge, and what the survivors tell."""
    folder = tmp_path_factory.mktemp("merging")
    ended, said = forked("replicas.py", str(folder), *KILLED)
    assert ended == [f"ended {[-9, 0] if job.endswith('0') else [0, -9]}" for job in KILLED], said
    return folder


@pytest.mark.parametrize("job", KILLED)
def test_a_rank_killed_inside_a_merge_never_makes_a_count_double(merging: Path, job: str) -> None:
    told = json.loads((merging / f"{job}.json").read_text())
    rows: list[dict[str, Any]] = torchtrack.Api(merging / job).run(told["uid"]).tensors("gradient").to_pylist()
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


def test_a_rank_that_ends_in_an_unfinished_merge_exits_at_once_with_its_rows(tmp_path: Path) -> None:
    folder = tmp_path / "runs"
    ended, said = forked("alone_at_the_end.py", str(folder))
    assert ended == ["ended 0 0"], said
    uid = Path(f"{folder}.uid").read_text()
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
    ranks(2).run(ddp.main, folder, "bare")
    return states(folder, "bare")


def test_watched_training_ends_with_the_same_weights_and_random_states(
    tmp_path: Path, bare: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "runs"
    monkeypatch.setenv("TORCHTRACK_SIDECAR", "1")
    ranks(2).run(ddp.main, folder, "watched")
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


def test_a_restart_is_the_next_attempt_and_a_resume_on_four_ranks_the_one_after(
    tmp_path: Path, bare: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "runs"
    watched = torchrun(SCRIPTS / "ddp.py", str(folder), "exits", max_restarts=1, env=SIDECAR)
    assert watched.returncode == 0, watched.stderr
    [run] = torchtrack.Api(folder).runs()
    assert [(a.number, a.world_size, a.state) for a in run.attempts] == [(1, 2, "failed"), (2, 2, "finished")]
    assert run.attempts[0].why.startswith("rank 1: exit code 3")
    assert_equal(bare, states(folder, "exits"))
    monkeypatch.setenv("TORCHTRACK_SIDECAR", "1")
    ranks(4).run(resume.main, folder, run.id)
    [run] = torchtrack.Api(folder).runs()
    assert [(a.number, a.world_size) for a in run.attempts] == [(1, 2), (2, 2), (3, 4)]
    losses = dict(zip(*(run.history(["loss"])[column].to_pylist() for column in ("step", "loss")), strict=True))
    assert losses == {**{float(step): float(step) for step in range(25)}, 25: 125.0, 26: 126.0, 27: 127.0}
