"""watch on real ranks under DistributedDataParallel: exact, counted once, and one row a tensor."""

from __future__ import annotations

import os
import socket
import struct
import time
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist

import torchtrack
from tests.ranks import training
from torchtrack.testing import ranks
from torchtrack.watch.packed import MAX_COLUMNS

TENSORS = 5


def body(folder: Path, steps: int, until_merged: int, **options: Any) -> tuple[str, training.Truth, training.Truth]:
    return training.train(folder, steps, until_merged=until_merged, **options)


def single(folder: Path, steps: int) -> tuple[str, training.Truth, training.Truth]:
    """The same global batches in one process."""
    dist.init_process_group("gloo")
    return training.train(folder, steps)


def rows(folder: Path, uid: str, kind: str) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = torchtrack.Api(folder).run(uid).tensors(kind).to_pylist()
    return found


@pytest.mark.parametrize("world_size", [2, 4])
def test_every_row_is_the_true_averaged_gradient_before_clipping(tmp_path: Path, world_size: int) -> None:
    results = ranks(world_size, init=True).run(body, tmp_path, 8, 5)
    uid, gradients, parameters = results[0]
    assert {result[0] for result in results} == {uid}
    training.assert_rows_are(rows(tmp_path, uid, "gradient"), gradients)
    training.assert_rows_are(rows(tmp_path, uid, "parameter"), parameters)
    assert {row["stage"] for row in rows(tmp_path, uid, "gradient")} == {"pre_clip"}
    assert {row["stage"] for row in rows(tmp_path, uid, "parameter")} == {"step"}


def test_merged_rows_are_written_once_by_the_lowest_rank(tmp_path: Path) -> None:
    uid = ranks(2, init=True).run(body, tmp_path, 8, 5)[0][0]
    merged = [row for row in rows(tmp_path, uid, "gradient") if row["ranks"] == 2]
    assert len(merged) >= 5 * TENSORS
    assert {row["covers"] for row in merged} == {""}


def test_accumulated_gradients_are_recorded_once_a_step_with_their_sum(tmp_path: Path) -> None:
    uid, gradients, _ = ranks(2, init=True).run(body, tmp_path, 6, 3, accumulate=3)[0]
    training.assert_rows_are(rows(tmp_path, uid, "gradient"), gradients)


def test_the_number_of_ranks_changes_only_what_rounding_changes(tmp_path: Path) -> None:
    uids = [ranks(n, init=True).run(body, tmp_path / str(n), 4, 0)[0][0] for n in (1, 2, 4)]
    one, *others = (rows(tmp_path / n, uid, "gradient") for n, uid in zip("124", uids, strict=True))
    alone = {(row["sample"], row["name"]): row for row in one if row["sample"] < 4}
    for several in others:
        moved = elements = 0
        for row in several:
            reference = alone.get((row["sample"], row["name"]))
            if reference is None:
                continue
            assert row["norm"] == pytest.approx(reference["norm"], rel=1e-4)
            counts = dict(zip(row["buckets"], row["counts"], strict=True))
            expected = dict(zip(reference["buckets"], reference["counts"], strict=True))
            moved += sum(abs(counts.get(b, 0) - expected.get(b, 0)) for b in {*counts, *expected}) // 2
            elements += row["count"]
        assert elements > 2000
        assert moved <= 0.001 * elements


def test_global_norms_and_the_clip_coefficient_are_metrics_of_the_run(tmp_path: Path) -> None:
    uid, gradients, parameters = ranks(2, init=True).run(body, tmp_path, 6, 3)[0]
    history = torchtrack.Api(tmp_path).run(uid).history(["watch/grad_norm", "watch/param_norm", "watch/clip_coef"])
    told = history.to_pylist()
    merged = {row["step"] for row in rows(tmp_path, uid, "gradient") if row["ranks"] == 2}
    # Until the ranks share the work each has seen all of it; while they begin to, one may be a sample behind.
    missing = {row["step"] for row in told if row["watch/grad_norm"] is None}
    assert len(missing) <= 2
    assert not missing & merged
    for row in (row for row in told if row["step"] not in missing):
        norms = [
            sum(h.norm**2 for (step, _), h in truth.items() if step == row["step"]) ** 0.5
            for truth in (gradients, parameters)
        ]
        assert row["watch/grad_norm"] == pytest.approx(norms[0], rel=1e-6)
        assert row["watch/param_norm"] == pytest.approx(norms[1], rel=1e-6)
        assert row["watch/clip_coef"] == pytest.approx(min(1.0, 0.05 / (norms[0] + 1e-6)), rel=1e-5)


def bytes_sent() -> int:
    """Bytes that peers have acknowledged on all TCP connections of this process."""
    total = 0
    for link in Path("/proc/self/fd").iterdir():
        try:
            if not link.readlink().name.startswith("socket:"):
                continue
            with socket.socket(fileno=os.dup(int(link.name))) as connection:
                if connection.family in (socket.AF_INET, socket.AF_INET6) and connection.type == socket.SOCK_STREAM:
                    info = connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 256)
                    total += struct.unpack_from("<Q", info, 120)[0]
        except OSError:  # closed meanwhile
            continue
    return total


def measure_bytes(folder: Path) -> tuple[float, int]:
    """Bytes this rank sends for a merged sample, and those of its maxima. Training itself sends nothing meanwhile."""
    torch.manual_seed(0)
    model = torch.nn.Sequential(*(torch.nn.Linear(8, 8) for _ in range(20)))
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
    run = torchtrack.init(dir=folder, system_interval=0.0)
    run.watch(model, log_freq=1)
    merger = training.merger(run)
    data = torch.randn(4, 8)

    def step() -> None:
        model(data).square().sum().backward()
        optimizer.step()
        optimizer.zero_grad()
        run.log({"loss": 0.0})

    looks = 0
    write = merger._write

    def counted() -> None:  # the last that the merge thread does each time it has looked for work
        nonlocal looks
        looks += 1
        write()

    merger._write = counted  # type: ignore[method-assign]

    def settled() -> tuple[int, int]:
        """Bytes sent and samples merged, once the merge thread has found nothing to do a few times."""
        merged, since = -1, looks
        while looks < since + 4:
            time.sleep(0.005)
            if merger._queue or merger.merged_samples != merged:
                merged, since = merger.merged_samples, looks
        return bytes_sent(), merged

    agreed = torch.zeros(1)
    while not agreed.item():
        step()
        agreed.fill_(float(merger.merged_samples > 2))
        dist.all_reduce(agreed, dist.ReduceOp.MIN)
    dist.barrier()
    before, merged = settled()
    for _ in range(20):
        step()
    while merger.merged_samples < merged + 20:
        time.sleep(0.01)
    after, more = settled()
    sent = (after - before) / (more - merged)
    dist.barrier()
    run.finish()
    return sent, 2 * 40 * MAX_COLUMNS * 8


def test_a_sample_sends_its_maxima_and_of_its_sums_what_is_not_empty_on_all_ranks(tmp_path: Path) -> None:
    # A row is of 8 or 64 numbers, which lie within 80 of the 328 buckets.
    for sent, maxima in ranks(2, init=True).run(measure_bytes, tmp_path):
        assert maxima + 2 * 40 * 3 * 8 <= sent <= maxima + 2 * 40 * 80 * 8
