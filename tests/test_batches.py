"""The digest of a batch: equal for the same samples in any order and form, unequal for others; never a wait."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from tests.runs import begin, finished
from torchtrack.batches import DIGEST, MIDDLE, Batches


def taken(*batches: Any) -> dict[str, float]:
    held = Batches()
    for ids in batches:
        held.add(ids)
    return held.take()


@pytest.mark.parametrize(
    "ids", [[3, 1, 2], (2, 3, 1), range(1, 4), np.array([[1], [2], [3]]), torch.tensor([1, 2, 3], dtype=torch.int32)]
)
def test_the_same_samples_have_one_digest_in_any_order_and_form(ids: Any) -> None:
    assert taken(ids) == taken([1, 2, 3])
    assert taken(ids)[MIDDLE] == 2.0


@pytest.mark.parametrize("ids", [[1, 2, 4], [1, 2], [1, 2, 3, 3], [-1, 2, 3], ["1", "2", "3"], [0, 3, 3], 6])
def test_other_samples_have_another(ids: Any) -> None:
    assert taken(ids)[DIGEST] != taken([1, 2, 3])[DIGEST]


def test_digests_of_many_batches_do_not_collide() -> None:
    found = {taken(range(at, at + 8))[DIGEST] for at in range(20_000)}
    assert len(found) == 20_000
    assert max(found) < 2**53


def test_names_of_samples_are_ids_too_but_have_no_middle() -> None:
    assert taken(["a", "b"]) == taken(("b", "a"))
    assert taken([("shard-1", 7)])[DIGEST] != taken([("shard-1", 8)])[DIGEST]
    assert MIDDLE not in taken("a")


def test_micro_batches_of_a_step_are_one_batch() -> None:
    assert taken([1, 2], [3]) == taken([1, 2, 3])


def test_nothing_is_taken_of_nothing_and_nothing_twice() -> None:
    held = Batches()
    held.add([])
    assert held.take() == {}
    held.add([1])
    held.take()
    assert held.take() == {}


@pytest.mark.parametrize("ids", [[1.5], [None], object(), 0.5, torch.empty(2, device="meta")], ids=type)
def test_what_is_no_id_is_refused(ids: Any) -> None:
    with pytest.raises(TypeError, match=r"mark\(batch=\)"):
        taken(ids)


def test_a_mark_of_a_batch_is_recorded_with_the_row_that_closes_the_step() -> None:
    run = begin()
    run.mark(batch=[1, 2])
    run.log({"loss": 1.0}, commit=False)
    run.mark(batch=[3])
    run.log({"loss": 1.0})
    run.log({"loss": 1.0})
    run.mark(batch=[4])
    run.log({"loss": 1.0})
    rows = finished(run).history(DIGEST, raw=True).to_pylist()
    digests = {row["step"]: row[DIGEST] for row in rows if row[DIGEST] is not None}
    assert digests == {0: taken([1, 2, 3])[DIGEST], 2: taken([4])[DIGEST]}


def test_a_batch_is_no_mark_and_one_that_cannot_be_recorded_harms_nothing(caplog: pytest.LogCaptureFixture) -> None:
    run = begin()
    run.mark(batch=[1])
    run.mark(batch=[0.5])
    run.mark("warm-up ends", batch=[2])
    run.log({"loss": 1.0})
    read = finished(run)
    assert [event.data["title"] for event in read.events("mark")] == ["warm-up ends"]
    assert "whole numbers or strings" in caplog.text
