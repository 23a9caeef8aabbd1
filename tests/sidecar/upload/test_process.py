"""What the process beside the sidecar sends of which nobody tells it."""

from __future__ import annotations

import json
import os
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.runs import until
from tests.server.running import Running
from tests.server.simulated import Journal, stored
from torchtrack.journal import frame
from torchtrack.journal.frame import Kind
from torchtrack.server.app import Config
from torchtrack.server.budget import Limits
from torchtrack.sidecar.upload import process
from torchtrack.sidecar.upload.process import Uploads


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    limits = Limits(job_requests_per_s=1000, interval_s=0.01, key_requests_per_s=2000)
    running = Running(Config(data=tmp_path_factory.mktemp("server"), limits=limits, queries=False))
    yield running
    running.stop()


class Node:
    """A runs folder and its uploader, in a thread of this process."""

    def __init__(self, folder: Path, server: Running) -> None:
        self.folder, self.server = folder, server
        self._out, self._in = os.pipe()
        self.uploads = Uploads(folder, self._out)
        self.thread = threading.Thread(target=self.uploads.run)
        self.thread.start()

    def tell(self, journal: Journal, **more: Any) -> None:
        request = {"stream": f"{journal.number:016x}", "uid": journal.uid, "rank": 0}
        sent = {**request, "url": self.server.url, "key": self.server.key, **more}
        os.write(self._in, json.dumps(sent).encode() + b"\n")

    def ended(self, journal: Journal) -> None:
        os.write(self._in, json.dumps({"stream": f"{journal.number:016x}", "ended": True}).encode() + b"\n")

    def leave(self) -> None:
        os.close(self._in)

    def arrived(self, path: Path) -> bool:
        return (self.server.config.runs / path.relative_to(self.folder)).exists()


@pytest.fixture
def node(tmp_path: Path, server: Running, monkeypatch: pytest.MonkeyPatch) -> Iterator[Node]:
    for name in ("_AROUND_S", "_AROUND_AT_THE_END_S", "_LONGEST_S"):
        monkeypatch.setattr(process, name, 0.02)
    made = Node(tmp_path, server)
    yield made
    if made.thread.is_alive():
        made.uploads._followed.clear()
    made.thread.join(20)
    assert not made.thread.is_alive()
    os.close(made._out)


def beside(folder: Path, number: int, uid: str, host: str, by: str | None = "lookout") -> Path:
    """A stream of a node, sealed."""
    path = folder / uid / "nodes" / f"{number:016x}.ttj"
    path.parent.mkdir(parents=True, exist_ok=True)
    record = {"type": "opening", "format": 1, "stream": f"{number:016x}", "segment": 0, "role": "node", "by": by}
    place = {"uid": uid, "rank": -1, "attempt": 0, "world_size": 0, "host": host, "start_time_ns": time.time_ns()}
    frames = [(Kind.META, frame.dump({**record, **place}), 0), (Kind.SEAL, b"{}", number)]
    raw = [
        b"".join(map(bytes, frame.encode(kind, payload, stream=seed, seq=seq, mono_ns=seq)[0]))
        for seq, (kind, payload, seed) in enumerate(frames)
    ]
    path.write_bytes(b"".join(raw))
    return path


def test_findings_and_what_processes_left_are_sent_while_the_run_goes_on_and_those_of_other_nodes_are_not(
    node: Node,
) -> None:
    journal = Journal(node.folder, 0xE1, 0)
    journal.append(b"rows")
    nodes = node.folder / journal.uid / "nodes"
    ours = beside(node.folder, 0xE2, journal.uid, socket.gethostname())
    theirs = beside(node.folder, 0xE3, journal.uid, "another-node")
    boxes = [nodes / f"{journal.number:016x}-0-spike-9.ttb", nodes / f"{journal.number:016x}-process.flight.json"]
    strange = [nodes / f"{0xE9:016x}-0.ttb", nodes / f"{journal.number:016x}.alerts"]
    for path in (*boxes, *strange):
        path.write_bytes(path.name.encode())
    node.tell(journal)
    until(lambda: all(map(node.arrived, (journal.path, ours, *boxes))))
    boxes[0].write_bytes(b"kept again, longer than before")
    until(lambda: (node.server.config.runs / boxes[0].relative_to(node.folder)).read_bytes() == boxes[0].read_bytes())
    journal.seal()
    node.ended(journal)
    node.leave()
    node.thread.join(20)

    assert not node.thread.is_alive()
    assert stored(node.server.config.runs / ours.relative_to(node.folder)) == stored(ours)
    assert not any(map(node.arrived, (theirs, *strange)))


def test_a_short_run_waits_for_its_lookout_to_begin_and_for_what_the_process_left(node: Node) -> None:
    journal = Journal(node.folder, 0xF1, 0)
    journal.seal()
    node.tell(journal, lookout=True)
    until(lambda: node.arrived(journal.path))
    box = node.folder / journal.uid / "nodes" / f"{journal.number:016x}-0.ttb"
    box.parent.mkdir(exist_ok=True)
    box.write_bytes(b"its last steps")
    node.ended(journal)
    node.leave()
    until(lambda: node.arrived(box))
    was_alive = node.thread.is_alive()
    late = beside(node.folder, 0xF2, journal.uid, socket.gethostname())
    node.thread.join(20)

    assert was_alive
    assert not node.thread.is_alive()
    assert node.arrived(late)


def test_a_rank_that_joins_another_run_has_its_files_sent_from_there(node: Node) -> None:
    journal = Journal(node.folder, 0xF5, 0)
    node.tell(journal)
    until(lambda: node.arrived(journal.path))
    box = node.folder / ("ef" * 8) / "nodes" / f"{journal.number:016x}-0.ttb"
    box.parent.mkdir(parents=True)
    box.write_bytes(b"its last steps")
    node.tell(journal, uid="ef" * 8, rank=1)
    until(lambda: node.arrived(box))
    journal.seal()
    node.ended(journal)
    node.leave()
