"""Round trips from PyTorch's SummaryWriter and from tensorboard's own summaries, value by value."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.utils.tensorboard import SummaryWriter

from tests.importers.imported import bring, points, recorded
from torchtrack.histogram import Histogram
from torchtrack.importers import find, import_run, tensorboard
from torchtrack.importers.target import _Target
from torchtrack.journal.reader import Stream, find_streams

LOSS = [1.0, 0.5, float("nan"), float("inf"), 2.0**-140]


@pytest.fixture(scope="module")
def values() -> torch.Tensor:
    return torch.randn(4000, generator=torch.Generator().manual_seed(0)) * 1e-3


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory, values: torch.Tensor) -> Path:
    """A folder as a training leaves it."""
    logs = tmp_path_factory.mktemp("source") / "logs"
    with SummaryWriter(str(logs / "first")) as writer:
        for step, value in enumerate(LOSS):
            writer.add_scalar("train/loss", value, step, walltime=1_700_000_000.5 + step)
        writer.add_histogram("grads/w", values, 3, walltime=1_700_000_010)
        writer.add_histogram("zeros", torch.zeros(50), 3, walltime=1_700_000_010)
        writer.add_text("note", "two words", 1, walltime=1_700_000_011)
        writer.add_image("picture", torch.rand(3, 4, 5), 2, walltime=1_700_000_012)
        writer.add_audio("sound", torch.zeros(1, 80), 1, 8000, walltime=1_700_000_013)
        writer.add_scalar("system/own", 1.0, 0, walltime=1_700_000_013)
        writer.add_hparams({"lr": 0.1, "kind": "adam"}, {"final": 0.25}, run_name="hparams")
        writer.add_pr_curve("curve", torch.ones(4), torch.rand(4), 0)
    return logs


@pytest.fixture
def source(written: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(written, tmp_path / "logs"))


@pytest.fixture
def runs(tmp_path: Path) -> Path:
    return tmp_path / "runs"


def file_of(source: Path) -> Path:
    return next((source / "first").glob("*tfevents*"))


def test_scalars_come_back_value_by_value_with_steps_and_times(source: Path, runs: Path) -> None:
    bring(source, runs)
    run = recorded(runs)["first"]

    assert str(points(run, "train/loss")) == str([(step, float(np.float32(v))) for step, v in enumerate(LOSS)])
    times = run.history("train/loss")["time"].to_pylist()
    assert [each.timestamp() for each in times] == [1_700_000_000.5 + step for step in range(5)]
    assert run.project == "logs"
    assert run.state == "finished"


def test_histograms_keep_count_and_moments_and_lie_where_the_values_do(
    source: Path, runs: Path, values: torch.Tensor
) -> None:
    _, losses = bring(source, runs)
    run, true = recorded(runs)["first"], Histogram.of(values)
    back = run.histogram("logged", "grads/w", 3)

    assert back.count == 4000
    assert (back.min, back.max) == (true.min, true.max)
    assert back.sum == pytest.approx(true.sum)
    assert back.sum_sq == pytest.approx(true.sum_sq)
    for q in (0.05, 0.5, 0.95):
        assert back.quantile(q) == pytest.approx(true.quantile(q), rel=0.25, abs=1e-5)
    assert run.histogram("logged", "zeros", 3).zeros == 50
    assert any("histograms" in what for what in losses.formats)


def test_texts_pictures_sounds_and_hyper_parameters_come_over(source: Path, runs: Path) -> None:
    bring(source, runs)
    by_name = recorded(runs)
    run = by_name["first"]

    assert [(row["name"], row["text"]) for row in run.texts().to_pylist()] == [("note/text_summary", "two words")]
    media = {row["name"]: row for row in run.media().to_pylist()}
    assert (media["picture"]["mime"], media["sound"]["mime"]) == ("image/png", "audio/wav")
    assert (runs / run.uid / "media" / media["picture"]["sha256"]).read_bytes().startswith(b"\x89PNG")
    assert by_name["first/hparams"].config == {"lr": 0.1, "kind": "adam"}
    assert points(by_name["first/hparams"], "final") == [(0, 0.25)]


def test_names_that_torchtrack_keeps_for_itself_are_moved_and_said(source: Path, runs: Path) -> None:
    _, losses = bring(source, runs)

    assert points(recorded(runs)["first"], "imported/system/own") == [(0, 1.0)]
    assert any("keeps for itself" in what for what in losses.formats)
    assert any("pr_curves" in what for what in losses.formats)
    assert not losses.damages


def test_the_same_source_twice_is_there_once_wherever_it_lies(source: Path, runs: Path, tmp_path: Path) -> None:
    bring(source, runs)
    streams = find_streams(runs)
    moved = source.rename(tmp_path / "moved")

    rows, _ = bring(moved, runs)

    assert rows == [0, 0]
    assert find_streams(runs) == streams
    assert len(recorded(runs)) == 2


def test_files_of_one_second_are_read_in_the_order_in_which_they_were_begun(tmp_path: Path) -> None:
    names = [f"events.out.tfevents.1700000000.host.7.{number}" for number in (9, 10, 11)]
    for step, name in enumerate(names):
        with SummaryWriter(str(tmp_path / "logs")) as writer:
            writer.add_scalar("loss", 0.5, step)
        (made,) = (path for path in (tmp_path / "logs").iterdir() if path.name not in names)
        made.rename(made.with_name(name))

    (found,) = tensorboard.find(tmp_path / "logs", None).runs
    assert isinstance(found, tensorboard.Run)

    assert [file.name for file in found._files] == names


def test_what_is_new_in_a_source_is_added(source: Path, runs: Path) -> None:
    bring(source, runs)
    with SummaryWriter(str(source / "first"), filename_suffix=".more") as writer:
        writer.add_scalar("train/loss", 0.125, 5)

    rows, _ = bring(source, runs)
    run = recorded(runs)["first"]

    assert sorted(rows) == [0, 1]
    assert points(run, "train/loss")[-2:] == [(4, float(np.float32(LOSS[4]))), (5, 0.125)]
    assert run.tensors(kind="logged").num_rows == 2
    assert run.state == "finished"


def test_an_import_that_was_broken_off_goes_on_and_nothing_is_twice(
    source: Path, runs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("torchtrack.importers.source.CHUNK_ROWS", 2)
    marks = iter([None, None, None, RuntimeError("out")])

    def broken(self: _Target, end: str = "") -> None:
        if (error := next(marks)) is not None:
            raise error
        mark(self, end)

    mark = _Target._mark
    (whole,) = [run for run in find(source).runs if run.about.name == "first"]
    with monkeypatch.context() as patch:
        patch.setattr(_Target, "_mark", broken)  # rows are written, and not how far the source was read
        with pytest.raises(RuntimeError, match="out"):
            import_run(runs, whole)
    assert recorded(runs)["first"].history().num_rows > 0

    bring(source, runs)
    run = recorded(runs)["first"]

    assert [step for step, _ in points(run, "train/loss")] == [0, 1, 2, 3, 4]
    assert run.tensors(kind="logged").num_rows == 2
    assert run.texts().num_rows == 1
    assert run.state == "finished"
    assert not run.damages
    assert all(stream.seal is not None for path in find_streams(runs) for stream in [_read(path)])


def _read(path: Path) -> Stream:
    stream = Stream(path)
    stream.poll()
    assert not stream.damages
    return stream


def records_of(data: bytes) -> Iterator[tuple[int, int]]:
    at = 0
    while at < len(data):
        size = int.from_bytes(data[at : at + 8], "little")
        yield at, size
        at += size + 16


@pytest.mark.parametrize("where", ["data", "length"])
def test_damage_costs_what_it_hit_and_is_said(source: Path, runs: Path, where: str) -> None:
    file = file_of(source)
    data = bytearray(file.read_bytes())
    at, _ = list(records_of(bytes(data)))[2]  # after the version: the second value of the loss
    data[at + (14 if where == "data" else 1)] ^= 0xFF
    file.write_bytes(bytes(data))

    _, losses = bring(source, runs)

    assert [step for step, _ in points(recorded(runs)["first"], "train/loss")] == [0, 2, 3, 4]
    assert losses.damages


def test_a_file_that_was_cut_off_gives_what_is_whole(source: Path, runs: Path) -> None:
    file = file_of(source)
    data = file.read_bytes()
    at, _ = list(records_of(data))[4]
    file.write_bytes(data[: at + 20])

    _, losses = bring(source, runs)

    assert [step for step, _ in points(recorded(runs)["first"], "train/loss")] == [0, 1, 2]
    assert list(losses.damages) == ["files that end within a record: being written, or cut off"]


def test_steps_that_a_restart_voids_are_an_earlier_attempt(tmp_path: Path, runs: Path) -> None:
    logs = tmp_path / "restarted"
    with SummaryWriter(str(logs), filename_suffix=".0") as writer:
        for step in range(6):
            writer.add_scalar("loss", 1.0, step)
            writer.add_scalar("val", 1.0, step)
    with SummaryWriter(str(logs), purge_step=3, filename_suffix=".1") as writer:
        for step in range(3, 5):
            writer.add_scalar("loss", 2.0, step)

    bring(logs, runs)
    (run,) = recorded(runs).values()

    assert run.history("loss")["loss"].to_pylist() == [1.0, 1.0, 1.0, 2.0, 2.0]
    assert run.history("val").column("step").to_pylist() == [0, 1, 2]
    assert len(run.attempts) == 2


def test_the_newer_form_of_summaries_is_read_too(tmp_path: Path, runs: Path) -> None:
    from tensorboard.compat.proto.event_pb2 import Event
    from tensorboard.compat.proto.summary_pb2 import Summary
    from tensorboard.plugins.histogram import metadata as histograms
    from tensorboard.plugins.scalar import metadata as scalars
    from tensorboard.summary.writer.event_file_writer import EventFileWriter
    from tensorboard.util.tensor_util import make_tensor_proto

    counts, ends = np.histogram(np.linspace(-1, 1, 1001), bins=40)
    triples = make_tensor_proto(np.stack([ends[:-1], ends[1:], counts], axis=1))
    number = make_tensor_proto(np.float32(0.75))
    told = histograms.create_summary_metadata("", ""), scalars.create_summary_metadata("", "")
    values = [
        Summary.Value(tag="h", metadata=told[0], tensor=triples),
        Summary.Value(tag="s", metadata=told[1], tensor=number),
    ]
    writer = EventFileWriter(str(tmp_path / "logs"))
    writer.add_event(Event(wall_time=1.7e9, step=4, summary=Summary(value=values)))
    writer.close()

    _, losses = bring(tmp_path / "logs", runs)
    (run,) = recorded(runs).values()
    back = run.histogram("logged", "h", 4)

    assert (back.count, back.min, back.max) == (1001, -1.0, 1.0)
    assert abs(back.mean) < 0.01
    assert points(run, "s") == [(4, 0.75)]
    assert any("without moments" in what for what in losses.formats)
