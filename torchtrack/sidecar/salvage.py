"""What a process left on the node goes into the folder of its run."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Final

from torchtrack.journal import ring

_HEAD_BYTES: Final = 8 << 20


def salvage(stream: str, folder: Path) -> list[str]:
    """Move a stream's black boxes and stacks, and copy what PyTorch's flight recorder dumped; the names of the files.

    Raises:
        OSError: the disk does not take them; what is not copied stays where it is.
    """
    saved = []
    for path in ring.left_by(stream):
        folder.mkdir(parents=True, exist_ok=True)
        name = path.name.removeprefix("torchtrack-")
        shutil.copyfile(path, folder / name)
        saved.append(name)
        if path.suffix == ".ttb":
            with path.open("rb") as file:
                described = ring.describe(file.read(_HEAD_BYTES))
            trace = Path(described["flight_recorder"])
            if trace.is_file() and trace.stat().st_mtime_ns >= described["start_ns"]:
                shutil.copyfile(trace, folder / f"{stream}.flight")
                saved.append(f"{stream}.flight")
        path.unlink()
    return saved
