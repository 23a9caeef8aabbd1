"""Ranks as threads of one process: merge threads over one store and a real gloo group."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa
import pytest
import torch
from torch._C._distributed_c10d import HashStore

from tests.watch.conftest import histogram, until
from torchtrack.api.tensors import parse_covers
from torchtrack.histogram import Histogram
from torchtrack.job import Identity
from torchtrack.recorder import Ticket
from torchtrack.watch import kernels, reduce
from torchtrack.watch.drain import HostCopy
from torchtrack.watch.layout import Region
from torchtrack.watch.place import Place
from torchtrack.watch.plan import Plan
from torchtrack.watch.reduce import Merger
from torchtrack.watch.sample import Part, Sample

Tensors = dict[str, torch.Tensor]


class Rows:
    """What a recorder is for a merger: keeps the rows."""

    def __init__(self) -> None:
        self.rows: list[dict[str, Any]] = []
        self.metrics: list[tuple[str, float, int | None]] = []
        self.open: list[Ticket] = []

    def put(self, _table: object, make: Callable[[], pa.RecordBatch], _size: int = 0) -> None:
        self.rows += make().to_pylist()

    def number(self, name: str, value: float, step: int | None) -> None:
        self.metrics.append((name, value, step))

    def numbers(self, values: Mapping[str, float], step: int | None) -> None:
        for name, value in values.items():
            self.number(name, value, step)

    def stamp(self, tickets: Iterable[Ticket]) -> None:
        for ticket in tickets:
            ticket.step = 99 if ticket.step is None else ticket.step


def close(merger: Merger, timeout_s: float) -> bool:
    merger.end(timeout_s / 2, timeout_s / 2)
    return merger.join(timeout_s)


@dataclass
class FakeJob:
    """Who the ranks are, and the store they share."""

    identity: Identity
    shared: HashStore

    def store(self) -> Any:
        return self.shared


@dataclass
class Rank:
    """One rank: its merger, what it wrote, and its next sample."""

    number: int
    world_size: int
    store: HashStore
    written: Rows = field(default_factory=Rows)
    samples: int = 0

    def __post_init__(self) -> None:
        identity = Identity(
            "0" * 16, "id", "p", None, attempt=1, rank=self.number, local_rank=0, node=0,
            world_size=self.world_size, provisional=False,
        )  # fmt: skip
        job: Any = FakeJob(identity, self.store)
        written: Any = self.written
        self.merger = Merger(written, job, 0)
        self.merger.start()

    def submit(self, tensors: Tensors, step: int | None = 7, stage: str = "step", *, drop: bool = False) -> Sample:
        """Count this rank's share as the watcher does, and hand it over."""
        plan = self.merger.plan
        plan = plan if plan is not None and self.samples >= plan.start else None
        part, views = Part(stage), []
        for name, tensor in tensors.items():
            share = plan.shares.get(name) if plan else None
            lo, hi = (share.lo, share.hi) if share else (0, tensor.numel())
            if lo < hi:
                numel = plan.numels[name] if plan and share else tensor.numel()
                place = Place((lo, hi), (share.key if share else "", lo, hi), numel, planned=share is not None)
                part.rows.append((("gradient", name), place))
                views.append(tensor[lo:hi])
        counts, moments = kernels.choose(torch.device("cpu"))(views)
        part.counts, part.moments = HostCopy(counts), HostCopy(moments)
        ticket = Ticket()
        ticket.step = step
        if step is None:
            self.written.open.append(ticket)
        sample = Sample(self.samples, ticket, plan, [(part, list(range(len(part.rows))))])
        sample.held = {name: Region(n, "", 0, n) for name, n in ((k, t.numel()) for k, t in tensors.items())}
        self.samples += 1
        self.merger.next_sample = self.samples
        if drop:
            self.merger._queued_bytes += reduce.QUEUE_BYTES  # as if so much were waiting
        self.merger.submit(sample)
        if drop:
            self.merger._queued_bytes -= reduce.QUEUE_BYTES
        return sample

    def of(self, sample: int) -> list[dict[str, Any]]:
        return [row for row in list(self.written.rows) if row["sample"] == sample]


Start = Callable[[int], list[Rank]]


@pytest.fixture
def start() -> Iterator[Start]:
    begun: list[Rank] = []

    def start(world_size: int) -> list[Rank]:
        store = HashStore()
        begun.extend(Rank(i, world_size, store) for i in range(world_size))
        return list(begun)

    yield start
    closing = [threading.Thread(target=close, args=(rank.merger, 3.0)) for rank in begun]
    for thread in closing:
        thread.start()
    for thread in closing:
        thread.join()


def tensors(seed: int) -> Tensors:
    generator = torch.Generator().manual_seed(seed)
    return {name: torch.randn(n, generator=generator) for name, n in (("a", 10), ("b", 1), ("c", 100))}


def planned(ranks: list[Rank]) -> Plan:
    """Samples that each rank counts whole, until all have agreed on a plan and it holds."""
    for rank in ranks:
        rank.submit(tensors(0))
    until(lambda: all(rank.merger.plan for rank in ranks))
    plan = ranks[0].merger.plan
    assert plan is not None
    while any(rank.samples < plan.start for rank in ranks):
        for rank in ranks:
            rank.submit(tensors(rank.samples))
    return plan


def counted_by(plan: Plan, rank: int) -> dict[str, int]:
    """How many elements of each tensor a rank counts, where it counts any."""
    shares = plan.shares_of(rank)
    return {name: share.hi - share.lo for name, share in shares.items() if share.lo < share.hi}


def assert_whole(rows: list[dict[str, Any]], truth: Tensors) -> None:
    assert {row["name"] for row in rows} == set(truth)
    for row in rows:
        expected = Histogram.of(truth[row["name"]])
        got = histogram(row)
        assert got.counts.tolist() == expected.counts.tolist()
        assert (got.min, got.max) == (expected.min, expected.max)
        assert (row["covers"], row["count"], row["numel"]) == ("", expected.count, expected.count)


def assert_disjoint(rows: list[dict[str, Any]]) -> dict[str, int]:
    """No element of a tensor is told of twice; the elements told of, by name."""
    told: dict[str, set[int]] = {}
    for row in rows:
        covered = range(row["numel"])
        spans = parse_covers(row["covers"])[":"] if row["covers"] else [(0, row["numel"])]
        elements = {i for lo, hi in spans for i in covered[lo:hi]}
        assert row["count"] == len(elements)
        assert not told.setdefault(row["name"], set()) & elements
        told[row["name"]] |= elements
    return {name: len(elements) for name, elements in told.items()}


def test_three_ranks_that_each_counted_a_third_write_the_whole_once(start: Start) -> None:
    ranks = start(3)
    plan = planned(ranks)
    truth = tensors(50)
    number = ranks[0].samples
    assert number >= plan.start
    samples = [rank.submit(truth) for rank in ranks]
    assert all(sample.plan is not None for sample in samples)
    until(lambda: all(rank.merger.merged_samples == 1 for rank in ranks))
    until(lambda: len(ranks[0].of(number)) == 3)
    assert_whole(ranks[0].of(number), truth)
    assert {row["ranks"] for row in ranks[0].of(number)} == {3}
    assert [rank.of(number) for rank in ranks[1:]] == [[], []]
    total = torch.cat(list(truth.values())).norm().item()
    norms = [value for name, value, _ in ranks[0].written.metrics if name == "watch/grad_norm"]
    assert norms[-1] == pytest.approx(total, rel=1e-6)


def test_a_plan_shares_out_only_what_is_equal_on_all_ranks(start: Start) -> None:
    ranks = start(2)
    for rank in ranks:
        rank.submit({"same": torch.ones(4), "own": torch.full((3,), 1.0 + rank.number)})
    until(lambda: all(rank.merger.plan for rank in ranks))
    plans = [rank.merger.plan for rank in ranks]
    assert plans[0] is not None
    assert plans[1] is not None
    assert plans[0].digest == plans[1].digest
    assert plans[0].numels == {"same": 4, "own": 6}


def test_replicas_are_known_for_equal_though_their_kernels_added_up_in_another_order(
    start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    ranks, choose = start(2), kernels.choose

    def other(device: torch.device) -> Any:
        def kernel(*arguments: Any) -> tuple[torch.Tensor, torch.Tensor]:
            counts, moments = choose(device)(*arguments)
            moments[:, :2] *= 1 + 2e-16
            return counts, moments

        return kernel

    ranks[0].submit(tensors(0))
    monkeypatch.setattr(kernels, "choose", other)
    ranks[1].submit(tensors(0))
    until(lambda: all(rank.merger.plan for rank in ranks))
    assert ranks[0].merger.plan is not None
    assert ranks[0].merger.plan.numels == {"a": 10, "b": 1, "c": 100}


def test_before_a_plan_each_rank_writes_its_own_whole_rows(start: Start) -> None:
    ranks = start(2)
    for rank in ranks:
        rank.submit(tensors(0))
    until(lambda: all(len(rank.of(0)) == 3 for rank in ranks))
    for rank in ranks:
        assert_whole(rank.of(0), tensors(0))


def test_ranks_that_are_a_sample_apart_find_together_again(start: Start) -> None:
    ranks = start(2)
    planned(ranks)
    first = ranks[0].samples
    ranks[1].samples += 1  # it never had the sample `first`
    ranks[0].submit(tensors(first))
    for rank in ranks:
        rank.submit(tensors(first + 1))
    until(lambda: all(rank.merger.merged_samples == 1 for rank in ranks))
    until(lambda: len(ranks[0].of(first + 1)) == 3)
    assert_whole(ranks[0].of(first + 1), tensors(first + 1))
    alone = ranks[0].of(first)
    plan = ranks[0].merger.plan
    assert plan is not None
    assert {row["name"]: row["count"] for row in alone} == counted_by(plan, 0)
    assert_disjoint(alone)


def test_a_rank_that_dropped_a_sample_takes_its_turn_and_the_row_says_what_is_missing(start: Start) -> None:
    ranks = start(3)
    plan = planned(ranks)
    number = ranks[0].samples
    for rank in ranks:
        rank.submit(tensors(1), drop=rank.number == 1)
    until(lambda: all(rank.merger.merged_samples == 1 for rank in ranks))
    until(lambda: len(ranks[0].of(number)) == 3)
    rows = ranks[0].of(number)
    assert ranks[1].merger.dropped_samples == 1
    assert {row["ranks"] for row in rows} == {2}
    missing = counted_by(plan, 1)
    assert assert_disjoint(rows) == {n: numel - missing.get(n, 0) for n, numel in plan.numels.items()}
    for rank in ranks:
        rank.submit(tensors(2))
    until(lambda: all(rank.merger.merged_samples == 2 for rank in ranks))


def test_when_a_peer_is_lost_the_others_write_their_parts(start: Start) -> None:
    ranks = start(3)
    plan = planned(ranks)
    for rank in ranks:
        rank.submit(tensors(1))
    until(lambda: all(rank.merger.merged_samples == 1 for rank in ranks))
    number = ranks[0].samples
    close(ranks[2].merger, 2.0)
    for rank in ranks[:2]:
        rank.submit(tensors(2))
    until(lambda: all(rank.merger.plan is None for rank in ranks[:2]))
    until(lambda: all(rank.of(number) for rank in ranks[:2]))
    rows = ranks[0].of(number) + ranks[1].of(number)
    lost = counted_by(plan, 2)
    told = assert_disjoint(rows)
    assert {n: told.get(n, 0) + lost.get(n, 0) for n in plan.numels} == plan.numels


def test_when_the_writer_is_lost_another_rank_writes_what_it_retained(start: Start) -> None:
    ranks = start(2)
    planned(ranks)
    merged = ranks[0].samples
    for rank in ranks:
        rank.submit(tensors(1))
    until(lambda: all(rank.merger.merged_samples == 1 for rank in ranks))
    close(ranks[0].merger, 2.0)
    assert ranks[1].of(merged) == []
    ranks[1].submit(tensors(2))
    until(lambda: len(ranks[1].of(merged)) == 3)
    assert_whole(ranks[1].of(merged), tensors(1))


def test_closing_while_a_turn_waits_for_others_writes_and_ends(start: Start) -> None:
    ranks = start(2)
    plan = planned(ranks)
    number = ranks[0].samples
    ranks[0].submit(tensors(1))
    assert close(ranks[0].merger, 2.0)
    rows = ranks[0].of(number)
    assert {row["name"]: row["count"] for row in rows} == counted_by(plan, 0)


def test_a_row_that_waits_too_long_for_its_step_gets_the_current_one(
    start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reduce, "_STEP_WITHIN_S", 0.0)
    (rank,) = start(1)
    rank.submit(tensors(0), step=None)
    until(lambda: len(rank.of(0)) == 3)
    assert {row["step"] for row in rank.of(0)} == {99}


def test_a_row_waits_for_its_step_and_gets_the_current_one_at_the_end(start: Start) -> None:
    (rank,) = start(1)
    rank.submit(tensors(0), step=None)
    rank.submit(tensors(1), step=None)
    ticket = rank.written.open.pop(0)
    assert rank.of(0) == []
    ticket.step = 12
    until(lambda: len(rank.of(0)) == 3)
    assert rank.of(1) == []
    close(rank.merger, 2.0)
    assert [{row["step"] for row in rank.of(sample)} for sample in (0, 1)] == [{12}, {99}]


def test_more_than_the_queue_holds_is_dropped_and_counted(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    (rank,) = start(1)
    row = 3 * 330 * 8
    monkeypatch.setattr(reduce, "QUEUE_BYTES", 3 * row)
    held = threading.Event()
    monkeypatch.setattr(Sample, "ready", lambda _: held.is_set())
    for number in range(6):
        rank.submit(tensors(number))
    assert rank.merger.dropped_samples == 3
    held.set()
    until(lambda: len(rank.written.rows) == 9)
    rank.submit(tensors(6))
    until(lambda: len(rank.written.rows) == 12)
    assert {row["sample"] for row in rank.written.rows} == {0, 1, 2, 6}


def test_the_stage_of_a_merged_row_is_that_of_the_ranks(start: Start) -> None:
    ranks = start(2)
    planned(ranks)
    number = ranks[0].samples
    for rank in ranks:
        rank.submit(tensors(1), stage="pre_clip")
    until(lambda: len(ranks[0].of(number)) == 3)
    assert {row["stage"] for row in ranks[0].of(number)} == {"pre_clip"}
