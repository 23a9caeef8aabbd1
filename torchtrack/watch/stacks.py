"""Where Python was when this process was killed: written by C, as the signal arrives, into a file of the node.

One file for the process, however many watches there are. SIGTERM is passed on to whoever had it before: where nobody
had, the process dies at once, as it would have. SIGSEGV, SIGABRT and the like are only taken where nobody has turned
faulthandler on: whoever has (torchrun's `record`, a user) finds the stacks where they told it to write them.
"""

from __future__ import annotations

import faulthandler
import os
import signal
import sys
import time
import traceback
from pathlib import Path
from typing import IO, Any

from torchtrack.journal import ring


class _Open:
    """The file of this process, and who was there before."""

    def __init__(self, stream: int) -> None:
        self.users = 1
        self.stream = stream
        self.path = ring.place(0) / f"{ring.prefix(stream)}-process.stacks"
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_APPEND
        self.file: IO[bytes] = os.fdopen(os.open(self.path, flags, 0o600), "wb", 0)
        self.handler: Any = signal.getsignal(signal.SIGTERM)
        faulthandler.register(signal.SIGTERM, self.file, all_threads=True, chain=True)
        self.is_fatal = not faulthandler.is_enabled()
        if self.is_fatal:
            faulthandler.enable(self.file, all_threads=True)

    def let_go(self) -> None:
        """Put back what was there."""
        if signal.getsignal(signal.SIGTERM) is self.handler:  # else it would take away what the user has set since
            faulthandler.unregister(signal.SIGTERM)
        if self.is_fatal:
            faulthandler.disable()
        self.file.close()


_open: _Open | None = None


def begin(stream: int) -> None:
    """Have stacks written for a stream; a second watch of it joins.

    Raises:
        OSError: the file cannot be made.
    """
    global _open
    if _open is None:
        _open = _Open(stream)
    else:
        _open.users += 1


def write(why: str, text: str = "") -> None:
    """Write the stacks of all threads now, behind a text such as an exception's own. **Threads:** any."""
    if _open is not None:
        stamp = time.strftime("%Y-%m-%d %H:%M:%S", time.gmtime())
        _open.file.write(f"--- {stamp} UTC: {why}\n{text}".encode())
        faulthandler.dump_traceback(_open.file, all_threads=True)


def end(*, remove: bool) -> None:
    """A watch is over; with the last one the file is closed, and removed if it is to be or holds nothing."""
    global _open
    if _open is None:
        return
    _open.users -= 1
    if not _open.users:
        done, _open = _open, None
        done.let_go()
        if remove or not _size(done.path):
            done.path.unlink(missing_ok=True)


def last_error() -> str:
    """The exception that is under way, or that has ended the script, with its traceback; "" if there is none."""
    error = sys.exc_info()[1] or getattr(sys, "last_value", None)
    return "".join(traceback.format_exception(error)) if isinstance(error, BaseException) else ""


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:
        return 0


def _after_fork_in_child() -> None:
    """The file is the parent's: a data loader's worker that is terminated must not write its stacks there."""
    global _open
    if _open is not None:
        inherited, _open = _open, None
        inherited.let_go()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork_in_child)
