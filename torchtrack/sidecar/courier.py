"""Delivers alerts: a process beside the sidecar that reads the journals of this node's ranks and tells people.

The sidecar starts it with the first run that has somebody to tell, as `python -m torchtrack.sidecar.courier DIR`, and
talks to it through its stdin; what comes over the pipe is a secret, and is never written. It is a process of its own
since it needs Arrow, apprise and a network, any of which may hang: the sidecar stays small and sees how ranks end
whatever happens here. **The journal is the queue:** what is not told yet is read again, nothing else is kept.

Findings are in the journal of a lookout, which lies in `nodes/` beside that of the sidecar. It is followed like a
rank's, with the addresses of the rank that the lookout is for.
"""

from __future__ import annotations

import fcntl
import json
import os
import selectors
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final, NamedTuple

from torchtrack import guard
from torchtrack.alerts import Alert, Limiter, Target, targets
from torchtrack.journal.frame import Kind, rank_path
from torchtrack.journal.reader import Stream

_LOOK_S: Final = 0.5
_LAST_S: Final = 40.0
"""How long messages are still tried after the sidecar has left."""
_SEAL_S: Final = 3.0
"""How long the last rows of a run that has ended are waited for,"""
_FIRST_S: Final = 15.0
"""a lookout that has yet to begin,"""
_FINDINGS_S: Final = _LAST_S
"""and the last findings: a rule may have all rows to go through."""
_BEFORE_NS: Final = 60_000_000_000
"""So much older than its request a lookout of this attempt may be."""
_AROUND_S: Final = 2.0
"""How often new lookouts are looked for."""


class _Ledger:
    """How many alerts of a stream are done with, in a file beside the journals; its lock makes one courier tell them.

    An alert is entered before it is sent: after a crash one may be missing, and none comes twice.
    """

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        self._file = path.open("a+", encoding="utf-8")
        self.handled = 0

    def lock(self) -> bool:
        """Take it over, unless another courier has it."""
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            return False
        self._file.seek(0)
        for line in self._file:
            entry = guard.outcome(json.loads, line)
            if isinstance(entry, dict):
                self.handled = max(self.handled, int(entry.get("handled", 0)))
        return True

    def enter(self, **entry: object) -> None:
        """Add a line."""
        self._file.write(json.dumps(entry) + "\n")
        self._file.flush()

    def close(self) -> None:
        """Let go of it."""
        self._file.close()


class _Event(NamedTuple):
    kind: str
    data: dict[str, Any]
    time_s: float
    step: int | None


class _Followed:
    """A rank's stream with what of it has been told."""

    def __init__(
        self, directory: Path, request: Mapping[str, Any], path: Path | None = None, of: _Followed | None = None
    ) -> None:
        self._directory = directory
        self._path, self._of = path, of
        self._since_ns = time.time_ns() - _BEFORE_NS
        self.expects = bool(request.get("lookout"))
        """Whether the findings of a lookout will come, of which nothing has been seen."""
        self.has_lookout = self.expects
        self.stream = str(request["stream"])
        self._uid, self._rank = str(request["uid"]), int(request["rank"])
        self.urls = tuple(map(str, request["urls"]))
        self.least = str(request["findings"])
        self.ended_at: float | None = None
        self.ledger: _Ledger | None = None
        self._journal: Stream | None = None
        self._name = ""
        self._seen = 0

    def poll(self) -> list[Alert]:
        """The alerts that are new; they are taken for told from now on."""
        if not self._opened():
            return []
        fresh = []
        for event in self._events():
            if event.kind == "run":
                self._name = str(event.data.get("name") or self._name)
            alert = Alert.of_event(event.kind, event.data, event.time_s, self.least)
            if alert is None:
                continue
            self._seen += 1
            if self._seen > self.ledger.handled:  # type: ignore[union-attr]  # it is opened
                fresh.append(self._placed(alert, event.step))
        if fresh:
            self.ledger.enter(handled=self._seen)  # type: ignore[union-attr]
        return fresh

    @property
    def over(self) -> bool:
        """Whether nothing more will come."""
        if self.expects and (self.ended_at is None or time.monotonic() < self.ended_at + _FIRST_S):
            return False
        if self._journal is not None and self._journal.seal is not None:
            return True
        of = self if self._of is None else self._of
        patience_s = _SEAL_S if of is self else _FINDINGS_S
        return of.ended_at is not None and time.monotonic() > of.ended_at + patience_s

    @property
    def uid(self) -> str:
        """The run it belongs to by now."""
        return (self._journal.uid if self._journal else None) or self._uid

    def lookouts(self, known: set[Path]) -> list[_Followed]:
        """The streams of lookouts that are new; one from before this was followed counts if it was followed then."""
        found = []
        for path in [path for path in (self._directory / self.uid / "nodes").glob("*.ttj") if path not in known]:
            journal = Stream(path)
            next(journal.each(), None)
            opening = journal.opening
            if not opening:
                continue
            known.add(path)
            new = int(opening.get("start_time_ns", 0)) > self._since_ns or path.with_suffix(".alerts").exists()
            if opening.get("by") == "lookout" and new:
                self.expects = False
                request = {"stream": path.stem, "uid": self.uid, "rank": -1, "urls": self.urls, "findings": self.least}
                found.append(_Followed(self._directory, request, path, self))
        return found

    def close(self) -> None:
        """Let go of its files."""
        if self.ledger is not None:
            self.ledger.close()

    def _opened(self) -> bool:
        if self._journal is not None:
            return True
        path = self._path or rank_path(self._directory, self._uid, self._rank, int(self.stream, 16))
        if not path.exists():  # it was opened under a uid or rank that was provisional
            path = next(self._directory.glob(f"*/[0-9]*/*-{self.stream}.ttj"), path)
        if not path.exists():
            return False
        self.ledger = self.ledger or _Ledger(path.parent.parent / "nodes" / f"{self.stream}.alerts")
        if not self.ledger.lock():
            return False
        self._journal = Stream(path)
        return True

    def _events(self) -> Iterator[_Event]:
        from torchtrack.records import Table, decode

        for frame in self._journal.poll():  # type: ignore[union-attr]  # it is opened
            if frame.kind is Kind.DATA and frame.table == Table.EVENTS:
                for row in decode(Table.EVENTS, frame.payload).to_pylist():
                    data = guard.outcome(json.loads, row["json"])
                    if isinstance(data, dict):
                        yield _Event(row["type"], data, row["time"].timestamp(), row["step"])

    def _placed(self, alert: Alert, step: int | None) -> Alert:
        """The alert with the words that say of what it is."""
        rank = self._journal.rank if self._journal else self._rank
        by = f", rank {rank}" if rank is not None and rank >= 0 else ""  # a finding says itself whose it is
        where = f"run {self.uid}{by}" + ("" if step is None else f", step {step}")
        name = self._name or (self._of._name if self._of else "")
        title = f"[{name}] {alert.title}" if name else alert.title
        text = "\n".join(filter(None, (alert.text, where)))
        return Alert(title, text, alert.level, alert.wait_s, alert.time_s, key=alert.title)


class _Round:
    """One run's way to its targets."""

    def __init__(self, urls: Sequence[str]) -> None:
        self.limiter = Limiter()
        self.ledger: _Ledger | None = None
        self._targets: list[Target] = targets(urls, self._failed)

    def send(self, *, last: bool = False) -> None:
        """Hand over what is due."""
        for message in self.limiter.due(time.monotonic(), last=last):
            for target in self._targets:
                target.put(message)

    @property
    def idle(self) -> bool:
        """Whether all is delivered or given up."""
        return all(target.idle for target in self._targets)

    def _failed(self, why: str) -> None:
        if self.ledger is not None:
            guard.attempt("noting a failed alert", self.ledger.enter, failed=why)


class Deliveries:
    """The courier's loop.

    Args:
        directory: the runs folder.
        requests: the descriptor that the sidecar writes to.
    """

    def __init__(self, directory: Path, requests: int) -> None:
        self._directory = directory
        self._requests = requests
        self._followed: dict[str, _Followed] = {}
        self._rounds: dict[tuple[str, tuple[str, ...]], _Round] = {}
        self._rest = b""
        self._known: set[Path] = set()
        self._around_at = 0.0

    def run(self) -> None:
        """Deliver until the sidecar has left and nothing is left to tell."""
        leave_at: float | None = None
        with selectors.DefaultSelector() as selector:
            selector.register(self._requests, selectors.EVENT_READ)
            while True:
                if leave_at is None and selector.select(_LOOK_S) and not self._read():
                    leave_at = time.monotonic() + _LAST_S
                    for followed in self._followed.values():
                        followed.ended_at = followed.ended_at or time.monotonic()
                if leave_at is not None:
                    time.sleep(_LOOK_S / 5)
                guard.attempt("delivering alerts", self._turn, last=leave_at is not None)
                done = not self._followed and all(each.idle for each in self._rounds.values())
                if leave_at is not None and (done or time.monotonic() > leave_at):
                    return

    def _read(self) -> bool:
        """Take what the sidecar says. False if it has left."""
        data = os.read(self._requests, 1 << 16)
        *lines, self._rest = (self._rest + data).split(b"\n")
        for line in lines:
            guard.attempt("a request to the courier", self._obey, json.loads(line))
        return bool(data)

    def _obey(self, request: Mapping[str, Any]) -> None:
        stream = str(request["stream"])
        followed = self._followed.get(stream)
        if not request.get("ended"):
            if followed is None:
                self._followed[stream] = _Followed(self._directory, request)
            elif request.get("lookout") and not followed.has_lookout:  # it learned late that it is rank 0
                followed.expects = followed.has_lookout = True
        elif followed is not None:
            followed.ended_at = time.monotonic()

    def _look_around(self) -> None:
        if time.monotonic() >= self._around_at:
            self._around_at = time.monotonic() + _AROUND_S
            for followed in [each for each in self._followed.values() if each.has_lookout]:
                self._followed.update((fresh.stream, fresh) for fresh in followed.lookouts(self._known))

    def _turn(self, *, last: bool) -> None:
        guard.attempt("looking for findings", self._look_around)
        for stream, followed in list(self._followed.items()):
            over = followed.over
            guard.attempt("reading alerts", self._take, followed)
            if over:
                del self._followed[stream]
        for each in self._rounds.values():
            each.send(last=last and not self._followed)

    def _take(self, followed: _Followed) -> None:
        for alert in followed.poll():
            place = followed.uid, followed.urls
            if place not in self._rounds:
                self._rounds[place] = _Round(followed.urls)
            self._rounds[place].ledger = followed.ledger
            self._rounds[place].limiter.take(alert)


def main() -> None:
    """Serve one sidecar."""
    Deliveries(Path(sys.argv[1]), sys.stdin.fileno()).run()
    os._exit(0)  # a target that hangs is left


if __name__ == "__main__":
    main()
