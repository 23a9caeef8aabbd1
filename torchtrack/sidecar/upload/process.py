"""Sends what this node's ranks write: a process beside the sidecar, in a session of its own, that outlives the ranks.

It is told through its stdin which streams there are and where they go; the key comes the same way and is never written.
When the sidecar has left it stays until the server has everything, or until the server was out of reach for so long
that `torchtrack sync` has to do the rest.
"""

from __future__ import annotations

import json
import os
import select
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from torchtrack import credentials, guard
from torchtrack.journal.frame import rank_path
from torchtrack.sidecar.upload.engine import Uploader
from torchtrack.sidecar.upload.progress import Progress
from torchtrack.sidecar.upload.transport import Http

GIVE_UP_S: Final = 600.0
"""How long a server may be out of reach once the sidecar has left."""
_SEAL_S: Final = 5.0
"""How long the last rows of a stream whose process is gone are waited for."""
_LONGEST_S: Final = 0.5
_CHILDREN_S: Final = 10.0


class _Followed:
    """A stream that this process was told of."""

    def __init__(self, request: Mapping[str, Any]) -> None:
        self.name = str(request["stream"])
        self.uid = str(request["uid"])
        self.rank = int(request["rank"])
        self.path: Path | None = None
        self.parent = ""
        self.ending = False
        self.ended_at: float | None = None

    @property
    def priority(self) -> int:
        return 0 if self.rank < 0 else 1 if self.rank == 0 else 2

    def find(self, directory: Path) -> Path | None:
        """Its first file, once it is there."""
        number = int(self.name, 16)
        if self.rank < 0:
            path = directory / self.uid / "nodes" / f"{self.name}.ttj"
        else:
            path = rank_path(directory, self.uid, self.rank, number)
        if not path.exists():  # it was opened under a uid or rank that was provisional
            path = next(directory.glob(f"*/[0-9]*/*-{self.name}.ttj"), path)
        return path if path.exists() else None


class Uploads:
    """The loop.

    Args:
        directory: the runs folder.
        requests: the descriptor that the sidecar writes to.
    """

    def __init__(self, directory: Path, requests: int) -> None:
        self._directory = directory
        self._requests = requests
        self._followed: dict[str, _Followed] = {}
        self._to: dict[str, Uploader] = {}
        self._progress: list[Progress] = []
        self._where: dict[str, str] = {}
        self._keys: dict[str, str | None] = {}
        self._rest = b""
        self._children_at = 0.0
        self._good_at = time.monotonic()

    def run(self) -> None:
        """Serve until the sidecar has left and everything is sent."""
        left = False
        wait = _LONGEST_S
        while True:
            if left:
                time.sleep(wait)
            elif select.select([self._requests], [], [], wait)[0] and not self._read():
                left = True
                self._all_ended()
            wait = self._turn()
            if left and (not self._followed or time.monotonic() > self._good_at + GIVE_UP_S):
                break
        for progress in self._progress:
            guard.attempt("noting what was uploaded", progress.write, now=True)

    def _read(self) -> bool:
        """Take what the sidecar says. False if it has left."""
        data = os.read(self._requests, 1 << 16)
        *lines, self._rest = (self._rest + data).split(b"\n")
        for line in lines:
            guard.attempt("a request to the uploader", self._obey, json.loads(line))
        return bool(data)

    def _obey(self, request: Mapping[str, Any]) -> None:
        name = str(request["stream"])
        followed = self._followed.get(name)
        if request.get("ended") and followed is not None:
            for each in self._followed.values():
                if name in (each.name, each.parent):
                    each.ended_at = each.ended_at or time.monotonic()
        elif request.get("ending") and followed is not None:
            followed.ending = True
        elif "url" in request and followed is None:
            url = str(request["url"])
            self._where[name] = url
            self._keys[url] = str(request["key"]) if request.get("key") else None
            self._followed[name] = _Followed(request)
            if url not in self._to:
                progress = Progress(self._directory, url, "sidecar")
                self._progress.append(progress)
                self._to[url] = Uploader(Http(url, lambda: credentials.key_for(url) or self._keys[url]), progress)

    def _all_ended(self) -> None:
        for followed in self._followed.values():
            followed.ended_at = followed.ended_at or time.monotonic()

    def _turn(self) -> float:
        for followed in list(self._followed.values()):
            guard.attempt("following a stream", self._look, followed)
        if time.monotonic() >= self._children_at:
            self._children_at = time.monotonic() + _CHILDREN_S
            guard.attempt("looking for forked children", self._find_children)
        waits = [_LONGEST_S]
        for uploader in self._to.values():
            guard.attempt("sending", lambda uploader=uploader: waits.append(uploader.step()))
            if uploader.state == "ok":
                self._good_at = time.monotonic()
        return max(0.01, min(waits))

    def _look(self, followed: _Followed) -> None:
        uploader = self._to[self._where[followed.name]]
        if followed.path is None:
            followed.path = followed.find(self._directory)
            if followed.path is not None:
                uploader.follow(followed.path, followed.priority)
        number = int(followed.name, 16)
        if followed.ending or followed.ended_at is not None:
            uploader.hurry(number)
        if followed.ended_at is None:
            return
        tail = uploader.tails.get(number)
        waited = time.monotonic() > followed.ended_at + _SEAL_S
        if tail is None:
            over = waited  # it never wrote anything
        else:
            over = tail.done or tail.problem is not None or (waited and uploader.idle and tail.acked >= tail.at.next)
        if over:
            uploader.forget(number)
            del self._followed[followed.name]

    def _find_children(self) -> None:
        """Processes that a rank forked write streams of their own, of which nobody tells."""
        for followed in [each for each in self._followed.values() if each.path is not None and each.rank >= 0]:
            for path in followed.path.parent.glob(f"{followed.rank}-*.ttj"):  # type: ignore[union-attr]  # see above
                name = path.stem.rpartition("-")[2]
                if name in self._followed or "." in name or len(name) != 16:
                    continue
                self._follow_child(followed, path, name)

    def _follow_child(self, parent: _Followed, path: Path, name: str) -> None:
        from torchtrack.journal.reader import Stream

        stream = Stream(path)
        next(stream.stored(), None)
        if str(stream.opening.get("parent")) in self._where:
            self._where[name] = self._where[parent.name]
            self._followed[name] = child = _Followed({"stream": name, "uid": parent.uid, "rank": parent.rank})
            child.path, child.parent, child.ended_at = path, parent.name, parent.ended_at
            self._to[self._where[name]].follow(path, child.priority)
