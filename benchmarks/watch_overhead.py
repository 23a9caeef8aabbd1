"""What watching costs a training step: bare, torchtrack, wandb.watch and TensorBoard's add_histogram, in one process.

    python benchmarks/watch_overhead.py [--rounds 12] [--threads 1] [--ranks 2]

One transformer of 5.8 million parameters in 76 tensors on the CPU; every variant trains it with the same batches, and
the variants take turns within each round, so that a machine that drifts drifts for all. A round gives each variant's
cost over the bare steps of the same round; what is printed is the median over rounds with its quartiles.

    armed      a step that is sampled, log="all"
    unarmed    a step that is not; for torchtrack also timed alone, as what its hooks add to a clip and a step that have
               no gradients to work on, since 200 ms of training hide microseconds
    at N       armed / N + unarmed (alone), over the bare step
    --ranks    the same on so many DDP ranks over gloo, every one of them watching; figures are those of rank 0, once
               the ranks share the work
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
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import nn

NEVER = 1_000_000_000


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


def measure(variant: Bare, steps: int, train: Callable[[Callable[[], None]], None]) -> float:
    """Median milliseconds of a step; the first, which settles hooks and always is a sample, is not counted."""
    variant.on()
    while dist.is_initialized() and not agreed(variant.settled()):
        train(variant.step)
    times = []
    for _ in range(steps + 1):
        begin = time.perf_counter()
        train(variant.step)
        times.append((time.perf_counter() - begin) * 1e3)
    variant.off()
    return statistics.median(times[1:])


def agreed(here: bool) -> bool:
    """Whether all ranks say so."""
    flag = torch.tensor(float(here))
    dist.all_reduce(flag, dist.ReduceOp.MIN)
    return bool(flag.item())


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


def report(rounds: dict[str, list[float]], alone: float) -> None:
    bare = statistics.median(rounds["bare"])
    added = {
        name: [t - b for t, b in zip(times, rounds["bare"], strict=True)]
        for name, times in rounds.items()
        if name != "bare"
    }
    print(f"\n{'':22} {'ms a step':>10} {'added ms (quartiles)':>26}")
    print(f"{'bare':22} {bare:10.1f}")
    for name, values in added.items():
        low, middle, high = quartiles(values)
        print(f"{name:22} {statistics.median(rounds[name]):10.1f} {middle:10.2f} ({low:7.2f} .. {high:7.2f})")
    ours = statistics.median(added["torchtrack armed"])
    for peer in ("wandb armed", "TensorBoard armed"):
        if peer in added:
            ratio = statistics.median(added[peer]) / ours
            promise = 75 if dist.is_initialized() else 40
            print(f"{peer} adds {ratio:.1f} times what torchtrack adds (promise for wandb: {promise} or more)")
    print(f"torchtrack's hooks alone add {alone * 1e3:.1f} us to a step that is not sampled")
    for n in (1, 100):
        print(f"torchtrack at log_freq={n}: {(ours / n + alone) / bare:.2%} of the bare step")


def sums(model: nn.Module) -> float:
    """Milliseconds of one sum() over all parameters and gradients: a single read of the data, the floor."""
    tensors = [p.detach() for p in model.parameters()] + [p.grad for p in model.parameters() if p.grad is not None]
    times = []
    for _ in range(30):
        begin = time.perf_counter()
        for tensor in tensors:
            tensor.sum()
        times.append((time.perf_counter() - begin) * 1e3)
    return statistics.median(times)


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
        rounds: dict[str, list[float]] = {name: [] for name in made}
        for number in range(options.rounds + 1):
            for name, variant in made.items():
                took = measure(variant, options.steps, train)
                if number:  # the first round warms everything up
                    rounds[name].append(took)
        train(lambda: None)
        logits = model(batches[0][:, :-1])
        logits.sum().backward()
        floor = sums(model)
        optimizer.zero_grad()
        report(rounds, unarmed_alone(made["torchtrack unarmed"]))
        ours = statistics.median(a - b for a, b in zip(rounds["torchtrack armed"], rounds["bare"], strict=True))
        print(f"one sum() over the same tensors: {floor:.2f} ms; torchtrack's sample is {ours / floor:.1f} of them")
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
