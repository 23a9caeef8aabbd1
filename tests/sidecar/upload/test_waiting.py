"""How long a launch stays."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.runs import until
from torchtrack.sidecar.upload import progress
from torchtrack.sidecar.upload.waiting import Wait

URL, LAUNCH, STREAM = "http://server", "1a" * 8, "cd" * 8
OURS = {"uid": "ab" * 8, "launch": LAUNCH, "path": "x.ttj", "acked": 3}


class Bench:
    """The uploader's file, written as time passes: `story` holds what it says from which second on."""

    def __init__(self, folder: Path, pid: int) -> None:
        self.folder, self.pid = folder, pid
        self.now = 0.0
        self.story: list[tuple[float, dict[str, Any]]] = []
        self.path = progress.path_of(folder, URL, "sidecar")
        self.path.parent.mkdir()

    def sleep(self, seconds: float) -> None:
        self.now += seconds
        while self.story and self.story[0][0] <= self.now:
            self.path.write_text(json.dumps({"pid": self.pid, "state": "ok", **self.story.pop(0)[1]}))

    def wait(self, timeout_s: float = 10.0) -> Any:
        self.sleep(0.0)
        return Wait(self.folder, URL, LAUNCH, timeout_s, clock=lambda: self.now, sleep=self.sleep).until_sent()


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    command = [sys.executable, "-c", "input()", "torchtrack.sidecar.upload", str(tmp_path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE) as process:
        until(lambda: str(tmp_path).encode() in Path(f"/proc/{process.pid}/cmdline").read_bytes())
        yield Bench(tmp_path, process.pid)
        process.kill()


def says(**streams: Any) -> dict[str, Any]:
    return {"following": streams, "launches": [LAUNCH]}


def test_it_is_over_when_all_streams_of_the_launch_have_arrived_though_others_have_not(bench: Bench) -> None:
    other, node = {**OURS, "uid": "ef" * 8, "launch": "2b" * 8}, {**OURS, "launch": ""}
    bench.story = [
        (0.0, {}),
        (1.0, says(a=OURS, b=other, c=node)),
        (2.0, says(b=other, c=node)),  # whose the node's stream is is known by the run
        (5.0, says(b=other)),
    ]
    assert bench.wait() is None
    assert 5.0 <= bench.now < 6.0


def test_it_goes_on_as_long_as_something_arrives_and_names_what_has_not(bench: Bench) -> None:
    bench.story = [(0.0, {}), *((2.0 * step, says(a={**OURS, "acked": step})) for step in range(1, 20))]
    left = bench.wait(timeout_s=10.0)

    assert 48.0 <= bench.now <= 49.0
    assert "nothing has arrived for 10 s" in left.why
    assert left.streams == {"a": {**OURS, "acked": 19}}


def test_without_a_sender_nobody_waits(bench: Bench) -> None:
    bench.pid = 2**22 + 1
    bench.story = [(0.0, says(a=OURS))]
    left = bench.wait()

    assert bench.now == 0.0
    assert left.streams == {"a": OURS}


def test_with_a_wrong_key_nobody_waits(bench: Bench) -> None:
    bench.story = [(0.0, {**says(a=OURS), "state": "no_key", "problem": "a wrong API key"})]

    assert bench.wait().why == "a wrong API key"
    assert bench.now == 0.0


def test_a_stream_that_the_server_refuses_is_named_and_not_waited_for(bench: Bench) -> None:
    refused = {**OURS, "problem": "it has something else"}
    bench.story = [(0.0, says(a=refused, b=OURS)), (5.0, says(a=refused))]
    left = bench.wait()

    assert (left.why, list(left.streams)) == ("it has something else", ["a"])


@pytest.mark.parametrize("record", [{}, {"following": {"a": {**OURS, "launch": "2b" * 8}}, "launches": ["2b" * 8]}])
def test_a_launch_that_recorded_nothing_is_not_waited_for(bench: Bench, record: dict[str, Any]) -> None:
    bench.story = [(0.0, record)]

    assert bench.wait() is None
    assert bench.now < 4.0


def test_where_there_is_nothing_at_all_it_is_over_at_once(tmp_path: Path) -> None:
    assert Wait(tmp_path, URL, LAUNCH, 10.0, sleep=lambda _: os.abort()).until_sent() is None
