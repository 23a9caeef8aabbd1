"""How a rank speaks to its node's sidecar, and starts it.

Training never depends on it: without a sidecar (macOS, a sandbox, a full process table) a run lacks exit codes and
heartbeats, nothing else. **Every call may take up to `timeout_s`: side threads only.**
"""

from __future__ import annotations

import contextlib
import json
import os
import site
import socket
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final

import torchtrack
from torchtrack.sidecar.process import address, peer_is_ours

LAUNCH_VARIABLE: Final = "TORCHTRACK_LAUNCHED"
"""Holds the number of the launch that this process is below."""
_LONGEST_LAUNCH: Final = 32
_START_AGAIN_S: Final = 5.0
_FIRST_PAUSE_S: Final = 0.005


def supported() -> bool:
    """Whether this system can have a sidecar."""
    frozen = getattr(sys, "frozen", False)  # then sys.executable is the user's program
    return sys.platform == "linux" and bool(sys.executable) and not frozen and Path("/proc/self/ns/pid").exists()


class Sidecar:
    """A rank's connection to the sidecar of its runs folder.

    Args:
        directory: the runs folder.
        heartbeat_s: time between heartbeats, if this rank is the one that starts the sidecar.
        timeout_s: the longest that a call takes.
        alerts: where the alerts of this rank go, `urls`, and from which severity on `findings` do; None for nowhere.
        upload: where what this rank writes is sent: `url` and `key`; None for nowhere.
        sinks: where runs are forwarded to; only rank 0 gets an answer to that.
        lookout: whether the stability rules run beside the training; only rank 0 gets an answer to that.
    """

    def __init__(
        self,
        directory: Path,
        *,
        heartbeat_s: float = 10.0,
        timeout_s: float = 1.0,
        alerts: Mapping[str, object] | None = None,
        lookout: bool = False,
        upload: Mapping[str, object] | None = None,
        sinks: Sequence[str] = (),
    ) -> None:
        self.errors = 0
        """How many calls found no sidecar."""
        self._directory = directory.absolute()
        self._heartbeat_s = heartbeat_s
        self._timeout_s = timeout_s
        self._wishes: dict[str, object] = {"alerts": alerts, "lookout": lookout, "upload": upload}
        if sinks:
            self._wishes["sinks"] = list(sinks)
        self._start_at = 0.0
        self._starter: subprocess.Popen[bytes] | None = None
        self._closed = not supported()
        self.is_there = False
        """Whether the last call found one."""

    def register(self, stream: str, uid: str, pid: int, *, rank: int = 0, world_size: int = 1) -> bool:
        """Have the process behind a stream watched. Starts a sidecar if there is none.

        Idempotent: call it now and then, so that a sidecar that was slow to start or has died is replaced.

        Args:
            stream: the stream, 16 hex digits.
            uid: of the run it belongs to now.
            pid: the process.
            rank: that writes the stream.
            world_size: ranks of the run: above some hundreds the sidecar gathers their finished journal files.
        """
        place: dict[str, object] = {"rank": rank, "world_size": world_size, **self._wishes}
        if launch := os.environ.get(LAUNCH_VARIABLE):  # somebody waits until what is below it is sent
            place["launch"] = launch[:_LONGEST_LAUNCH]
        return self._call({"do": "register", "stream": stream, "uid": uid, "pid": pid, **place}, start=True)

    def joined(self, stream: str, uid: str) -> bool:
        """The stream belongs to another run than it was registered for."""
        return self._call({"do": "joined", "stream": stream, "uid": uid}, start=False)

    def ended(self, stream: str, reason: str) -> bool:
        """The run has ended in this process: no more heartbeats; how the process exits is still recorded."""
        return self._call({"do": "ended", "stream": stream, "reason": reason}, start=False)

    def keep(self, stream: str, why: str) -> bool:
        """Have the last steps of this node's ranks of the stream's run kept, for a reason such as "spike-120"."""
        return self._call({"do": "keep", "stream": stream, "why": why}, start=False)

    def close(self) -> None:
        """Make every later call do nothing."""
        self._closed = True
        self._collect_starter()

    def _call(self, request: dict[str, object], *, start: bool) -> bool:
        if self._closed:
            return False
        deadline = time.monotonic() + self._timeout_s
        self._collect_starter()
        try:
            done = self._until(deadline, request, start=start)
        except (OSError, subprocess.SubprocessError):
            done = False
        self.errors += not done
        self.is_there = done
        return done

    def _until(self, deadline: float, request: dict[str, object], *, start: bool) -> bool:
        pause = _FIRST_PAUSE_S
        while True:
            try:
                return self._ask(request, max(0.01, deadline - time.monotonic()))
            except (ConnectionError, FileNotFoundError):  # there is none, or it is just leaving
                if not start:
                    return False
            if time.monotonic() >= self._start_at:
                self._start_at = time.monotonic() + _START_AGAIN_S
                self._start(deadline)
            if time.monotonic() + pause > deadline:
                return False
            time.sleep(pause)
            pause *= 1.5

    def _ask(self, request: dict[str, object], timeout_s: float) -> bool:
        with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as connection:
            connection.settimeout(timeout_s)
            connection.connect(address(self._directory))
            if not peer_is_ours(connection):
                return False
            connection.send(json.dumps(request).encode())
            reply = connection.recv(16)
            if not reply:
                raise ConnectionResetError("the sidecar left without an answer")
            return reply == b"ok"

    def _collect_starter(self) -> None:
        if self._starter is not None and self._starter.poll() is not None:
            self._starter = None

    def _start(self, deadline: float) -> None:
        """Start a sidecar and collect the process that detaches it."""
        command = [sys.executable, "-m", "torchtrack.sidecar", str(self._directory), str(self._heartbeat_s)]
        nothing = subprocess.DEVNULL
        self._starter = subprocess.Popen(
            command, stdin=nothing, stdout=nothing, stderr=nothing, cwd="/", env=_environment(), start_new_session=True
        )
        with contextlib.suppress(subprocess.TimeoutExpired):  # a busy machine; the next call collects it
            self._starter.wait(max(0.0, deadline - time.monotonic()))


def _environment() -> dict[str, str]:
    """The rank's environment, with the place of this package if it was imported from elsewhere than an installation."""
    environ = dict(os.environ)
    root = str(Path(torchtrack.__file__).parent.parent)
    if root not in (*site.getsitepackages(), site.getusersitepackages()):
        environ["PYTHONPATH"] = os.pathsep.join(filter(None, (environ.get("PYTHONPATH"), root)))
    return environ
