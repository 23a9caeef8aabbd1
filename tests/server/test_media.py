"""Files that come in."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

import pytest

from tests.server.samples import Make
from tests.server.serving import serving
from torchtrack import Api
from torchtrack.errors import ServerError
from torchtrack.records import Table
from torchtrack.server import media
from torchtrack.server.giving import media_router
from torchtrack.server.media import MediaStore
from torchtrack.server.metrics import MetricsStore

UID, CONTENT = "ab" * 8, b"a picture"
NAME = hashlib.sha256(CONTENT).hexdigest()


def test_a_file_has_its_name_only_once_its_content_is_on_the_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    order: list[str] = []

    def fsync(fd: int) -> None:
        order.append(f"sync {Path(f'/proc/self/fd/{fd}').readlink().name.lstrip('.')[:5]}")

    def rename(old: str, new: str, *, src_dir_fd: int, dst_dir_fd: int) -> None:
        order.append("rename")
        os.rename(old, new, src_dir_fd=src_dir_fd, dst_dir_fd=dst_dir_fd)

    monkeypatch.setattr(media, "os", _Os(fsync, rename))
    with MediaStore(tmp_path).receive(UID, NAME) as part:
        part.write(CONTENT)
        part.keep()

    assert order[:3] == [f"sync {NAME[:5]}", "rename", "sync media"]
    assert (tmp_path / UID / "media" / NAME).read_bytes() == CONTENT


class _Os:
    """The module `os` with two calls replaced, for one module alone."""

    def __init__(self, fsync: object, rename: object) -> None:
        self.fsync, self.rename = fsync, rename

    def __getattr__(self, name: str) -> object:
        return getattr(os, name)


def test_a_file_that_did_not_come_to_its_end_leaves_nothing(tmp_path: Path) -> None:
    with MediaStore(tmp_path).receive(UID, NAME) as part:
        part.write(CONTENT)

    assert list((tmp_path / UID / "media").iterdir()) == []


@pytest.mark.parametrize("uid", ["", "..", "AB" * 8, "ab" * 9, "../../etc/pass1"])
def test_a_run_that_is_no_uid_is_refused(tmp_path: Path, uid: str) -> None:
    with pytest.raises(ValueError, match="16 hex digits"):
        MediaStore(tmp_path).missing(uid, [NAME])


def test_a_link_in_the_place_of_the_folder_is_not_followed(tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (tmp_path / "runs" / UID).mkdir(parents=True)
    (tmp_path / "runs" / UID / "media").symlink_to(elsewhere)

    with pytest.raises(OSError), MediaStore(tmp_path / "runs").receive(UID, NAME) as part:
        part.keep()
    assert list(elsewhere.iterdir()) == []


def test_files_are_read_through_a_server_as_from_the_folder(store: MetricsStore, runs: Path, journal: Make) -> None:
    rank = journal(UID)
    content = os.urandom(3 << 20)
    name, gone = hashlib.sha256(content).hexdigest(), hashlib.sha256(b"").hexdigest()
    row = {"time": rank.tick(), "step": 1, "name": "sample", "mime": "image/png", "caption": "", "size": len(content)}
    rank._rows(Table.MEDIA, [{**row, "sha256": each} for each in (name, gone)])
    rank.close()
    (runs / UID / "media").mkdir()
    (runs / UID / "media" / name).write_bytes(content)

    with serving(store, runs, more=media_router(MediaStore(runs), None)) as client:
        found = []
        for source in (runs, client.url):
            run = Api(source).run(UID)
            assert run.media()["sha256"].to_pylist() == [name, gone]
            assert run.media_file(name) == run.media_file(name)
            found.append(run.media_file(name).read_bytes())
            with pytest.raises(FileNotFoundError, match="still be on its way"):
                run.media_file(gone)
            for bad in ("../" + name, name[:-1], name.upper()):
                with pytest.raises(ValueError, match="64 hex digits"):
                    run.media_file(bad)
        assert found == [content, content]

        (runs / UID / "media" / name).write_bytes(content[:-1])
        far = Api(client.url).run(UID)
        with pytest.raises(ServerError, match="another content"):
            far.media_file(name)
        (runs / UID / "media" / name).write_bytes(content)
        assert far.media_file(name).read_bytes() == content
