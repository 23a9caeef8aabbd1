"""The thread beside a writer: makes frames durable, tries again what could not be written, holds the reserve."""

from __future__ import annotations

import contextlib
import os
import tempfile
import threading
from collections.abc import Callable
from pathlib import Path
from time import monotonic_ns
from typing import IO, Final, TypeVar

_T = TypeVar("_T")

RETRY_S: Final = 0.25
RESERVE: Final = 1 << 20
_fdatasync: Final[Callable[[int], None]] = getattr(os, "fdatasync", os.fsync)  # macOS has only fsync


class Background:
    """Runs fdatasync, and the writer's retries, in a daemon thread.

    It holds duplicates of the writer's descriptors, so the writer never waits for it and may close its own at any time.
    It also holds the reserve: a file without a name, so that whatever ends the process gives its space back.
    """

    def __init__(self, interval_s: float, retry: Callable[[], bool], count: Callable[[OSError], None]) -> None:
        self._interval_ns = int(interval_s * 1e9)
        self._retry = retry
        self._count = count
        self._turn = threading.Condition()
        self._thread: threading.Thread | None = None
        self._files: list[int] = []
        self._folders: list[Path] = []
        self._asked = self._done = 0
        self._intact = True
        self._stopped = False
        self._waiting = False
        self._reserve: IO[bytes] | None = None
        self.dirty = False

    def adopt(self, fd: int, folders: list[Path]) -> None:
        """Sync this file from now on, and now the folders in which something was created."""
        with self._turn:
            self._try(lambda fd: self._files.append(os.dup(fd)), fd)
            self._folders += folders
            self._asked += 1
            self._start()

    def retry_soon(self) -> None:
        """Something waits in the backlog: call `retry` until nothing does."""
        if not self._waiting:
            with self._turn:
                self._waiting = True
                self._start()

    def sync(self, timeout_s: float) -> bool:
        """Sync all that is written by now; True if that was done in time and no sync has failed so far."""
        with self._turn:
            if self._thread is None:
                return True
            self._asked += 1
            target = self._asked
            self._turn.notify_all()
            return self._turn.wait_for(lambda: self._done >= target, timeout_s) and self._intact

    def release_reserve(self) -> None:
        """Give the reserved space back to the file system."""
        with self._turn:
            reserve, self._reserve = self._reserve, None
        if reserve is not None:
            with contextlib.suppress(OSError):
                reserve.truncate(0)  # a forked worker may hold the file open as well
            reserve.close()

    def stop(self, timeout_s: float) -> None:
        """End the thread; one that hangs in the kernel is left behind."""
        with self._turn:
            self._stopped = True
            self._turn.notify_all()
        if self._thread is not None:
            self._thread.join(timeout_s)
        self.release_reserve()

    def _start(self) -> None:
        if self._thread is None:
            thread = threading.Thread(target=self._run, name="torchtrack-sync", daemon=True)
            with contextlib.suppress(RuntimeError):  # the interpreter is ending; the seal will sync
                thread.start()
                self._thread = thread
        self._turn.notify_all()

    def _run(self) -> None:
        due = monotonic_ns() + self._interval_ns
        while not self._stopped:
            with self._turn:
                if self._asked == self._done and not self._stopped:
                    self._turn.wait(RETRY_S if self._waiting else max(0.0, (due - monotonic_ns()) / 1e9))
                waiting, self._waiting = self._waiting, False
                asked = self._asked
            if waiting and not self._retry():
                self._waiting = True
            if asked > self._done or monotonic_ns() >= due:
                self._sync_all()
                due = monotonic_ns() + self._interval_ns
                with self._turn:
                    self._done = asked
                    self._turn.notify_all()
        for fd in self._files:
            self._try(os.close, fd)

    def _sync_all(self) -> None:
        with self._turn:
            dirty, self.dirty = self.dirty, False
            files, self._files = self._files, self._files[-1:]
            folders, self._folders = self._folders, []
        for folder in folders:
            self._try(_sync_folder, folder)
        for fd in files if dirty else []:
            self._try(_fdatasync, fd)
        for fd in files[:-1]:
            self._try(os.close, fd)
        if folders and self._reserve is None:
            self._reserve = _reserve(folders[0])

    def _try(self, call: Callable[[_T], object], argument: _T) -> None:
        try:
            call(argument)
        except OSError as error:
            self._intact &= call is not _fdatasync
            self._count(error)


def _sync_folder(folder: Path) -> None:
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def _reserve(folder: Path) -> IO[bytes] | None:
    """A file without a name that holds 1 MiB of the file system's space, None if there is none to be had."""
    try:
        reserve: IO[bytes] = tempfile.TemporaryFile(dir=folder, buffering=0)  # noqa: SIM115  # closed to release it
    except OSError:
        return None
    try:
        os.posix_fallocate(reserve.fileno(), 0, RESERVE)
    except (OSError, AttributeError):  # macOS has no posix_fallocate
        reserve.close()
        return None
    return reserve
