"""How often do the stability rules speak where nothing is wrong?

    python benchmarks/stability_false_alarms.py [--quick]

Healthy trainings, each with five seeds, three learning rates, and with and without warm-up: a classifier under SGD with
momentum and under AdamW, one that is stopped and resumed, and the demo model (a small GPT, examples/ddp/train.py). The
table says how many of the runs have a finding of each rule, by severity. The claim: none is critical.
"""

from __future__ import annotations

import argparse
import itertools
import os
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Iterable
from pathlib import Path

import torch
from torch import nn

import torchtrack

DEMO = Path(__file__).parent.parent / "examples" / "ddp" / "train.py"
SEEDS = range(5)
WARMUPS = (0, 30)
LEARNING_RATES = {"sgd": (0.01, 0.03, 0.05), "adamw": (3e-4, 1e-3, 1e-2), "demo": (1e-3, 3e-3, 6e-3)}
SMALL = ("n_layer=2", "n_head=2", "n_embd=64", "block_size=32", "accumulation=2", "num_chars=300000", "log_freq=2")
# The demo has one seed of its own; another is put in its place.
SEEDED = (
    "import runpy, sys, torch; seed, script = int(sys.argv[1]), sys.argv[2]; seeded = torch.manual_seed; "
    "torch.manual_seed = lambda value: seeded(value + seed); sys.argv = sys.argv[2:]; "
    "runpy.run_path(script, run_name='__main__')"
)


def classify(
    folder: Path, optimizer: str, seed: int, lr: float, warmup: int, *, steps: int = 300, resume_at: int | None = None
) -> None:
    """Train a classifier of blurred patterns; maybe stop, go back twenty steps, and go on as the next attempt."""
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Linear(64, 48), nn.ReLU(), nn.Linear(48, 32), nn.ReLU(), nn.Linear(32, 10))
    generator = torch.Generator().manual_seed(seed)
    patterns = torch.randn(10, 64, generator=generator)
    made: torch.optim.Optimizer = torch.optim.AdamW(model.parameters(), lr=lr)
    if optimizer == "sgd":
        made = torch.optim.SGD(model.parameters(), lr=lr, momentum=0.9)
    spans = [(0, steps)] if resume_at is None else [(0, resume_at), (resume_at - 20, steps)]
    for start, stop in spans:
        run = torchtrack.init(
            dir=folder, id=f"classify-{optimizer}-{seed}-{lr}-{warmup}-{resume_at}", system_interval=0.0
        )
        run.watch(model, log=("gradients", "parameters", "updates", "activations"), log_freq=2)
        for step in range(start, stop):
            labels = torch.randint(10, (64,), generator=generator)
            loss = nn.functional.cross_entropy(
                model(patterns[labels] + 2.5 * torch.randn(64, 64, generator=generator)), labels
            )
            for group in made.param_groups:
                group["lr"] = lr * min(1.0, (step + 1) / max(warmup, 1))
            made.zero_grad()
            loss.backward()
            made.step()
            run.log({"loss": loss, "lr": made.param_groups[0]["lr"]}, step=step)
        run.finish(quiet=True)


def demo(folder: Path, seed: int, lr: float, warmup: int) -> None:
    """The demo, smaller."""
    arguments = [f"lr={lr}", f"warmup_steps={max(warmup, 1)}", "max_steps=200", *SMALL]
    subprocess.run(
        [sys.executable, "-c", SEEDED, str(seed), str(DEMO), *arguments],
        check=True,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        env={**os.environ, "TORCHTRACK_DIR": str(folder)},
    )


def findings(
    train: Callable[..., None], settings: Iterable[tuple[int, float, int]]
) -> tuple[int, Counter[tuple[str, str]]]:
    """How many runs there were, and how many of them have a finding of each (severity, rule)."""
    runs, found = 0, Counter[tuple[str, str]]()
    for setting in settings:
        with tempfile.TemporaryDirectory() as folder:
            train(Path(folder), *setting)
            (run,) = torchtrack.Api(folder).runs()
            found.update({(finding.severity, finding.rule) for finding in run.findings()})
            runs += 1
    return runs, found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="two seeds")
    parser.add_argument("--only", help="one kind of training")
    arguments = parser.parse_args()
    seeds = range(2) if arguments.quick else SEEDS
    os.environ["TORCHTRACK_SIDECAR"] = "0"
    torch.set_num_threads(1)
    trainings: dict[str, tuple[Callable[..., None], str]] = {
        "classifier, SGD": (lambda folder, *s: classify(folder, "sgd", *s), "sgd"),
        "classifier, AdamW": (lambda folder, *s: classify(folder, "adamw", *s), "adamw"),
        "classifier, AdamW, resumed": (lambda folder, *s: classify(folder, "adamw", *s, resume_at=150), "adamw"),
        "demo (GPT)": (demo, "demo"),
    }
    print(f"{'training':28} {'runs':>5}  runs with a finding, by severity and rule")
    critical = 0
    for name, (train, rates) in trainings.items():
        if arguments.only and arguments.only not in name:
            continue
        runs, found = findings(train, itertools.product(seeds, LEARNING_RATES[rates], WARMUPS))
        critical += sum(count for (severity, _), count in found.items() if severity == "critical")
        listed = ", ".join(f"{severity} {rule} {count}" for (severity, rule), count in sorted(found.items()))
        print(f"{name:28} {runs:5}  {listed or 'none'}", flush=True)
    print("no critical finding" if not critical else f"CRITICAL FINDINGS: {critical}")
    raise SystemExit(bool(critical))


if __name__ == "__main__":
    main()
