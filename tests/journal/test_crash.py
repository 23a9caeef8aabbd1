"""Whatever instant a process dies at, every frame `append` had said is on file is read back, and no other bytes."""

from __future__ import annotations

import random
import runpy
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from torchtrack.journal import Frame, Kind, Stream

if TYPE_CHECKING:
    from tests.journal.conftest import Child

Rows = Callable[[list[Frame]], list[bytes]]
row: Callable[[int], bytes] = runpy.run_path(str(Path(__file__).with_name("child.py")))["row"]
JOURNAL = "run/000/0-00000000000000aa.ttj"


def verify(folder: Path) -> Stream:
    """What was published is there, in order, and nothing in the middle is torn; the stream that was read."""
    published = int.from_bytes((folder / "published").read_bytes(), "little")
    stream = Stream(folder / JOURNAL)
    frames = stream.poll()
    assert len(frames) >= published
    assert [item.seq for item in frames] == list(range(len(frames)))
    read = [item.payload for item in frames if item.kind is Kind.DATA]
    assert read == [row(number) for number in range(len(read))]
    assert stream.damages == []
    return stream


def kill_at(child: Child, folder: Path, syscall: str, number: int) -> int:
    """Run the child and kill it as it enters the n-th such call; its exit status."""
    paths = [JOURNAL, *(f"run/000/0-00000000000000aa.{segment}.ttj" for segment in range(1, 6))]
    only = [part for path in paths for part in ("-P", str(folder / path))]
    process = child(folder, strace=(*only, "-e", f"inject={syscall}:signal=SIGKILL:when={number}"))
    process.communicate(timeout=50)
    return process.returncode


@pytest.mark.usefixtures("strace")
@pytest.mark.parametrize(
    ("syscall", "number"),
    [("openat", 1), ("openat", 2), ("writev", 1), ("writev", 2), ("writev", 23), ("writev", 61), ("fdatasync", 1)],
)
def test_a_process_killed_at_a_system_call_loses_nothing_it_was_told_is_safe(
    child: Child, tmp_path: Path, syscall: str, number: int
) -> None:
    assert kill_at(child, tmp_path, syscall, number) == -signal.SIGKILL

    assert verify(tmp_path).seal is None


def test_a_process_killed_at_any_moment_loses_nothing_it_was_told_is_safe(
    child: Child, tmp_path: Path, wait_until: Callable[[Callable[[], object]], None]
) -> None:
    process = child(tmp_path, "--rows", "1000000", "--segment-bytes", "20000")
    published = tmp_path / "published"
    wait_until(lambda: published.exists() and published.read_bytes()[:2] > b"\x00\x10")

    process.kill()
    process.wait()

    verify(tmp_path)


@pytest.mark.chaos
@pytest.mark.timeout(900)
@pytest.mark.usefixtures("strace")
@pytest.mark.parametrize("syscall", ["writev", "fdatasync", "openat"])
def test_killed_at_every_call_of_a_kind(child: Child, tmp_path: Path, syscall: str) -> None:
    for number in range(1, 100):
        folder = tmp_path / str(number)
        folder.mkdir()
        code = kill_at(child, folder, syscall, number)
        verify(folder)
        if not code:  # there is no n-th call any more
            break

    assert number > 2


@pytest.mark.chaos
@pytest.mark.timeout(900)
def test_killed_two_hundred_times_at_random(child: Child, tmp_path: Path) -> None:
    chance = random.Random(0)
    for number in range(200):
        folder = tmp_path / str(number)
        folder.mkdir()
        process = child(folder, "--rows", "1000000", "--segment-bytes", "20000")
        time.sleep(0.1 + chance.random() / 2)
        process.kill()
        process.wait()
        if (folder / "published").exists():
            verify(folder)
