"""A second digest of the files of an artifact, by the algorithm a script asked for, in base64 as wandb has it."""

from __future__ import annotations

import base64
import hashlib
import importlib
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

from torchtrack.errors import MissingDependencyError

OWN: Final = "SHA256"
"""By which all contents are named."""
SECOND: Final = ("MD5", "XXH128")
_PIECE: Final = 1 << 20


def known(algorithm: str | None) -> str:
    """The name of an algorithm in capitals; None is ours.

    Raises:
        ValueError: there is no such one.
        MissingDependencyError: the package for it is not there.
    """
    named = str(algorithm or OWN).upper().replace("-", "")
    if named not in (OWN, *SECOND):
        raise ValueError(f"Artifact(digest_algorithm=) takes {', '.join((OWN, *SECOND))}; got {algorithm!r}")
    _hasher(named)
    return named


def of_file(path: Path, algorithm: str) -> str:
    """The digest of a file, which is read in pieces.

    Raises:
        OSError: it cannot be read.
    """
    whole = _hasher(algorithm)()
    with path.open("rb") as file:
        while piece := file.read(_PIECE):
            whole.update(piece)
    return base64.b64encode(whole.digest()).decode()


def _hasher(algorithm: str) -> Callable[[], Any]:
    if algorithm == "XXH128":
        try:
            made: Callable[[], Any] = importlib.import_module("xxhash").xxh128
        except ImportError:
            raise MissingDependencyError('digest_algorithm="XXH128" needs xxhash: pip install xxhash') from None
        return made
    return (lambda: hashlib.md5(usedforsecurity=False)) if algorithm == "MD5" else hashlib.sha256
