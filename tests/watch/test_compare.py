"""Ranks as threads that compare checksums: what is a finding, and what is each rank's own."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from torchtrack.recorder import Ticket
from torchtrack.watch.compare import Comparison, Found
from torchtrack.watch.replicas import Checks, Entry


class Known(Checks):
    """Checksums that are known: by name, of the tensor and of its gradient."""

    def __init__(self, tensors: dict[str, tuple[int, int]], key: str = "", kind: str = "parameter") -> None:
        super().__init__([Entry(kind, name, key, name) for name in tensors])
        self._numbers = list(tensors.values())

    def numbers(self) -> list[tuple[int, int]]:
        return self._numbers


@dataclass
class Step:
    number: int
    ticket: Ticket
    finite: bool = True


def at(step: int, *, finite: bool = True) -> Step:
    ticket = Ticket()
    ticket.step = step
    return Step(step, ticket, finite)


class Job:
    """A comparison on each of some ranks, and a real meeting of threads for every all-reduce."""

    def __init__(self, size: int) -> None:
        self.comparisons = [Comparison() for _ in range(size)]
        self._barrier = threading.Barrier(size, timeout=10.0)
        self._given: list[Any] = [None] * size
        self.reduced = 0

    def compare(self, checks: Sequence[Checks | None], step: Step) -> list[Found]:
        asked = max(c.asks(own) for c, own in zip(self.comparisons, checks, strict=True))
        found: list[Found] = [Found()] * len(checks)
        self.reduced = 0

        def run(rank: int) -> None:
            def reduce(array: np.ndarray[Any, Any], op: str) -> None:
                self._given[rank] = array.copy()
                self._barrier.wait()
                array[:] = np.sum(self._given, 0) if op == "sum" else np.max(self._given, 0)
                self.reduced += rank == 0
                self._barrier.wait()

            place = rank, len(checks)
            found[rank] = self.comparisons[rank].compare(checks[rank], asked, reduce, place, step)

        threads = [threading.Thread(target=run, args=(rank,)) for rank in range(len(checks))]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        return found

    def names(self, tensors: Sequence[dict[str, tuple[int, int]]], step: Step) -> list[str]:
        """Names that rank 0 tells of."""
        return [one.name for one in self.compare([Known(t) for t in tensors], step)[0].differing]


BIG = (1 << 63) + 12345
EQUAL = {"a": (BIG, 7), "b": (2, 8)}


def test_equal_ranks_need_one_reduction_once_they_know_who_holds_what() -> None:
    job = Job(3)
    counts = []
    for step in range(3):
        assert all(f == Found(compared=True) for f in job.compare([Known(EQUAL)] * 3, at(step)))
        counts.append(job.reduced)
    assert counts == [2, 1, 1]
    assert job.comparisons[1].settled == {"a", "b"}


def test_the_odd_rank_of_each_tensor_is_that_without_a_majority_behind_it() -> None:
    job = Job(4)
    job.compare([Known(EQUAL)] * 4, at(0))
    changed = [EQUAL, EQUAL | {"a": (BIG + 1, 7)}, EQUAL, EQUAL | {"b": (3, 8)}]
    first, *others = job.compare([Known(t) for t in changed], at(10))
    assert [(d.name, d.ranks, d.odd, d.reason) for d in first.differing] == [
        ("a", [0, 1, 2, 3], [1], "was equal"),
        ("b", [0, 1, 2, 3], [3], "was equal"),
    ]
    assert first.event()["text"] == (
        "parameter a and 1 more differs on rank 1 of 4 ranks, equal last at step 0 (was equal)"
    )
    assert first.warns
    assert [(f.count, f.differing) for f in others] == [(2, [])] * 3
    again, *_ = job.compare([Known(t) for t in changed], at(20))
    assert (again.count, again.differing) == (2, [])  # told already
    healed, *_ = job.compare([Known(EQUAL)] * 4, at(30))
    assert healed.count == 0
    once_more, *_ = job.compare([Known(t) for t in changed], at(40))
    assert [d.name for d in once_more.differing] == ["a", "b"]
    assert not once_more.warns


def test_two_against_two_names_nobody() -> None:
    job = Job(4)
    job.compare([Known(EQUAL)] * 4, at(0))
    other = EQUAL | {"a": (5, 7)}
    [one] = job.compare([Known(t) for t in (EQUAL, other, other, EQUAL)], at(1))[0].differing
    assert (one.odd, one.ranks) == ([], [0, 1, 2, 3])


def test_layers_beside_experts_of_other_names_are_compared() -> None:
    job = Job(2)
    tensors = [{**EQUAL, f"expert{rank}": (rank, rank + 1)} for rank in range(2)]
    assert job.names(tensors, at(0)) == []
    assert job.comparisons[1].alone == {"expert1"}
    tensors[1]["b"] = (9, 8)
    assert job.names(tensors, at(1)) == ["b"]


def test_experts_are_left_alone_even_if_they_began_equal_or_gradients_were_all_nan() -> None:
    job = Job(2)

    def experts(value: int, gradient: int) -> list[dict[str, tuple[int, int]]]:
        return [EQUAL | {"e": (value * rank + 5, gradient * rank + 6)} for rank in range(2)]

    assert job.names(experts(0, 1), at(0)) == []  # still equal: a learning rate of zero
    assert job.names(experts(3, 1), at(1)) == []
    job = Job(2)
    assert job.names(experts(3, 0), at(0, finite=False)) == []
    assert job.names(experts(3, 1), at(1)) == []
    assert job.names(experts(4, 1), at(2)) == []
    assert job.reduced == 1  # and no more work is made of them


def test_a_frozen_weight_that_parts_was_equal() -> None:
    job = Job(2)
    frozen = EQUAL | {"f": (4, 0)}
    job.compare([Known(frozen)] * 2, at(0))
    assert job.names([frozen, frozen | {"f": (5, 0)}], at(1)) == ["f"]


def test_frozen_weights_that_never_were_equal_say_nothing() -> None:
    job = Job(2)
    for step in range(3):
        assert job.names([EQUAL | {"f": (4, 0)}, EQUAL | {"f": (5, 0)}], at(step)) == []


def test_equal_gradients_of_weights_that_never_were_equal_are_a_missed_broadcast() -> None:
    job = Job(2)
    [one] = job.compare([Known(EQUAL), Known(EQUAL | {"a": (1, 7)})], at(3))[0].differing
    assert (one.name, one.reason, one.equal) == ("a", "gradients are equal", None)


def test_a_rank_without_checksums_takes_part_and_spoils_nothing() -> None:
    job = Job(3)
    first, *_ = job.compare([Known(EQUAL), None, Known(EQUAL)], at(0))
    assert first.compared
    assert [c.alone for c in job.comparisons] == [frozenset()] * 3
    changed = Known(EQUAL | {"a": (1, 7)})
    found = job.compare([None, Known(EQUAL), changed], at(1))
    assert [f.count for f in found] == [1, 1, 1]
    assert [[d.name for d in f.differing] for f in found] == [[], ["a"], []]


def test_many_groups_and_many_tensors_are_still_compared() -> None:
    job = Job(2)

    def checks(value: int) -> Checks:
        parts = [Known({f"{key}.{i}": (value, 1) for i in range(12)}, f"{key}/20d0") for key in range(20)]
        joined = Known({})
        joined.entries = [entry for part in parts for entry in part.entries]
        joined._numbers = [n for part in parts for n in part.numbers()]
        return joined

    job.compare([checks(1)] * 2, at(0))
    found, _ = job.compare([checks(1), checks(2)], at(1))
    assert found.count == len(found.differing) + found.more
    assert found.count >= 4 * 12
    assert len(found.event()["tensors"]) == 4 * 8
