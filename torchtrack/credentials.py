"""Which server runs are sent to, and the key for it: TORCHTRACK_URL and TORCHTRACK_API_KEY, else what `login` kept.

The file of `login` lies in the user's configuration folder, is readable by the user alone, and is not read unless a
server is asked for or `login` was used.
"""

from __future__ import annotations

import contextlib
import ipaddress
import json
import os
import secrets
from pathlib import Path
from typing import Any, Final
from urllib.parse import urlsplit

_LONGEST: Final = 400
"""Characters of an address: it goes to the sidecar in one datagram."""


def credentials_file() -> Path:
    """Where `login` keeps keys."""
    base = os.environ.get("XDG_CONFIG_HOME")
    return (Path(base) if base else Path("~/.config").expanduser()) / "torchtrack" / "servers.json"


def default_url() -> str | None:
    """The server that was named by TORCHTRACK_URL, else the one logged in to last; None if there is none."""
    named = os.environ.get("TORCHTRACK_URL")
    if named:
        return named.rstrip("/")
    default = _read().get("default")
    return default if isinstance(default, str) else None


def key_for(url: str) -> str | None:
    """The key for a server: TORCHTRACK_API_KEY, else what `login` kept for this address."""
    named = os.environ.get("TORCHTRACK_API_KEY")
    if named:
        return named.strip()
    keys = _read().get("keys")
    key = keys.get(url.rstrip("/")) if isinstance(keys, dict) else None
    return key if isinstance(key, str) else None


def check_url(url: str) -> str:
    """A server's address without trailing slash.

    Raises:
        ValueError: it is none, holds a password, or a key sent there could be read on the way.
    """
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.hostname or len(url) > _LONGEST:
        raise ValueError(f"a server is given as https://host or http://127.0.0.1:port; got {url[:40]!r}")
    if parts.username or parts.password or parts.query or parts.fragment:
        raise ValueError("a server's address holds no user, password, query or fragment; the key goes elsewhere")
    if parts.scheme == "http" and not is_loopback(parts.hostname) and os.environ.get("TORCHTRACK_ALLOW_HTTP") != "1":
        raise ValueError(
            f"http://{parts.hostname} is not encrypted: the key and all data could be read on the way. Use https, or "
            "set TORCHTRACK_ALLOW_HTTP=1 if the network is yours"
        )
    return url.rstrip("/")


def is_loopback(host: str) -> bool:
    """Whether a host is this machine, for all to see."""
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return host.lower() == "localhost"


def keep(url: str, key: str) -> Path:
    """Keep a key, and take this server from now on. Returns the file.

    Raises:
        OSError: it cannot be written.
    """
    path, record = credentials_file(), _read()
    keys: dict[str, Any] = record["keys"] if isinstance(record.get("keys"), dict) else {}
    path.parent.mkdir(0o700, parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    try:
        with os.fdopen(fd, "w") as file:
            json.dump({"default": url.rstrip("/"), "keys": {**keys, url.rstrip("/"): key}}, file, indent=2)
        temporary.rename(path)
    except OSError:
        with contextlib.suppress(OSError):
            temporary.unlink()
        raise
    return path


def _read() -> dict[str, Any]:
    try:
        record = json.loads(credentials_file().read_text())
    except (OSError, ValueError, RuntimeError):
        return {}
    return record if isinstance(record, dict) else {}
