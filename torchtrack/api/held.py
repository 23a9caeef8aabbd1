"""Streams whose rows lie in a store: the records come as JSON, a table when it is first asked for.

The same on the server and in a script that reads from it, so that a run is the same wherever it is read.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import pyarrow as pa

from torchtrack import records
from torchtrack.api.blackbox import salvaged
from torchtrack.api.streams import Names, Rows
from torchtrack.journal.reader import Damage

_NOTHING: Final[Mapping[str, Any]] = {"opening": {}}
Fetch = Callable[[int, records.Table, int, int], pa.Table]
"""Rows of (stream, table, first seq, seq after the last) in the order written, as `records.decode` gives them."""


History = Callable[[str, Sequence[str], str, int | None, int | None], pa.Table | None]
"""What `Run.history` gives of (uid, keys, "mean" or "all", start, stop); None: fetch the rows."""


def media_in(folder: Path, sha256: str) -> Path | None:
    """A file that a run logged, if it lies in the folder of the run."""
    path = folder / "media" / sha256
    return path if path.is_file() else None


class HeldRows(Rows):
    """One stream in a store.

    Args:
        path: where its journal lies in the folder of runs.
        names: of the source.
        fetch: gets rows.
    """

    def __init__(self, path: Path, names: Names, fetch: Fetch) -> None:
        super().__init__(path, names)
        self._fetch = fetch
        self._number = 0
        self._record: Mapping[str, Any] = _NOTHING
        self._newest: tuple[int, Mapping[str, Any]] = (0, _NOTHING)
        self._fetched: dict[records.Table, int] = {}

    @property
    def number(self) -> int:
        """The stream's number in the store."""
        return self._number

    @property
    def frames(self) -> int:
        """How many frames of it are in the store."""
        return int(self._record.get("next_seq", 0))

    def has(self, table: records.Table) -> bool:
        """Whether rows of a table were fetched."""
        return self._fetched.get(table, 0) > 0

    @property
    def batch(self) -> int:
        """The store's counter when the record was written."""
        return int(self._record.get("batch", 0))

    def give(self, table: records.Table, rows: pa.Table) -> None:
        """All rows of a table that the record speaks of, fetched together with those of other streams."""
        if not self._fetched.get(table):
            self._fetched[table] = self.frames
            self._tables[table] = rows

    def tell(self, stream: int, record: Mapping[str, Any]) -> None:
        """Give the newest record, which the next poll takes; without one the stream is gone."""
        self._newest = stream, record

    def release(self) -> None:
        """Forget the rows; they are fetched again when asked for."""
        self._fetched.clear()
        self._forget_rows()

    def poll(self) -> None:
        """Take the newest record that was told; one that has fewer frames than before is of another file."""
        number, record = self._newest
        if record is self._record:
            return
        if number != self._number or record.get("next_seq", 0) < self._record.get("next_seq", 0):
            self.release()
        self._number, self._record = number, record
        self.version += 1

    def _fresh(self, table: records.Table) -> list[pa.Table]:
        first, stop = self._fetched.get(table, 0), self.frames
        if first >= stop:
            return []
        rows = self._fetch(self._number, table, first, stop)
        self._fetched[table] = stop
        return [rows] if rows.num_rows else []

    @property
    def opening(self) -> dict[str, Any]:
        """The opening record."""
        opening: dict[str, Any] = self._record["opening"]
        return opening

    @property
    def joined(self) -> dict[str, Any] | None:
        """The newest record of where the stream belongs."""
        return self._record.get("joined")

    @property
    def ended(self) -> dict[str, Any] | None:
        """The record of how the process ended, if it wrote one."""
        return self._record.get("ended")

    @property
    def seal(self) -> dict[str, Any] | None:
        """The seal, if the writer closed the stream."""
        return self._record.get("seal")

    @property
    def gaps(self) -> list[dict[str, Any]]:
        """What the writer says it dropped."""
        return list(self._record.get("gaps", ()))

    @property
    def damages(self) -> list[Damage]:
        """What the journal found damaged, and frames that did not decode."""
        return [Damage(Path(path), *rest) for path, *rest in self._record.get("damages", ())]

    @property
    def exits(self) -> list[dict[str, Any]]:
        """Of a node's stream: how processes ended."""
        return list(self._record.get("exits", ()))

    @property
    def heartbeats(self) -> list[dict[str, Any]]:
        """Of a node's stream: the newest heartbeat."""
        return list(self._record.get("heartbeats", ()))

    @property
    def last_mono_ns(self) -> int | None:
        """The writer's monotonic clock at the newest frame."""
        return self._record.get("last_mono_ns")


class Shelf:
    """A carrier of streams that lie in a store.

    Args:
        label: what to call the store in a message.
        changes: the records that changed after a cursor, and the new cursor: `stream` as 16 hex digits, `path`, `gone`,
            and the record itself under `record`.
        fetch: gets rows.
        left: gets the black boxes and stacks in the folder of a run.
        media: gets a file that a run logged.
    """

    def __init__(
        self,
        label: str,
        changes: Callable[[int], tuple[int, Iterable[Mapping[str, Any]]]],
        fetch: Fetch,
        left: Callable[[Path], list[Path]] = salvaged,
        media: Callable[[Path, str], Path | None] = media_in,
    ) -> None:
        self.label = label
        self.left = left
        self.media = media
        self.history: History | None = None
        """Gets a history that is combined where the rows are; without, the rows are fetched."""
        self._changes = changes
        self._fetch = fetch
        self._cursor = 0
        self._known: dict[Path, tuple[int, Mapping[str, Any]]] = {}
        self._open: dict[Path, HeldRows] = {}
        self._folders: dict[Path, dict[Path, None]] = {}  # the streams of each run's folder
        self._fresh: dict[Path, None] = {}  # those of which something new was told

    def find(self, folder: Path | None = None) -> list[Path]:
        """The streams, or those in the folder of one run; what is known of all is brought up to date."""
        self._look()
        return list(self._known if folder is None else self._folders.get(folder, ()))

    def fresh(self) -> list[Path]:
        """The streams of which something new was told since this was asked the last time."""
        self._look()
        fresh, self._fresh = self._fresh, {}
        return list(fresh)

    def _look(self) -> None:
        self._cursor, changed = self._changes(self._cursor)
        for change in changed:
            path, number = Path(change["path"]), int(change["stream"], 16)
            record = change["record"]
            if change["gone"]:
                if self._known.get(path, (0,))[0] != number:
                    continue  # another stream has its place already
                del self._known[path]
                del self._folders[path.parent.parent][path]
                record = _NOTHING
            else:
                self._known[path] = number, record
                self._folders.setdefault(path.parent.parent, {})[path] = None
            if path in self._open or path in self._known:
                self._fresh[path] = None
            if path in self._open:
                self._open[path].tell(number, record)

    def open(self, path: Path, names: Names) -> HeldRows:
        """One of them."""
        rows = self._open[path] = HeldRows(path, names, self._fetch)
        rows.tell(*self._known.get(path, (0, _NOTHING)))
        return rows
