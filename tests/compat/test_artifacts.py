"""Artifacts: versions, aliases, and what is in them."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import torchtrack
from tests.runs import begin, finished


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    monkeypatch.chdir(tmp_path)
    run: Any = begin(project="p")
    yield run
    run.finish(quiet=True)


def of_text(text: str, name: str = "model") -> Any:
    artifact = torchtrack.Artifact(name, type="model", metadata={"text": text})
    with artifact.new_file("a.txt") as file:
        file.write(text)
    return artifact


def test_what_was_logged_is_found_by_version_alias_and_path(run: Any) -> None:
    run.log_artifact(of_text("one"), aliases=["best"])
    run.log_artifact(of_text("two"))
    names = ("model:v0", "model:best", "model:v1", "model:latest", "model", "p/model:best", "team/p/model:best")
    found = [run.use_artifact(name).metadata["text"] for name in names]

    assert found == ["one", "one", "two", "two", "two", "one", "one"]
    assert run.use_artifact("model:best").aliases == ["best"]
    assert run.use_artifact("model:latest").aliases == ["latest"]


def test_an_alias_moves(run: Any) -> None:
    run.log_artifact(of_text("one"), aliases=["best"])
    run.log_artifact(of_text("two"), aliases=["best"])

    assert run.use_artifact("model:best").version == "v1"


def test_the_same_content_is_the_same_version(run: Any) -> None:
    first, again = run.log_artifact(of_text("one")), run.log_artifact(of_text("one"), aliases=["again"])

    assert (first.version, again.version) == ("v0", "v0")
    assert run.use_artifact("model:again").version == "v0"


def test_a_file_that_changes_later_is_kept_as_it_was(run: Any, tmp_path: Path) -> None:
    source = tmp_path / "weights"
    source.write_text("before")
    artifact = torchtrack.Artifact("model", "model")
    artifact.add_file(source, name="deep/w")
    source.write_text("after")
    run.log_artifact(artifact)
    folder = Path(run.use_artifact("model:latest").download())

    assert folder.name == "model:v0"
    assert (folder / "deep" / "w").read_text() == "before"


def test_folders_media_and_references_go_in(run: Any, tmp_path: Path) -> None:
    (tmp_path / "data" / "sub").mkdir(parents=True)
    (tmp_path / "data" / "sub" / "x").write_text("x")
    artifact = torchtrack.Artifact("set", "dataset")
    artifact.add_dir(tmp_path / "data", name="d")
    artifact.add(torchtrack.Image(np.ones((2, 2))), "picture")
    artifact.add_reference("s3://bucket/big.bin")
    run.log_artifact(artifact)
    found = run.use_artifact("set:latest", type="dataset")

    assert [entry.path for entry in found.files()] == ["d/sub/x", "picture.png"]
    assert (found.file_count, found.get("nothing"), found.get_path("d/sub/x").size) == (3, None, 1)


def test_a_path_is_an_artifact_of_its_own(run: Any, tmp_path: Path) -> None:
    (tmp_path / "m.pt").write_text("w")
    logged = run.log_model("m.pt", name="net")

    assert (logged.name, logged.type) == ("net:v0", "model")
    assert Path(run.use_model("net:latest")).read_text() == "w"
    assert run.link_model("m.pt", "registry/best").qualified_name == "registry/best:v0"


def test_an_incremental_artifact_adds_to_the_newest(run: Any) -> None:
    run.log_artifact(of_text("one"))
    more = torchtrack.Artifact("model", "model", incremental=True)
    with more.new_file("b.txt") as file:
        file.write("two")
    run.log_artifact(more)

    assert [entry.path for entry in run.use_artifact("model:v1").files()] == ["a.txt", "b.txt"]


def test_an_artifact_that_is_used_before_it_is_logged_is_logged_with_its_aliases(run: Any) -> None:
    run.use_artifact(of_text("one"), aliases=["best"])

    assert run.use_artifact("model:best").version == "v0"


def test_an_argument_that_nobody_has_is_refused(run: Any) -> None:
    for call in (run.log_artifact, run.use_artifact, run.upsert_artifact):
        with pytest.raises(TypeError, match="unexpected keyword argument 'alias'"):
            call(of_text("one"), alias=["best"])


def test_what_is_not_there_says_what_is(run: Any) -> None:
    run.log_artifact(of_text("one"))
    with pytest.raises(torchtrack.CommError, match="its versions are v0"):
        run.use_artifact("model:v7")
    with pytest.raises(ValueError, match="is of type 'model', not 'dataset'"):
        run.use_artifact("model:v0", type="dataset")


@pytest.mark.parametrize("name", ["../x", "/etc/x", "a/../../x"])
def test_no_file_leads_out_of_it(run: Any, name: str) -> None:
    with pytest.raises(ValueError, match="lies inside it"):
        torchtrack.Artifact("model", "model").new_file(name).__enter__()


@pytest.mark.parametrize("name", ["a/b", "", "x" * 129, "a:b"])
def test_a_name_that_is_none_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match="name of an artifact"):
        torchtrack.Artifact(name, "model")


def test_a_logged_artifact_does_not_change(run: Any) -> None:
    logged = run.log_artifact(of_text("one"))
    with pytest.raises(ValueError, match="does not change"):
        logged.new_file("b.txt").__enter__()


def test_an_artifact_that_is_never_logged_leaves_nothing(run: Any, tmp_path: Path) -> None:
    artifact = of_text("one")
    staged = artifact._files
    del artifact
    gc.collect()

    assert not staged.exists()


def test_a_version_can_be_removed_with_its_aliases(run: Any) -> None:
    logged = run.log_artifact(of_text("one"), aliases=["best"])
    with pytest.raises(ValueError, match="is also best"):
        logged.delete()
    logged.delete(delete_aliases=True)

    with pytest.raises(torchtrack.CommError):
        run.use_artifact("model:best")


def test_the_run_says_what_it_logged_and_used(run: Any) -> None:
    run.log_artifact(of_text("one"))
    run.use_artifact("model:v0")
    events = finished(run).events("artifact")
    seen: Any = torchtrack.Api().run(f"team/p/{run.id}")

    assert [(event.data["action"], event.data["name"]) for event in events] == [
        ("logged", "p/model:v0"),
        ("used", "p/model:v0"),
    ]
    assert [artifact.name for artifact in seen.logged_artifacts()] == ["model:v0"]


def test_a_disk_that_takes_nothing_does_not_reach_the_script(
    run: Any, monkeypatch: pytest.MonkeyPatch, expect_internal_failures: None
) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("torchtrack.compat.artifact.Artifact.write_manifest", full)

    assert run.log_artifact(of_text("one")).version is None


def test_without_recording_nothing_is_kept(tmp_path: Path) -> None:
    run: Any = begin(mode="disabled")
    logged = run.log_artifact(of_text("one"))
    run.finish(quiet=True)

    assert logged.version is None
    assert list((tmp_path / "runs" / "artifacts").glob("[!.]*")) == []
