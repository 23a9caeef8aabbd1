"""Two ranks under each launcher and strategy of Lightning that runs on CPUs: one run, with the rows of a plain loop.

Each launch trains in many ways, one after another, and begins when a test first asks for a run of it.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning as L
import pytest

import torchtrack
from tests.integrations.lightning.models import QUIET
from tests.integrations.lightning.programs import PATHS, python
from tests.integrations.lightning.ways import WAYS
from tests.integrations.plain import compare
from torchtrack.testing import torchrun

SCRIPTS = Path(__file__).parent / "scripts"
SHARDED = [name for name in WAYS if "fsdp" in name]
WHOLE = [name for name in WAYS if name not in SHARDED]
LAUNCHES = {
    "subprocess": lambda folder: python(str(SCRIPTS / "train.py"), *WHOLE, cwd=folder),
    "sharded": lambda folder: python(str(SCRIPTS / "train.py"), *SHARDED, cwd=folder),
    "forked": lambda folder: python(str(SCRIPTS / "processes.py"), "forked", cwd=folder),
    "spawned": lambda folder: python(str(SCRIPTS / "processes.py"), "spawned", cwd=folder),
    "torchrun": lambda folder: torchrun(SCRIPTS / "train.py", "ddp", nproc=2, env={"PYTHONPATH": PATHS}, cwd=folder),
}
LONG = {"ddp": ("subprocess", "ddp"), "ddp_spawn": ("spawned", "ddp_spawn"), "torchrun": ("torchrun", "ddp")}

Find = Callable[[str, str], Any]


def launch_of(name: str) -> str:
    return "sharded" if name in SHARDED else "subprocess"


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
    compare(find(launch_of(name), name), WAYS[name])


@pytest.mark.parametrize(
    ("launch", "project", "name"),
    [("torchrun", "ddp", "ddp"), ("spawned", "ddp_spawn", "resumed"), ("forked", "ddp_notebook", "value")],
)
def test_each_launcher_gives_the_rows_of_a_plain_loop(find: Find, launch: str, project: str, name: str) -> None:
    compare(find(launch, project), WAYS[name])


@pytest.mark.parametrize("name", WAYS)
def test_two_ranks_are_one_run(find: Find, name: str) -> None:
    run = find(launch_of(name), name)

    assert (run.state, run.world_size) == ("finished", 2)
    assert [attempt.ranks for attempt in run.attempts] == [(0, 1)] * (2 if name.endswith("resumed") else 1)


@pytest.mark.parametrize("kind", LONG)
def test_metrics_of_both_ranks_go_into_the_run_of_all_launchers(find: Find, kind: str) -> None:
    run = find(*LONG[kind])

    assert (run.state, run.world_size, run.config["lr"]) == ("finished", 2, 0.1)
    assert [attempt.ranks for attempt in run.attempts] == [(0, 1)] * (2 if kind == "ddp_spawn" else 1)
    start = 3 if kind == "ddp_spawn" else 0  # of the epoch whose ranks were spawned
    keys = ["loss", "batch_size", "lr", "phase/forward_s"]
    rows = run.history(keys, start=start, stop=start + 3, ranks="all").to_pylist()
    assert [(row["step"] - start, row["rank"]) for row in rows] == [(s, r) for s in range(3) for r in (0, 1)]
    assert [row["batch_size"] for row in rows] == [24.0] * 4 + [16.0] * 2
    assert {row["lr"] for row in rows} == {0.1}
    assert all(row["phase/forward_s"] > 0 for row in rows)
    assert len({row["loss"] for row in rows}) == len(rows)
    validated = 1 if kind == "ddp_spawn" else 2  # the others after the fit too
    assert [len(run.history([key])) for key in ("val_loss", "test_loss")] == [validated, 1]


def test_what_is_tested_in_a_notebook_goes_into_the_run_of_the_fit(find: Find) -> None:
    run = find("forked", "ddp_notebook")

    assert (run.state, run.world_size, len(run.attempts)) == ("finished", 2, 1)
    assert len(run.history(["test_loss"])) == 1
    rows = run.history(["loss", "batch_size", "lr", "phase/forward_s"], stop=3, ranks="all").to_pylist()
    assert [(row["step"], row["rank"]) for row in rows] == [(s, r) for s in range(3) for r in (0, 1)]


def test_all_that_a_trainer_does_with_a_sharded_model_goes_into_its_run(find: Find) -> None:
    run = find("sharded", "fsdp2")

    assert [len(run.history([key])) for key in ("loss", "val_loss", "test_loss")] == [WAYS["fsdp2"].steps, 2, 1]
    assert {row["batch_size"] for row in run.history(["batch_size"]).to_pylist()} == {16.0}


@pytest.mark.parametrize(
    ("launch", "project", "uid", "name"),
    [
        ("subprocess", "resumed", "mine_resumed", "resumed"),
        ("sharded", "fsdp2_resumed", "mine_fsdp2_resumed", "fsdp2_resumed"),
        ("spawned", "ddp_spawn", "spawned", "resumed"),
    ],
)
def test_a_resumed_run_is_the_next_attempt_and_has_one_curve(
    find: Find, launch: str, project: str, uid: str, name: str
) -> None:
    run = find(launch, project)

    assert (run.id, [attempt.state for attempt in run.attempts]) == (uid, ["finished", "finished"])
    assert run.history(["loss"])["step"].to_pylist() == list(range(WAYS[name].steps))


@pytest.mark.parametrize("name", ["fabric", "fabric_fsdp2"])
def test_what_fabric_logs_on_each_rank_is_there(find: Find, name: str) -> None:
    rows = find(launch_of(name), name).history(["loss", "rank"], ranks="all").to_pylist()

    assert [(row["step"], row["rank"]) for row in rows] == [(s, r) for s in range(WAYS[name].steps) for r in (0, 1)]
    assert len({row["loss"] for row in rows}) == len(rows)


def test_lightning_refuses_fsdp1_without_an_accelerator() -> None:
    with pytest.raises(ValueError, match="`fsdp` requires a GPU accelerator"):
        L.Trainer(strategy="fsdp", **QUIET)
