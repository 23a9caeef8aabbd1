"""Where the page of a folder of runs is, while there is one."""

from __future__ import annotations

import hashlib
import json
import os
import socket
from pathlib import Path
from typing import Final
from urllib.parse import urlsplit

ADDRESS: Final = "address.json"
"""In the index folder, with the token: for its user alone."""
_PATIENCE_S: Final = 0.5


def index_folder(runs: Path) -> Path:
    """Where the index of a folder of runs lies: in the user's cache, since the folder may be read-only."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return cache / "torchtrack" / "index" / _digest(runs)


def catalog_url(runs: Path) -> str:
    """Where what people type on the page of a folder is kept: not in the cache, since nothing else has it. Made."""
    kept = Path(os.environ.get("XDG_DATA_HOME") or Path.home() / ".local" / "share")
    folder = kept / "torchtrack" / "typed" / _digest(runs)
    folder.mkdir(0o700, parents=True, exist_ok=True)
    return f"sqlite:///{folder.absolute() / 'catalog.sqlite'}"


def _digest(runs: Path) -> str:
    return hashlib.sha256(str(runs.resolve()).encode()).hexdigest()[:16]


def page_of(runs: Path) -> str | None:
    """The address of the page that `torchtrack ui` shows of a folder, without the token; None if nothing listens."""
    try:
        url = urlsplit(json.loads((index_folder(runs) / ADDRESS).read_text())["url"])
        with socket.create_connection((url.hostname or "", url.port or 0), _PATIENCE_S):
            return f"{url.scheme}://{url.netloc}/"
    except (OSError, ValueError, KeyError, TypeError):  # no page, or one that has ended
        return None
