"""The sidecar's end of a process beside it: what needs Arrow or a network, and may hang, is not in the sidecar."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Final

_STARTS: Final = 5
"""How often one that dies is started anew, at most."""


class Helper:
    """A process that is started with the first stream it has to follow, and told of streams through its stdin.

    **Nothing here waits:** one that does not read loses what it is told.

    Args:
        module: what `python -m` runs; it gets the folder as its argument.
        directory: the runs folder.
        arguments: more of them.
    """

    def __init__(self, module: str, directory: Path, *arguments: str) -> None:
        self._command = [sys.executable, "-m", module, str(directory), *arguments]
        self._followed: dict[str, Mapping[str, object]] = {}
        self._process: subprocess.Popen[bytes] | None = None
        self._starts = _STARTS

    def follow(self, stream: str, request: Mapping[str, object]) -> None:
        """Have a stream followed; the same request again does nothing."""
        if self._followed.get(stream) != request:
            self._followed[stream] = dict(request)
            self._tell({"stream": stream, **request})

    def ended(self, stream: str) -> None:
        """Nothing more is written to a stream."""
        if self._followed.pop(stream, None) is not None:
            self._tell({"stream": stream, "ended": True})

    def ending(self, stream: str) -> None:
        """The run has ended in the process that wrote a stream; its last rows are being written."""
        if stream in self._followed:
            self._tell({"stream": stream, "ending": True})

    def look(self) -> None:
        """Replace a process that has died."""
        if self._process is not None and self._process.poll() is not None:
            self._process = None
            for stream, request in self._followed.items():
                self._tell({"stream": stream, **request})

    def close(self) -> None:
        """Let it do what is left, and end by itself."""
        if self._process is not None and self._process.stdin is not None:
            self._process.stdin.close()

    def _tell(self, request: Mapping[str, object]) -> None:
        if self._process is None:
            if not self._starts:
                return
            self._starts -= 1
            nothing = subprocess.DEVNULL
            self._process = subprocess.Popen(
                self._command, stdin=subprocess.PIPE, stdout=nothing, stderr=nothing, start_new_session=True, bufsize=0
            )
            os.set_blocking(self._process.stdin.fileno(), False)  # type: ignore[union-attr]  # it is a pipe
        with contextlib.suppress(BrokenPipeError, BlockingIOError):
            self._process.stdin.write(json.dumps(request).encode() + b"\n")  # type: ignore[union-attr]
