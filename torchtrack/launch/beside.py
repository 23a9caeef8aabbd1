"""A program below this process, where something is left to do after it: to the outside as if this process were it.

Signals that are sent to this process are passed on; those of the terminal go to both by themselves. The end of this
process is the program's: the same exit code, or the same signal.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import resource
import signal
import sys
from collections.abc import Callable
from typing import Final, NoReturn

_PASSED_ON: Final = (
    signal.SIGINT,
    signal.SIGTERM,
    signal.SIGHUP,
    signal.SIGQUIT,
    signal.SIGUSR1,
    signal.SIGUSR2,
    signal.SIGALRM,
    signal.SIGCONT,
    signal.SIGWINCH,
)
_FROM_THE_KERNEL: Final = 0x80  # SI_KERNEL: as the terminal sends them, to all in its foreground
_SET_DEATH_SIGNAL: Final = 1  # PR_SET_PDEATHSIG


def supported() -> bool:
    """Whether this system has what it takes."""
    return sys.platform == "linux"


def run(become: Callable[[], NoReturn]) -> int:
    """Have a program run in a child of this process, and wait for its end.

    Args:
        become: replaces the process that calls it by the program, or raises SystemExit.

    Returns:
        Its exit code, or the negative number of the signal that ended it.
    """
    sys.stdout.flush()
    sys.stderr.flush()
    before = signal.pthread_sigmask(signal.SIG_BLOCK, (*_PASSED_ON, signal.SIGCHLD))
    parent, child = os.getpid(), os.fork()
    if child == 0:
        with contextlib.suppress(OSError, AttributeError):  # whoever kills this process means the program
            ctypes.CDLL(None).prctl(_SET_DEATH_SIGNAL, signal.SIGKILL)
        if os.getppid() != parent:
            os._exit(128 + signal.SIGKILL)
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
        try:
            become()
        except SystemExit as error:
            sys.stderr.flush()
            os._exit(error.code if isinstance(error.code, int) else 1)
    try:
        return _until_it_ends(child)
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _until_it_ends(child: int) -> int:
    while True:
        told = signal.sigwaitinfo((*_PASSED_ON, signal.SIGCHLD))
        if told.si_signo != signal.SIGCHLD:
            if told.si_code != _FROM_THE_KERNEL:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(child, told.si_signo)
            continue
        ended, status = os.waitpid(child, os.WNOHANG)
        if ended:
            return os.waitstatus_to_exitcode(status)


def end_as(status: int) -> NoReturn:
    """End this process as that program has ended."""
    sys.stdout.flush()
    sys.stderr.flush()
    if status >= 0:
        os._exit(status)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))  # the program has dumped its own
    signal.signal(-status, signal.SIG_DFL) if -status not in (signal.SIGKILL, signal.SIGSTOP) else None
    os.kill(os.getpid(), -status)
    os._exit(128 - status)
