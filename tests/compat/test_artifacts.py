"""Artifacts: versions, aliases, and what is in them."""

from __future__ import annotations

import base64
import gc
import hashlib
import json
from collections.abc import Iterator
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import torchtrack
from tests.cli.test_sync import call
from tests.runs import begin, finished
from torchtrack.compat import store


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


def test_an_artifact_that_was_never_logged_leaves_no_folder(run: Any) -> None:
    staged = of_text("one")
    there = (run.settings.dir / "artifacts").exists()
    del staged
    gc.collect()

    assert there
    assert not (run.settings.dir / "artifacts").exists()


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
    for log in (run.log_artifact, run.use_artifact, run.upsert_artifact):
        with pytest.raises(TypeError, match="unexpected keyword argument 'alias'"):
            log(of_text("one"), alias=["best"])


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


def test_a_content_lies_there_once_however_many_versions_have_it(run: Any, tmp_path: Path) -> None:
    run.log_artifact(of_text("one"))
    more = torchtrack.Artifact("model", "model", incremental=True)
    with more.new_file("b.txt") as file:
        file.write("two")
    run.log_artifact(more)
    run.log_artifact(of_text("one", name="other"))
    places = [
        Path(run.use_artifact(name).get_path("a.txt").local_path()) for name in ("model:v0", "model:v1", "other:v0")
    ]
    contents = sorted((Path(run.settings.dir) / "artifacts" / ".content").iterdir())

    assert len({place.stat().st_ino for place in places}) == 1
    assert sorted(path.read_text() for path in contents) == ["one", "two"]


def test_a_downloaded_file_can_be_written_to_and_changes_no_version(run: Any) -> None:
    run.log_artifact(of_text("one"))
    found = run.use_artifact("model:v0")
    copy = Path(found.download()) / "a.txt"
    copy.write_text("mine")

    assert Path(found.get_path("a.txt").local_path()).read_text() == "one"
    with pytest.raises(ValueError, match="is not what model:v0 holds"):
        found.verify()


def test_the_content_of_a_version_that_is_removed_stays_as_long_as_another_has_it(run: Any) -> None:
    first = run.log_artifact(of_text("one"))
    other = run.log_artifact(of_text("one", name="other"))
    content = Path(run.settings.dir) / "artifacts" / ".content"
    first.delete()
    kept = len(list(content.iterdir()))
    other.delete()

    assert (kept, list(content.iterdir())) == (1, [])


def test_an_artifact_knows_who_logged_and_who_used_it(run: Any) -> None:
    run.log_artifact(of_text("one"))
    second: Any = begin(project="p", name="user")
    second.use_artifact("model:v0")
    second.finish(quiet=True)
    found: Any = torchtrack.Api().artifact("p/model:v0")

    assert found.logged_by().uid == run.uid
    assert [each.name for each in found.used_by()] == ["user"]


def with_digest(algorithm: str | None) -> Any:
    artifact = torchtrack.Artifact("model", "model", digest_algorithm=algorithm)
    with artifact.new_file("a.txt") as file:
        file.write("one")
    return artifact


def md5(content: bytes) -> str:
    return base64.b64encode(hashlib.md5(content, usedforsecurity=False).digest()).decode()


def test_a_second_digest_is_that_of_the_algorithm_asked_for(run: Any) -> None:
    draft = with_digest("MD5")
    before = draft.get_entry("a.txt").digest
    run.log_artifact(draft)
    found = run.use_artifact("model:latest")

    assert found.digest_algorithm == "MD5"
    assert before == found.get_entry("a.txt").digest == md5(b"one")
    assert with_digest(None).get_entry("a.txt").digest == hashlib.sha256(b"one").hexdigest()
    with pytest.raises(ValueError, match=r"digest_algorithm=. takes SHA256, MD5, XXH128; got 'crc'"):
        with_digest("crc")


def test_a_download_is_compared_with_the_second_digest(run: Any, tmp_path: Path) -> None:
    run.log_artifact(with_digest("MD5"))
    found = run.use_artifact("model:latest")
    held = found.at("a.txt")
    held.chmod(0o644)
    held.write_text("two")
    with pytest.raises(ValueError, match="its MD5 differs"):
        found.download(tmp_path / "there")

    assert not (tmp_path / "there" / "a.txt").exists()


def test_a_digest_of_xxhash_names_the_package_where_it_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "xxhash", None)
    with pytest.raises(torchtrack.TorchtrackError, match="pip install xxhash"):
        with_digest("XXH128")


def test_a_digest_of_xxhash_is_that_of_the_package() -> None:
    xxhash = pytest.importorskip("xxhash")

    wanted = base64.b64encode(xxhash.xxh128(b"one").digest()).decode()
    assert with_digest("XXH128").get_entry("a.txt").digest == wanted


def test_where_an_artifact_is_meant_to_lie_is_kept_with_it(run: Any) -> None:
    run.log_artifact(torchtrack.Artifact("model", "model", storage_region="eu-west"))

    assert run.use_artifact("model").storage_region == "eu-west"
    assert finished(run).events("artifact")[0].data["terms"]["storage_region"] == "eu-west"


def born(artifact: Any, days_ago: float) -> Path:
    """Make a version look as if it was logged so long ago; its folder."""
    folder: Path = artifact.at("a.txt").parents[1]
    facts = json.loads((folder / "manifest.json").read_text())
    at = datetime.now(timezone.utc) - timedelta(days=days_ago)
    store.write(folder / "manifest.json", json.dumps({**facts, "created_at": at.isoformat()}))
    return folder


def test_versions_older_than_their_ttl_are_removed_by_gc(run: Any) -> None:
    folders = {}
    for text, kept, days_ago, aliases in (
        ("old", timedelta(days=1), 2, []),
        ("young", timedelta(days=3), 2, []),
        ("named", timedelta(days=1), 2, ["best"]),
        ("forever", None, 1000, []),
        ("unsaid", torchtrack.ArtifactTTL.INHERIT, 1000, []),
        ("old and newest", timedelta(days=1), 2, []),
    ):
        artifact = of_text(text)
        artifact.ttl = kept
        folders[text] = born(run.log_artifact(artifact, aliases=aliases), days_ago)
    at = str(run.settings.dir)
    told, before = call("gc", "--dir", at), sorted(path.name for path in folders["old"].parent.glob("v*"))
    assert "model:v0, older than its ttl" in told[1]
    assert before == ["v0", "v1", "v2", "v3", "v4", "v5"]
    assert call("gc", "--dir", at, "--yes")[0] == 0

    assert [text for text, folder in folders.items() if folder.exists()] == ["young", "named", "forever", "unsaid"]
    assert run.use_artifact("model:best").ttl == timedelta(days=1)
    assert run.use_artifact("model:v3").ttl is None
    assert call("gc", "--dir", at, "--artifact-days", "999", "--yes")[0] == 0
    assert [text for text, folder in folders.items() if folder.exists()] == ["young", "named", "forever"]
    assert run.log_artifact(of_text("next")).version == "v6"  # no number is given twice


def test_contents_that_only_a_removed_version_had_go_with_it(run: Any) -> None:
    artifact = of_text("one")
    artifact.ttl = timedelta(seconds=1)
    born(run.log_artifact(artifact), 1)
    run.log_artifact(of_text("two"))
    kept = run.settings.dir / "artifacts" / ".content"
    call("gc", "--dir", str(run.settings.dir), "--yes")

    assert [path.name for path in kept.iterdir()] == [hashlib.sha256(b"two").hexdigest()]


def test_what_is_linked_does_not_run_out(run: Any) -> None:
    artifact = of_text("one")
    artifact.ttl = timedelta(days=1)
    linked = run.link_artifact(run.log_artifact(artifact), "collection")
    born(artifact, 2)
    folder = born(linked, 2)
    call("gc", "--dir", str(run.settings.dir), "--artifact-days", "1", "--yes")

    assert folder.exists()
    assert not artifact.at("a.txt").exists()


def test_a_ttl_can_be_changed_once_it_is_logged(run: Any) -> None:
    artifact = run.log_artifact(of_text("one"))
    artifact.ttl = timedelta(hours=1)
    artifact.save()

    assert run.use_artifact("model").ttl == timedelta(hours=1)


@pytest.mark.parametrize("wrong", [timedelta(0), timedelta(days=-1), 7])
def test_a_ttl_is_a_time_above_0(wrong: Any) -> None:
    with pytest.raises(ValueError, match="a timedelta above 0"):
        of_text("one").ttl = wrong
