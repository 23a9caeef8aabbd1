"""Stored files: whole, private, under their own hash, and nowhere else."""

from __future__ import annotations

import hashlib
import os
import stat
import threading
from pathlib import Path
from typing import Any

import pytest

from torchtrack.blobs import Blob, store

BLOB = Blob(b"content", "text/plain", None, {})
NAME = hashlib.sha256(b"content").hexdigest()


def test_a_file_is_stored_under_its_hash(tmp_path: Path) -> None:
    assert store(BLOB, tmp_path) == NAME
    assert (tmp_path / "media" / NAME).read_bytes() == b"content"


@pytest.mark.parametrize("umask", [0o000, 0o022, 0o077, 0o777])
def test_stored_files_are_private_under_any_umask(umask: int, tmp_path: Path) -> None:
    before = os.umask(umask)
    try:
        store(BLOB, tmp_path / "runs" / "uid")
    finally:
        os.umask(before)
    modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in (tmp_path / "runs").rglob("*")}
    assert modes == {"uid": 0o700, "media": 0o700, NAME: 0o600}


def test_storing_again_does_not_touch_the_file(tmp_path: Path) -> None:
    store(BLOB, tmp_path)
    before = (tmp_path / "media" / NAME).stat()
    assert store(BLOB, tmp_path) == NAME
    after = (tmp_path / "media" / NAME).stat()
    assert (before.st_ino, before.st_mtime_ns) == (after.st_ino, after.st_mtime_ns)


def test_a_file_that_was_cut_is_stored_again(tmp_path: Path) -> None:
    store(BLOB, tmp_path)
    (tmp_path / "media" / NAME).write_bytes(b"con")
    store(BLOB, tmp_path)
    assert (tmp_path / "media" / NAME).read_bytes() == b"content"


def test_a_link_planted_at_the_name_is_replaced_not_followed(tmp_path: Path) -> None:
    victim = tmp_path / "victim"
    victim.write_bytes(b"victim.")
    (tmp_path / "media").mkdir()
    (tmp_path / "media" / NAME).symlink_to(victim)
    store(BLOB, tmp_path)
    assert victim.read_bytes() == b"victim."
    assert not (tmp_path / "media" / NAME).is_symlink()


def test_a_link_planted_as_the_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "media").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(OSError, match="media"):
        store(BLOB, tmp_path)
    assert list((tmp_path / "elsewhere").iterdir()) == []


def test_a_failed_write_leaves_nothing_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(_: int) -> None:
        raise OSError("no space left")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(OSError, match="no space left"):
        store(BLOB, tmp_path)
    assert list((tmp_path / "media").iterdir()) == []


def test_content_is_on_disk_before_its_name_is_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    order: list[str] = []
    fsync, rename = os.fsync, os.rename

    def recorded_fsync(descriptor: int) -> None:
        order.append("directory" if stat.S_ISDIR(os.fstat(descriptor).st_mode) else "content")
        fsync(descriptor)

    def recorded_rename(*arguments: Any, **options: Any) -> None:
        order.append("name")
        rename(*arguments, **options)

    monkeypatch.setattr(os, "fsync", recorded_fsync)
    monkeypatch.setattr(os, "rename", recorded_rename)
    store(BLOB, tmp_path)
    assert order == ["content", "name", "directory"]


def test_many_threads_store_one_file(tmp_path: Path) -> None:
    names: list[str] = []
    threads = [threading.Thread(target=lambda: names.append(store(BLOB, tmp_path))) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert names == [NAME] * 8
    assert [path.name for path in (tmp_path / "media").iterdir()] == [NAME]
