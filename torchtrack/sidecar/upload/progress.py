"""What is known to have arrived: a small file in the folder of runs, for `torchtrack status`, `finish` and `gc`.

It is written anew and renamed, with both synced. To lose it costs nothing: the server is asked in any case. One node
writes one file; `read` puts those of all nodes together.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import secrets
import socket
import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, Final, NamedTuple

FOLDER: Final = "uploads"
_EVERY_S: Final = 1.0


def node_name(kind: str) -> str:
    """This node's name in a shared folder, the same after a restart."""
    identity = f"{socket.gethostname()}\0{os.getuid() if hasattr(os, 'getuid') else 0}\0{kind}"
    return hashlib.blake2s(identity.encode("utf-8", "surrogateescape"), digest_size=8).hexdigest()


class Progress:
    """One node's file. For one thread.

    Args:
        directory: the folder of runs.
        url: the server.
        kind: who sends: `sidecar` or `sync`.
        clock: monotonic seconds.
    """

    def __init__(self, directory: Path, url: str, kind: str, clock: Callable[[], float] = time.monotonic) -> None:
        self.path = path_of(directory, url, kind)
        self.url = url
        self._clock = clock
        self._written_at = float("-inf")
        self._changed = True
        before = _read(self.path)
        self._streams: dict[str, dict[str, Any]] = dict(before.get("streams") or {})
        self._state: dict[str, Any] = {"state": "starting", "problem": None, "requests": 0, "bytes": 0, "resent": 0}

    def acked(self, stream: int, position: int, *, sealed: bool, problem: str | None = None) -> None:
        """The server has a stream up to here."""
        entry = {"next": position, "sealed": sealed, "problem": problem, "time_ns": time.time_ns()}
        before = self._streams.get(f"{stream:016x}", {})
        if any(before.get(name) != entry[name] for name in ("next", "sealed", "problem")):
            self._streams[f"{stream:016x}"] = entry
            self._changed = True

    def say(self, state: str, problem: str | None = None) -> None:
        """How it stands with the server: ok, unreachable, no_key, busy, refused."""
        if (state, problem) != (self._state["state"], self._state["problem"]):
            self._state.update(state=state, problem=problem)
            self._changed = True

    def follow(self, following: Mapping[str, Mapping[str, object]], launches: Iterable[str]) -> None:
        """What is being sent, and all launches of which something was.

        Args:
            following: by stream: `uid`, `launch`, `path`, `acked`.
            launches: by their numbers.
        """
        fresh = {"following": dict(following), "launches": sorted(launches)}
        if any(self._state.get(name) != value for name, value in fresh.items()):
            self._state.update(fresh)
            self._changed = True

    def count(self, **more: int) -> None:
        """Add to the counters."""
        for name, value in more.items():
            self._state[name] += value

    def write(self, *, now: bool = False) -> None:
        """Write what has changed, at most once a second unless `now`.

        Raises:
            OSError: the disk does not take it.
        """
        if not self._changed or (not now and self._clock() < self._written_at + _EVERY_S):
            return
        self._written_at = self._clock()
        record = {"url": self.url, "pid": os.getpid(), "time_ns": time.time_ns(), **self._state}
        self.path.parent.mkdir(0o700, parents=True, exist_ok=True)
        temporary = self.path.with_name(f".{self.path.name}.{secrets.token_hex(4)}")
        fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        try:
            with os.fdopen(fd, "w") as file:
                json.dump({**record, "streams": self._streams}, file)
                file.flush()
                os.fsync(file.fileno())
            temporary.rename(self.path)
        except OSError:
            with contextlib.suppress(OSError):
                temporary.unlink()
            raise
        _sync_folder(self.path.parent)
        self._changed = False


def read_file(path: Path) -> dict[str, Any]:
    """What one node has written; empty if there is no such file, or it is none."""
    return _read(path)


def read(directory: Path) -> list[dict[str, Any]]:
    """What all nodes have written in a folder of runs; the newest last."""
    found = [_read(path) for path in sorted((directory / FOLDER).glob("*.json"))]
    return sorted((each for each in found if each), key=lambda each: int(each.get("time_ns", 0)))


def arrived(directory: Path) -> dict[str, dict[str, Any]]:
    """The newest that was noted of each stream in a folder of runs: `next`, `sealed`, `problem`, `time_ns`."""
    found: dict[str, dict[str, Any]] = {}
    for each in read(directory):
        for name, entry in (each.get("streams") or {}).items():
            if entry.get("time_ns", 0) >= found.get(name, {}).get("time_ns", 0):
                found[name] = entry
    return found


class Known(NamedTuple):
    """What this node's uploader has noted."""

    state: str
    streams: Mapping[str, Any]

    def position(self, stream: str) -> int:
        """How far the server has a stream."""
        return int((self.streams.get(stream) or {}).get("next", 0))

    @property
    def stuck(self) -> bool:
        """Whether it makes no sense to wait."""
        return self.state not in ("", "starting", "ok")


def of_this_node(directory: Path, url: str, since_ns: int) -> Known:
    """What this node's sidecar has noted about a server since some wall time."""
    record = _read(path_of(directory, url, "sidecar"))
    fresh = int(record.get("time_ns", 0)) >= since_ns
    return Known(str(record.get("state", "")) if fresh else "", record.get("streams") or {})


def path_of(directory: Path, url: str, kind: str) -> Path:
    """This node's file for a server."""
    where = hashlib.blake2s(url.encode(), digest_size=4).hexdigest()
    return directory / FOLDER / f"{node_name(kind)}-{where}.json"


def _read(path: Path) -> dict[str, Any]:
    try:
        record = json.loads(path.read_text())
    except (OSError, ValueError):
        return {}
    return record if isinstance(record, dict) else {}


def _sync_folder(folder: Path) -> None:
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
