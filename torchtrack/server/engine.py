"""The hold on a server's data folder, and the process with the engine as something to start.

Imports nothing that takes long, so that a server starts its worker first and imports the rest of itself meanwhile.
"""

from __future__ import annotations

import contextlib
import fcntl
import gc
import importlib.util
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import IO, Any, Final

from torchtrack.server.layout import PLAIN, Layout

MODULE: Final = "torchtrack.server"
NEEDS: Final = ("fastapi", "chdb")
"""Of what `torchtrack[server]` installs, packages that say whether it was."""
STOP_S: Final = 10.0


@contextlib.contextmanager
def beginning() -> Iterator[None]:
    """While a process imports and builds what stays: to look for garbage in it takes a quarter of that time."""
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        gc.enable()


def take_hold(data: Path) -> IO[str]:
    """Take hold of a data folder; it is let go when the file is closed.

    Raises:
        BlockingIOError: another process has it.
        OSError: it cannot be written.
    """
    data.mkdir(0o700, parents=True, exist_ok=True)
    lock = os.fdopen(os.open(data / "lock", os.O_WRONLY | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600), "a")
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        lock.close()
        raise BlockingIOError(f"another server has {data}") from error
    return lock


def catalog_in(data: Path) -> str:
    """The URL of the catalog in a data folder."""
    return f"sqlite:///{data.absolute() / 'catalog.sqlite'}"


class Engine:
    """Worker processes, one after the other, on one socket. `close` ends the last.

    Args:
        runs: the folder of runs they follow.
        index: where their index lies; None: in the user's cache.
        dsn: a ClickHouse server instead.
        catalog: the URL of what people typed.
        layout: how the tables are kept.
        secrets: what else they are told and nobody else may see.
    """

    def __init__(
        self,
        runs: Path,
        index: Path | None = None,
        dsn: str | None = None,
        catalog: str | None = None,
        layout: Layout = PLAIN,
        **secrets: Any,
    ) -> None:
        self._folder = tempfile.TemporaryDirectory(prefix="torchtrack-")  # 0700; a socket's name must be short
        self.socket = Path(self._folder.name) / "worker"
        self._command = [sys.executable, "-m", MODULE, "--runs", str(runs), "--socket", str(self.socket)]
        self._command.append("--attached")  # it ends when the pipe to it does, however this process ends
        self._command += ["--index", str(index)] if index else []
        told = {"dsn": dsn, "catalog": catalog, "layout": asdict(layout), **secrets}
        self._told = json.dumps(told).encode() + b"\n"  # there may be passwords in it
        self.process: subprocess.Popen[bytes] | None = None
        self.starts = 0
        """How often one was started."""

    def start(self) -> subprocess.Popen[bytes]:
        """Start one; the one before has ended.

        Raises:
            ImportError: what it needs is not installed.
            OSError: it cannot be started.
        """
        for package in NEEDS:
            if importlib.util.find_spec(package) is None:
                raise ImportError(f"there is no {package}")
        self._let_go()
        self.socket.unlink(missing_ok=True)
        self.process = subprocess.Popen(self._command, stdin=subprocess.PIPE, bufsize=0)
        self.starts += 1
        if self.process.stdin is not None:
            self.process.stdin.write(self._told)  # fits the pipe: nobody need read it for this to return
        return self.process

    def close(self) -> None:
        """End the worker, and wait until it has."""
        if self.process is not None:
            self.process.terminate()
            try:
                self.process.wait(STOP_S)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()
            self._let_go()
        self._folder.cleanup()

    def _let_go(self) -> None:
        if self.process is not None and self.process.stdin is not None:
            self.process.stdin.close()


__all__ = ["Engine", "beginning", "catalog_in", "take_hold"]
