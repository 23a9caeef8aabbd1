"""The journals a server has received, each stream in the files its rank wrote, laid out as a local folder of runs.

    <folder>/<uid>/000/0-9a8b7c6d5e4f3a2b.ttj      as in torchtrack-runs: `torchtrack.Api(folder)`, `fsck` and the
    <folder>/<uid>/nodes/fedcba9876543210.ttj      indexer read one like the other
    <folder>/<uid>/media/<sha256>

Frames are appended (`append`) and then made durable, many streams at a time (`commit`). Only what is durable is ever
told to a client (`position`). A place is made from the opening frame: nothing a client names becomes part of a path.
"""

from __future__ import annotations

import itertools
import threading
from collections import OrderedDict
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Final

from torchtrack.journal.frame import FILE_NAME
from torchtrack.journal.reader import find_streams
from torchtrack.server.disk import StorageError, make_durable
from torchtrack.server.stream_log import Position, StreamLog

_MAX_LOGS: Final = 50_000
"""Streams whose state is kept in memory; one more is read from its files again when it is next heard of."""
_SYNCS: Final = 8
_TAKERS: Final = 8
"""Bodies that are taken apart and written at one time; more threads only take turns."""


class JournalStore:
    """All streams of a server. **Threads:** every method may be called from any thread.

    Args:
        folder: of the runs; made if it is not there. One process at a time may write to it.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir(0o700, parents=True, exist_ok=True)
        self._lock = threading.Lock()
        self._paths: dict[int, Path] = {}
        self._logs: OrderedDict[int, StreamLog] = OrderedDict()
        self._dirty: dict[int, StreamLog] = {}
        self.takers = ThreadPoolExecutor(_TAKERS, thread_name_prefix="torchtrack-take")
        """For those who cannot wait until frames are written."""
        self._syncers = ThreadPoolExecutor(_SYNCS, thread_name_prefix="torchtrack-fsync")
        self.find()

    def find(self) -> None:
        """Look for streams in the folder; done at the start, and again after files were put there by hand."""
        for path in find_streams(self.folder):
            name = FILE_NAME.fullmatch(path.name)
            if name is not None:
                self._paths.setdefault(int(name[1], 16), path)

    def streams(self) -> dict[int, Path]:
        """The first file of every stream."""
        with self._lock:
            return dict(self._paths)

    def run_of(self, stream: int) -> str | None:
        """The uid under which a stream lies, None for one that is not known."""
        with self._lock:
            path = self._paths.get(stream)
        return None if path is None else path.relative_to(self.folder).parts[0]

    def has_run(self, uid: str) -> bool:
        """Whether journals of a run are there."""
        return next((self.folder / uid).glob("*/*.ttj"), None) is not None

    def append(self, stream: int, first: int, frames: memoryview, lost: Sequence[tuple[int, int]] = ()) -> Position:
        """Verify and append frames; those that are there already are compared and skipped. Durable after `commit`.

        Args:
            stream: the stream they belong to.
            first: seq of the first of them.
            frames: whole frames, one after the other, as they lie in the journal.
            lost: seqs, as (first, last), that the sender has lost: they will not come.

        Returns:
            Where the stream is now, written but perhaps not durable yet.

        Raises:
            RefusedError: they do not fit; nothing of them was kept. Says why.
            StorageError: the disk did not take them; nothing of them was kept.
        """
        log = self._log(stream)
        with log.lock:
            try:
                position = log.append(first, frames, lost)
            finally:
                if log.dirty:
                    with self._lock:
                        self._dirty[stream] = log
                if log.path is not None:  # another than before, if nothing readable was left there
                    with self._lock:
                        self._paths[stream] = log.path
        return position

    def commit(self) -> dict[int, StorageError]:
        """Make all that was appended durable.

        Returns:
            The streams for which that failed; what was appended to them since the last commit is taken back.
        """
        with self._lock:
            dirty, self._dirty = self._dirty, {}
        begun = {stream: log.begin_sync() for stream, log in dirty.items()}
        errors = self._make_durable(list(dict.fromkeys(thing for each in begun.values() for thing in each.things)))
        failed: dict[int, StorageError] = {}
        for stream, log in dirty.items():
            things = begun[stream].things
            error = log.end_sync(begun[stream], [errors[thing] for thing in things if thing in errors])
            if error is not None:
                failed[stream] = error
                self._forget(stream, log)
        return failed

    def _make_durable(self, things: Sequence[int | Path]) -> dict[int | Path, OSError]:
        """Sync files and folders, each once however many streams have something new in it; those that failed."""
        shares = [things[first::_SYNCS] for first in range(min(_SYNCS, len(things)))]
        each = map(_failures, shares) if len(shares) == 1 else self._syncers.map(_failures, shares)
        return dict(itertools.chain.from_iterable(each))

    def position(self, stream: int) -> Position:
        """How far a stream is durable; zeros for one that is not known.

        Raises:
            StorageError: its files cannot be read.
        """
        with self._lock:
            if stream not in self._paths and stream not in self._logs:
                return Position()
        return self._log(stream).durable

    def close(self) -> None:
        """Make everything durable and let go of all files."""
        self.takers.shutdown()
        self.commit()
        self._syncers.shutdown()

    def _log(self, stream: int) -> StreamLog:
        with self._lock:
            log = self._logs.get(stream)
            if log is None:
                log = self._logs[stream] = StreamLog(self.folder, stream, self._paths.get(stream))
            self._logs.move_to_end(stream)
            if len(self._logs) > _MAX_LOGS:
                self._let_go()
        if not log.loaded:
            with log.lock:
                log.load()
        return log

    def _let_go(self) -> None:
        """Drop the state of streams that were not heard of for longest."""
        for name in list(itertools.islice(self._logs, len(self._logs) - _MAX_LOGS)):
            if name not in self._dirty and not self._logs[name].lock.locked():
                del self._logs[name]

    def _forget(self, stream: int, log: StreamLog) -> None:
        with self._lock:
            if self._logs.get(stream) is log:
                del self._logs[stream]
            if log.path is None or not log.path.exists():
                self._paths.pop(stream, None)


def _failures(things: Sequence[int | Path]) -> list[tuple[int | Path, OSError]]:
    return [(thing, error) for thing in things if (error := make_durable(thing))]


class Committer:
    """A thread that commits for all who wait: while it syncs, the next group gathers.

    Args:
        store: what is committed.
    """

    def __init__(self, store: JournalStore) -> None:
        self._store = store
        self._turn = threading.Condition()
        self._waiting: list[Future[Mapping[int, StorageError]]] = []
        self._stopped = False
        self._thread = threading.Thread(target=self._run, name="torchtrack-commit", daemon=True)

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    def durable(self) -> Future[Mapping[int, StorageError]]:
        """Done when all that was appended before this call is durable; gives the streams for which that failed."""
        future: Future[Mapping[int, StorageError]] = Future()
        with self._turn:
            if self._stopped:
                raise StorageError("the server is stopping", full=False)
            self._waiting.append(future)
            self._turn.notify()
        return future

    def stop(self) -> None:
        """Answer all who wait, and end."""
        with self._turn:
            self._stopped = True
            self._turn.notify()
        self._thread.join()

    def _run(self) -> None:
        while True:
            with self._turn:
                while not self._waiting and not self._stopped:
                    self._turn.wait()
                waiting, self._waiting = self._waiting, []
            if waiting:
                self._commit(waiting)
            elif self._stopped:
                return

    def _commit(self, waiting: Iterable[Future[Mapping[int, StorageError]]]) -> None:
        try:
            failed = self._store.commit()
        except (OSError, RuntimeError) as error:
            for future in waiting:
                future.set_exception(StorageError(str(error), full=False))
            return
        for future in waiting:
            future.set_result(failed)
