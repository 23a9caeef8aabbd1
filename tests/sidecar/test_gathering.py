"""The finished journal files of a large job become one file a node."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

import pytest

import torchtrack
from tests.sidecar.conftest import UID
from torchtrack.journal import Kind, Stream, Writer, find_streams
from torchtrack.journal.frame import rank_path
from torchtrack.sidecar import gathering
from torchtrack.sidecar.gathering import Gathering, Written

OPENING = {"role": "rank", "uid": UID, "attempt": 1, "world_size": 300}
ROWS = [b"%03d" % number * 100 for number in range(12)]


def write(directory: Path, rank: int, *, seal: bool = True, segment_bytes: int = 2000) -> Path:
    """The journal of a rank: three files, or one."""
    path = rank_path(directory, UID, rank, rank)
    writer = Writer(path.parent, path.stem, rank, {**OPENING, "rank": rank}, segment_bytes=segment_bytes)
    for row in ROWS:
        writer.append(Kind.DATA, row, rows=1)
    if seal:
        writer.seal("finish")
    writer.close()
    return path


def rows(path: Path) -> list[bytes]:
    return [each.payload for each in Stream(path).poll() if each.kind is Kind.DATA]


def journals(directory: Path) -> list[str]:
    return sorted(path.name for path in directory.glob(f"{UID}/[0-9]*/*"))


def gathered(directory: Path) -> list[Path]:
    return list(directory.glob(f"{UID}/nodes/*.ttg"))


@pytest.fixture
def large(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Sidecars take more than one rank for many."""
    (tmp_path / "sitecustomize.py").write_text("import torchtrack.sidecar.gathering as g\ng.GATHER_ABOVE = 1\n")
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path}{os.pathsep}{Path(torchtrack.__file__).parent.parent}")


@pytest.mark.usefixtures("large")
def test_when_the_ranks_of_a_node_have_ended_their_files_are_one(node: Any) -> None:
    trainers = [node.trainer() for _ in range(3)]
    for rank, trainer in enumerate(trainers):
        assert node.client.register(f"{rank:016x}", UID, trainer.pid, rank=rank, world_size=3)
    paths = [write(node.directory, rank) for rank in range(3)]
    for trainer in trainers:
        node.tell(trainer)
    node.eventually(lambda: not node.sidecars())
    assert journals(node.directory) == []
    assert len(gathered(node.directory)) == 1
    assert [rows(path) for path in paths] == [ROWS] * 3
    assert set(find_streams(node.directory)) >= set(paths)


@pytest.mark.usefixtures("large")
def test_while_a_rank_lives_the_files_it_has_left_behind_are_gathered(node: Any) -> None:
    assert node.client.register(f"{7:016x}", UID, node.trainer().pid, rank=7, world_size=3)
    path = write(node.directory, 7)
    node.eventually(lambda: len(journals(node.directory)) == 1)
    assert journals(node.directory) == [f"{path.stem}.2.ttj"]
    assert rows(path) == ROWS


def test_files_of_a_small_job_stay_where_they_are(node: Any) -> None:
    trainer = node.trainer()
    assert node.client.register(f"{0:016x}", UID, trainer.pid, rank=0, world_size=gathering.GATHER_ABOVE)
    write(node.directory, 0)
    node.tell(trainer)
    node.eventually(lambda: not node.sidecars())
    assert (len(journals(node.directory)), gathered(node.directory)) == (3, [])


@pytest.mark.usefixtures("large")
def test_a_sidecar_that_is_terminated_leaves_the_rest_to_the_readers(node: Any) -> None:
    trainer = node.trainer()
    assert node.client.register(f"{0:016x}", UID, trainer.pid, rank=0, world_size=3)
    path = write(node.directory, 0, segment_bytes=1 << 20)
    (sidecar,) = node.sidecars()
    sidecar.send_signal(signal.SIGTERM)
    node.tell(trainer)
    node.eventually(lambda: not node.sidecars())
    assert journals(node.directory) == [path.name]
    assert rows(path) == ROWS


def test_what_failed_is_tried_again_at_the_next_look(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, expect_internal_failures: None
) -> None:
    def full(*_: object) -> int:
        raise OSError(28, "No space left on device")

    path = write(tmp_path, 0)
    gather = Gathering(tmp_path, lambda: False)
    gather.ended(Written(UID, 0, 0))
    with monkeypatch.context() as patch:
        patch.setattr(os, "write", full)
        gather.look([])
        assert gather._thread is not None
        gather._thread.join()
    assert len(journals(tmp_path)) == 3
    gather.finish()
    assert journals(tmp_path) == []
    assert rows(path) == ROWS


def test_a_stream_that_lies_elsewhere_is_left_alone(tmp_path: Path) -> None:
    gather = Gathering(tmp_path, lambda: False)
    gather.ended(Written(UID, 5, 5))
    gather.finish()
    assert gathered(tmp_path) == []


def test_a_rank_writes_where_the_sidecar_looks(tmp_path: Path) -> None:
    run = torchtrack.init(dir=tmp_path, system_interval=0, console=False)
    run.log({"loss": 1.0})
    run.finish(quiet=True)
    assert find_streams(tmp_path) == [rank_path(tmp_path, run.uid, 0, run._stream)]
