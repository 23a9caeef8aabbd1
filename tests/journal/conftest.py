"""Writers that are closed, disks that are small, and waiting that ends."""

from __future__ import annotations

import contextlib
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Protocol

import pytest

from torchtrack.journal import Frame, Kind, Stream, Writer

STREAM = 0x0123456789ABCDEF
UID = "00112233aabbccdd"
OPENING = {"role": "rank", "uid": UID, "attempt": 1, "rank": 3, "world_size": 8, "pid": 1, "boot_id": "elsewhere"}


class NewWriter(Protocol):
    def __call__(self, folder: Path | None = None, *, stream: int = STREAM, **options: Any) -> Writer: ...


@pytest.fixture
def new_writer(tmp_path: Path) -> Iterator[NewWriter]:
    """Makes writers and closes them."""
    with contextlib.ExitStack() as writers:

        def make(folder: Path | None = None, *, stream: int = STREAM, **options: Any) -> Writer:
            folder = tmp_path / UID / "000" if folder is None else folder
            writer = Writer(folder, f"3-{stream:016x}", stream, OPENING, **options)
            writers.callback(writer.close)
            return writer

        yield make


@pytest.fixture
def final_stream() -> Callable[[Path], Stream]:
    """Makes a reader that knows the writer has ended long ago."""
    return lambda path: Stream(path, grace_s=-1e18, gone=lambda *_: True)


@pytest.fixture
def rows() -> Callable[[list[Frame]], list[bytes]]:
    """The payloads of the data frames."""
    return lambda frames: [frame.payload for frame in frames if frame.kind is Kind.DATA]


@pytest.fixture
def wait_until() -> Callable[[Callable[[], object]], None]:
    """Polls a condition until it holds; a test that waits for nothing fails after ten seconds."""

    def wait(condition: Callable[[], object]) -> None:
        deadline = time.monotonic() + 10
        while not condition():
            assert time.monotonic() < deadline, "what the test waits for did not happen"
            time.sleep(0.01)

    return wait


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Callable[[int], Path]]:
    """Mounts a tmpfs of so many KiB; skips where that is not allowed."""
    mounted: list[Path] = []

    def mount(size_kib: int) -> Path:
        folder = tmp_path / f"disk{len(mounted)}"
        folder.mkdir()
        done = shutil.which("mount") and subprocess.run(
            ["mount", "-t", "tmpfs", "-o", f"size={size_kib}k", "none", folder], capture_output=True
        )
        if not done or done.returncode:
            pytest.skip("mounting a tmpfs needs root on Linux")
        mounted.append(folder)
        return folder

    yield mount
    for folder in mounted:
        subprocess.run(["umount", "-l", folder], check=True)


class Child(Protocol):
    def __call__(self, folder: Path, *options: str, strace: tuple[str, ...] = ()) -> subprocess.Popen[str]: ...


@pytest.fixture
def child() -> Iterator[Child]:
    """Starts tests/journal/child.py, which writes a journal, perhaps under strace."""
    with contextlib.ExitStack() as processes:

        def start(folder: Path, *options: str, strace: tuple[str, ...] = ()) -> subprocess.Popen[str]:
            command = [sys.executable, str(Path(__file__).with_name("child.py")), str(folder), *options]
            if strace:
                command = ["strace", "-f", "-qq", "-o", "/dev/null", *strace, *command]
            process = processes.enter_context(
                subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
            )
            processes.callback(process.kill)
            return process

        yield start


@pytest.fixture(scope="session")
def strace() -> None:
    """Skips where strace cannot trace."""
    if shutil.which("strace") is None:
        pytest.skip("strace is not installed (Debian package strace)")
    if subprocess.run(["strace", "-qq", "-o", "/dev/null", "true"], capture_output=True).returncode:
        pytest.skip("strace may not trace here")
