"""What `log` costs the training thread, what reaches the journal, and what the recorder takes from the interpreter.

    python benchmarks/log_throughput.py [--seconds 3] [--rounds 3] [--pairs 30]

1. Time of one log() of five floats, flat out, for torchtrack and each installed peer; every measurement is a process of
   its own, the tools take turns, and the rounds are pooled.
2. Values that can be read back after logging flat out for some seconds.
3. Slowdown of a loop of small torch operations that logs five floats a step, against the same loop without logging, in
   interleaved pairs of blocks; what is left after log() itself is what the recorder takes from the loop.
"""

from __future__ import annotations

import argparse
import contextlib
import datetime
import gc
import importlib.metadata
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from torchtrack.system import describe_hardware

Log = Callable[[dict[str, float], int], Any]
TOOLS = {
    "torchtrack": "torchtrack",
    "wandb (offline)": "wandb",
    "trackio": "trackio",
    "TensorBoard": "tensorboard",
    "MLflow (files)": "mlflow-skinny",
}
WARM_UP_CALLS = 200
MAX_CALLS = 100_000
STEP_MATMULS = 20
BLOCK_STEPS = 2000
P999_LIMIT_US = 50.0  # the promise: what log() may take, file system hanging or not


def five_floats(step: int) -> dict[str, float]:
    value = step * 1e-3
    return {"loss": value, "accuracy": value, "lr": value, "grad_norm": value, "tokens_per_s": value}


@contextlib.contextmanager
def torchtrack_log(folder: Path) -> Iterator[Log]:
    import torchtrack

    run = torchtrack.init(project="bench", dir=folder, mode="offline")
    yield lambda values, _: run.log(values)
    run.finish()


@contextlib.contextmanager
def wandb_log(folder: Path) -> Iterator[Log]:
    import wandb

    run = wandb.init(project="bench", dir=folder, mode="offline")
    yield lambda values, _: run.log(values)
    run.finish()


@contextlib.contextmanager
def trackio_log(folder: Path) -> Iterator[Log]:
    os.environ["TRACKIO_DIR"] = str(folder)
    import trackio

    trackio.init(project="bench")
    yield lambda values, _: trackio.log(values)
    trackio.finish()


@contextlib.contextmanager
def tensorboard_log(folder: Path) -> Iterator[Log]:
    from torch.utils.tensorboard import SummaryWriter

    writer = SummaryWriter(str(folder))

    def log(values: dict[str, float], step: int) -> None:
        for name, value in values.items():
            writer.add_scalar(name, value, step)

    yield log
    writer.close()


@contextlib.contextmanager
def mlflow_log(folder: Path) -> Iterator[Log]:
    os.environ["MLFLOW_ALLOW_FILE_STORE"] = "true"
    import mlflow

    mlflow.set_tracking_uri((folder / "mlruns").as_uri())  # it makes the folder, with an experiment in it
    with mlflow.start_run():
        yield lambda values, step: mlflow.log_metrics(values, step=step)


LOGS = dict(zip(TOOLS, (torchtrack_log, wandb_log, trackio_log, tensorboard_log, mlflow_log), strict=True))


def time_calls(tool: str, seconds: float) -> dict[str, Any]:
    """Microseconds of each log() call within so many seconds, and what opening and closing took."""
    took: list[int] = []
    clock = time.perf_counter_ns
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        with LOGS[tool](Path(folder)) as log:
            for step in range(WARM_UP_CALLS):
                log(five_floats(step), step)
            deadline = clock() + int(seconds * 1e9)
            for step in range(WARM_UP_CALLS, WARM_UP_CALLS + MAX_CALLS):
                values = five_floats(step)
                start = clock()
                log(values, step)
                took.append(clock() - start)
                if start > deadline:
                    break
            closing = clock()
        return {"us": [nanoseconds / 1000 for nanoseconds in took], "close_s": (clock() - closing) / 1e9}


def log_flat_out(seconds: float) -> dict[str, float]:
    """How much goes in within so many seconds, and how much of it can be read back."""
    import torchtrack

    with tempfile.TemporaryDirectory() as folder:
        run = torchtrack.init(project="bench", dir=folder, mode="offline")
        calls, start = 0, time.perf_counter()
        while time.perf_counter() - start < seconds:
            for _ in range(100):
                run.log(five_floats(calls))
                calls += 1
        logging_s = time.perf_counter() - start
        run.finish()
        finish_s = time.perf_counter() - start - logging_s
        size = sum(path.stat().st_size for path in Path(folder).rglob("*.ttj"))
        start = time.perf_counter()
        recorded = torchtrack.Api(folder).run(run.uid)
        rows = recorded.history(keys=list(five_floats(0)), raw=True)
        found = sum(rows[name].length() - rows[name].null_count for name in five_floats(0))
        read_s = time.perf_counter() - start
    return {
        "logged": 5 * calls,
        "found": found,
        "dropped": recorded.dropped,
        "logging_s": logging_s,
        "finish_s": finish_s,
        "read_s": read_s,
        "bytes": size,
    }


def loop_with_and_without_logging(pairs: int) -> dict[str, Any]:
    """Blocks of steps in pairs of (without, with) logging: seconds each, each step, and where the time went."""
    import torch

    import torchtrack

    torch.set_num_threads(1)
    left = right = torch.randn(64, 64)

    def block(log: Callable[[dict[str, float]], Any]) -> tuple[list[float], float]:
        steps, inside, clock = [], 0.0, time.perf_counter
        before = clock()
        for step in range(BLOCK_STEPS):
            for _ in range(STEP_MATMULS):
                torch.mm(left, right)
            values = five_floats(step)
            called = clock()
            log(values)
            now = clock()
            inside += now - called
            steps.append(now - before)
            before = now
        return steps, inside

    result: dict[str, Any] = {"pairs": [], "steps": {"without": [], "with": []}, "log_us": [], "others_cpu_us": []}
    with tempfile.TemporaryDirectory() as folder:
        run = torchtrack.init(project="bench", dir=folder, mode="offline")
        block(run.log)
        gc.disable()
        for pair in range(pairs):
            seconds, inside, others_cpu = {}, {}, {}
            for mode in ("without", "with") if pair % 2 else ("with", "without"):
                time.sleep(0.3)  # the recorder writes what the block before left
                others_cpu[mode] = time.thread_time() - time.process_time()
                steps, inside[mode] = block(run.log if mode == "with" else id)
                others_cpu[mode] += time.process_time() - time.thread_time()
                seconds[mode] = sum(steps)
                result["steps"][mode] += steps
            result["pairs"].append((seconds["without"], seconds["with"]))
            result["log_us"].append((inside["with"] - inside["without"]) / BLOCK_STEPS * 1e6)
            result["others_cpu_us"].append(others_cpu["with"] / BLOCK_STEPS * 1e6)
        gc.enable()
        run.finish()
    return result


def in_child(*arguments: str) -> Any:
    """The result of one measurement in a process of its own; None if it failed, with the reason on stderr."""
    with tempfile.TemporaryDirectory() as folder:
        result = Path(folder) / "result.json"
        environ = {**os.environ, "OMP_NUM_THREADS": "1", "WANDB_SILENT": "true", "MLFLOW_DISABLE_TELEMETRY": "true"}
        command = [sys.executable, __file__, *arguments, "--result", str(result)]
        done = subprocess.run(command, cwd=folder, env=environ, capture_output=True, text=True, check=False)
        if done.returncode != 0 or not result.exists():
            print(f"{' '.join(arguments)} failed:\n{done.stderr[-2000:]}", file=sys.stderr)
            return None
        return json.loads(result.read_text())


def interval(values: list[float]) -> tuple[float, float, float]:
    """Median with its 95 % bootstrap interval."""
    rng = np.random.default_rng(0)
    data = np.asarray(values)
    medians = np.median(rng.choice(data, (4000, len(data))), axis=1)
    low, high = np.quantile(medians, [0.025, 0.975])
    return float(np.median(data)), float(low), float(high)


def version(distribution: str) -> str | None:
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return None


def print_header() -> None:
    hardware = describe_hardware()
    cpu = hardware["cpu"]
    names = ["torch", "numpy", "pyarrow", *TOOLS.values()]
    print(f"date     {datetime.datetime.now(datetime.timezone.utc):%Y-%m-%d %H:%M} UTC")
    print(f"machine  {cpu['model']}, {cpu['logical_cores']} cores, {hardware['memory_bytes'] / 2**30:.0f} GiB")
    print(f"system   {platform.system()} {platform.release()}, Python {platform.python_version()}")
    print(f"versions {', '.join(f'{name} {version(name)}' for name in names if version(name))}")
    print(f"load     {os.getloadavg()[0]:.1f} before this started")


def print_calls(rounds: int, seconds: float) -> None:
    print("\n1. one log() of five floats, microseconds on the calling thread")
    print(f"   {'':18}{'median':>9}{'p99':>9}{'p99.9':>10}{'max':>10}{'calls':>9}{'close s':>9}")
    tools = [tool for tool, distribution in TOOLS.items() if version(distribution)]
    results: dict[str, list[Any]] = {tool: [] for tool in tools}
    for turn in range(rounds):
        for tool in tools[turn % len(tools) :] + tools[: turn % len(tools)]:
            results[tool].append(in_child("--calls", tool, "--seconds", str(seconds)))
    for tool in TOOLS:
        measured = [result for result in results.get(tool, []) if result is not None]
        if not measured:
            print(f"   {tool:18}{'failed' if tool in results else 'not installed':>15}")
            continue
        us = np.concatenate([result["us"] for result in measured])
        median, p99, p999 = np.quantile(us, [0.5, 0.99, 0.999])
        close_s = statistics.median(result["close_s"] for result in measured)
        print(f"   {tool:18}{median:9.1f}{p99:9.1f}{p999:10.1f}{us.max():10.0f}{len(us):9d}{close_s:9.2f}")
        if tool == "torchtrack":
            verdict = "kept" if p999 <= P999_LIMIT_US else "NOT kept here"
            print(f"   {'':18}limit: p99.9 at most {P999_LIMIT_US:.0f} us, {verdict}")


def print_flat_out(seconds: float) -> None:
    result = in_child("--flat-out", "--seconds", str(seconds))
    if result is None:
        return
    rate = result["found"] / result["logging_s"]
    lost = result["logged"] - result["found"]
    print(f"\n2. logging flat out for {result['logging_s']:.1f} s, one thread, five floats a call")
    print(f"   {rate / 1e6:.2f} million values a second read back: {result['found']} of {result['logged']} logged")
    print(f"   missing {lost}, counted as dropped by the run {result['dropped']}")
    print(f"   finish() {result['finish_s']:.2f} s, reading back {result['read_s']:.2f} s")
    print(f"   {result['bytes'] / max(result['found'], 1):.1f} bytes a value on disk")


def print_loop(pairs: int) -> None:
    result = in_child("--loop", "--pairs", str(pairs))
    if result is None:
        return
    slower, low, high = interval([(after / before - 1) * 100 for before, after in result["pairs"]])
    added, added_low, added_high = interval([(after - before) / BLOCK_STEPS * 1e6 for before, after in result["pairs"]])
    step_us = statistics.median(before for before, _ in result["pairs"]) / BLOCK_STEPS * 1e6
    log_us = statistics.median(result["log_us"])
    others_us = statistics.median(result["others_cpu_us"])
    print(f"\n3. {STEP_MATMULS} products of 64x64 matrices a step, {step_us:.0f} us; with log() of five floats or not")
    print(f"   slowdown {slower:+.2f} % [{low:+.2f}, {high:+.2f}]: median of {pairs} interleaved pairs, 95 % interval")
    print(
        f"   added to a step {added:.1f} us [{added_low:.1f}, {added_high:.1f}], of which inside log() {log_us:.1f} us"
    )
    print(f"   CPU time of the recorder's threads {others_us:.1f} us a step, whatever else the machine does")
    for mode, steps in result["steps"].items():
        p99, p999 = np.quantile(steps, [0.99, 0.999]) * 1e6
        stalls = sum(step > 2e-3 for step in steps) / sum(steps)
        print(f"   {mode:7} logging: p99 {p99:.0f} us, p99.9 {p999:.0f} us, {stalls:.0f} steps/s over 2 ms")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=3.0, help="how long each tool logs")
    parser.add_argument("--rounds", type=int, default=3, help="how often each tool is measured")
    parser.add_argument("--pairs", type=int, default=30, help="pairs of blocks with and without logging")
    for option in ("--calls", "--result"):
        parser.add_argument(option, help=argparse.SUPPRESS)
    for option in ("--flat-out", "--loop"):
        parser.add_argument(option, action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.result is None:
        print_header()
        print_calls(options.rounds, options.seconds)
        print_flat_out(options.seconds)
        print_loop(options.pairs)
    elif options.calls:
        Path(options.result).write_text(json.dumps(time_calls(options.calls, options.seconds)))
    else:
        measured = log_flat_out(options.seconds) if options.flat_out else loop_with_and_without_logging(options.pairs)
        Path(options.result).write_text(json.dumps(measured))


if __name__ == "__main__":
    main()
