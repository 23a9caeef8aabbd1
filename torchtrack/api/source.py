"""Where runs are found: a folder of runs, one run's folder, or a single journal.

Streams are grouped by the uid that their newest record names, never by folder: a rank that started before the ranks
agreed wrote into a folder of its own.
"""

from __future__ import annotations

import difflib
import os
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final, Protocol

from torchtrack.api.blackbox import salvaged
from torchtrack.api.held import History, Shelf, media_in
from torchtrack.api.remote import TIMEOUT_S, Server
from torchtrack.api.run import Run
from torchtrack.api.streams import Names, Rows, StreamRows
from torchtrack.errors import RunNotFoundError
from torchtrack.journal.reader import find_streams
from torchtrack.sidecar.state import State, StreamFacts, lost_at_ns, run_state

SHORTEST_PREFIX: Final = 4


class Carrier(Protocol):
    """Where streams lie."""

    @property
    def label(self) -> str:
        """What to call this place in a message."""

    def find(self, folder: Path | None = None) -> list[Path]:
        """The first file of every stream, or of those in the folder of one run."""

    def fresh(self) -> list[Path]:
        """Those of which there may be something new since this was asked the last time."""

    def open(self, path: Path, names: Names) -> Rows:
        """One of them."""

    def left(self, folder: Path) -> list[Path]:
        """Black boxes and stacks in the folder of one run, as files that can be read."""

    def media(self, folder: Path, sha256: str) -> Path | None:
        """A file that a run logged, if it is there, as one that can be read."""


class Folder:
    """Streams in files: a folder of runs, one run's folder, or a single journal.

    Args:
        path: which.
        piece_bytes: how much of each file a poll reads at most.
    """

    def __init__(self, path: Path, piece_bytes: int | None = None) -> None:
        self.path = path
        self._piece_bytes = piece_bytes
        self.label = str(path)

    def find(self, folder: Path | None = None) -> list[Path]:
        """The first file of every stream, or of those in the folder of one run."""
        if folder is None:
            return find_streams(self.path)
        return find_streams(folder) if self.path.is_dir() else []

    def fresh(self) -> list[Path]:
        """The first file of every stream: each may have grown."""
        return self.find()

    def open(self, path: Path, names: Names) -> Rows:
        """One of them."""
        return StreamRows(path, names, self._piece_bytes)

    def left(self, folder: Path) -> list[Path]:
        """Black boxes and stacks in the folder of one run."""
        return salvaged(folder)

    def media(self, folder: Path, sha256: str) -> Path | None:
        """A file that a run logged, if it is there."""
        return media_in(folder, sha256)


class Source:
    """Streams of one carrier, and the runs they make up."""

    @property
    def history(self) -> History | None:
        """Gets a history that is combined where the rows are, if the carrier can."""
        return self.carrier.history if isinstance(self.carrier, Shelf) else None

    def __init__(self, carrier: Carrier) -> None:
        self.carrier = carrier
        self.names = Names()
        self._streams: dict[Path, Rows] = {}
        self._groups: dict[str, list[Rows]] = {}
        self._aliases: dict[str, str] = {}
        self._loose: set[Rows] = set()  # those that a record may still move to another run
        self._of_nodes: set[Rows] = set()
        self._still = False
        self._nodes: tuple[dict[str, dict[str, Any]], dict[str, int]] | None = None  # as of a still moment

    @contextmanager
    def still(self) -> Iterator[dict[str, list[Rows]]]:
        """Look for all that is new, then look no more: the streams of each run, as of one moment."""
        groups = self.refresh_all()
        before, self._still = self._still, True
        try:
            yield groups
        finally:
            self._still = before
            self._nodes = self._nodes if before else None

    def refresh_all(self) -> dict[str, list[Rows]]:
        """Look for new streams and new frames everywhere; the streams of each run by uid."""
        if self._still:
            return self._groups
        if self._poll([self._stream(path) for path in self.carrier.fresh()]) or not self._groups:
            self._group()
        return self._groups

    def admit(self, paths: Iterable[Path]) -> None:
        """Take these files in, besides those that lie beside known streams of a run."""
        if self._poll([self._stream(path) for path in paths]):
            self._group()

    def refresh(self, uid: str) -> tuple[str, list[Rows]]:
        """Look for what is new of one run: its folders, its streams, and streams that may turn out to be its own.

        Returns:
            Its uid, which differs from the one asked for once ranks agreed on another, and its streams.
        """
        streams = self._groups.get(self._aliases.get(uid, uid), [])
        if self._still:
            return self._aliases.get(uid, uid), streams
        folders = {stream.path.parent.parent for stream in streams}
        mine = [self._stream(path) for folder in folders for path in self.carrier.find(folder)]
        if self._poll([*mine, *self._loose]):
            self._group()
        uid = self._aliases.get(uid, uid)
        return uid, self._groups.get(uid, [])

    def state(self, streams: Sequence[Rows]) -> State:
        """What became of the processes that wrote some rank streams."""
        return run_state(self._facts(streams), time.time_ns())

    def lost_at_ns(self, streams: Sequence[Rows]) -> int | None:
        """When that will be `lost` unless there is a sign of life; None: time does not change it."""
        return lost_at_ns(self._facts(streams))

    def _facts(self, streams: Sequence[Rows]) -> list[StreamFacts]:
        exits, beats = self._nodes or self._node_records()
        if self._still:
            self._nodes = exits, beats
        facts = []
        for stream in streams:
            if stream.parent:
                continue  # a forked child: its end is not the rank's
            ended, exit_ = stream.ended or {}, exits.get(stream.key, {})
            facts.append(
                StreamFacts(
                    attempt=stream.attempt,
                    rank=stream.rank,
                    sealed=stream.seal is not None,
                    ended_reason=ended.get("reason"),
                    ended_time_ns=ended.get("time_ns"),
                    ended_error=ended.get("error"),
                    exit_code=exit_.get("code"),
                    exit_signal=exit_.get("signal"),
                    exit_time_ns=exit_.get("time_ns"),
                    last_heartbeat_ns=beats.get(stream.key),
                    last_frame_ns=stream.last_ns,
                )
            )
        return facts

    def _node_records(self) -> tuple[dict[str, dict[str, Any]], dict[str, int]]:
        """By stream: how its process ended, and when its node last said that it lives."""
        exits: dict[str, dict[str, Any]] = {}
        beats: dict[str, int] = {}
        for node in self._of_nodes:
            exits.update((str(record.get("stream")), record) for record in node.exits)
            for beat in node.heartbeats:
                for key in beat.get("streams", ()):
                    beats[key] = max(int(beat.get("time_ns", 0)), beats.get(key, 0))
        return exits, beats

    def _stream(self, path: Path) -> Rows:
        if path not in self._streams:
            self._streams[path] = self.carrier.open(path, self.names)
        return self._streams[path]

    def _poll(self, streams: Iterable[Rows]) -> bool:
        """Take what is new; whether that may place a stream elsewhere."""
        moved = False
        for stream in set(streams):
            before, place = stream.version, _place(stream)
            stream.poll()
            for kept, belongs in ((self._loose, stream.loose), (self._of_nodes, stream.role == "node")):
                kept.add(stream) if belongs else kept.discard(stream)
            moved |= stream.version != before and (before == 0 or _place(stream) != place)
        return moved

    def _group(self) -> None:
        self._groups, self._aliases = {}, {}
        known = [stream for stream in self._streams.values() if stream.known]
        _adopt([stream for stream in known if stream.role == "rank"])
        for stream in known:
            if stream.role == "rank":
                self._aliases.update((uid, stream.uid) for uid in stream.uids - {stream.uid})
                self._groups.setdefault(stream.uid, []).append(stream)
        for stream in known:
            if stream.role == "node":
                self._groups.get(self._aliases.get(stream.uid, stream.uid), []).append(stream)

    def resolve(self, prefix: str, *, whole: bool = False) -> list[str]:
        """The uids of runs that have a uid, now or at first, beginning with `prefix`, or that is all of it."""
        if whole:
            uid = self._aliases.get(prefix, prefix)
            return [uid] if uid in self._groups else []
        matches = {uid for uid in self._groups if uid.startswith(prefix)}
        return sorted(matches | {uid for alias, uid in self._aliases.items() if alias.startswith(prefix)})

    def unread(self) -> list[Rows]:
        """Files that look like journals and could not be placed."""
        return [stream for stream in self._streams.values() if stream.unread]


def _place(stream: Rows) -> tuple[Any, ...]:
    """All that decides to which run a stream belongs."""
    return stream.known, stream.role, stream.key, stream.parent, stream.opening.get("uid"), stream.uid


def _adopt(streams: Sequence[Rows]) -> None:
    """Tell forked children the stream of their rank: they may have been forked before the ranks agreed."""
    by_key = {stream.key: stream for stream in streams}
    for stream in streams:
        elder, seen = stream, {stream.key}
        while elder.parent in by_key and elder.parent not in seen:
            elder = by_key[elder.parent]
            seen.add(elder.key)
        stream.elder = None if elder is stream else elder


class Api:
    """Reads runs, also while they are being written.

    Args:
        source: a folder of runs (the `dir` of `init`), one run's folder, a single `.ttj` or `.ttg` file, or the URL
            of a server.
        key: of the server; by default `TORCHTRACK_API_KEY`, else that of `torchtrack login`.
        timeout_s: how long the server may take for an answer.

    Raises:
        ValueError: the source is a URL other than `http://` or `https://`.
        FileNotFoundError: there is no such file or folder.
    """

    def __init__(self, source: str | os.PathLike[str], *, key: str | None = None, timeout_s: float = TIMEOUT_S) -> None:
        self._runs: dict[str, Run] = {}
        if "://" in str(source):
            if not str(source).startswith(("http://", "https://")):
                raise ValueError(f"{source}: give a folder of runs, or the http:// or https:// address of a server")
            self._source = Source(Server(str(source), key, timeout_s).shelf())
            return
        path = Path(source)
        if not path.exists():
            raise FileNotFoundError(
                f"{path}: no such folder; runs are written to `dir` of init, TORCHTRACK_DIR, or ./torchtrack-runs"
            )
        self._source = Source(Folder(path))

    @classmethod
    def of(cls, source: Source) -> Api:
        """Reads the runs of a source."""
        api = cls.__new__(cls)
        api._source, api._runs = source, {}
        return api

    def runs(self, project: str | None = None, filters: Mapping[str, Any] | None = None) -> list[Run]:
        """The runs, newest first.

        Args:
            project: of this project only.
            filters: field to value or to a function of the value, all of which must hold: an attribute of a run such as
                `state`, or `config.lr`, `summary.loss`. For `tags`, a text asks for that one tag.
        """
        with self._source.still() as groups:
            found = [self._run(uid) for uid in groups]
            mine = [run for run in found if project is None or run.project == project]
            kept = [run for run in mine if _matches(run, filters or {})]
            return sorted(kept, key=lambda run: (run.created, run.uid), reverse=True)

    def run(self, name: str) -> Run:
        """One run by `project/id`, id, uid, a unique beginning of the uid (4 characters or more), or name.

        Raises:
            RunNotFoundError: none or several runs are called so; the message says what to type.
        """
        with self._source.still():
            return self._run(find_uid(name, self.runs(), self._source))

    @property
    def unread(self) -> dict[Path, str]:
        """Files named like journals of which not even the first record can be read, and why."""
        self._source.refresh_all()
        reasons = {stream.path: [damage.reason for damage in stream.damages] for stream in self._source.unread()}
        return {
            path: (reason or ["it does not begin with a journal's opening record"])[0]
            for path, reason in reasons.items()
        }

    def with_uid(self, uid: str) -> Run | None:
        """The run that has this uid, or had it at first; None if there is none. No other run is looked at."""
        with self._source.still() as groups:
            found = uid if uid in groups else next(iter(self._source.resolve(uid, whole=True)), None)
            return None if found is None else self._run(found)

    def _run(self, uid: str) -> Run:
        if uid not in self._runs:
            self._runs[uid] = Run(self._source, uid)
        return self._runs[uid]


class Named(Protocol):
    """What a run can be called by."""

    @property
    def uid(self) -> str:
        """The 16 hex digits."""

    @property
    def id(self) -> str:
        """The user's id, else the uid."""

    @property
    def name(self) -> str:
        """The name for people."""

    @property
    def project(self) -> str:
        """The project."""


def find_uid(name: str, runs: Sequence[Named], source: Source) -> str:
    """The uid of the run that is called so.

    Args:
        name: `project/id`, id, uid, a unique beginning of the uid, or name.
        runs: all there are, newest first.
        source: where they come from.

    Raises:
        RunNotFoundError: none or several are called so.
    """
    for finds in _LOOKUPS:
        found = [run for run in runs if finds(run, name)]
        if len(found) == 1:
            return found[0].uid
        if found:
            raise RunNotFoundError(_ambiguous(name, found))
    known = {run.uid for run in runs}
    uids = [uid for uid in source.resolve(name) if uid in known] if len(name) >= SHORTEST_PREFIX else []
    if len(uids) == 1:
        return uids[0]
    if uids:
        raise RunNotFoundError(_ambiguous(name, [run for run in runs if run.uid in uids]))
    raise RunNotFoundError(_not_found(name, runs, source.carrier.label))


_LOOKUPS: Final[tuple[Callable[[Named, str], bool], ...]] = (
    lambda run, name: run.uid == name,
    lambda run, name: f"{run.project}/{run.id}" == name,
    lambda run, name: run.id == name,
    lambda run, name: name in (run.name, f"{run.project}/{run.name}"),
)
"""The ways to name a run; an earlier one wins."""


def _ambiguous(name: str, runs: Sequence[Named]) -> str:
    options = "\n  ".join(f"{run.uid}  {run.project}/{run.name}" for run in runs[:8])
    return f"{name!r} is {len(runs)} runs; give the uid of one:\n  {options}"


def _not_found(name: str, runs: Sequence[Named], path: str) -> str:
    if not runs:
        return f"no run {name!r}: there are no runs in {path}"
    labels = {label: run for run in reversed(runs) for label in (run.id, run.name, f"{run.project}/{run.id}", run.uid)}
    near = [labels[label] for label in difflib.get_close_matches(name, list(labels), n=5, cutoff=0.4)]
    chosen = list(dict.fromkeys(near)) or list(runs[:5])
    options = "\n  ".join(f"{run.uid}  {run.project}/{run.name}" for run in chosen)
    those = "nearest" if near else "newest"
    return f"no run {name!r} in {path}; the {those} are (give a uid, an id or a name):\n  {options}"


def _matches(run: Run, filters: Mapping[str, Any]) -> bool:
    return all(_holds(_field(run, field), wanted) for field, wanted in filters.items())


_MISSING: Final = object()


def _field(run: Run, field: str) -> Any:
    head, _, key = field.partition(".")
    if head.startswith("_") or not hasattr(Run, head):
        raise ValueError(
            f"no field {field!r} to filter by: it is an attribute of a run, or config.<key> or summary.<key>"
        )
    value: Any = getattr(run, head)
    if not key:
        return value
    if key in value:
        return value[key]
    for part in key.split("."):
        value = value.get(part, _MISSING) if isinstance(value, Mapping) else _MISSING
    return value


def _holds(value: Any, wanted: Any) -> bool:
    if value is _MISSING:
        return False
    if callable(wanted):
        return bool(wanted(value))
    if isinstance(value, tuple) and isinstance(wanted, str):
        return wanted in value
    return bool(value == wanted)
