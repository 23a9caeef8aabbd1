"""What is written for TensorBoard while a run captures."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import torchtrack
from tests.runs import column, finished, own
from torchtrack.compat import tensorboard as capturing
from torchtrack.histogram import Histogram
from torchtrack.run import Run

writers = pytest.importorskip("torch.utils.tensorboard")


def begin() -> Run:
    return torchtrack.init(sync_tensorboard=True, system_interval=0)


def writer(folder: Path) -> Any:
    return writers.SummaryWriter(str(folder))


def test_scalars_texts_images_and_histograms_are_recorded_at_their_steps(tmp_path: Path) -> None:
    values = np.array([0.5, -3.0, 0.0, 1e-9])
    with writer(tmp_path / "early") as early:  # made before the run
        run = begin()
        early.add_scalar("loss", 0.25, global_step=100)
        early.add_scalar("new", 0.5, global_step=101, new_style=True)
        early.add_text("notes", "hello", global_step=100)
        early.add_image("picture", np.zeros((3, 4, 4)), global_step=100)
        early.add_histogram("weights", values, global_step=100)
        recorded = finished(run)

    assert recorded.history("loss").to_pydict()["step"] == [100]
    assert column(recorded, "new") == [0.5]
    assert [row["text"] for row in recorded.texts().to_pylist()] == ["hello"]
    assert [(row["name"], row["mime"], row["step"]) for row in recorded.media().to_pylist()] == [
        ("picture", "image/png", 100)
    ]
    assert np.array_equal(recorded.histogram("logged", "weights", 100).counts, Histogram.of(values).counts)


def test_a_histogram_in_buckets_keeps_every_count(tmp_path: Path) -> None:
    run = begin()
    with writer(tmp_path / "board") as board:
        board.add_histogram_raw(
            "raw", min=1.0, max=4.0, num=7, sum=12.0, sum_squares=30.0,
            bucket_limits=[1.5, 2.0, 4.0], bucket_counts=[1, 2, 4], global_step=1,
        )  # fmt: skip
    histogram = finished(run).histogram("logged", "raw", 1)

    assert histogram.sparse()[1].tolist() == [1, 2, 2, 2]  # 2..4 is two buckets of ours
    assert (histogram.sum, histogram.sum_sq, histogram.min, histogram.max) == (12.0, 30.0, 1.0, 4.0)


def test_writers_of_several_folders_are_told_apart(tmp_path: Path) -> None:
    run = begin()
    with writer(tmp_path / "a") as first, writer(tmp_path / "a" / "deep") as below, writer(tmp_path / "b") as beside:
        for board in (first, below, beside):
            board.add_scalar("x", 1.0, global_step=0)

    assert own(finished(run)) == ["b/x", "deep/x", "x"]


def test_after_the_run_the_writers_are_as_before(tmp_path: Path) -> None:
    kind = writers.SummaryWriter
    before = kind.add_histogram
    run = begin()
    during = kind.add_histogram
    run.finish(quiet=True)

    assert during is not before
    assert kind.add_histogram is before
    assert not any(isinstance(finder, capturing._Later) for finder in sys.meta_path)


def test_tensorboardx_is_captured_wherever_it_is_imported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A package laid out as tensorboardX is: it need not be installed."""
    package = tmp_path / "tensorboardX"
    package.mkdir()
    (package / "__init__.py").write_text("")
    (package / "event_file_writer.py").write_text(
        "class EventFileWriter:\n"
        "    def __init__(self, logdir): self._logdir = logdir\n"
        "    def get_logdir(self): return self._logdir\n"
        "    def add_event(self, event): return 'written'\n"
    )
    (package / "writer.py").write_text(
        "class SummaryWriter:\n"
        "    logdir = 'x'\n"
        "    def add_histogram(self, tag, values, global_step=None): return 'too'\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    from tensorboard.compat.proto.event_pb2 import Event
    from tensorboard.compat.proto.summary_pb2 import Summary

    run = begin()
    import tensorboardX.event_file_writer as late  # type: ignore[import-not-found]
    import tensorboardX.writer as later  # type: ignore[import-not-found]

    event = Event(step=3, summary=Summary(value=[Summary.Value(tag="x", simple_value=2.0)]))
    answer = late.EventFileWriter(str(tmp_path)).add_event(event)
    also = later.SummaryWriter().add_histogram("h", [1.0, 2.0], 3)
    recorded = finished(run)
    for name in [name for name in sys.modules if name.startswith("tensorboardX")]:
        monkeypatch.delitem(sys.modules, name)

    assert (answer, also, recorded.histogram("logged", "x/h", 3).count) == ("written", "too", 2)
    assert recorded.history("x").to_pydict()["x"] == [2.0]


def test_an_event_that_cannot_be_read_is_still_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, expect_internal_failures: None
) -> None:
    run = begin()
    monkeypatch.setattr(capturing, "_recorded", lambda _: 1 / 0)
    with writer(tmp_path / "board") as board:
        board.add_scalar("x", 1.0)
    run.finish(quiet=True)

    assert list((tmp_path / "board").iterdir()) != []


def test_a_patch_captures_in_runs_to_come_until_it_is_taken_back(tmp_path: Path) -> None:
    wandb: Any = torchtrack
    wandb.tensorboard.patch(root_logdir=str(tmp_path))
    try:
        run = torchtrack.init(config={}, system_interval=0, entity="me")
        with writer(tmp_path / "a") as board:
            board.add_scalar("x", 1.0, global_step=0)
        recorded = finished(run)
    finally:
        wandb.tensorboard.unpatch()
    later = torchtrack.init(system_interval=0, entity="me")
    with writer(tmp_path / "b") as board:
        board.add_scalar("x", 1.0, global_step=0)

    assert own(recorded) == ["x"]
    assert own(finished(later)) == []
