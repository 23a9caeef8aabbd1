"""How often do the stability rules speak where nothing is wrong?

    python benchmarks/stability_false_alarms.py [--quick] [--ranks 2] [--only demo]

Healthy trainings, on one rank or under DistributedDataParallel on several, each with five seeds, three learning rates,
and with and without warm-up: a classifier under SGD with momentum and under AdamW, one that is stopped and resumed, and
the demo model (a small GPT, examples/ddp/train.py). Each times the phases of its steps, so that the rules that compare
ranks have something to say: on a machine with no more cores than ranks, times are as noisy as they get. The table says
how many of the runs have a finding of each rule, by severity. The claim: none is critical.
"""

from __future__ import annotations

import argparse
import functools
import importlib
import itertools
import os
import shutil
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

import torchtrack
from torchtrack.testing import ranks

DEMO = Path(__file__).parent.parent / "examples" / "ddp" / "train.py"
SEEDS = range(5)
WARMUPS = (0, 30)
LEARNING_RATES = {"sgd": (0.01, 0.03, 0.05), "adamw": (3e-4, 1e-3, 1e-2), "demo": (1e-3, 3e-3, 6e-3)}
SMALL = ("n_layer=2", "n_head=2", "n_embd=64", "block_size=32", "accumulation=2", "num_chars=300000", "log_freq=2")
# The demo has one seed of its own; another is put in its place. It times no phases; they are put around what it calls.
SEEDED = """
import runpy, sys, torch, torchtrack
from torch.nn.parallel import DistributedDataParallel as Wrapped

def timed(owner, name, phase, then=""):
    plain = getattr(owner, name)
    def call(*args, **options):
        if torchtrack.run is not None:
            torchtrack.run.phase(phase)
        result = plain(*args, **options)
        if then and torchtrack.run is not None:
            torchtrack.run.phase(then)
        return result
    setattr(owner, name, call)

seed, script = int(sys.argv[1]), sys.argv[2]
seeded = torch.manual_seed
torch.manual_seed = lambda value: seeded(value + seed)
sys.argv = sys.argv[2:]
timed(Wrapped, "forward", "forward")
timed(torch.Tensor, "backward", "backward")
timed(torch.optim.AdamW, "step", "optimizer", then="data")
runpy.run_path(script, run_name="__main__")
"""


def classify(
    folder: Path, optimizer: str, seed: int, lr: float, warmup: int, *, steps: int = 300, resume_at: int | None = None
) -> None:
    """Train a classifier of blurred patterns; maybe stop, go back twenty steps, and go on as the next attempt."""
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Linear(64, 48), nn.ReLU(), nn.Linear(48, 32), nn.ReLU(), nn.Linear(32, 10))
    size = dist.get_world_size() if dist.is_initialized() else 1
    generator = torch.Generator().manual_seed(seed + 1000 * (dist.get_rank() if size > 1 else 0))
    patterns = torch.randn(10, 64, generator=torch.Generator().manual_seed(seed))
    trained: nn.Module = DistributedDataParallel(model) if size > 1 else model
    made: torch.optim.Optimizer = torch.optim.AdamW(model.parameters(), lr=lr)
    if optimizer == "sgd":
        made = torch.optim.SGD(model.parameters(), lr=lr, momentum=0.9)
    spans = [(0, steps)] if resume_at is None else [(0, resume_at), (resume_at - 20, steps)]
    for start, stop in spans:
        run = torchtrack.init(
            dir=folder, id=f"classify-{optimizer}-{seed}-{lr}-{warmup}-{resume_at}", system_interval=0.0
        )
        run.watch(trained, log=("gradients", "parameters", "updates", "activations"), log_freq=2)
        for step in range(start, stop):
            run.phase("data")
            labels = torch.randint(10, (64,), generator=generator)
            pictures = patterns[labels] + 2.5 * torch.randn(64, 64, generator=generator)
            run.phase("forward")
            loss = nn.functional.cross_entropy(trained(pictures), labels)
            for group in made.param_groups:
                group["lr"] = lr * min(1.0, (step + 1) / max(warmup, 1))
            made.zero_grad()
            run.phase("backward")
            loss.backward()
            run.phase("optimizer")
            made.step()
            run.log({"loss": loss, "lr": made.param_groups[0]["lr"]}, step=step)
        run.finish(quiet=True)


def demo(folder: Path, seed: int, lr: float, warmup: int, *, size: int = 1) -> None:
    """The demo, smaller."""
    arguments = [f"lr={lr}", f"warmup_steps={max(warmup, 1)}", "max_steps=200", *SMALL]
    script = folder / "seeded.py"
    script.write_text(SEEDED)
    launcher = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={size}"] if size > 1 else []
    subprocess.run(
        [sys.executable, *launcher, str(script), str(seed), str(DEMO), *arguments],
        check=True,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        env={**os.environ, "TORCHTRACK_DIR": str(folder)},
    )


def on_ranks(size: int, folder: Path, *settings: Any, **options: Any) -> None:
    """A classifier on so many ranks of this session's pool."""
    if size == 1:
        classify(folder, *settings, **options)
    else:
        importable = importlib.import_module(Path(__file__).stem)  # as the ranks know this file
        ranks(size, init=True).run(importable.classify, folder, *settings, **options)


def findings(
    train: Callable[..., None], settings: Iterable[tuple[int, float, int]], keep: Path
) -> tuple[int, Counter[tuple[str, str]]]:
    """How many runs there were, and how many of them have a finding of each (severity, rule)."""
    runs, found = 0, Counter[tuple[str, str]]()
    for setting in settings:
        folder = keep / "-".join(map(str, setting))
        if not folder.exists():
            part = folder.with_name(f"{folder.name}.part")
            shutil.rmtree(part, ignore_errors=True)  # of one that was broken off
            part.mkdir(parents=True)
            train(part, *setting)
            part.rename(folder)
        (run,) = torchtrack.Api(folder).runs()
        found.update({(finding.severity, finding.rule) for finding in run.findings()})
        runs += 1
    return runs, found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="two seeds")
    parser.add_argument("--ranks", type=int, default=1)
    parser.add_argument("--only", help="one kind of training")
    parser.add_argument("--keep", type=Path, help="where runs stay, to be judged again by other rules")
    arguments = parser.parse_args()
    seeds = range(2) if arguments.quick else SEEDS
    os.environ["TORCHTRACK_SIDECAR"] = "0"
    torch.set_num_threads(1)
    classifier = functools.partial(on_ranks, arguments.ranks)
    trainings: dict[str, tuple[Callable[..., None], str]] = {
        "classifier, SGD": (lambda folder, *s: classifier(folder, "sgd", *s), "sgd"),
        "classifier, AdamW": (lambda folder, *s: classifier(folder, "adamw", *s), "adamw"),
        "classifier, AdamW, resumed": (lambda folder, *s: classifier(folder, "adamw", *s, resume_at=150), "adamw"),
        "demo (GPT)": (functools.partial(demo, size=arguments.ranks), "demo"),
    }
    print(f"{'training':28} {'runs':>5}  runs with a finding, by severity and rule; {arguments.ranks} ranks")
    critical = 0
    with tempfile.TemporaryDirectory() as temporary:
        for name, (train, rates) in trainings.items():
            if arguments.only and arguments.only not in name:
                continue
            keep = (arguments.keep or Path(temporary)) / name
            runs, found = findings(train, itertools.product(seeds, LEARNING_RATES[rates], WARMUPS), keep)
            critical += sum(count for (severity, _), count in found.items() if severity == "critical")
            listed = ", ".join(f"{severity} {rule} {count}" for (severity, rule), count in sorted(found.items()))
            print(f"{name:28} {runs:5}  {listed or 'none'}", flush=True)
    print("no critical finding" if not critical else f"CRITICAL FINDINGS: {critical}")
    raise SystemExit(bool(critical))


if __name__ == "__main__":
    main()
