"""Recorded runs by wandb's paths, with wandb's methods."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

import torchtrack
from tests.runs import begin
from torchtrack.compat.public import SeenApi


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two runs of a project, and one of another."""
    folder = tmp_path_factory.mktemp("runs")
    for number, (project, lr) in enumerate([("p", 0.1), ("p", 0.2), ("q", 0.3)]):
        run: Any = begin(dir=folder, project=project, id=f"r{number}", config={"lr": lr}, tags=["t"], sidecar=False)
        for step in range(4):
            run.log({"loss": lr / (step + 1), **({"acc": 1.0} if step % 2 else {})})
        file = folder / f"{number}.txt"
        file.write_text("saved")
        run.save(str(file))
        run.finish(quiet=True)
    return folder


@pytest.fixture(autouse=True)
def runs_lie_there(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCHTRACK_DIR", str(folder))


def test_a_path_with_an_entity_gives_a_run_with_wandbs_methods() -> None:
    pytest.importorskip("pandas")
    run: Any = torchtrack.Api().run("team/p/r0")

    assert run.history(keys=["loss"])["loss"].tolist() == [0.1, 0.05, 0.1 / 3, 0.025]
    assert run.history(keys=["acc"], pandas=False) == [{"acc": 1.0}, {"acc": 1.0}]
    assert len(run.history(samples=2)) == 2
    assert [row["_step"] for row in run.scan_history(min_step=1, max_step=3)] == [1, 2]
    assert (run.state, run.lastHistoryStep, run.config["lr"], run.summary.get("acc")) == ("finished", 3, 0.1, 1.0)
    assert (run.path[1:], run.tags, run.summary._json_dict["acc"]) == (["p", "r0"], ["t"], 1.0)


def test_a_path_without_one_gives_our_run() -> None:
    assert torchtrack.Api().run("p/r0").history("loss").num_rows == 4


@pytest.mark.parametrize(
    ("operator", "other", "found"),
    [
        ("$eq", 0.1, ["r0"]),
        ("$ne", 0.1, ["r1"]),
        ("$gt", 0.1, ["r1"]),
        ("$gte", 0.1, ["r0", "r1"]),
        ("$gte", 0.15, ["r1"]),
        ("$lt", 0.2, ["r0"]),
        ("$lte", 0.2, ["r0", "r1"]),
        ("$lte", 0.15, ["r0"]),
        ("$in", [0.2, 0.3], ["r1"]),
        ("$nin", [0.2, 0.3], ["r0"]),
    ],
)
def test_every_operator_of_a_filter_has_its_bounds(operator: str, other: Any, found: list[str]) -> None:
    api: Any = torchtrack.Api()

    assert sorted(run.id for run in api.runs("team/p", {"config.lr": {operator: other}})) == found
    assert operator in ("$ne", "$nin") or list(api.runs("team/p", {"config.none": {operator: other}})) == []


def test_runs_are_filtered_and_ordered_in_wandbs_words() -> None:
    api: Any = torchtrack.Api()
    found = {
        "all": api.runs("team/p", order="+created_at"),
        "equal": api.runs("team/p", {"config.lr": 0.2}),
        "more": api.runs(path="team/p", filters={"config.lr": {"$gt": 0.15}}),
        "either": api.runs("team/p", {"$or": [{"config.lr": 0.1}, {"display_name": "nobody"}]}),
        "tagged": api.runs("team/p", {"tags": "t", "state": {"$ne": "running"}}, order="-summary_metrics.loss"),
        "regex": api.runs("team/p", {"id": {"$regex": "1$"}}),
    }

    assert {name: [run.id for run in runs] for name, runs in found.items()} == {
        "all": ["r0", "r1"],
        "equal": ["r1"],
        "more": ["r1"],
        "either": ["r0"],
        "tagged": ["r1", "r0"],
        "regex": ["r1"],
    }
    with pytest.raises(ValueError, match="no operator"):
        api.runs("team/p", {"id": {"$near": 1}})


def test_all_runs_and_projects_are_listed() -> None:
    api = torchtrack.Api(timeout=30, overrides={"project": "q"})

    assert (len(api.runs()), api.projects()) == (3, ["p", "q"])
    assert [run.id for run in SeenApi(overrides={"project": "q"}).runs()] == ["r2"]


def test_under_the_name_of_wandb_every_run_has_its_methods() -> None:
    run: Any = SeenApi(overrides={"project": "q"}).run("p/r0")

    assert [row["_step"] for row in run.scan_history()] == [0, 1, 2, 3]


def test_saved_files_are_downloaded(tmp_path: Path) -> None:
    run: Any = torchtrack.Api().run("team/p/r1")
    with run.file("1.txt").download(root=str(tmp_path)) as file:
        text = file.read()

    assert (text, [each.name for each in run.files()]) == ("saved", ["1.txt"])
    with pytest.raises(ValueError, match="is there already"):
        run.file("1.txt").download(root=str(tmp_path))
    with pytest.raises(torchtrack.CommError, match="no file"):
        run.file("nothing.txt").download(root=str(tmp_path))


def test_a_run_that_is_not_there_is_wandbs_error() -> None:
    with pytest.raises(torchtrack.Error, match="no run"):
        torchtrack.Api().run("team/p/nobody")


def test_without_any_run_an_api_can_be_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCHTRACK_DIR", str(tmp_path / "new"))

    assert torchtrack.Api().runs() == []
    with pytest.raises(FileNotFoundError):
        torchtrack.Api(tmp_path / "nowhere")
