"""What a sample costs the network when many ranks merge it: connections, bytes and messages of every kind of rank.

    python benchmarks/watch_ranks.py [--sizes 2 8 32 128 256] [--per-node 8] [--rows 296] [--flat-up-to 32]

Every rank is a process of this machine with the shipped `Group`, over a TCPStore and real loopback sockets. A sample is
a MAX of rows x 3 values and a SUM of rows x 330 values, as in a turn of the merge; 296 rows are the gradients and
parameters of GPT-2 small. Bytes are what the kernel has sent on the sockets of the group (TCP_INFO); messages are the
segments with data of one reduction so small that each message is a segment: a sample makes two of them, and more only
where parts exceed a megabyte. "flat" is one group of all ranks, for comparison.

Times are those of all ranks sharing this machine's cores: they show that it works, not how fast it is where each rank
has a core. 10,000 ranks are arithmetic: the same formulas, held against the measured ranks in the column "on paper".
"""

from __future__ import annotations

import argparse
import datetime
import multiprocessing
import os
import platform
import socket
import statistics
import struct
import time
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
from torch.distributed import PrefixStore, TCPStore

from torchtrack.system import describe_hardware
from torchtrack.watch import tree
from torchtrack.watch.group import Group

MAX_COLUMNS, SUM_COLUMNS, HEADER = 7, 330, 8  # of sums at most
TINY_VALUES = 1024
TIMEOUT_S = 120.0
ESTABLISHED = 1


@dataclass
class Measured:
    """One rank: seconds to connect and of each sample, connections, bytes of a sample, messages of one reduction."""

    rank: int
    connect_s: float
    sample_s: list[float]
    connections: int
    sample_bytes: float
    messages: float


def sockets() -> set[str]:
    """The open sockets of this process, by number of the file."""
    found = set()
    for link in Path("/proc/self/fd").iterdir():
        try:
            if link.readlink().name.startswith("socket:"):
                found.add(link.name)
        except OSError:  # the folder's own
            continue
    return found


def traffic(numbers: set[str]) -> tuple[int, int, int]:
    """Connections among these sockets, bytes they have sent, and segments with data."""
    connections = sent = segments = 0
    for number in numbers:
        with socket.socket(fileno=os.dup(int(number))) as connection:
            if connection.type != socket.SOCK_STREAM or connection.family not in (socket.AF_INET, socket.AF_INET6):
                continue
            info = connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 256)
            connections += info[0] == ESTABLISHED
            segments += struct.unpack_from("<I", info, 156)[0]  # tcpi_data_segs_out
            sent += struct.unpack_from("<Q", info, 200)[0]  # tcpi_bytes_sent
    return connections, sent, segments


def nodes_of(world_size: int, per_node: int) -> list[int]:
    return [rank // per_node for rank in range(world_size)]


def run_rank(rank: int, world_size: int, options: Any, flat: bool, port: int, barrier: Any, results: Any) -> None:
    if flat:
        tree.FAN_OUT = world_size  # type: ignore[misc]
    client = TCPStore("127.0.0.1", port, None, is_master=False, timeout=timedelta(seconds=TIMEOUT_S))
    store = PrefixStore("bench", client)
    barrier.wait(TIMEOUT_S)
    before, begin = sockets(), time.perf_counter()
    group = Group(store, rank, world_size, lambda: False, nodes_of(world_size, options.per_node))
    connect_s = time.perf_counter() - begin
    own = sockets() - before
    expected = world_size * (world_size - 1) / 2

    def reduce(values: int, op: str) -> None:
        tensor = torch.full((values,), float(rank), dtype=torch.float64)
        group.all_reduce(tensor, op, TIMEOUT_S)
        assert bool((tensor == (expected if op == "sum" else world_size - 1)).all())

    barrier.wait(TIMEOUT_S)
    reduce(TINY_VALUES, "sum")  # the first one is slower
    barrier.wait(TIMEOUT_S)
    connections, _, messages = traffic(own)
    reduce(TINY_VALUES, "sum")
    barrier.wait(TIMEOUT_S)
    messages = traffic(own)[2] - messages
    sent, times = traffic(own)[1], []
    for _ in range(options.samples):
        barrier.wait(TIMEOUT_S)
        begin = time.perf_counter()
        reduce(HEADER + options.rows * MAX_COLUMNS, "max")
        reduce(world_size + options.rows * SUM_COLUMNS, "sum")
        times.append(time.perf_counter() - begin)
    barrier.wait(TIMEOUT_S)
    sample_bytes = (traffic(own)[1] - sent) / options.samples
    barrier.wait(TIMEOUT_S)
    results.put(Measured(rank, connect_s, times, connections, sample_bytes, messages))
    group.close()


def keep_store(ports: Any, done: Any) -> None:
    """The job's store, in a process of its own: its threads must not be there when the ranks are forked."""
    store = TCPStore("127.0.0.1", 0, None, is_master=True, wait_for_workers=False)
    ports.put(store.port)
    done.wait()


def measure(world_size: int, options: Any, *, flat: bool) -> list[Measured]:
    context = multiprocessing.get_context("fork")
    ports, results = context.SimpleQueue(), context.Queue()
    done, barrier = context.Event(), context.Barrier(world_size)
    processes = [context.Process(target=keep_store, args=(ports, done), daemon=True)]
    processes[0].start()
    arguments = (world_size, options, flat, ports.get(), barrier, results)
    for rank in range(world_size):
        processes.append(context.Process(target=run_rank, args=(rank, *arguments), daemon=True))
        processes[-1].start()
    measured = [results.get(timeout=2 * TIMEOUT_S) for _ in range(world_size)]
    done.set()
    for process in processes:
        process.join()
    return sorted(measured, key=lambda one: one.rank)


def broadcasts(place: int, size: int) -> int:
    """How many ranks a member sends to in a binomial broadcast from the first."""
    distances = [1 << i for i in range(max(size - 1, 0).bit_length())]
    return sum(place < distance and place + distance < size for distance in distances)


def on_paper(rank: int, levels: list[list[tree.Members]], payload: int) -> tuple[int, float, int]:
    """Connections, bytes of a sample of so many bytes, and messages of a small reduction, by the algorithms of gloo.

    A ring moves each of n parts n - 1 times, cut in two so that adding and sending overlap. A reduce then collects the
    parts at the first rank; an all-reduce sends them round once more. What is sent is announced by its sender and asked
    for by its receiver: three messages.
    """
    connections, sent, messages = 0, 0.0, 0
    for level, members in enumerate(tree.path(rank, levels)):
        n, place = len(members), members.index(rank)
        connections += n - 1
        if level == len(levels) - 1:
            sent += 2 * (n - 1) / n * payload
            messages += 12 * (n - 1)
        elif n > 1:
            children = broadcasts(place, n)
            sent += ((n - 1) / n + (1 / n if place else 0) + children) * payload
            messages += 6 * (n - 1) + (2 if place else n - 1) + 2 * children + (place > 0)
    return connections, sent, messages


def payload_bytes(world_size: int, rows: int) -> int:
    return 8 * (HEADER + rows * (MAX_COLUMNS + SUM_COLUMNS) + world_size)


def line(name: str, *values: object) -> None:
    print(f"  {name:18}" + "".join(f"{value:>13}" for value in values))


def roles(levels: list[list[tree.Members]], world_size: int) -> dict[str, list[int]]:
    """Ranks by how high they reach: "leads 1" speaks for its own node alone."""
    found: dict[str, list[int]] = {}
    for rank in range(world_size):
        height = len(tree.path(rank, levels)) - 1
        name = "root" if rank == 0 else f"leads {height}" if height else "leads none"
        found.setdefault("every rank" if len(levels) == 1 else name, []).append(rank)
    return found


def report(world_size: int, options: Any, measured: list[Measured], levels: list[list[tree.Members]], how: str) -> None:
    payload = payload_bytes(world_size, options.rows)
    connect_s = max(one.connect_s for one in measured)
    sample_s = statistics.median(max(times) for times in zip(*(one.sample_s for one in measured), strict=True))
    total = sum(one.sample_bytes for one in measured)
    links = sum(one.connections for one in measured) // 2
    print(f"\n{world_size} ranks, {how}: {shape(levels)}, {links} connections, made in {connect_s:.2f} s")
    print(f"  a sample of {payload / 1e6:.2f} MB takes {sample_s * 1e3:.0f} ms, all ranks send {total / 1e6:.1f} MB")
    line("", "ranks", "connections", "MB sent", "x payload", "on paper", "messages", "on paper")
    for name, ranks in roles(levels, world_size).items():
        ours = [measured[rank] for rank in ranks]
        expected = [on_paper(rank, levels, payload) for rank in ranks]
        sent = statistics.mean(one.sample_bytes for one in ours)
        line(
            name,
            len(ranks),
            max(one.connections for one in ours),
            f"{sent / 1e6:.2f}",
            f"{sent / payload:.2f}",
            f"{statistics.mean(each[1] for each in expected) / payload:.2f}",
            f"{statistics.mean(one.messages for one in ours):.1f}",
            f"{statistics.mean(each[2] for each in expected):.1f}",
        )


def shape(levels: list[list[tree.Members]]) -> str:
    """How many groups there are on each level, and how large the largest is."""
    return " + ".join(f"{len(level)} of {max(len(group) for group in level)}" for level in levels)


def on_paper_only(world_size: int, options: Any) -> None:
    levels = tree.levels(world_size, nodes_of(world_size, options.per_node))
    payload = payload_bytes(world_size, options.rows)
    every = [on_paper(rank, levels, payload) for rank in range(world_size)]
    total, links = sum(sent for _, sent, _ in every), sum(connections for connections, _, _ in every) // 2
    above = [[(rank,) for rank in range(world_size)], *levels[1:]]
    between = sum(on_paper(rank, above, payload)[1] for rank in range(0, world_size, options.per_node))
    flat = world_size * (world_size - 1) // 2
    print(f"\n{world_size} ranks on paper: {shape(levels)}, {links} connections (flat: {flat})")
    print(
        f"  of a sample of {payload / 1e6:.2f} MB all ranks send {total / 1e9:.1f} GB, {between / 1e9:.1f} GB of it"
        f" between nodes; what the root sends takes {every[0][1] / 1.25e6:.0f} ms at 10 Gbit/s"
    )
    line("the most of", "ranks", "connections", "MB sent", "x payload", "messages")
    for name, ranks in roles(levels, world_size).items():
        connections, sent, messages = (max(every[rank][i] for rank in ranks) for i in range(3))
        line(name, len(ranks), connections, f"{sent / 1e6:.2f}", f"{sent / payload:.2f}", messages)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", type=int, nargs="+", default=[2, 8, 32, 128, 256])
    parser.add_argument("--per-node", type=int, default=8)
    parser.add_argument("--rows", type=int, default=296)
    parser.add_argument("--samples", type=int, default=3)
    parser.add_argument("--flat-up-to", type=int, default=32)
    options = parser.parse_args()
    cpu = describe_hardware()["cpu"]
    print(f"{datetime.date.today()}  {cpu['model']}, {cpu['logical_cores']} cores  {platform.platform()}")
    versions = f"python {platform.python_version()}, torch {torch.__version__}"
    print(f"{versions}; {options.rows} rows, {options.per_node} ranks a node")
    for world_size in options.sizes:
        levels = tree.levels(world_size, nodes_of(world_size, options.per_node))
        report(world_size, options, measure(world_size, options, flat=False), levels, "as shipped")
        if len(levels) > 1 and world_size <= options.flat_up_to:
            one = [[tuple(range(world_size))]]
            report(world_size, options, measure(world_size, options, flat=True), one, "flat")
    on_paper_only(10_000, options)


if __name__ == "__main__":
    main()
