"""What an artifact holds, as it is sent and fetched: its files and the parts they go in, all named by their SHA-256.

Files that were saved with a run go the same way.

The list itself is a file too: `media/<sha256>` of the run that logged the artifact, and the event of that names it as
`contents`. A large file goes in parts: what was cut off goes on with the part that is missing, and no part has to fit
into memory.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final, NamedTuple

PART_BYTES: Final = 64 << 20
"""Of every part of a file but the last."""
NAMING: Final = ("artifact", "saved")
"""Types of events that name lists, as `contents`: of a version of an artifact, and of files that were saved."""
MAX_BYTES: Final = 64 << 20
"""Of a list."""
_PIECE: Final = 1 << 20
_SHA256: Final = re.compile(r"[0-9a-f]{64}")


class Held(NamedTuple):
    """A file of an artifact: bytes, and the SHA-256 of the whole and of each part."""

    size: int
    sha256: str
    parts: tuple[str, ...]


def is_digest(text: object) -> bool:
    """Whether this is a SHA-256 in hex digits."""
    return isinstance(text, str) and _SHA256.fullmatch(text) is not None


def measure(path: Path) -> Held:
    """Read a file once, in pieces, for its size and digests.

    Raises:
        OSError: it cannot be read.
    """
    whole, parts, size = hashlib.sha256(), [], 0
    with path.open("rb") as file:
        while True:
            part, left = hashlib.sha256(), PART_BYTES
            while left and (piece := file.read(min(_PIECE, left))):
                whole.update(piece)
                part.update(piece)
                left -= len(piece)
            size += PART_BYTES - left
            if left < PART_BYTES:
                parts.append(part.hexdigest())
            if left:
                return Held(size, whole.hexdigest(), tuple(parts))


def encode(files: Mapping[str, Held], references: Mapping[str, str], digests: Mapping[str, str] | None = None) -> bytes:
    """The list: the same bytes for the same files.

    Args:
        files: by path.
        references: where what was not copied lies, by name.
        digests: a second digest by path, where the artifact has such.
    """
    told = {
        path: {"size": held.size, "sha256": held.sha256, **({"parts": held.parts} if len(held.parts) > 1 else {})}
        for path, held in files.items()
    }
    facts = {"format": 1, "part_bytes": PART_BYTES, "files": told, "references": dict(references)}
    facts |= {"digests": dict(digests)} if digests else {}
    return json.dumps(facts, sort_keys=True, separators=(",", ":")).encode()


class Contents(NamedTuple):
    """A list that was read: files by path, where what was not copied lies, bytes of a part, second digests by path."""

    files: Mapping[str, Held]
    references: Mapping[str, str]
    part_bytes: int
    digests: Mapping[str, str]


def decode(data: bytes) -> Contents:
    """Read a list; nothing in it is believed.

    Raises:
        ValueError: it is none.
    """
    try:
        facts = json.loads(data)
        part_bytes, files, references = facts["part_bytes"], facts["files"], facts["references"]
        if facts["format"] != 1 or not isinstance(part_bytes, int) or part_bytes < 1:
            raise ValueError("of another format")
        found = {str(path): _held(path, told, part_bytes) for path, told in files.items()}
        digests = {str(path): str(digest) for path, digest in facts.get("digests", {}).items()}
        return Contents(found, {str(name): str(uri) for name, uri in references.items()}, part_bytes, digests)
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ValueError(f"this is no list of an artifact's contents: {error}") from None


def _held(path: str, told: Mapping[str, Any], part_bytes: int) -> Held:
    if not is_inside(path):
        raise ValueError(f"a file of an artifact lies inside it, got {path!r}")
    size, sha256 = told["size"], told["sha256"]
    parts = tuple(told.get("parts") or ([sha256] if size else []))
    if not isinstance(size, int) or size < 0 or len(parts) != -(-size // part_bytes):
        raise ValueError(f"{path!r} has not as many parts as its size says")
    if not all(map(is_digest, (sha256, *parts))):
        raise ValueError(f"{path!r} is named by no SHA-256")
    return Held(size, sha256, parts)


def is_inside(path: str) -> bool:
    """Whether a path leads to a place below the folder that it is put into."""
    return "\0" not in path and all(part not in ("", ".", "..") for part in path.split("/"))
