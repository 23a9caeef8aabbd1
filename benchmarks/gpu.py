"""The first hour on a GPU: what torchtrack claims about devices and no machine without one can show.

    python benchmarks/gpu.py

Each part prints what it measured, or what it skipped and why; on a CPU that is most of them. Nothing here has run on a
GPU yet: see docs/gpu.md.

    kernels        counts of all kernels equal, and their share of the copy bandwidth: a kernel reads each byte once
    copies         a sample's copies to the host are pinned and asynchronous, and polled
    no waiting     whole watched steps under torch.cuda.set_sync_debug_mode("error")
    graphs         a captured and replayed step is as without us
    nccl           watched and bare training over NCCL, the merge beside it
    budget         what watch(budget=0.01) chooses
"""

from __future__ import annotations

import datetime
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import nn

import torchtrack
from torchtrack.watch import kernels
from torchtrack.watch.drain import HostCopy
from torchtrack.watch.kernels import reference

DEVICE = torch.device("cuda", 0) if torch.cuda.is_available() else torch.device("cpu")
ON_GPU = DEVICE.type == "cuda"
ELEMENTS = 1 << (28 if ON_GPU else 23)


def settle() -> None:
    if ON_GPU:
        torch.cuda.synchronize()


def milliseconds(call: Callable[[], object], rounds: int = 10) -> float:
    """Median time of a call and all that it started."""
    times = []
    for _ in range(rounds + 1):
        settle()
        begin = time.perf_counter()
        call()
        settle()
        times.append((time.perf_counter() - begin) * 1e3)
    return statistics.median(times[1:])


def model() -> nn.Module:
    torch.manual_seed(0)
    width = 2048 if ON_GPU else 256
    return nn.Sequential(*(nn.Linear(width, width) for _ in range(12))).to(DEVICE)


def step(net: nn.Module, optimizer: torch.optim.Optimizer, batch: torch.Tensor) -> None:
    net(batch).square().mean().backward()
    nn.utils.clip_grad_norm_(net.parameters(), 1.0)
    optimizer.step()
    optimizer.zero_grad()


def part_kernels() -> None:
    source = torch.randn(ELEMENTS, device=DEVICE) * 0.02
    target = torch.empty_like(source)
    copy_ms = milliseconds(lambda: target.copy_(source))
    print(f"  copy of {source.nbytes / 2**20:.0f} MiB: {copy_ms:.2f} ms, {2 * source.nbytes / copy_ms / 1e6:.0f} GB/s")
    kernels.prepare(DEVICE)
    kernels.wait()
    chosen = kernels.choose(DEVICE)
    truth = reference.statistics([source])[0]
    for name, kernel in {"reference": reference.statistics, chosen.__module__.rpartition(".")[2]: chosen}.items():
        equal = torch.equal(kernel([source])[0], truth)
        ms = milliseconds(lambda kernel=kernel: kernel([source]))
        floor = copy_ms / 2  # a copy reads and writes each byte
        print(f"  {name}: {ms:.2f} ms, {floor / ms:.0%} of the bandwidth of a copy, counts equal: {equal}")


def part_copies() -> None:
    if not ON_GPU:
        return skipped("the host's memory needs no copies")
    tensor = torch.randn(1 << 20, device=DEVICE)
    torch.cuda._sleep(100_000_000)  # the device is busy for a while
    begin = time.perf_counter()
    copy = HostCopy(tensor)
    took, early = (time.perf_counter() - begin) * 1e3, copy.ready()
    settle()
    print(f"  issued in {took:.2f} ms while the device was busy; ready then: {early}, afterwards: {copy.ready()}")
    return None


def part_no_waiting() -> None:
    if not ON_GPU:
        return skipped("needs CUDA; on a CPU tests/watch/test_no_sync.py judges the operators instead")
    net = model()
    optimizer = torch.optim.AdamW(net.parameters(), lr=1e-4)
    with watched(net, log_freq=1):
        torch.cuda.set_sync_debug_mode("error")
        for _ in range(5):
            step(net, optimizer, torch.ones(8, 2048, device=DEVICE))
        torch.cuda.set_sync_debug_mode("default")
    print("  5 sampled steps: nothing waited for the device")
    return None


def part_graphs() -> None:
    if not ON_GPU:
        return skipped("needs CUDA")
    net, batch = model(), torch.ones(8, 2048, device=DEVICE)
    optimizer = torch.optim.AdamW(net.parameters(), lr=1e-4, capturable=True)
    with watched(net, log_freq=1):
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(3):
                step(net, optimizer, batch)
        torch.cuda.current_stream().wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            step(net, optimizer, batch)
        for _ in range(10):
            graph.replay()
        settle()
    print("  captured and replayed; replays are not sampled: hooks do not run then")
    return None


def part_nccl() -> None:
    count = torch.cuda.device_count() if ON_GPU else 0
    if count < 2:
        return skipped(f"needs two GPUs, found {count}")
    script = Path(__file__).parents[1] / "examples" / "ddp" / "train.py"
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={count}", str(script)]
    with tempfile.TemporaryDirectory() as folder:
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=600, check=False)
    print(f"  examples/ddp/train.py on {count} GPUs: exit code {done.returncode}")
    print("\n".join(f"    {line}" for line in done.stdout.splitlines()[-5:]))
    return None


def part_budget() -> None:
    net = model()
    batch = torch.ones(64, next(net.parameters()).shape[1], device=DEVICE)
    optimizer = torch.optim.AdamW(net.parameters(), lr=1e-4)
    with watched(net, budget=0.01) as watcher:
        for _ in range(300):
            step(net, optimizer, batch)
        settle()
        print(f"  a sample every {watcher.schedule.interval} steps, {watcher.schedule.share:.2%} of the training time")


class watched:  # noqa: N801  # read as a statement
    """`with watched(model, ...)`: a run of its own."""

    def __init__(self, net: nn.Module, **options: object) -> None:
        self.folder = tempfile.TemporaryDirectory()
        self.run = torchtrack.init(project="gpu", dir=self.folder.name, system_interval=0.0, sidecar=False)
        self.net, self.options = net, options

    def __enter__(self) -> torchtrack.watch.Watcher:  # type: ignore[name-defined]
        watcher = self.run.watch(self.net, **self.options)
        kernels.wait()
        return watcher

    def __exit__(self, *_: object) -> None:
        self.run.finish(quiet=True)
        self.folder.cleanup()


def skipped(why: str) -> None:
    print(f"  skipped: {why}")


def main() -> None:
    name = torch.cuda.get_device_name(0) if ON_GPU else "no GPU"
    print(f"{datetime.date.today()}  {platform.platform()}  {name}  torch {torch.__version__}")
    for title, part in (
        ("kernels", part_kernels),
        ("copies", part_copies),
        ("no waiting", part_no_waiting),
        ("graphs", part_graphs),
        ("nccl", part_nccl),
        ("budget", part_budget),
    ):
        print(title)
        part()


if __name__ == "__main__":
    main()
