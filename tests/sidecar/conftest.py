"""Real sidecars that serve real processes."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from torchtrack.journal.reader import Stream
from torchtrack.sidecar.client import Sidecar
from torchtrack.sidecar.process import address

Eventually = Callable[[Callable[[], object]], None]
UID = "ab" * 8
STREAM = "cd" * 8


@pytest.fixture
def eventually() -> Eventually:
    """Wait until something is true, however busy the machine is."""

    def wait(condition: Callable[[], object]) -> None:
        deadline = time.monotonic() + 40
        while not condition():
            assert time.monotonic() < deadline, "it never came true"
            time.sleep(0.005)

    return wait


class Node:
    """A runs folder with its sidecar, and processes that wait for a word before they end."""

    def __init__(self, directory: Path, eventually: Eventually) -> None:
        self.directory = directory
        self.eventually = eventually
        self.client = Sidecar(directory, heartbeat_s=0.05, timeout_s=30.0)
        self.processes: list[subprocess.Popen[bytes]] = []

    def trainer(self, end: str = "") -> subprocess.Popen[bytes]:
        """A process that does `end` when it is told to."""
        code = f"import os, sys\nsys.stdin.read(1)\n{end}"
        process = subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stderr=subprocess.DEVNULL)
        self.processes.append(process)
        return process

    def tell(self, process: subprocess.Popen[bytes]) -> None:
        """Let a trainer go on."""
        assert process.stdin is not None
        process.stdin.close()

    def records(self, uid: str = UID) -> list[dict[str, object]]:
        """What the sidecar has written for a run."""
        found = []
        for path in sorted((self.directory / uid / "nodes").glob("*.ttj")):
            stream = Stream(path)
            found += [json.loads(bytes(frame.payload)) for frame in stream.poll()]
            assert not stream.damages
        return found

    def exits(self, uid: str = UID) -> list[dict[str, object]]:
        """The exits it has written."""
        return [record for record in self.records(uid) if record.get("type") == "exit"]

    def heartbeats(self, uid: str = UID) -> list[dict[str, object]]:
        """The heartbeats it has written."""
        return [record for record in self.records(uid) if "streams" in record]

    def sidecars(self) -> list[psutil.Process]:
        """The sidecar processes of this folder."""
        found = []
        for process in psutil.process_iter():
            try:
                command = process.cmdline()
            except psutil.Error:
                continue
            if "torchtrack.sidecar" in command and str(self.directory) in command:
                found.append(process)
        return found

    def sidecar(self) -> psutil.Process:
        """The one that serves; another, started because it was slow to come, may still be about to leave."""
        self.eventually(lambda: len(self.sidecars()) == 1)
        return self.sidecars()[0]

    def is_up(self) -> bool:
        """Whether a sidecar listens."""
        with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as connection:
            try:
                connection.connect(address(self.directory))
            except ConnectionError:
                return False
            return True

    def close(self) -> None:
        """End everything."""
        for process in self.processes:
            process.kill()
            process.communicate()
        self.client.close()
        for sidecar in self.sidecars():
            sidecar.send_signal(signal.SIGTERM)
        self.eventually(lambda: not self.sidecars())


@pytest.fixture
def node(tmp_path: Path, eventually: Eventually) -> Iterator[Node]:
    """A node with nothing on it yet."""
    made = Node(tmp_path, eventually)
    yield made
    made.close()
    assert os.getpid() not in [process.ppid() for process in made.sidecars()]
