"""`python -m torchtrack.sidecar DIR HEARTBEAT_S`: leave the rank that started it, win the socket or end, then serve."""

from __future__ import annotations

import os
import signal
import socket
import sys
from pathlib import Path


def main(directory: str, heartbeat_s: str) -> None:
    """Become the sidecar of a runs folder, unless there is one."""
    from torchtrack.sidecar.process import Sidecar, address

    signal.pthread_sigmask(signal.SIG_SETMASK, [])  # a thread of the rank may have started us with signals blocked
    for ignored in (signal.SIGINT, signal.SIGHUP, signal.SIGPIPE, signal.SIGUSR1, signal.SIGUSR2):
        signal.signal(ignored, signal.SIG_IGN)
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as listener:
        try:
            listener.bind(address(Path(directory)))
        except OSError:
            return  # another rank's sidecar was faster
        listener.listen(128)
        Sidecar(Path(directory), listener, float(heartbeat_s)).run()


if __name__ == "__main__":
    # The rank collects the process it started at once; what serves is a child of init, out of sight of its os.wait().
    if os.fork() == 0:
        main(*sys.argv[1:])
    else:
        os._exit(0)
