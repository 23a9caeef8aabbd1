"""Artifacts that were sent to a server, and are used from another folder, as from another machine."""

from __future__ import annotations

import base64
import hashlib
import os
import time
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

import torchtrack
from tests.runs import begin, until
from tests.server.running import Running
from torchtrack import contents, credentials
from torchtrack.api.remote import Server
from torchtrack.cli import main
from torchtrack.errors import RunNotFoundError
from torchtrack.server import garbage
from torchtrack.server.app import Config
from torchtrack.server.budget import Limits

PART = 1 << 16


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    limits = Limits(job_requests_per_s=1000, interval_s=0.01, key_requests_per_s=5000)
    running = Running(Config(data=tmp_path_factory.mktemp("server"), limits=limits))
    yield running
    running.stop()


@pytest.fixture(autouse=True)
def machine(server: Running, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Logged in, in a folder of its own; parts are small, so that a file of a megabyte has many."""
    credentials.keep(server.url, server.key)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(contents, "PART_BYTES", PART)


def logged(folder: Path, project: str, files: dict[str, bytes], name: str = "model", **arguments: Any) -> str:
    """The uid of a run that was recorded without a server and logged these."""
    run: Any = begin(dir=folder, mode="offline", project=project)
    artifact = torchtrack.Artifact(name, "model", "what it is", {"epochs": 3})
    for path, content in files.items():
        with artifact.new_file(path, "wb") as file:
            file.write(content)
    artifact.add_reference("s3://bucket/raw", "raw")
    run.log_artifact(artifact, **arguments)
    run.finish(quiet=True)
    uid: str = run.uid
    return uid


def synced(folder: Path) -> str:
    done = CliRunner().invoke(main, ["sync", "--dir", str(folder)])
    assert done.exit_code == 0, done.output
    return done.output


def there(server: Running, name: str, project: str) -> Any:
    """An artifact on the server, once the server has read that it was logged."""
    api: Any = torchtrack.Api(server.url, overrides={"project": project})
    until(lambda: api.artifact_exists(name), 60)
    return api.artifact(name)


def put_by(server: Running, uid: str) -> set[str]:
    return {path.name for path in (server.config.runs / uid / "media").iterdir()}


def test_what_one_machine_logged_another_downloads_byte_by_byte(server: Running, tmp_path: Path) -> None:
    files = {"weights.bin": os.urandom(10 * PART + 17), "deep/ä b.txt": "größe\n".encode(), "empty": b""}
    uid = logged(tmp_path / "a", "llm", files, aliases=["best"])
    synced(tmp_path / "a")
    found = there(server, "model:best", "llm")
    top = Path(found.download(tmp_path / "b"))

    assert {path.relative_to(top).as_posix(): path.read_bytes() for path in top.rglob("*") if path.is_file()} == files
    assert (found.name, found.type, found.description, found.metadata) == (
        "model:v0",
        "model",
        "what it is",
        {"epochs": 3},
    )
    assert (found.aliases, found.size, found.state) == (["best", "latest"], sum(map(len, files.values())), "COMMITTED")
    assert found.get_entry("weights.bin").digest == hashlib.sha256(files["weights.bin"]).hexdigest()
    assert found.logged_by().uid == uid
    assert len(put_by(server, uid)) == 11 + 1 + 1  # the parts, the small file, the list; an empty file has none


def test_a_run_on_another_machine_uses_it_and_gives_it_further_names(
    server: Running, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TORCHTRACK_SIDECAR", "1")
    logged(tmp_path / "a", "used", {"w": b"weights"})
    synced(tmp_path / "a")
    there(server, "model", "used")
    run: Any = begin(dir=tmp_path / "b", project="used", url=server.url, api_key=server.key, mode="online")
    artifact = run.use_artifact("model:latest", type="model")
    uses = run.uid
    content = Path(artifact.get_entry("w").download()).read_bytes()
    run.log_artifact(artifact, aliases=["approved"])
    run.link_artifact(artifact, "collection")
    run.finish(quiet=True)
    other: Any = begin(dir=tmp_path / "c", project="used", url=server.url, api_key=server.key)
    with pytest.raises(torchtrack.CommError, match=r"no artifact 'nothing' .* on http"):
        other.use_artifact("nothing")
    other.finish(quiet=True)

    assert content == b"weights"
    assert there(server, "model:approved", "used").version == "v0"
    assert Path(there(server, "collection", "used").file(str(tmp_path / "d"))).read_bytes() == content
    assert [run.uid for run in there(server, "model", "used").used_by()] == [uses]


def test_a_content_that_another_run_of_the_machine_sent_is_not_sent_again(server: Running, tmp_path: Path) -> None:
    content = os.urandom(3 * PART)
    first, second = (logged(tmp_path / "a", "once", {"w": content}) for _ in range(2))
    synced(tmp_path / "a")

    assert put_by(server, first) == put_by(server, second)
    assert len(put_by(server, first)) == 4
    inodes = [
        {path.stat().st_ino for path in (server.config.runs / uid / "media").iterdir()} for uid in (first, second)
    ]
    assert inodes[0] == inodes[1]


def test_what_was_cut_off_goes_on_with_the_part_that_is_missing(
    server: Running, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from torchtrack.sidecar.upload.transport import Http, UnreachableError

    content = os.urandom(8 * PART)
    uid = logged(tmp_path / "a", "cut", {"w": content})
    asked, ask = [], Http.ask

    def dying(self: Any, method: str, path: str, body: Any = None, headers: Any = None) -> Any:
        asked.append((method, path))
        if sum(each[0] == "PUT" for each in asked) > 5:
            raise UnreachableError("the cable was pulled")
        return ask(self, method, path, body, headers)

    monkeypatch.setattr(Http, "ask", dying)
    gone = CliRunner().invoke(main, ["sync", "--dir", str(tmp_path / "a"), "--timeout", "0.1"])
    monkeypatch.setattr(Http, "ask", ask)
    early, journal = put_by(server, uid), list((server.config.runs / uid).glob("*/*.ttj"))
    asked.clear()

    def noted(self: Any, *given: Any) -> Any:
        asked.append(given[:2])
        return ask(self, *given)

    monkeypatch.setattr(Http, "ask", noted)
    synced(tmp_path / "a")

    assert gone.exit_code == 1
    assert len(early) == 5
    assert journal == []  # no row says that it was logged before its files are there
    assert sum(method == "PUT" for method, _ in asked) == 3 + 1
    assert Path(there(server, "model", "cut").file(str(tmp_path / "b"))).read_bytes() == content


def test_a_file_that_is_cut_off_while_it_is_fetched_goes_on_where_it_was(
    server: Running, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from torchtrack.api import remote

    content = os.urandom(6 * PART)
    logged(tmp_path / "a", "fetched", {"w": content})
    synced(tmp_path / "a")
    found = there(server, "model", "fetched")
    assert found.paths() == ["w"]
    starts: list[int] = []
    asked = remote.Server._asked

    def cut(self: Any, path: str, pairs: Any = (), **more: Any) -> Any:
        starts.append(more.get("first_byte", 0))
        return asked(self, path, pairs, **more)

    monkeypatch.setattr(remote.Server, "_asked", cut)
    monkeypatch.setattr(remote, "_PIECE", PART)
    from urllib3.response import HTTPResponse

    stream = HTTPResponse.stream

    def short(self: Any, *given: Any, **more: Any) -> Any:
        from urllib3.exceptions import ProtocolError

        for number, piece in enumerate(stream(self, *given, **more)):
            if number == 2 and len(starts) < 3:
                raise ProtocolError("cut")
            yield piece

    monkeypatch.setattr(HTTPResponse, "stream", short)

    assert Path(found.get_entry("w").download(tmp_path / "b")).read_bytes() == content
    assert starts == [0, 2 * PART, 4 * PART]


def test_versions_of_two_machines_are_told_apart_by_what_they_hold(server: Running, tmp_path: Path) -> None:
    for machine, contents_ in (("a", (b"1", b"2")), ("b", (b"2", b"3"))):
        for content in contents_:
            logged(tmp_path / machine, "two", {"w": content})
        synced(tmp_path / machine)
    there(server, "model:v2", "two")
    api: Any = torchtrack.Api(server.url, overrides={"project": "two"})
    found = api.artifacts("model", "model")

    assert [(each.version, each.aliases) for each in found] == [("v2", ["latest"]), ("v1", []), ("v0", [])]
    assert [Path(each.file(str(tmp_path / each.version))).read_bytes() for each in found] == [b"3", b"2", b"1"]


def test_gc_keeps_what_an_artifact_holds_and_removes_what_none_does(server: Running, tmp_path: Path) -> None:
    uid = logged(tmp_path / "a", "kept", {"w": os.urandom(3 * PART)})
    synced(tmp_path / "a")
    media, later = server.config.runs / uid / "media", time.time() + 2 * garbage.PART_S
    before = put_by(server, uid)
    (media / ("b" * 64)).write_bytes(b"stray")

    found = [each.place for each in garbage.find(server.config.runs, now=later)]
    assert found == [media / ("b" * 64)]
    assert list(garbage.find(tmp_path / "a", now=later)) == []
    (media / ("b" * 64)).unlink()
    assert len(before) == 4


def test_a_version_on_a_server_does_not_change_and_says_what_to_do(server: Running, tmp_path: Path) -> None:
    logged(tmp_path / "a", "still", {"w": b"w"})
    synced(tmp_path / "a")
    found = there(server, "model", "still")
    for call in (found.save, found.delete):
        with pytest.raises(torchtrack.TorchtrackError, match=r"log_artifact\(artifact, aliases"):
            call()


def test_a_version_whose_files_are_gone_is_named_and_the_rows_go_on(server: Running, tmp_path: Path) -> None:
    uid = logged(tmp_path / "a", "gone", {"w": b"w"})
    api: Any = torchtrack.Api(tmp_path / "a", overrides={"project": "gone"})
    api.artifact("model").delete(delete_aliases=True)
    done = CliRunner().invoke(main, ["sync", "--dir", str(tmp_path / "a")])

    assert done.exit_code == 1
    assert "artifacts/" in done.output
    until(lambda: list((server.config.runs / uid).glob("*/*.ttj")), 20)
    until(lambda: torchtrack.Api(server.url, overrides={"project": "gone"}).artifact_exists("model"), 60)
    with pytest.raises(torchtrack.CommError, match="still on its way"):
        there(server, "model", "gone").download(tmp_path / "b")


def test_terms_and_second_digests_are_known_on_another_machine(server: Running, tmp_path: Path) -> None:
    run: Any = begin(dir=tmp_path / "a", mode="offline", project="terms")
    artifact: Any = torchtrack.Artifact("model", "model", storage_region="eu", digest_algorithm="MD5")
    artifact.ttl = timedelta(days=30)
    with artifact.new_file("w", "wb") as file:
        file.write(b"weights")
    run.log_artifact(artifact)
    run.finish(quiet=True)
    synced(tmp_path / "a")
    found = there(server, "model", "terms")

    assert (found.storage_region, found.digest_algorithm, found.ttl) == ("eu", "MD5", timedelta(days=30))
    wanted = base64.b64encode(hashlib.md5(b"weights", usedforsecurity=False).digest()).decode()
    assert found.get_entry("w").digest == wanted
    assert Path(found.file(str(tmp_path / "b"))).read_bytes() == b"weights"


def test_the_status_of_a_run_follows_what_the_server_has(
    server: Running, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TORCHTRACK_SIDECAR", "1")
    run: Any = begin(dir=tmp_path / "a", project="status", url=server.url, api_key=server.key, mode="online")
    run.log({"x": 1.0})
    run.finish(quiet=True)

    until(lambda: run.status().sync_items_total and not run.status().sync_items_pending, 60)
    assert run.status().sync_time is not None


def saved(server: Running, path: str) -> dict[str, int]:
    """The saved files of a run that the server knows of, and their sizes."""
    api: Any = torchtrack.Api(server.url)
    try:
        return {each.name: each.size for each in api.run(path).files()}
    except RunNotFoundError:
        return {}


@pytest.mark.parametrize("policy", ["live", "now", "end"])
def test_saved_files_are_read_and_restored_on_another_machine(
    server: Running, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, policy: str
) -> None:
    monkeypatch.setenv("TORCHTRACK_SIDECAR", "1")
    large = os.urandom(3 * PART + 5)
    source = tmp_path / "deep" / "weights.bin"
    source.parent.mkdir()
    source.write_bytes(large)
    run: Any = begin(dir=tmp_path / "a", project="saved", url=server.url, api_key=server.key, mode="online")
    (Path(run.dir) / "inside.txt").write_text("inside")
    run.save("deep/*", policy=policy)
    run.save(str(Path(run.dir) / "inside.txt"))
    run.finish(quiet=True)
    api: Any = torchtrack.Api(server.url)
    path = f"team/saved/{run.id}"
    until(lambda: len(saved(server, path)) == 2, 60)
    found = saved(server, path)
    with api.run(path).file("deep/weights.bin").download(tmp_path / "b") as file:
        here = Path(file.name).read_bytes()
    other: Any = begin(dir=tmp_path / "c", project="saved", url=server.url, api_key=server.key, mode="online")
    with other.restore("inside.txt", run_path=path, root=tmp_path / "d") as file:
        text = file.read()
    with pytest.raises(ValueError, match=r"no file 'other\.txt' was saved"):
        other.restore("other.txt", run_path=path)
    other.finish(quiet=True)

    listed = {each["path"]: each for each in Server(server.url, server.key).json(f"runs/{run.uid}/saved")}
    assert {path: each["size"] for path, each in listed.items()} == {
        "files/deep/weights.bin": len(large),
        "inside.txt": 6,
    }
    assert listed["files/deep/weights.bin"]["sha256"] == hashlib.sha256(large).hexdigest()
    assert found == {"deep/weights.bin": len(large), "inside.txt": 6}
    assert (here, text) == (large, "inside")
    with pytest.raises(torchtrack.CommError, match="no file"):
        api.run(path).file("other.txt").download()


def test_a_saved_file_that_changes_is_sent_as_it_was_at_the_end(server: Running, tmp_path: Path) -> None:
    log = tmp_path / "log.txt"
    log.write_text("this is how it began")
    (tmp_path / "same.txt").write_text("same")
    run: Any = begin(dir=tmp_path / "a", mode="offline", project="changing")
    run.save("*.txt")
    log.write_text("and how it ended")
    run.finish(quiet=True)
    synced(tmp_path / "a")
    api: Any = torchtrack.Api(server.url)
    path = f"team/changing/{run.id}"
    until(lambda: saved(server, path) == {"log.txt": 16, "same.txt": 4}, 60)

    with api.run(path).file("log.txt").download(tmp_path / "b") as file:
        assert file.read() == "and how it ended"
    with api.run(path).file("same.txt").download(tmp_path / "b") as file:
        assert file.read() == "same"


def test_what_was_saved_is_no_garbage_of_the_server(server: Running, tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("kept")
    run: Any = begin(dir=tmp_path / "a", mode="offline", project="kept")
    run.save("a.txt")
    run.finish(quiet=True)
    synced(tmp_path / "a")
    late = time.time() + 2 * garbage.PART_S

    assert len(put_by(server, run.uid)) == 2
    assert [each for each in garbage.find(server.config.runs, now=late) if run.uid in str(each.place)] == []
