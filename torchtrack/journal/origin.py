"""Which process writes a stream, and when it began: what every opening record says of them."""

from __future__ import annotations

import os
import socket
import time
from pathlib import Path


def origin() -> dict[str, object]:
    """Host, pid, boot and the present on both clocks, of this process.

    `boot_id` tells which boot of the machine pids and monotonic times belong to; None where the system does not say.
    """
    try:
        boot_id = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        boot_id = None
    process = {"host": socket.gethostname(), "pid": os.getpid(), "boot_id": boot_id}
    return {**process, "start_time_ns": time.time_ns(), "start_mono_ns": time.monotonic_ns()}
