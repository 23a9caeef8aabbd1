"""What watching costs a training step: bare, torchtrack, wandb.watch and TensorBoard's add_histogram, in one process.

    python benchmarks/watch_overhead.py [--rounds 12] [--threads 1] [--ranks 2]

One transformer of 5.8 million parameters in 76 tensors on the CPU; every variant trains it with the same batches, and
the variants take turns within each round, so that a machine that drifts drifts for all. A round gives each variant's
cost over the bare steps of the same round; what is printed is the median over rounds with its quartiles.

    armed      a step that is sampled, log="all"
    unarmed    a step that is not; for torchtrack also timed alone, as what its hooks add to a clip and a step that have
               no gradients to work on, since 200 ms of training hide microseconds
    alone      what torchtrack's sample adds to a clip and a step by itself: no forward and backward pass on one rank,
               and of a single token on several
    at N       armed / N + unarmed (alone), over the bare step
    cpu        processor time of the training thread: what is left of the differences on a machine that others use too
    --ranks    the same on so many DDP ranks over gloo, every one of them watching; figures are those of rank 0, once
               the ranks share the work
"""

from __future__ import annotations

import argparse
import datetime
import importlib.metadata
import math
import os
import platform
import statistics
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

NEVER = 1_000_000_000
PROMISES = {False: (40, 60), True: (75, 110)}
"""Several ranks -> how many times what torchtrack adds wandb.watch adds at least, and is aimed to."""
SUMS = (6, 4)
"""How many passes of sum() a sample costs at most, and is aimed to."""
Cost = tuple[float, float]
"""Milliseconds by the clock, and of processor time of the training thread."""


class Transformer(nn.Module):
    """An encoder over 64 tokens, just large enough that tensors do not fit a cache."""

    def __init__(self, vocabulary: int = 4096, width: int = 256, layers: int = 6) -> None:
        super().__init__()
        self.embedding = nn.Embedding(vocabulary, width)
        layer = nn.TransformerEncoderLayer(width, 4, 4 * width, dropout=0.0, batch_first=True, norm_first=True)
        self.layers = nn.TransformerEncoder(layer, layers, nn.LayerNorm(width), enable_nested_tensor=False)
        self.bias = nn.Parameter(torch.zeros(vocabulary))

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        return self.layers(self.embedding(tokens)) @ self.embedding.weight.T + self.bias


class Bare:
    """Nothing watches."""

    name, package, armed = "bare", "torch", False

    def __init__(self, model: nn.Module, folder: Path) -> None:
        self.model, self.folder = model, folder

    def on(self) -> None: ...
    def settled(self) -> bool:
        """Whether it costs by now what it goes on to cost."""
        return True

    def step(self) -> None: ...
    def off(self) -> None: ...
    def close(self) -> None: ...


class Torchtrack(Bare):
    name, package = "torchtrack", "torchtrack"

    def __init__(self, model: nn.Module, folder: Path, log_freq: int = 1) -> None:
        import torchtrack

        super().__init__(model, folder)
        self.armed, self.log_freq = log_freq == 1, log_freq
        self.run = torchtrack.run or torchtrack.init(project="bench", dir=folder, system_interval=0.0, sidecar=False)

    def on(self) -> None:
        from torchtrack.watch import kernels

        self.watcher = self.run.watch(self.model, log="all", log_freq=self.log_freq)
        kernels.wait()

    def step(self) -> None:
        self.run.log({"step": 1.0})

    def settled(self) -> bool:
        """Whether the ranks share the work by now: before that each reads all."""
        plan = self.watcher.merger.plan
        return self.log_freq == NEVER or (plan is not None and self.watcher.samples > plan.start)

    def off(self) -> None:
        self.run.unwatch()

    def close(self) -> None:
        self.run.finish(quiet=True)


class Wandb(Bare):
    name, package = "wandb.watch", "wandb"

    def __init__(self, model: nn.Module, folder: Path, log_freq: int = 1) -> None:
        import wandb

        super().__init__(model, folder)
        os.environ["WANDB_SILENT"] = "true"
        self.armed, self.log_freq, self.wandb = log_freq == 1, log_freq, wandb
        settings = wandb.Settings(console="off", x_disable_stats=True, x_disable_meta=True)
        self.run = wandb.run or wandb.init(project="bench", mode="offline", dir=str(folder), settings=settings)

    def on(self) -> None:
        self.wandb.watch(self.model, log="all", log_freq=self.log_freq)

    def step(self) -> None:
        self.run.log({"step": 1.0})

    def off(self) -> None:
        self.wandb.unwatch(self.model)

    def close(self) -> None:
        self.run.finish()


class TensorBoard(Bare):
    name, package, armed = "add_histogram", "tensorboard", True

    def __init__(self, model: nn.Module, folder: Path) -> None:
        from torch.utils.tensorboard import SummaryWriter

        super().__init__(model, folder)
        self.writer, self.count = SummaryWriter(str(folder / "tb")), 0

    def step(self) -> None:
        self.count += 1
        for name, parameter in self.model.named_parameters():
            self.writer.add_histogram(name, parameter, self.count)
            self.writer.add_histogram(f"{name}.grad", parameter.grad, self.count)

    def close(self) -> None:
        self.writer.close()


def variants(model: nn.Module, folder: Path) -> dict[str, Bare]:
    made: dict[str, Bare] = {"bare": Bare(model, folder)}
    makers: dict[str, Callable[[], Bare]] = {
        "torchtrack armed": lambda: Torchtrack(model, folder),
        "torchtrack unarmed": lambda: Torchtrack(model, folder, NEVER),
        "wandb armed": lambda: Wandb(model, folder),
        "wandb unarmed": lambda: Wandb(model, folder, NEVER),
        "TensorBoard armed": lambda: TensorBoard(model, folder),
    }
    for name, make in makers.items():
        try:
            made[name] = make()
        except ImportError as error:
            print(f"{name}: not installed ({error})")
    return made


def measure(variant: Bare, steps: int, train: Callable[[Callable[[], None]], None]) -> Cost:
    """Median cost of a step; the first, which settles hooks and always is a sample, is not counted."""
    variant.on()
    while dist.is_initialized() and not agreed(variant.settled()):
        train(variant.step)
    times = [timed(lambda: train(variant.step)) for _ in range(steps + 1)]
    variant.off()
    return middle(times[1:])


def timed(call: Callable[[], object]) -> Cost:
    wall, cpu = time.perf_counter(), time.thread_time()
    call()
    return (time.perf_counter() - wall) * 1e3, (time.thread_time() - cpu) * 1e3


def middle(costs: list[Cost]) -> Cost:
    walls, cpus = zip(*costs, strict=True)
    return statistics.median(walls), statistics.median(cpus)


def agreed(here: bool) -> bool:
    """Whether all ranks say so."""
    flag = torch.tensor(float(here))
    dist.all_reduce(flag, dist.ReduceOp.MIN)
    return bool(flag.item())


def interval(values: list[float]) -> tuple[float, float, float]:
    """Median, and the order statistics around it that hold the true one in 95 of 100 cases, if there are so many."""
    ordered, n = sorted(values), len(values)
    tail, k = 0.0, 0
    while k < n // 2 and (tail := tail + math.comb(n, k) / 2**n) <= 0.025:
        k += 1
    low = max(k - 1, 0)
    return statistics.median(ordered), ordered[low], ordered[n - 1 - low]


def quartiles(values: list[float]) -> tuple[float, float, float]:
    low, middle, high = statistics.quantiles(values, n=4)
    return low, middle, high


def unarmed_alone(watching: Bare) -> float:
    """Milliseconds the hooks add to a clip and an optimizer step that is not sampled: median of interleaved pairs."""
    optimizer = torch.optim.SGD(watching.model.parameters(), lr=0.0)

    def block() -> float:
        begin = time.perf_counter()
        for _ in range(200):
            torch.nn.utils.clip_grad_norm_(watching.model.parameters(), 1.0)
            optimizer.step()
        return (time.perf_counter() - begin) * 1e3 / 200

    differences = []
    for _ in range(15):
        without = block()
        watching.on()
        block()  # the first step is a sample
        differences.append(block() - without)
        watching.off()
    return statistics.median(differences)


def sample_alone(watching: Bare, backward: Callable[[], None]) -> tuple[Cost, float]:
    """What a sample adds to a clip and an optimizer step, after a backward pass that is as short as can be.

    Medians of interleaved blocks. Between two steps the threads behind it come to rest, as they do while a model
    computes; what they took is the second result, in milliseconds of processor time a sample.
    """
    optimizer = torch.optim.SGD(watching.model.parameters(), lr=0.0)
    others = []

    def step() -> None:
        backward()
        torch.nn.utils.clip_grad_norm_(watching.model.parameters(), 1e9)
        optimizer.step()

    def block() -> Cost:
        costs = []
        for _ in range(12):
            costs.append(timed(step))
            behind = 0.0
            while (now := time.process_time() - time.thread_time()) > behind + 2e-4:  # gloo's threads never rest quite
                behind = now
                time.sleep(0.01)
        return middle(costs[2:])

    differences = []
    for _ in range(9):
        without = block()
        watching.on()
        while dist.is_initialized() and not agreed(watching.settled()):
            step()
        block()
        before = time.process_time() - time.thread_time()
        with_it = block()
        others.append((time.process_time() - time.thread_time() - before) * 1e3 / 12)
        watching.off()
        differences.append((with_it[0] - without[0], with_it[1] - without[1]))
    return middle(differences), statistics.median(others)


def sums(model: nn.Module) -> Cost:
    """One sum() over all parameters and gradients: a single read of the data, the floor."""
    tensors = [p.detach() for p in model.parameters()] + [p.grad for p in model.parameters() if p.grad is not None]
    return middle([timed(lambda: [tensor.sum() for tensor in tensors]) for _ in range(30)])


def report(rounds: dict[str, list[Cost]], unarmed: float, alone: tuple[Cost, float], floor: Cost) -> None:
    bare = middle(rounds["bare"])
    print(f"\n{'':20} {'ms a step':>9} {'added ms (quartiles)':>28} {'added ms of cpu (quartiles)':>28}")
    print(f"{'bare':20} {bare[0]:9.1f}")
    added: dict[str, list[float]] = {}
    for name, costs in rounds.items():
        if name != "bare":
            each = [[c[i] - b[i] for c, b in zip(costs, rounds["bare"], strict=True)] for i in (0, 1)]
            added[name] = [statistics.median(values) for values in each]
            cells = [f"{m:10.2f} ({low:7.2f} .. {high:7.2f})" for low, m, high in map(quartiles, each)]
            print(f"{name:20} {middle(costs)[0]:9.1f} {cells[0]:>28} {cells[1]:>28}")
    ours = added["torchtrack armed"]
    must, aim = PROMISES[dist.is_initialized()]
    for peer in ("wandb armed", "TensorBoard armed"):
        if peer in added:
            wall, cpu = (theirs / own for theirs, own in zip(added[peer], ours, strict=True))
            by_itself = f", {added[peer][1] / alone[0][1]:.0f} (cpu, ours alone)"
            promise = f"; promise {must}, aim {aim}" if peer.startswith("wandb") else ""
            print(f"{peer} adds {wall:.0f} times what torchtrack adds, {cpu:.0f} (cpu){by_itself}{promise}")
    (clock, cpu), behind = alone
    print(
        f"a sample alone: {clock:.2f} ms, {cpu:.2f} of cpu; one sum() over the same {floor[0]:.2f}, "
        f"{floor[1]:.2f} of cpu: {cpu / floor[1]:.1f} of them; promise {SUMS[0]}, aim {SUMS[1]}"
    )
    print(f"the threads behind it: {behind:.2f} ms of cpu a sample, while the training goes on")
    print(f"torchtrack's hooks alone add {unarmed * 1e3:.1f} us to a step that is not sampled")
    for n in (1, 100):
        print(f"torchtrack at log_freq={n}: {(ours[0] / n + unarmed) / bare[0]:.2%} of the bare step")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=12)
    parser.add_argument("--steps", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--ranks", type=int, default=1)
    options = parser.parse_args()
    if options.ranks > 1 and "RANK" not in os.environ:
        launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={options.ranks}"]
        raise SystemExit(subprocess.run([*launch, *sys.argv], check=False).returncode)
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    model: nn.Module = Transformer()
    if options.ranks > 1:
        dist.init_process_group("gloo")
        model = nn.parallel.DistributedDataParallel(model)
        if dist.get_rank():
            sys.stdout = open(os.devnull, "w")  # noqa: SIM115, PTH123  # rank 0 speaks
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4)
    batches = torch.randint(0, 4096, (64, 4, 65))
    at = iter(range(1 << 30))

    def train(record: Callable[[], None]) -> None:
        tokens = batches[next(at) % len(batches)]
        logits = model(tokens[:, :-1])
        nn.functional.cross_entropy(logits.flatten(0, 1), tokens[:, 1:].flatten()).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        record()
        optimizer.zero_grad()

    count = sum(p.numel() for p in model.parameters())
    where = f"{options.threads} thread(s), {options.ranks} rank(s)"
    print(f"{count / 1e6:.1f}M parameters, {len(list(model.parameters()))} tensors; {where}")
    versions = {name: _version(name) for name in ("torch", "torchtrack", "wandb", "tensorboard", "numpy")}
    print(f"{datetime.date.today()}  {platform.platform()}  {os.cpu_count()} cores  {versions}")
    with tempfile.TemporaryDirectory() as folder:
        made = variants(model, Path(folder))
        rounds: dict[str, list[Cost]] = {name: [] for name in made}
        for number in range(options.rounds + 1):
            for name, variant in made.items():
                took = measure(variant, options.steps, train)
                if number:  # the first round warms everything up
                    rounds[name].append(took)
        train(lambda: None)
        logits = model(batches[0][:, :-1])
        logits.sum().backward()
        floor = sums(model)
        word = batches[0][:1, :1]

        def backward() -> None:
            if options.ranks > 1:  # DDP's gradients are read before they are reduced too; one rank's stay as they are
                model(word).sum().backward()

        alone = sample_alone(made["torchtrack armed"], backward)
        optimizer.zero_grad()
        report(rounds, unarmed_alone(made["torchtrack unarmed"]), alone, floor)
        for variant in {id(getattr(v, "run", v)): v for v in made.values()}.values():
            variant.close()
    if dist.is_initialized():
        dist.destroy_process_group()


def _version(name: str) -> Any:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


if __name__ == "__main__":
    main()
