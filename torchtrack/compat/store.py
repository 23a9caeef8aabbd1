"""Where artifacts lie: folders of versions, and files that say which version an alias stands for.

<dir>/artifacts/<project>/<name>/v0/manifest.json    what it is, and its digest
<dir>/artifacts/<project>/<name>/v0/files/...        copies of what was added
<dir>/artifacts/<project>/<name>/aliases/best        the version an alias stands for, as text
<dir>/artifacts/<project>/<name>/newest              the highest number there was, once a version was removed
<dir>/artifacts/.content/<sha256>                    each content once, however many versions have a file with it

The files of versions are further names (hard links) of what lies in `.content`, where the file system has such, and
can only be read: who writes into one would change it in all versions.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Final
from urllib.parse import quote, unquote

_REMOVED: Final = "newest"
"""The file with the highest number there was, once a version was removed."""


def versions(folder: Path) -> list[str]:
    """The versions of a name, oldest first."""
    names = [path.name for path in folder.iterdir()] if folder.is_dir() else []
    return sorted((name for name in names if re.fullmatch(r"v\d+", name)), key=lambda name: int(name[1:]))


def folder_of(top: Path, project: str, name: str) -> Path:
    """The folder of a name's versions."""
    return top / "artifacts" / quote(project, safe=" ") / quote(name, safe=" ")


def aliases(folder: Path) -> dict[str, str]:
    """The version that each alias stands for."""
    at = folder / "aliases"
    return (
        {unquote(path.name): path.read_text() for path in at.iterdir() if path.suffix != ".new"} if at.is_dir() else {}
    )


def point(folder: Path, names: Iterable[str], version: str) -> None:
    """Let aliases stand for a version; "latest" always stands for the newest."""
    for alias in names:
        if alias != "latest":
            (folder / "aliases").mkdir(exist_ok=True, mode=0o700)
            write(folder / "aliases" / quote(alias, safe=""), version)


def discard(staged: Path) -> None:
    """Let go of an artifact that was not logged, and of the folder of all if there is none."""
    shutil.rmtree(staged, ignore_errors=True)
    with contextlib.suppress(OSError):  # there are some
        staged.parent.rmdir()


def share(top: Path, files: Mapping[Path, str]) -> None:
    """Keep each content once: files become further names of what has the same content, or are kept for those to come.

    Args:
        top: the folder of runs.
        files: SHA-256 by file.
    """
    content = top / "artifacts" / ".content"
    content.mkdir(parents=True, exist_ok=True, mode=0o700)
    for path, digest in files.items():
        known = content / digest
        path.chmod(0o444)
        with contextlib.suppress(OSError):  # no links here, or too many of one: it stays a copy
            if known.exists() and known.stat().st_size == path.stat().st_size:
                beside = path.with_name(f".{digest}.new")
                os.link(known, beside)
                beside.replace(path)
            else:
                os.link(path, known)


def newest(folder: Path) -> int:
    """The highest number that a version of a name has or had; -1 if there was none."""
    removed = folder / _REMOVED
    there = [int(version[1:]) for version in versions(folder)]
    return max([*there, int(removed.read_text()) if removed.is_file() else -1], default=-1)


def remove(version: Path) -> None:
    """Remove a version, its aliases, and contents that no other has; its number is not given again.

    Raises:
        OSError: it cannot be removed.
    """
    folder, files = version.parent, json.loads((version / "manifest.json").read_text())["files"]
    write(folder / _REMOVED, str(newest(folder)))
    for alias, named in aliases(folder).items():
        if named == version.name:
            (folder / "aliases" / quote(alias, safe="")).unlink()
    shutil.rmtree(version)
    forget(folder.parents[2], [file["sha256"] for file in files.values() if "sha256" in file])


def forget(top: Path, digests: Iterable[str]) -> None:
    """Remove contents that no version has any more."""
    for digest in digests:
        known = top / "artifacts" / ".content" / digest
        with contextlib.suppress(OSError):
            if known.stat().st_nlink == 1:
                known.unlink()


def copy(source: Path, target: Path) -> None:
    """A copy that can be written to."""
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.copy2(source, target)
    target.chmod(target.stat().st_mode | 0o200)


def write(path: Path, text: str) -> None:
    """Write a file whole or not at all."""
    beside = path.with_name(f"{path.name}.{os.getpid()}.{time.monotonic_ns()}.new")
    beside.write_text(text)
    beside.replace(path)
