"""What a process left on the node goes into the folder of its run."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

from torchtrack.journal import ring

WHY: Final = re.compile(r"(?:spike|nonfinite|stall)-[0-9]{1,20}")
"""For what reasons the last steps of ranks that go on are kept, and at which step."""


def salvage(stream: str, folder: Path) -> list[str]:
    """Move a stream's black boxes and stacks, and copy what PyTorch's flight recorder dumped; the names of the files.

    Raises:
        OSError: the disk does not take them; what is not copied stays where it is.
    """
    saved = []
    for path in ring.left_by(stream):
        if not path.stat().st_size:  # stacks that nobody had the time to write
            path.unlink()
            continue
        saved.append(_copy(path, folder, path.name.removeprefix(ring.prefix(""))))
        if path.suffix == ".ttb":
            saved += [_copy(dump, folder, f"{stream}-process.flight") for dump in _dumps(_described(path))]
        path.unlink()
    return saved


def keep(stream: str, folder: Path, why: str) -> list[str]:
    """Copy what a stream that goes on has written so far; its names tell why. What is half written is told by its crc.

    Raises:
        OSError: the disk does not take them.
    """
    saved = []
    for path in ring.left_by(stream):
        name = f"{path.name.removeprefix(ring.prefix(''))}"
        stem, dot, suffix = name.partition(".")
        saved.append(_copy(path, folder, f"{stem}-{why}{dot}{suffix}"))
    return saved


def left_in(directory: Path) -> Iterator[tuple[str, str]]:
    """Uid and stream of the black boxes of a runs folder whose processes have ended on this node, unseen."""
    for path in ring.rings():
        described = _described(path)
        if described.get("directory") == str(directory) and ring.is_over(described):
            yield str(described.get("uid")), path.name.removeprefix(ring.prefix(""))[:16]


def _described(path: Path) -> dict[str, Any]:
    with contextlib.suppress(OSError, ValueError), path.open("rb") as file:
        return ring.describe(file.read(ring.HEAD_BYTES))
    return {}


def _dumps(described: dict[str, Any]) -> Iterator[Path]:
    """The newest file that the flight recorder of this process wrote, if any: others may lie at the same place."""
    found = []
    for name in described.get("flight_recorder", []):
        with contextlib.suppress(OSError):
            status = os.lstat(name)
            ours = stat.S_ISREG(status.st_mode) and status.st_uid == os.getuid()
            if ours and status.st_mtime_ns >= described.get("start_ns", 0):
                found.append((status.st_mtime_ns, Path(name)))
    yield from [path for _, path in sorted(found)[-1:]]


def _copy(path: Path, folder: Path, name: str) -> str:
    """Copy a file; nobody sees it before it is whole."""
    folder.mkdir(parents=True, exist_ok=True)
    unfinished = folder / f".{name}.part"
    shutil.copyfile(path, unfinished)
    unfinished.replace(folder / name)
    return name
