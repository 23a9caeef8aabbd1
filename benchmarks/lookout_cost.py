"""What the stability rules cost beside the training: processor time of the lookout for a thousand samples.

    python benchmarks/lookout_cost.py [--quick]

A model is trained and watched (`log="all"`, every step sampled); then its journal grows again, a sample a second as far
as the lookout can tell, and the lookout follows it. The processor time is that of another process than the training,
at the lowest priority. "start" is a process that imports what a lookout needs. "replay" is `Run.findings` over the same
rows, for comparison.
"""

from __future__ import annotations

import argparse
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch
from torch import nn

import torchtrack
from torchtrack.lookout.lookout import Lookout

DEMO = (4, 128)
"""Layers and width: about as many tensors as the demo has (examples/ddp/train.py)."""


class Clock:
    """A second a look."""

    now_s = 0.0

    def __call__(self) -> float:
        return self.now_s


class Block(nn.Module):
    """The twelve parameters of a layer of the demo."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.parts = nn.ModuleList(
            nn.LayerNorm(width) if norm else nn.Linear(width, width)
            for norm in (True, False, False, True, False, False)
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for part in self.parts:
            x = x + 0.1 * part(x)
        return x


def train(folder: Path, layers: int, width: int, steps: int) -> tuple[str, int]:
    """A run whose every step is sampled; its uid and the number of its tensors."""
    torch.manual_seed(0)
    model = nn.Sequential(*(Block(width) for _ in range(layers)))
    optimizer = torch.optim.SGD(model.parameters(), 1e-3)
    run = torchtrack.init(dir=folder, system_interval=0)
    run.watch(model, log="all", log_freq=1)
    for _ in range(steps):
        loss = model(torch.randn(8, width)).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        run.log({"loss": loss})
        time.sleep(0.02)  # so that rows of tensors are written soon after the numbers of their step, as in real life
    uid = run.uid
    run.finish(quiet=True)
    return uid, len(list(model.parameters()))


def follow(source: Path, folder: Path, uid: str, looks: int) -> float:
    """Processor seconds of a lookout that looks so often while the files of a run grow."""
    clock = Clock()
    data = {folder / path.relative_to(source): path.read_bytes() for path in source.rglob("*.ttj")}
    for path in data:
        path.parent.mkdir(parents=True, exist_ok=True)
    lookout = Lookout(folder, uid, clock=clock)
    spent = 0.0
    for look in range(looks):
        for path, content in data.items():
            with path.open("ab") as file:
                file.write(content[len(content) * look // looks : len(content) * (look + 1) // looks])
        clock.now_s += 1.0
        started = time.process_time()
        lookout.look()
        spent += time.process_time() - started
    started = time.process_time()
    lookout.finish()
    return spent + time.process_time() - started


def start() -> float:
    """Processor seconds until a lookout can work."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run([sys.executable, "-c", "import torchtrack.lookout.lookout"], check=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="a tenth of the samples")
    samples = 100 if parser.parse_args().quick else 1000
    os.environ["TORCHTRACK_SIDECAR"] = "0"
    torch.set_num_threads(1)
    print(f"start: {start():.2f} s of processor time")
    titles = ("tensors", "rows/sample", "lookout, s/1000", "ms/sample", "replay, s/1000")
    print("".join([f"{'model':24}", *(f"{title:>16}" for title in titles)]))
    for name, (layers, width) in {"the demo's shape": DEMO, "300 tensors": (25, 32)}.items():
        with tempfile.TemporaryDirectory() as place:
            uid, tensors = train(Path(place) / "stored", layers, width, samples)
            spent = follow(Path(place) / "stored", Path(place) / "grown", uid, samples)
            started = time.process_time()
            torchtrack.Api(Path(place) / "stored").run(uid).findings()
            replay = time.process_time() - started
        each = 1000 / samples
        measured = f"{spent * each:16.1f}{1000 * spent / samples:16.1f}{replay * each:16.1f}"
        print(f"{name:24}{tensors:16}{2 * tensors:16}{measured}", flush=True)


if __name__ == "__main__":
    main()
