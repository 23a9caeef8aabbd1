"""What artifacts hold, and what was saved, goes before the rows that say so, in parts, while other streams go on."""

from __future__ import annotations

import json
import time
from collections import deque
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final, NamedTuple
from urllib.parse import quote

from torchtrack import contents, wire
from torchtrack.journal import frame
from torchtrack.journal.frame import Kind
from torchtrack.sidecar.upload.tail import Tail
from torchtrack.sidecar.upload.transport import Reply, Transport

_EVENTS: Final = 6  # records.Table.EVENTS
_TURN_S: Final = 2.0
"""How long parts are sent before rows have their turn."""
_ASKED: Final = 1000
_PIECE: Final = 1 << 20


class _Part(NamedTuple):
    """Where a part lies: in a file, from an offset."""

    path: Path
    offset: int
    size: int
    whole: str = ""
    """The SHA-256 of the file, of one that may change: one that was saved."""


class _Job:
    """The contents of one version that a run logged, or files that it saved."""

    def __init__(self, uid: str, first: str, listing: Path, parts: dict[str, _Part]) -> None:
        self.uid, self.first, self.listing = uid, first, listing
        self.parts = parts
        self.unasked = deque(parts)
        self.wanted: deque[str] = deque()
        self.is_whole = True
        self.is_past = False
        """Whether files of it have changed since: the run tells them anew at its end."""


class ContentSender:
    """Sends the contents that rows in flight name. For one thread.

    Args:
        transport: how the server is asked.
        clock: monotonic seconds.
    """

    def __init__(self, transport: Transport, clock: Callable[[], float] = time.monotonic) -> None:
        self.available = True
        """Whether the server takes files."""
        self.refusal: Reply | None = None
        """What it answered instead of taking one."""
        self.not_sent: dict[str, str] = {}
        """Files that stay here, and why."""
        self.sent = 0
        """Bytes that the server took."""
        self._transport = transport
        self._clock = clock
        self._jobs: dict[tuple[str, str], _Job] = {}
        self._done: set[tuple[str, str]] = set()

    @property
    def waiting(self) -> bool:
        """Whether there is something to be sent."""
        return bool(self._jobs)

    def forget(self) -> None:
        """What the server has is not known any more."""
        self._jobs.clear()
        self._done.clear()

    def wanted(self, tail: Tail, section: wire.Section) -> bool:
        """Whether rows of this section name contents, which have to be sent first."""
        if not self.available:
            return False
        before = len(self._jobs)
        for found in frame.scan(bytes(section.frames), section.stream):
            if found.header.kind is Kind.DATA and found.header.table == _EVENTS:
                for event in _logged(found.payload()):
                    self._want(tail, event)
        return len(self._jobs) > before

    def _want(self, tail: Tail, event: dict[str, Any]) -> None:
        digest, own, runs = str(event["contents"]), tail.path.parent.parent, tail.path.parent.parent.parent
        key = tail.uid, digest
        if key in self._done or key in self._jobs:
            return
        places = (own / "media" / digest, runs / tail.uid / "media" / digest)
        listing = next((at for at in places if at.is_file()), None)
        is_saved, version = event["type"] == "saved", _folder_of(runs, str(event.get("name")))
        top = listing and listing.parents[1] if is_saved else version
        if listing is None or top is None:
            self.not_sent.setdefault(digest, "it is not there")
            return
        try:
            held = contents.decode(listing.read_bytes())
        except (OSError, ValueError) as error:
            self.not_sent.setdefault(digest, str(error))
            return
        parts = {
            name: _Part(top / path, start, min(held.part_bytes, file.size - start), file.sha256 if is_saved else "")
            for path, file in held.files.items()
            for name, start in zip(file.parts, range(0, file.size, held.part_bytes), strict=True)
        }
        job = _Job(tail.uid, str(event.get("first") or ""), listing, parts)
        if job.first == job.uid:  # before those of runs that have the same from this one
            self._jobs = {key: job, **self._jobs}
        else:
            self._jobs[key] = job

    def send(self) -> bool:
        """Send some of what is wanted. False if the server refused: `refusal` says why.

        Raises:
            UnreachableError: there was no answer.
        """
        self.refusal = None
        until = self._clock() + _TURN_S
        while self._jobs and self.refusal is None:
            key, job = next(iter(self._jobs.items()))
            if job.wanted:
                if self._put(job, job.wanted[0], job.parts[job.wanted[0]]):
                    job.wanted.popleft()
            elif job.unasked:
                self._ask(job)
            elif self._end(job):
                del self._jobs[key]
                self._done.add(key)
            if self._clock() >= until:
                break
        return self.refusal is None

    def _ask(self, job: _Job) -> None:
        names = [job.unasked[i] for i in range(min(_ASKED, len(job.unasked)))]
        missing = self._missing(job, names)
        if missing is not None:
            job.wanted.extend(name for name in names if name in missing)
            for _ in names:
                job.unasked.popleft()

    def _end(self, job: _Job) -> bool:
        """Send the list, once all that it names is there: without it no version is shown as one that can be fetched."""
        name = job.listing.name
        if job.is_past:
            return True
        if not job.is_whole:
            self.not_sent.setdefault(name, "not all of its files could be sent")
            return True
        missing = self._missing(job, [name])
        if missing is None:
            return False
        return name not in missing or self._put(job, name, _Part(job.listing, 0, job.listing.stat().st_size))

    def _missing(self, job: _Job, names: list[str]) -> set[str] | None:
        body = frame.dump({"sha256": names, **({"from": job.first} if job.first not in ("", job.uid) else {})})
        place = f"{wire.API}/runs/{job.uid}/media/missing"
        asked = self._transport.ask("POST", place, body, {"Content-Type": "application/json"})
        if asked.status != 200:
            self.refusal = asked
            return None
        return set(asked.json().get("missing", ()))

    def _put(self, job: _Job, name: str, part: _Part) -> bool:
        """Send a part. False if it has to be sent again."""
        try:
            if part.path.stat().st_size < part.offset + part.size:
                raise OSError(0, "it is shorter than it was")
            with part.path.open("rb") as file:
                file.seek(part.offset)
                headers = {"Content-Type": "application/octet-stream", "Content-Length": str(part.size)}
                place = f"{wire.API}/runs/{job.uid}/media/{name}"
                reply = self._transport.ask("PUT", place, _pieces(file, part.size), headers)
        except OSError as error:
            self._leave(job, part, str(error.strerror))
            return True
        if reply.status in (400, 413, 422):
            self._leave(job, part, reply.problem())
        elif reply.status not in (200, 201):
            self.refusal = reply
            return False
        else:
            self.sent += part.size
        return True

    def _leave(self, job: _Job, part: _Part, why: str) -> None:
        job.is_whole = False
        if part.whole and part.path.is_file() and contents.measure(part.path).sha256 != part.whole:
            job.is_past = True
            return
        self.not_sent.setdefault(part.path.name, why)


def _pieces(file: Any, size: int) -> Iterator[bytes]:
    while size and (piece := file.read(min(_PIECE, size))):
        size -= len(piece)
        yield piece


def _folder_of(runs: Path, name: str) -> Path | None:
    """The files of a version `project/name:v0` in a folder of runs; None if it is called otherwise."""
    project, _, rest = name.rpartition("/")
    own, _, version = rest.rpartition(":")
    places = [quote(each, safe=" ") for each in (project, own, version)]
    return runs.joinpath("artifacts", *places, "files") if all(map(contents.is_inside, places)) else None


def _logged(payload: bytes) -> list[dict[str, Any]]:
    """The events among rows that name contents. Arrow is loaded only where there are such."""
    if b'"contents"' not in payload:
        return []
    from torchtrack import records

    try:
        rows = records.decode(records.Table.EVENTS, payload).to_pylist()
        told = [(row["type"], json.loads(row["json"])) for row in rows if row["type"] in contents.NAMING]
    except (ValueError, OSError):
        return []
    known = [{**each, "type": kind} for kind, each in told if isinstance(each, dict)]
    return [each for each in known if contents.is_digest(each.get("contents"))]
