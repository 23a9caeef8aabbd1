"""What kind of file some bytes are, by how they begin, else by what they are called."""

from __future__ import annotations

import mimetypes
from pathlib import PurePath
from typing import Final

_BEGINNINGS: Final = (
    (b"\x89PNG\r\n\x1a\n", "image/png"),
    (b"\xff\xd8\xff", "image/jpeg"),
    (b"GIF8", "image/gif"),
    (b"ID3", "audio/mpeg"),
    (b"\xff\xfb", "audio/mpeg"),
    (b"fLaC", "audio/flac"),
    (b"OggS", "audio/ogg"),
)
_ENDINGS: Final = {"audio/wav": ".wav", "audio/flac": ".flac", "audio/ogg": ".ogg", "image/webp": ".webp"}
"""Those that not every system's table of types has."""
UNKNOWN: Final = "application/octet-stream"


def mime_of(data: bytes, otherwise: str = UNKNOWN) -> str:
    """The kind of a file by its first bytes."""
    if data[:4] == b"RIFF":
        return {b"WEBP": "image/webp", b"WAVE": "audio/wav"}.get(data[8:12], otherwise)
    return next((mime for beginning, mime in _BEGINNINGS if data.startswith(beginning)), otherwise)


def ending_of(mime: str, otherwise: str = ".bin") -> str:
    """What the names of files of a type end in, with the dot."""
    return _ENDINGS.get(mime) or mimetypes.guess_extension(mime) or otherwise


def mime_of_file(name: str, data: bytes) -> str:
    """The same, with the name of the file for those that do not tell."""
    return mime_of(data, mimetypes.guess_type(PurePath(name).name)[0] or UNKNOWN)
