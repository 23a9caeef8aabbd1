"""Compiles the numba kernel into its cache on disk: `python -c COMMAND`.

In a process of its own, so that the training process only has to load what was compiled: the compiler holds locks that
a fork must not copy, and a fork on the training thread would wait for them. One process at a time does it, at the
lowest priority: where ranks use all cores, compiling at theirs makes one of them the slow one.
"""

from __future__ import annotations

import fcntl
import importlib
import os
import tempfile
from pathlib import Path
from typing import Final

COMMAND: Final = "import os; os.nice(19); from torchtrack.watch.kernels import compile; compile.main()"


def main() -> None:
    """Compile, or find that another process has done so meanwhile."""
    lock = Path(tempfile.gettempdir()) / f"torchtrack-compile-{os.getuid()}.lock"
    with lock.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        importlib.import_module("torchtrack.watch.kernels.numba_loops")


def is_needed() -> bool:
    """Whether numba, which keeps what it compiled beside the source where it may write there, has nothing newer."""
    source = Path(__file__).with_name("numba_loops.py")
    if not os.access(source.parent, os.W_OK):
        return False  # it keeps it elsewhere, and knows
    written = [path.stat().st_mtime for path in (source.parent / "__pycache__").glob("numba_loops.*.nbi")]
    return max(written, default=0.0) < source.stat().st_mtime
