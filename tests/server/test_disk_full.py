"""A disk that really is full, under a real server with its worker: nothing acknowledged is lost, nothing is twice."""

from __future__ import annotations

import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

import torchtrack
from tests.runs import begin, until
from tests.server.simulated import stored
from torchtrack import credentials
from torchtrack.journal.reader import find_streams
from torchtrack.sidecar.upload.engine import Uploader
from torchtrack.sidecar.upload.transport import Http

pytestmark = [pytest.mark.chaos, pytest.mark.timeout(300)]

ROOT = Path(__file__).parents[2]
SMALL, LARGE = "10m", "400m"
START = """
import sys, pathlib
from torchtrack.server.app import Config
from torchtrack.server.budget import Limits
from torchtrack.server.serve import serve
limits = Limits(interval_s=0.01, job_requests_per_s=1000, free_bytes=int(sys.argv[2]))
serve(Config(data=pathlib.Path(sys.argv[1]), limits=limits), 0, lambda address, key: print(address, flush=True))
"""


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A folder with little room."""
    folder = tmp_path / "disk"
    folder.mkdir()
    done = subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={SMALL}", "none", folder], capture_output=True)
    if done.returncode:
        pytest.skip(f"not run: a small disk cannot be mounted here: {done.stderr.decode().strip()}")
    yield folder
    subprocess.run(["umount", "--lazy", folder], check=True)


@contextmanager
def server(disk: Path, free_bytes: int) -> Iterator[tuple[subprocess.Popen[str], str, str]]:
    environ = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", START, str(disk / "data"), str(free_bytes)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environ)
    try:
        assert process.stdout is not None
        url = process.stdout.readline().strip()
        assert url.startswith("http://")
        yield process, url, (disk / "data" / "token").read_text().strip()
    finally:
        process.send_signal(signal.SIGTERM)
        process.communicate()


def record(folder: Path, seed: int) -> str:
    """A run whose journal, incompressible, does not fit."""
    rng = random.Random(seed)
    run = begin(dir=folder, mode="offline")
    for step in range(400):
        run.log({"loss": rng.random(), "text": rng.randbytes(24_000).hex()}, step=step)
    run.finish(quiet=True)
    return run.uid


def send(url: str, key: str, folder: Path, enough: Callable[[Uploader], bool]) -> Uploader:
    """Send until it is so, for a minute at most."""
    uploader = Uploader(Http(url, lambda: key))
    for path in find_streams(folder):
        uploader.follow(path).hurried = True
    ends = time.monotonic() + 60
    while time.monotonic() < ends and not enough(uploader):
        time.sleep(min(uploader.step(), 0.2))  # as long as the uploader wants to wait
    return uploader


def is_there(uploader: Uploader) -> bool:
    return uploader.idle and uploader.done


def is_full(uploader: Uploader) -> bool:
    """Something was taken, and then there was no room."""
    return "make room on the server" in str(uploader.problem) and any(tail.acked for tail in uploader.tails.values())


def assert_kept(uploader: Uploader, runs: Path) -> None:
    """Every frame that was acknowledged is in the server's files, as it was sent."""
    there = {key: raw for path in find_streams(runs) for key, raw in stored(path).items()}
    here = {key: raw for tail in uploader.tails.values() for key, raw in stored(tail.path).items()}
    assert all(here[key] == raw for key, raw in there.items())
    acked = {key for key in here if key[1] < uploader.tails[key[0]].acked}
    assert acked <= there.keys()


@pytest.mark.parametrize("free_bytes", [0, 2 << 20], ids=["to the last byte", "with a reserve"])
def test_what_was_acknowledged_survives_a_full_disk_and_the_rest_is_sent_when_there_is_room(
    disk: Path, tmp_path: Path, free_bytes: int
) -> None:
    folder, runs = tmp_path / "here", disk / "data" / "runs"
    uids = [record(folder, seed) for seed in range(2)]
    with server(disk, free_bytes) as (process, url, key):
        first = send(url, key, folder, is_full)
        full = shutil.disk_usage(disk).free
        assert (first.done, first.state) == (False, "busy")
        assert is_full(first), first.problem
        process.kill()
        process.wait()
    assert_kept(first, runs)
    assert full < (4 << 20)

    subprocess.run(["mount", "-o", f"remount,size={LARGE}", disk], check=True)
    with server(disk, free_bytes) as (_, url, key):
        assert send(url, key, folder, is_there).done
        again = send(url, key, folder, is_there)  # the same once more changes nothing
        credentials.keep(url, key)
        there = torchtrack.Api(url)
        until(lambda: len(there.runs()) == len(uids), 60)
        for uid in uids:
            until(lambda uid=uid: torchtrack.Api(url).run(uid).history(["loss"]).num_rows == 400, 60)  # type: ignore[misc]
            mine, theirs = torchtrack.Api(folder).run(uid), torchtrack.Api(url).run(uid)
            assert theirs.history(["loss"]) == mine.history(["loss"])
    assert_kept(again, runs)
    assert {key for path in find_streams(runs) for key in stored(path)} == {
        key for path in find_streams(folder) for key in stored(path)
    }
