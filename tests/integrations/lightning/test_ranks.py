"""Two ranks under each launcher and strategy of Lightning that runs on CPUs: one run, with the rows of a plain loop.

Each launch trains in many ways, one after another, and begins when a test first asks for a run of it.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import torchtrack
from tests.integrations.lightning.plain import compare
from tests.integrations.lightning.programs import PATHS, python
from tests.integrations.lightning.ways import WAYS
from torchtrack.testing import torchrun

SCRIPTS = Path(__file__).parent / "scripts"
LAUNCHES = {
    "subprocess": lambda folder: python(str(SCRIPTS / "train.py"), *WAYS, cwd=folder),
    "processes": lambda folder: python(str(SCRIPTS / "processes.py"), cwd=folder),
    "torchrun": lambda folder: torchrun(SCRIPTS / "train.py", "ddp", nproc=2, env={"PYTHONPATH": PATHS}, cwd=folder),
}
LONG = {"ddp": ("subprocess", "ddp"), "ddp_spawn": ("processes", "ddp_spawn"), "torchrun": ("torchrun", "ddp")}

Find = Callable[[str, str], Any]


@pytest.fixture(scope="module")
def find(tmp_path_factory: pytest.TempPathFactory) -> Find:
    """The one run of a project in a launch."""
    launched: dict[str, list[Any]] = {}

    def found(launch: str, project: str) -> Any:
        if launch not in launched:
            folder = tmp_path_factory.mktemp(launch)
            launched[launch] = []
            with pytest.MonkeyPatch.context() as patch:
                patch.setenv("TORCHTRACK_DIR", str(folder / "runs"))
                patch.setenv("TORCHTRACK_FINISH_TIMEOUT", "30")
                done = LAUNCHES[launch](folder)
            assert done.returncode == 0, done.stderr
            launched[launch] = torchtrack.Api(folder / "runs").runs()
        (run,) = [run for run in launched[launch] if run.project == project]
        return run

    return found


@pytest.mark.parametrize("name", WAYS)
def test_each_way_to_train_gives_the_rows_of_a_plain_loop(find: Find, name: str) -> None:
    compare(find("subprocess", name), WAYS[name])


@pytest.mark.parametrize(
    ("launch", "project", "name"),
    [("torchrun", "ddp", "ddp"), ("processes", "ddp_spawn", "ddp"), ("processes", "ddp_notebook", "value")],
)
def test_each_launcher_gives_the_rows_of_a_plain_loop(find: Find, launch: str, project: str, name: str) -> None:
    compare(find(launch, project), WAYS[name])


@pytest.mark.parametrize("name", WAYS)
def test_two_ranks_are_one_run(find: Find, name: str) -> None:
    run = find("subprocess", name)

    assert (run.state, run.world_size) == ("finished", 2)
    assert [attempt.ranks for attempt in run.attempts] == [(0, 1)] * (2 if name == "resumed" else 1)


@pytest.mark.parametrize("kind", LONG)
def test_metrics_of_both_ranks_go_into_the_run_of_all_launchers(find: Find, kind: str) -> None:
    run = find(*LONG[kind])

    assert (run.state, run.world_size, run.config["lr"]) == ("finished", 2, 0.1)
    [attempt] = run.attempts
    assert attempt.ranks == (0, 1)
    rows = run.history(["loss", "batch_size", "lr", "phase/forward_s"], stop=3, ranks="all").to_pylist()
    assert [(row["step"], row["rank"]) for row in rows] == [(step, rank) for step in range(3) for rank in (0, 1)]
    assert [row["batch_size"] for row in rows] == [24.0] * 4 + [16.0] * 2
    assert {row["lr"] for row in rows} == {0.1}
    assert all(row["phase/forward_s"] > 0 for row in rows)
    assert len({row["loss"] for row in rows}) == len(rows)
    assert len(run.history(["val_loss"])) == len(run.history(["test_loss"])) == 1


def test_what_is_tested_in_a_notebook_goes_into_the_run_of_the_fit(find: Find) -> None:
    run = find("processes", "ddp_notebook")

    assert (run.state, run.world_size, len(run.attempts)) == ("finished", 2, 1)
    assert len(run.history(["test_loss"])) == 1


def test_a_resumed_run_is_the_next_attempt_and_has_one_curve(find: Find) -> None:
    run = find("subprocess", "resumed")

    assert (run.id, [attempt.state for attempt in run.attempts]) == ("mine", ["finished", "finished"])
    assert run.history(["loss"])["step"].to_pylist() == list(range(WAYS["resumed"].steps))


def test_what_fabric_logs_on_each_rank_is_there(find: Find) -> None:
    rows = find("subprocess", "fabric").history(["loss", "rank"], ranks="all").to_pylist()

    assert [(row["step"], row["rank"]) for row in rows] == [(s, r) for s in range(WAYS["fabric"].steps) for r in (0, 1)]
    assert len({row["loss"] for row in rows}) == len(rows)
