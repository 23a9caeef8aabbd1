"""Where artifacts lie: folders of versions, and files that say which version an alias stands for.

<dir>/artifacts/<project>/<name>/v0/manifest.json    what it is, and its digest
<dir>/artifacts/<project>/<name>/v0/files/...        copies of what was added
<dir>/artifacts/<project>/<name>/aliases/best        the version an alias stands for, as text
"""

from __future__ import annotations

import hashlib
import os
import re
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Final
from urllib.parse import quote, unquote

_CHUNK: Final = 1 << 20


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


def write(path: Path, text: str) -> None:
    """Write a file whole or not at all."""
    beside = path.with_name(f"{path.name}.{os.getpid()}.{time.monotonic_ns()}.new")
    beside.write_text(text)
    beside.replace(path)


def digest_of(path: Path) -> str:
    """SHA-256 of a file."""
    whole = hashlib.sha256()
    with path.open("rb") as file:
        while piece := file.read(_CHUNK):
            whole.update(piece)
    return whole.hexdigest()
