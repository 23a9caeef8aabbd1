"""What `import torchtrack` costs a script, beside the other trackers.

    python benchmarks/import_time.py [--rounds 15]

Every import is in a process of its own, the packages take turns, and the start of the interpreter is not counted. The
promise: at most 60 ms, and neither torch, numpy nor pyarrow is loaded.
"""

from __future__ import annotations

import argparse
import datetime
import importlib.metadata
import os
import platform
import statistics
import subprocess
import sys

PACKAGES = {
    "torchtrack": "torchtrack",
    "wandb": "wandb",
    "trackio": "trackio",
    "mlflow": "mlflow-skinny",
    "torch.utils.tensorboard": "tensorboard",
}
HEAVY = ("torch", "numpy", "pyarrow")
PROGRAM = """
import sys, time
begin = time.perf_counter()
import {name}
print((time.perf_counter() - begin) * 1e3, *[heavy for heavy in {heavy} if heavy in sys.modules])
"""


def measure(name: str) -> tuple[float, list[str]]:
    """Milliseconds of the import, and which heavy packages came with it."""
    program = PROGRAM.format(name=name, heavy=HEAVY)
    milliseconds, *loaded = subprocess.run(
        [sys.executable, "-c", program], check=True, capture_output=True, text=True
    ).stdout.split()[-1 - len(HEAVY) :]
    return float(milliseconds), loaded


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=15)
    rounds = parser.parse_args().rounds
    versions = {}
    for name, distribution in PACKAGES.items():
        try:
            versions[name] = importlib.metadata.version(distribution)
        except importlib.metadata.PackageNotFoundError:
            print(f"{name}: not installed")
    print(f"{datetime.date.today()}  {platform.platform()}  {os.cpu_count()} cores  {versions}")
    times: dict[str, list[float]] = {name: [] for name in versions}
    loaded: dict[str, list[str]] = {}
    for number in range(rounds + 1):
        for name in versions:
            took, loaded[name] = measure(name)
            if number:  # the first round reads the disk
                times[name].append(took)
    ours = statistics.median(times["torchtrack"])
    print(f"\n{'import':26} {'median ms':>10} {'max ms':>8} {'ratio':>7}   loads")
    for name, values in times.items():
        median = statistics.median(values)
        print(f"{name:26} {median:10.1f} {max(values):8.1f} {median / ours:6.1f}x   {', '.join(loaded[name]) or '-'}")


if __name__ == "__main__":
    main()
