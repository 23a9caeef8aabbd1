"""How many rows whose log() had returned are there after kill -9?

A child logs one number every 5 ms and publishes, in a mapped file, when each call returned. After three seconds it is
killed with its whole session, so that no helper process saves what it still held, and another process reads the run.

    python benchmarks/crash_recovery.py [seconds]
"""

from __future__ import annotations

import contextlib
import json
import mmap
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import _trackers

SLOTS = 100_000
PERIOD_S = 0.005


def write(name: str, folder: Path, times: Path) -> None:
    """The child: log until killed."""
    tracker = _trackers.tracker(name)(folder)
    with times.open("r+b") as file, mmap.mmap(file.fileno(), 8 * SLOTS) as shared:
        returned = memoryview(shared).cast("d")
        for step in range(SLOTS):
            tracker.log(step, float(step))
            returned[step] = time.monotonic()
            time.sleep(PERIOD_S)


def measure(name: str, seconds: float) -> list[object]:
    """Kill one tracker's child; its row of the table."""
    with tempfile.TemporaryDirectory() as place:
        folder, times = Path(place) / "runs", Path(place) / "times"
        folder.mkdir()
        times.write_bytes(bytes(8 * SLOTS))
        child = subprocess.Popen(
            [sys.executable, __file__, "write", name, str(folder), str(times)],
            start_new_session=True,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        while not any(times.read_bytes()[:8]) and child.poll() is None:
            time.sleep(0.01)
        time.sleep(seconds)
        killed_at = time.monotonic()
        with contextlib.suppress(ProcessLookupError):
            os.killpg(child.pid, signal.SIGKILL)
        child.wait()
        returned = [at for at in memoryview(times.read_bytes()).cast("d") if at]
        reader = subprocess.run(
            [sys.executable, __file__, "read", name, str(folder)], capture_output=True, text=True, timeout=120
        )
        if reader.returncode:
            return [name, _trackers.versions(_trackers.tracker(name)), len(returned), "reader failed", "", ""]
        recovered = set(json.loads(reader.stdout.splitlines()[-1]))
    lost = [step for step in range(len(returned)) if float(step) not in recovered]
    age = f"{killed_at - returned[lost[0]]:.3f} s" if lost else "-"
    kept = len(returned) - len(lost)
    return [name, _trackers.versions(_trackers.tracker(name)), len(returned), kept, len(lost), age]


def main() -> None:
    seconds = float(sys.argv[1]) if len(sys.argv) > 1 else 3.0
    rows: list[list[object]] = []
    for kind in _trackers.TRACKERS:
        if _trackers.versions(kind) is None:
            rows.append([kind.name, "not installed", "", "", "", ""])
        else:
            rows.append(measure(kind.name, seconds))
    header = ["tracker", "versions", "rows returned", "recovered", "lost", "age of the oldest lost row"]
    print(f"Rows recovered after kill -9: one row every {PERIOD_S * 1e3:.0f} ms, killed after {seconds:g} s\n")
    print(_trackers.table(header, rows))
    print(f"\n{_trackers.machine()}")


if __name__ == "__main__":
    if sys.argv[1:2] == ["write"]:
        write(sys.argv[2], Path(sys.argv[3]), Path(sys.argv[4]))
    elif sys.argv[1:2] == ["read"]:
        print(json.dumps(_trackers.tracker(sys.argv[2]).read(Path(sys.argv[3]))))
    else:
        main()
