"""Sends what this node's ranks write: a process beside the sidecar, in a session of its own, that outlives the ranks.

It is told through its stdin which streams there are and where they go; the key comes the same way and is never written.
When the sidecar has left it stays until the server has everything, or until the server was out of reach for so long
that `torchtrack sync` has to do the rest.
"""

from __future__ import annotations

import json
import os
import select
import socket
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from torchtrack import credentials, guard
from torchtrack.journal.frame import rank_path
from torchtrack.sidecar.upload.engine import Uploader
from torchtrack.sidecar.upload.left import left_in
from torchtrack.sidecar.upload.progress import Progress
from torchtrack.sidecar.upload.transport import Http

GIVE_UP_S: Final = 600.0
"""How long a server may be out of reach once the sidecar has left."""
_SEAL_S: Final = 5.0
"""How long the last rows of a stream whose process is gone are waited for."""
_LONGEST_S: Final = 0.5
_FINDINGS_S: Final = 45.0
"""The last findings: a rule may have all rows to go through;"""
_FIRST_S: Final = 15.0
"""a lookout that has yet to begin."""
_BEFORE_NS: Final = 60_000_000_000
"""So much older than its request a lookout of this attempt may be."""
_AROUND_S: Final = 10.0
_AROUND_AT_THE_END_S: Final = 1.0
"""How often streams and files are looked for of which nobody tells."""


class _Followed:
    """A stream that this process was told of."""

    def __init__(self, request: Mapping[str, Any]) -> None:
        self.name = str(request["stream"])
        self.uid = str(request["uid"])
        self.rank = int(request["rank"])
        self.launch = str(request.get("launch", ""))
        """The number of the launch that waits for it."""
        self.path: Path | None = None
        self.parent = ""
        self.ending = False
        self.ended_at: float | None = None
        self.expects_lookout = bool(request.get("lookout"))
        """Whether a lookout writes what it finds in this run, and none has been seen yet."""
        self.has_lookout = self.expects_lookout
        self.is_lookout = False
        self.since_ns = time.time_ns() - _BEFORE_NS
        self.has_left = False
        """Whether what its process left has been looked for since it ended."""

    @property
    def priority(self) -> int:
        return 0 if self.rank < 0 else 1 if self.rank == 0 else 2

    @property
    def seal_s(self) -> float:
        """How long its last rows are waited for once it has ended."""
        return _FINDINGS_S if self.is_lookout else _FIRST_S if self.expects_lookout else _SEAL_S

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
        self._progress: dict[str, Progress] = {}
        self._launches: set[str] = set()
        self._where: dict[str, str] = {}
        self._keys: dict[str, str | None] = {}
        self._rest = b""
        self._open: dict[str, set[str]] = {}
        self._refused: dict[str, dict[str, dict[str, object]]] = {}
        """By server and stream, what is left here for good."""
        self._around_at = 0.0
        self._settled: set[str] = set()
        """Streams in `nodes` and of children that are not ours to send, or are sent to their end."""
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
        self._note()
        for progress in self._progress.values():
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
        elif "url" in request and followed is not None:  # it learned late whose it is
            followed.uid, followed.rank = str(request["uid"]), int(request["rank"])
            if request.get("lookout") and not followed.has_lookout:
                followed.expects_lookout = followed.has_lookout = True
        elif "url" in request:
            url = str(request["url"])
            self._where[name] = url
            self._keys[url] = str(request["key"]) if request.get("key") else None
            self._followed[name] = _Followed(request)
            if url not in self._to:
                progress = Progress(self._directory, url, "sidecar")
                self._progress[url] = progress
                self._to[url] = Uploader(Http(url, lambda: credentials.key_for(url) or self._keys[url]), progress)

    def _all_ended(self) -> None:
        for followed in self._followed.values():
            followed.ended_at = followed.ended_at or time.monotonic()

    def _turn(self) -> float:
        for followed in list(self._followed.values()):
            guard.attempt("following a stream", self._look, followed)
        if time.monotonic() >= self._around_at:
            waits_for_it = any(each.ended_at and each.expects_lookout for each in self._followed.values())
            self._around_at = time.monotonic() + (_AROUND_AT_THE_END_S if waits_for_it else _AROUND_S)
            guard.attempt("looking for forked children", self._find_children)
            guard.attempt("looking for findings", self._find_lookouts)
            guard.attempt("looking for black boxes", self._find_left, list(self._followed.values()))
        self._note()
        waits = [_LONGEST_S]
        for uploader in self._to.values():
            guard.attempt("sending", lambda uploader=uploader: waits.append(uploader.step()))
            if uploader.state == "ok":
                self._good_at = time.monotonic()
        return max(0.01, min(waits))

    def _note(self) -> None:
        """Have it written down what is being sent, for who waits for it: before a request, which may take long."""
        self._launches.update(each.launch for each in self._followed.values() if each.launch)
        for url, progress in self._progress.items():
            tails = self._to[url].tails
            following: dict[str, dict[str, object]] = {}
            for followed in self._followed.values():
                if self._where[followed.name] == url:
                    tail = tails.get(int(followed.name, 16))
                    path = str(followed.path.relative_to(self._directory)) if followed.path else None
                    about = {"uid": followed.uid, "launch": followed.launch, "path": path}
                    sent = self._to[url].contents.sent
                    following[followed.name] = {**about, "acked": tail.acked if tail else 0, "sent": sent}
            following.update(self._refused.get(url, {}))
            before = self._open.get(url)
            self._open[url] = set(following)
            progress.follow(following, self._launches)
            guard.attempt("noting what is sent", progress.write, now=before != self._open[url])

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
        waited = time.monotonic() > followed.ended_at + followed.seal_s
        if tail is None:
            over = waited  # it never wrote anything
        else:
            over = tail.done or tail.problem is not None or (waited and uploader.idle and tail.acked >= tail.at.next)
        if over and not followed.has_left:
            followed.has_left = True
            self._find_left([followed])
        if over and not (followed.expects_lookout and not waited) and not uploader.files.waiting:
            if tail is not None and (tail.done or tail.problem):
                self._settled.add(followed.name)
            if tail is not None and tail.problem:
                about = {"uid": followed.uid, "launch": followed.launch, "path": str(tail.path), "acked": tail.acked}
                refused = self._refused.setdefault(self._where[followed.name], {})
                refused[followed.name] = {**about, "problem": tail.problem}
            uploader.forget(number)
            del self._followed[followed.name]

    def _folders(self, followed: _Followed) -> set[Path]:
        """Where files of a run may lie: a rank that began before it knew whose it is has written elsewhere."""
        uids = {followed.uid}
        if followed.path is not None:
            uids.add(followed.path.parent.parent.name)
        tail = self._to[self._where[followed.name]].tails.get(int(followed.name, 16))
        return {self._directory / uid for uid in (*uids, *([tail.uid] if tail else []))}

    def _find_left(self, chosen: Sequence[_Followed]) -> None:
        """Black boxes and stacks of processes, which the sidecar puts into the folder of the run."""
        names = {followed.name: followed for followed in chosen if followed.rank >= 0}
        for folder in {folder for followed in names.values() for folder in self._folders(followed)}:
            for name, path in left_in(folder):
                if name in names:
                    self._to[self._where[name]].files.want([path])

    def _find_lookouts(self) -> None:
        """What the rules find is in a stream of its own, beside that of the sidecar; other nodes send theirs."""
        for followed in [each for each in self._followed.values() if each.rank == 0]:
            paths = [path for folder in self._folders(followed) for path in (folder / "nodes").glob("*.ttj")]
            for path in paths:
                self._consider(followed, path)

    def _consider(self, followed: _Followed, path: Path) -> None:
        """Whether a stream in `nodes` is that of the lookout for this rank."""
        name, known = path.stem, self._followed.get(path.stem)
        if known is not None and known.is_lookout and known.ended_at is not None and followed.ended_at is None:
            known.ended_at, known.parent = None, followed.name  # it goes on with the next attempt
        if known is not None or name in self._settled or "." in name:
            return
        opening = _opening(path)
        if not opening:
            return  # it is being made
        if opening.get("by") != "lookout" or opening.get("host") != socket.gethostname():
            self._settled.add(name)
            return
        self._follow_beside(followed, path, name, rank=-1).is_lookout = True
        if int(opening.get("start_time_ns", 0)) > followed.since_ns:
            followed.expects_lookout = False

    def _follow_beside(self, parent: _Followed, path: Path, name: str, rank: int) -> _Followed:
        self._where[name] = self._where[parent.name]
        found = _Followed({"stream": name, "uid": parent.uid, "rank": rank, "launch": parent.launch})
        found.path, found.parent, found.ended_at = path, parent.name, parent.ended_at
        self._followed[name] = found
        self._to[self._where[name]].follow(path, found.priority)
        return found

    def _find_children(self) -> None:
        """Processes that a rank forked write streams of their own, of which nobody tells."""
        for followed in [each for each in self._followed.values() if each.path is not None and each.rank >= 0]:
            for path in followed.path.parent.glob(f"{followed.rank}-*.ttj"):  # type: ignore[union-attr]  # see above
                name = path.stem.rpartition("-")[2]
                if name in self._followed or name in self._settled or "." in name or len(name) != 16:
                    continue
                self._follow_child(followed, path, name)

    def _follow_child(self, parent: _Followed, path: Path, name: str) -> None:
        if str(_opening(path).get("parent")) in self._where:
            self._follow_beside(parent, path, name, parent.rank)


def _opening(path: Path) -> dict[str, Any]:
    """A stream's opening record; empty if it has none yet."""
    from torchtrack.journal.reader import Stream

    stream = Stream(path)
    next(stream.stored(), None)
    return stream.opening
