"""Does the gradient noise scale of one training depend on how many ranks or micro-batches it is cut into? It must not.

    python benchmarks/noise_scale.py [--steps 200]

The demo (examples/ddp/train.py, a small GPT), the same 16 sequences a step: two and four ranks, and one and four
micro-batches a rank. Printed are the noise scale in sequences, which is the critical batch size, with its band of 95 %,
and whether all bands overlap. Ranks draw other sequences in each layout, and the model learns while it is measured:
bands are the yardstick, equality is not expected.
"""

from __future__ import annotations

import argparse
import datetime
import importlib.metadata
import os
import platform
import subprocess
import sys
import tempfile
from pathlib import Path

import torchtrack

DEMO = Path(__file__).parent.parent / "examples" / "ddp" / "train.py"
SMALL = ("n_layer=2", "n_head=2", "n_embd=32", "block_size=32", "num_chars=300000", "log_freq=1", "eval_every=1000000")
SEQUENCES = 16
LAYOUTS = ((2, 1), (2, 4), (4, 1), (4, 4))
"""Ranks, and micro-batches of a rank."""


def train(folder: Path, ranks: int, micro_batches: int, steps: int) -> str:
    """The uid of the run."""
    accumulation = ranks * micro_batches  # the demo shares them between the ranks
    words = [f"accumulation={accumulation}", f"batch_size={SEQUENCES // accumulation}", f"max_steps={steps}", "lr=1e-3"]
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={ranks}"]
    subprocess.run(
        [*launch, str(DEMO), *words, *SMALL],
        check=True,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        env={**os.environ, "TORCHTRACK_DIR": str(folder), "TORCHTRACK_SIDECAR": "0", "OMP_NUM_THREADS": "1"},
    )
    (run,) = torchtrack.Api(folder).runs()
    return str(run.uid)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=200)
    options = parser.parse_args()
    versions = {name: importlib.metadata.version(name) for name in ("torch", "torchtrack", "numpy")}
    print(f"{datetime.date.today()}  {platform.platform()}  {os.cpu_count()} cores  {versions}")
    print(f"{'ranks':>5} {'micro-batches':>14} {'steps':>6} {'noise scale in sequences':>26}")
    bands = []
    for ranks, micro_batches in LAYOUTS:
        with tempfile.TemporaryDirectory() as folder:
            uid = train(Path(folder), ranks, micro_batches, options.steps)
            found = torchtrack.Api(folder).run(uid).noise_scale(start=options.steps // 10)
        if found is None:
            raise SystemExit(f"{ranks} ranks, {micro_batches} micro-batches: too few steps that all ranks recorded")
        own = SEQUENCES / ranks
        low, middle, high = (own * value for value in (found.low, found.ratio, found.high))
        bands.append((low, high))
        print(
            f"{ranks:5} {micro_batches:14} {found.steps:6} {f'{middle:8.1f} ({low:.1f} .. {high:.1f})':>26}", flush=True
        )
    agree = max(low for low, _ in bands) <= min(high for _, high in bands)
    print("all bands overlap" if agree else "BANDS THAT DO NOT OVERLAP")
    raise SystemExit(not agree)


if __name__ == "__main__":
    main()
