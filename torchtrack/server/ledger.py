"""The table of runs in the metrics store: a row a run, made once and again when something new of it came.

What a run says is in `said`, what people set in `edits`; `shown` is both, and what can be filtered and sorted by lies
beside it in maps: `texts` has every value as words, `numbers`, `bools` and `lists` those that are such. Nested settings
are there under `config.<outer>.<inner>` too. The table is a view, like all of the store.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import pyarrow as pa

from torchtrack.server.metrics import MetricsStore

_TEXT: Final = pa.dictionary(pa.int32(), pa.string())
_ROWS: Final = pa.schema(
    [
        ("uid", pa.string()),
        ("version", pa.uint64()),
        ("upto", pa.uint64()),
        ("streams", pa.uint32()),
        ("gone", pa.bool_()),
        ("lost_at", pa.int64()),
        ("said", pa.string()),
        ("edits", pa.string()),
        ("shown", pa.string()),
        ("texts", pa.map_(pa.string(), pa.string())),
        ("numbers", pa.map_(pa.string(), pa.float64())),
        ("bools", pa.map_(pa.string(), pa.bool_())),
        ("lists", pa.map_(pa.string(), pa.list_(pa.string()))),
        ("tensors", pa.map_(pa.string(), pa.list_(pa.string()))),
        ("sources", pa.list_(pa.string())),
    ]
)
LIVE: Final = "runs FINAL WHERE NOT gone"


@dataclass(frozen=True)
class Entry:
    """A run as it is put into the table."""

    said: Mapping[str, Any]
    upto: int
    """The store's counter when the newest of its records was written."""
    streams: int
    lost_at_us: int = 0
    """When it is lost unless there is a sign of life; 0: it runs no more."""
    tensors: Mapping[str, Sequence[str]] | None = None
    sources: Sequence[str] = ()


class Ledger:
    """The table. **Threads:** one at a time, but for `Ledger.query`."""

    def __init__(self, store: MetricsStore) -> None:
        self._store = store
        self._generation = -1
        self._version = 0
        self._known: dict[str, tuple[int, int]] = {}
        self._edits: dict[str, dict[str, Any]] = {}

    def load(self) -> None:
        """Look what is in the table, unless that is known."""
        if self._generation == self._store.generation:
            return
        rows = self._store.query("SELECT uid, version, upto, streams, gone, edits FROM runs FINAL").to_pylist()
        self._version = max((row["version"] for row in rows), default=0)
        self._known = {row["uid"]: (row["upto"], row["streams"]) for row in rows if not row["gone"]}
        self._edits = {row["uid"]: json.loads(row["edits"]) for row in rows if row["edits"] and not row["gone"]}
        self._generation = self._store.generation

    def stale(self, runs: Mapping[str, tuple[int, int]]) -> list[str]:
        """The runs that are not in the table as they are now, newest first; those that are gone are taken out.

        Args:
            runs: the newest counter and the number of streams of each run there is.
        """
        gone = self._known.keys() - runs.keys()
        if gone:
            self._write([_row(uid, Entry({}, 0, 0), {}, gone=True) for uid in gone])
            for uid in gone:
                del self._known[uid]
                self._edits.pop(uid, None)
        changed = [uid for uid, state in runs.items() if self._known.get(uid) != state]
        return sorted(changed, key=lambda uid: runs[uid], reverse=True)

    def put(self, entries: Sequence[Entry], edits: Mapping[str, Mapping[str, Any]]) -> None:
        """Rows of runs, with what people set."""
        self._write([_row(entry.said["uid"], entry, edits.get(entry.said["uid"], {})) for entry in entries])
        for entry in entries:
            uid = entry.said["uid"]
            self._known[uid] = entry.upto, entry.streams
            self._remember(uid, edits.get(uid, {}))

    def edit(self, edits: Mapping[str, Mapping[str, Any]]) -> None:
        """Bring in what people set since; what they took back is as the run says again."""
        changed = [
            uid
            for uid in self._edits.keys() | edits.keys()
            if uid in self._known and self._edits.get(uid, {}) != edits.get(uid, {})
        ]
        if not changed:
            return
        columns = "uid, upto, streams, lost_at, said, tensors, sources"
        rows = self._store.query(f"SELECT {columns} FROM {LIVE} AND uid IN {{uids:Array(String)}}", uids=changed)
        entries = [
            Entry(
                json.loads(row["said"]),
                row["upto"],
                row["streams"],
                row["lost_at"],
                dict(row["tensors"]),
                row["sources"],
            )
            for row in rows.to_pylist()
        ]
        self.put(entries, edits)

    def _remember(self, uid: str, edits: Mapping[str, Any]) -> None:
        if edits:
            self._edits[uid] = dict(edits)
        else:
            self._edits.pop(uid, None)

    def _write(self, rows: list[dict[str, Any]]) -> None:
        self._version += 1
        for row in rows:
            row["version"] = self._version
        self._store.insert("runs", pa.Table.from_pylist(rows, _ROWS))


def _row(uid: str, entry: Entry, edits: Mapping[str, Any], *, gone: bool = False) -> dict[str, Any]:
    shown = {**entry.said, **edits}
    fields = dict(flat(shown))
    return {
        "uid": uid,
        "upto": entry.upto,
        "streams": entry.streams,
        "gone": gone,
        "lost_at": entry.lost_at_us,
        "said": json.dumps(entry.said, default=str),
        "edits": json.dumps(edits) if edits else "",
        "shown": json.dumps(shown, default=str),
        "texts": {name: as_text(value) for name, value in fields.items()},
        "numbers": {name: _number(v) for name, v in fields.items() if is_number(v)},
        "bools": {name: v for name, v in fields.items() if isinstance(v, bool)},
        "lists": {name: [element(e) for e in v] for name, v in fields.items() if isinstance(v, list | tuple)},
        "tensors": {kind: sorted(names) for kind, names in (entry.tensors or {}).items()},
        "sources": sorted(entry.sources),
    }


def flat(row: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """Every field of a run that has a value, by the name one filters with; the plain name of a key wins over a path."""
    for name, value in row.items():
        if isinstance(value, Mapping):
            yield from _inside(f"{name}.", value)
        elif value is not None:
            yield name, value


def _inside(prefix: str, values: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    for key, value in values.items():
        if isinstance(value, Mapping) and "." not in key:
            yield from _nested(f"{prefix}{key}.", value)
    yield from ((f"{prefix}{key}", value) for key, value in values.items() if value is not None)


def _nested(prefix: str, values: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    for key, value in values.items():
        if "." not in key and value is not None:
            yield f"{prefix}{key}", value
            if isinstance(value, Mapping):
                yield from _nested(f"{prefix}{key}.", value)


def as_text(value: Any) -> str:
    """A value as words: what it is compared with when a filter has a text."""
    return str(value).encode("utf-8", "replace").decode()


def is_number(value: Any) -> bool:
    """Whether a value is a number, which True and False are not."""
    return isinstance(value, int | float) and not isinstance(value, bool)


def _number(value: float) -> float:
    try:
        return float(value)
    except OverflowError:
        return math.copysign(math.inf, value)


def element(value: Any) -> str:
    """An element of a list, so that a text is no number and 1 is 1.0."""
    if is_number(value):
        return repr(_number(value))
    return f"'{as_text(value)}" if isinstance(value, str) else as_text(value)
