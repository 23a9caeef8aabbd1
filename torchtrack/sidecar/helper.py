"""A process that the sidecar keeps beside itself for what may hang, and talks to through a pipe it never waits for."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path


class Helper:
    """The sidecar's end. **Nothing here waits:** a helper that does not read loses what it is told.

    It is started with the first stream that it is to follow. What goes over the pipe may be secret; it is never
    written down.

    Args:
        module: what the process runs, as `python -m MODULE DIRECTORY`.
        directory: the runs folder.
    """

    def __init__(self, module: str, directory: Path) -> None:
        self._module = module
        self._directory = directory
        self._followed: dict[str, dict[str, object]] = {}
        self._process: subprocess.Popen[bytes] | None = None

    def follow(self, stream: str, **request: object) -> None:
        """Have a stream looked after; the same again does nothing."""
        if stream not in self._followed:
            self._followed[stream] = {"stream": stream, **request}
            self._tell(self._followed[stream])

    def ended(self, stream: str) -> None:
        """The process that wrote it is gone."""
        if self._followed.pop(stream, None) is not None:
            self._tell({"stream": stream, "ended": True})

    def ending(self, stream: str) -> None:
        """The run has ended in the process that wrote it; its last rows are being written."""
        if stream in self._followed:
            self._tell({"stream": stream, "ending": True})

    def look(self) -> None:
        """Replace a helper that has died."""
        if self._process is not None and self._process.poll() is not None:
            self._process = None
            for request in self._followed.values():
                self._tell(request)

    def close(self) -> None:
        """Let it finish what is left, and end by itself."""
        if self._process is not None and self._process.stdin is not None:
            self._process.stdin.close()

    def _tell(self, request: Mapping[str, object]) -> None:
        if self._process is None:
            command = [sys.executable, "-m", self._module, str(self._directory)]
            nothing = subprocess.DEVNULL
            self._process = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=nothing, stderr=nothing, start_new_session=True, bufsize=0
            )
            os.set_blocking(self._process.stdin.fileno(), False)  # type: ignore[union-attr]  # it is a pipe
        with contextlib.suppress(BrokenPipeError, BlockingIOError):
            self._process.stdin.write(json.dumps(request).encode() + b"\n")  # type: ignore[union-attr]
