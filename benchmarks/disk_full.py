"""How many rows are there after a disk was full for 1.2 seconds?

A child logs 1500 rows at 2 ms on a small tmpfs; after 0.8 seconds a filler takes all of its space, and is deleted 1.2
seconds later. The child then finishes normally, and another process reads the run. Needs root, to mount the tmpfs.

    python benchmarks/disk_full.py
"""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import _trackers

ROWS = 1500
PERIOD_S = 0.002
FULL_AFTER_S = 0.8
FULL_FOR_S = 1.2
SIZE_KIB = 4096
TIMEOUT_S = 60


def write(name: str, folder: Path, started: Path) -> None:
    """The child: log all rows, count the calls that raised, finish."""
    tracker = _trackers.tracker(name)(folder)
    raised = 0
    for step in range(ROWS):
        try:
            tracker.log(step, float(step))
        except Exception:  # noqa: BLE001  # whatever reaches the training loop is what is measured
            raised += 1
        if not step:
            started.touch()
        time.sleep(PERIOD_S)
    try:
        tracker.finish()
    except Exception:  # noqa: BLE001
        raised += 1
    print(raised, flush=True)


def measure(name: str, disk: Path, place: Path) -> list[object]:
    """Fill the disk under one tracker's child; its row of the table."""
    versions = _trackers.versions(_trackers.tracker(name))
    folder, started = disk / "runs", place / f"{name}.started"
    folder.mkdir()
    child = subprocess.Popen(
        [sys.executable, __file__, "write", name, str(folder), str(started)],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    while not started.exists() and child.poll() is None:
        time.sleep(0.01)
    time.sleep(FULL_AFTER_S)
    filler = disk / "filler"
    until = time.monotonic() + FULL_FOR_S
    with filler.open("wb", buffering=0) as file:
        while time.monotonic() < until:  # takes what anyone gives back meanwhile, too
            with contextlib.suppress(OSError):
                while file.write(bytes(4096)):
                    pass
            time.sleep(0.001)
    filler.unlink()
    try:
        output, _ = child.communicate(timeout=TIMEOUT_S)
        raised = output.split()[-1] if output.split() else f"exit {child.returncode}"
    except subprocess.TimeoutExpired:
        child.kill()
        child.communicate()
        raised = f"hung for {TIMEOUT_S} s"
    reader = subprocess.run(
        [sys.executable, __file__, "read", name, str(folder)], capture_output=True, text=True, timeout=120
    )
    if reader.returncode:
        return [name, versions, "reader failed", "", raised, ""]
    recovered = {int(value) for value in json.loads(reader.stdout.splitlines()[-1])}
    after = sum(step > ROWS * 0.8 for step in recovered)
    return [name, versions, len(recovered), ROWS - len(recovered), raised, "yes" if after else "no"]


def main() -> None:
    rows: list[list[object]] = []
    for kind in _trackers.TRACKERS:
        if _trackers.versions(kind) is None:
            rows.append([kind.name, "not installed", "", "", "", ""])
            continue
        with tempfile.TemporaryDirectory() as name:
            disk = Path(name) / "disk"
            disk.mkdir()
            mounted = ["mount", "-t", "tmpfs", "-o", f"size={SIZE_KIB}k", "none", str(disk)]
            if subprocess.run(mounted, capture_output=True).returncode:
                sys.exit("mounting a tmpfs needs root on Linux")
            try:
                rows.append(measure(kind.name, disk, Path(name)))
            finally:
                subprocess.run(["umount", "-l", str(disk)], check=True)
    header = ["tracker", "versions", "recovered", "lost", "calls that raised", "rows after the full period"]
    print(f"{ROWS} rows at {PERIOD_S * 1e3:.0f} ms on a tmpfs of {SIZE_KIB} KiB, full for {FULL_FOR_S} s\n")
    print(_trackers.table(header, rows))
    print(f"\n{_trackers.machine()}")


if __name__ == "__main__":
    if sys.argv[1:2] == ["write"]:
        write(sys.argv[2], Path(sys.argv[3]), Path(sys.argv[4]))
    elif sys.argv[1:2] == ["read"]:
        print(json.dumps(_trackers.tracker(sys.argv[2]).read(Path(sys.argv[3]))))
    else:
        main()
