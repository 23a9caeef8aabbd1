"""What all of stability together costs a training step, over bare and over watch alone: does it keep watch's budget?

    python benchmarks/stability_overhead.py [--rounds 12] [--ranks 2]

The transformer of watch_overhead.py, 5.8 million parameters in 76 tensors, on the CPU, one thread a rank. What is added
is timed beside as little training as it needs: with one rank a clip and an optimizer step on gradients that stay, with
several the forward and backward pass of three tokens too, since each rank's own norms are taken there. There are two
models: a variant takes turns with a bare step of the other one, step by step, and the models swap from round to round.
(What hooks of the whole process need to find that a model is not theirs is on both sides: microseconds.) Between two
steps the threads behind come to rest, as they do while a model computes. What is printed is the median over rounds of
the median over pairs, with the interval that holds the true median in 95 of 100 cases (order statistics: no shape is
assumed), and its share of the whole bare step of 4 x 64 tokens.

    watch          log="all", and nothing of stability: no checksums, no black box, no rank's own norms
    everything     the wrapped model, so that each rank takes its own norms; checksums; run.phase four times a step;
                   run.mark(batch=ids); the loss of each rank. What noise scale and findings need beyond that is
                   nothing: they are read from the rows
    black box      everything, and blackbox=True: norm, absmax and non-finite count of every gradient at every step
    armed          a step that is sampled
    checked        one at which replicas are compared too (several ranks): every tenth sample by default
    unarmed        a step that is not sampled
    at N           armed / N + (checked - armed) / 10 N + unarmed

The budget: what watch(budget=0.01) keeps, 1 % of the step, must hold for everything at log_freq=100; the black box has
0.3 % of its own, which pays for a record every so many steps. What findings and the noise scale take when a run is read
is printed beside it; no training waits for them.
"""

from __future__ import annotations

import argparse
import datetime
import math
import os
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from watch_overhead import NEVER, Cost, Transformer, _version, agreed, interval, middle, timed

import torchtrack

EVERY_DEFAULT = 10
"""Samples from one comparison of replicas to the next, as `watch` has it."""
BUDGET, BLACK_BOX = 0.01, 0.003
BATCH = 4
PAIRS = 10
"""Pairs of a sampled step and a bare one in a round; four times as many of a step that is not, whose share is all."""


class Variant:
    """A way to train: bare."""

    def __init__(self, model: nn.Module, run: Any) -> None:
        self.model, self.run = model, run

    def on(self) -> None: ...
    def settled(self) -> bool:
        """Whether it costs by now what it goes on to cost."""
        return True

    def phase(self, name: str) -> None: ...
    def batch(self, ids: torch.Tensor) -> None: ...
    def log(self, loss: torch.Tensor) -> None: ...
    def off(self) -> None: ...


class Watch(Variant):
    """watch(), with or without all that stability adds."""

    def __init__(
        self,
        model: nn.Module,
        run: Any,
        log_freq: int,
        *,
        stability: bool,
        checksum_every: int = 0,
        blackbox: bool = False,
    ) -> None:
        super().__init__(model, run)
        self.log_freq, self.stability = log_freq, stability
        self.checksum_every, self.blackbox = checksum_every, blackbox

    def on(self) -> None:
        from torchtrack.watch import kernels

        # Given what is inside the wrapper, watch finds nothing that averages, and takes no rank's own norms.
        inner = self.model.module if isinstance(self.model, nn.parallel.DistributedDataParallel) else self.model
        self.watcher = self.run.watch(
            self.model if self.stability else inner,
            log="all",
            log_freq=self.log_freq,
            checksum_every=self.checksum_every,
            blackbox=self.blackbox,
        )
        kernels.wait()

    def settled(self) -> bool:
        plan = self.watcher.merger.plan
        return self.log_freq == NEVER or (plan is not None and self.watcher.samples > plan.start)

    def phase(self, name: str) -> None:
        if self.stability:
            self.run.phase(name)

    def batch(self, ids: torch.Tensor) -> None:
        if self.stability:
            self.run.mark(batch=ids)

    def log(self, loss: torch.Tensor) -> None:
        self.run.log({"loss": loss})

    def off(self) -> None:
        self.run.unwatch()


def variants(model: nn.Module, run: Any) -> dict[str, Variant]:
    made = {
        "bare": Variant(model, run),
        "watch armed": Watch(model, run, 1, stability=False),
        "watch unarmed": Watch(model, run, NEVER, stability=False),
        "everything armed": Watch(model, run, 1, stability=True),
        "everything unarmed": Watch(model, run, NEVER, stability=True),
        "black box": Watch(model, run, NEVER, stability=True, blackbox=True),
    }
    if dist.is_initialized():
        made["everything checked"] = Watch(model, run, 1, stability=True, checksum_every=1)
    return made


class Rounds:
    """What each variant adds, by clock and by processor time of the training thread, in milliseconds; a value a round.

    Attributes:
        whole: the bare step that shares are of.
        added: by variant and clock.
    """

    def __init__(self, whole: Cost) -> None:
        self.whole = whole
        self.added: dict[str, tuple[list[float], list[float]]] = {}

    def add(self, name: str, added: Cost) -> None:
        for values, value in zip(self.added.setdefault(name, ([], [])), added, strict=True):
            values.append(value)

    def at(self, what: str, n: int, clock: int) -> list[float]:
        """Share of the whole bare step at log_freq=n, by round."""
        armed, unarmed = self.added[f"{what} armed"][clock], self.added[f"{what} unarmed"][clock]
        checked = self.added[f"{what} checked"][clock] if f"{what} checked" in self.added else armed
        rows = zip(armed, unarmed, checked, strict=True)
        return [(a / n + (c - a) / (EVERY_DEFAULT * n) + u) / self.whole[clock] for a, u, c in rows]


def report(rounds: Rounds) -> None:
    clocks = ("clock", "cpu of the training thread")
    print(f"\nwhole bare step {rounds.whole[0]:.1f} ms, {rounds.whole[1]:.1f} ms of cpu\n")
    print(f"{'added ms':20} {clocks[0]:>30} {clocks[1]:>30}")
    for name, both in rounds.added.items():
        cells = ["{:9.3f} ({:8.3f} .. {:8.3f})".format(*interval(values)) for values in both]
        print(f"{name:20} {cells[0]:>30} {cells[1]:>30}")
    print(f"\n{'share of the step':20} {clocks[0]:>30} {clocks[1]:>30}")
    for n in (1, 10, 100):
        for what in ("watch", "everything"):
            shares = [interval(rounds.at(what, n, clock)) for clock in (0, 1)]
            cells = [f"{m:8.3%} ({low:7.3%} .. {high:7.3%})" for m, low, high in shares]
            print(f"{f'{what} at {n}':20} {cells[0]:>30} {cells[1]:>30}")
    for clock, name in enumerate(clocks):
        pairs = zip(rounds.added["everything armed"][clock], rounds.added["watch armed"][clock], strict=True)
        m, low, high = interval([more / less for more, less in pairs])
        print(f"everything armed is {m:.2f} times watch armed ({low:.2f} .. {high:.2f}), {name}")
    judge(rounds)


def judge(rounds: Rounds) -> None:
    """The budget, by processor time of the training thread: where others use the machine the clock tells of them."""
    share = interval(rounds.at("everything", 100, 1))[0]
    boxes = zip(rounds.added["black box"][1], rounds.added["everything unarmed"][1], strict=True)
    box, low, high = (value / rounds.whole[1] for value in interval([more - less for more, less in boxes]))
    print(f"everything at log_freq=100: {share:.2%}, budget {BUDGET:.0%}: {'kept' if share <= BUDGET else 'MISSED'}")
    print(f"a step in the black box: {box:.2%} of a step ({low:.2%} .. {high:.2%})", end="")
    every = max(1, math.ceil(box / BLACK_BOX))
    print(f"; its budget of {BLACK_BOX:.1%} pays for one in {every}" if every > 1 else f"; within {BLACK_BOX:.1%}")
    both = share + min(box, BLACK_BOX)
    print(f"both, the black box within its budget: {both:.2%}: {'kept' if both <= BUDGET else 'MISSED'}")
    print(f"both, blackbox=True, which is every step: {share + box:.2%}")


def rested(call: Callable[[], object]) -> Cost:
    """What a call costs, and then nothing until the threads behind it have come to rest."""
    cost = timed(call)
    behind = -1.0
    while (now := time.process_time() - time.thread_time()) > behind:
        behind = now
        time.sleep(0.005)
    return cost


def pairs(step: Callable[[Variant], None], variant: Variant, bare: Variant, count: int) -> Cost:
    """Median of what a step with a variant costs over the bare step before it, the first two pairs left out."""
    added = []
    for _ in range(count + 2):
        without = rested(lambda: step(bare))
        with_it = rested(lambda: step(variant))
        added.append((with_it[0] - without[0], with_it[1] - without[1]))
    return middle(added[2:])


def settle(step: Callable[[Variant], None], variant: Variant) -> None:
    """Train until it costs what it goes on to cost; the first step always is a sample."""
    variant.on()
    step(variant)
    while dist.is_initialized() and not agreed(variant.settled()):
        step(variant)


def read(folder: Path, uid: str) -> None:
    """What findings and the noise scale take of a run that is there."""
    run = torchtrack.Api(folder).run(uid)
    steps = sum(1 for _ in run.steps())
    for name, call in (("findings", run.findings), ("noise scale", run.noise_scale)):
        begin = time.process_time()
        call()
        took = time.process_time() - begin
        print(f"{name} of {steps} steps, most of them sampled: {took:.2f} s of cpu, {took / steps * 1e3:.1f} ms a step")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=12)
    parser.add_argument("--ranks", type=int, default=1)
    options = parser.parse_args()
    if options.ranks > 1 and "RANK" not in os.environ:
        launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={options.ranks}"]
        raise SystemExit(subprocess.run([*launch, *sys.argv], check=False).returncode)
    torch.set_num_threads(1)
    torch.manual_seed(0)
    models: list[nn.Module] = [Transformer(), Transformer()]
    if options.ranks > 1:
        dist.init_process_group("gloo")
        models = [nn.parallel.DistributedDataParallel(model) for model in models]
        if dist.get_rank():
            sys.stdout = open(os.devnull, "w")  # noqa: SIM115, PTH123  # rank 0 speaks
    print(f"{sum(p.numel() for p in models[0].parameters()) / 1e6:.1f}M parameters, {options.ranks} rank(s)")
    versions = {name: _version(name) for name in ("torch", "torchtrack", "numpy", "numba")}
    print(f"{datetime.date.today()}  {platform.platform()}  {os.cpu_count()} cores  {versions}")
    with tempfile.TemporaryDirectory() as folder:
        run = torchtrack.init(project="bench", dir=folder, system_interval=0.0)
        rounds = go(models, run, options.rounds)
        report(rounds)
        uid = run.uid
        run.finish(quiet=True)
        if not dist.is_initialized() or dist.get_rank() == 0:
            read(Path(folder), uid)
    if dist.is_initialized():
        dist.destroy_process_group()


def go(models: list[nn.Module], run: Any, count: int) -> Rounds:
    """Take turns."""
    batches = torch.randint(0, 4096, (64, BATCH, 65))
    at = iter(range(1 << 30))
    several = dist.is_initialized()
    still = {model: torch.optim.SGD(model.parameters(), lr=0.0) for model in models}

    def train(variant: Variant, optimizer: torch.optim.Optimizer, *, whole: bool) -> None:
        variant.phase("data")
        number = next(at)
        tokens = batches[number % len(batches)] if whole else batches[0, :1, :4]
        variant.batch(torch.arange(number * BATCH, (number + 1) * BATCH))
        variant.phase("forward")
        loss = torch.zeros(())
        if whole or several:
            logits = variant.model(tokens[:, :-1])
            loss = nn.functional.cross_entropy(logits.flatten(0, 1), tokens[:, 1:].flatten())
            variant.phase("backward")
            loss.backward()
        variant.phase("optimizer")
        torch.nn.utils.clip_grad_norm_(variant.model.parameters(), 1.0 if whole else 1e9)
        optimizer.step()
        variant.log(loss.detach())
        if whole or several:
            optimizer.zero_grad()

    def short(variant: Variant) -> None:
        train(variant, still[variant.model], whole=False)

    made = [variants(model, run) for model in models]
    bare = [one.pop("bare") for one in made]
    adam = torch.optim.AdamW(models[0].parameters(), lr=1e-4)
    rounds = Rounds(middle([timed(lambda: train(bare[0], adam, whole=True)) for _ in range(30)][5:]))
    for model in models:  # the gradients that stay, where there is one rank
        model(batches[0][:, :-1]).square().mean().backward()
    for number in range(count + 1):
        for name, variant in made[number % 2].items():
            settle(short, variant)
            sampled = isinstance(variant, Watch) and variant.log_freq != NEVER
            added = pairs(short, variant, bare[1 - number % 2], PAIRS if sampled else 4 * PAIRS)
            variant.off()
            if number:  # the first round warms everything up
                rounds.add(name, added)
    return rounds


if __name__ == "__main__":
    main()
