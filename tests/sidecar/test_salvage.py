"""What is moved into the folder of a run, what is copied, and what is left alone."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from torchtrack.journal import ring
from torchtrack.sidecar import salvage

STREAM, UID = "cd" * 8, "ab" * 8


@pytest.fixture
def place(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    place = tmp_path / "place"
    place.mkdir()
    monkeypatch.setattr(ring, "places", lambda: [place])
    monkeypatch.setattr(ring, "place", lambda _: place)
    return place


def leave(place: Path, **about: Any) -> None:
    """A ring with one step, stacks of nothing, and a dump."""
    made = ring.Ring(int(STREAM, 16), 0, ["w"], about)
    made.write(0, 0, 0, made.rows)
    made.close(remove=False)
    (place / f"torchtrack-{STREAM}-process.stacks").write_text("")
    (place / f"torchtrack-{STREAM}-process.flight.json").write_text("{}")


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_what_holds_something_is_moved(place: Path, tmp_path: Path) -> None:
    leave(place)
    saved = salvage.salvage(STREAM, tmp_path / "nodes")
    assert sorted(saved) == names(tmp_path / "nodes") == [f"{STREAM}-0.ttb", f"{STREAM}-process.flight.json"]
    assert names(place) == []


def test_what_goes_on_is_copied_with_its_reason(place: Path, tmp_path: Path) -> None:
    leave(place)
    salvage.keep(STREAM, tmp_path / "nodes", "spike-120")
    assert f"{STREAM}-0-spike-120.ttb" in names(tmp_path / "nodes")
    assert len(names(place)) == 3


def test_what_ended_well_is_removed(place: Path) -> None:
    leave(place)
    ring.discard(STREAM)
    assert names(place) == []


def test_the_newest_dump_of_torchs_flight_recorder_is_taken_if_it_is_of_this_process(
    place: Path, tmp_path: Path
) -> None:
    old, dumped, linked = (tmp_path / name for name in ("old", "dumped", "linked"))
    old.write_text("of an earlier process")
    os.utime(old, ns=(5, 5))
    dumped.write_text("dump")
    linked.symlink_to(old)
    leave(place, flight_recorder=[str(old), str(dumped), str(linked), str(tmp_path / "nowhere")], start_ns=10)
    salvage.salvage(STREAM, tmp_path / "nodes")
    assert (tmp_path / "nodes" / f"{STREAM}-process.flight").read_text() == "dump"


@pytest.mark.parametrize("whole", [True, False])
def test_only_what_ended_processes_of_this_folder_left_is_found(place: Path, tmp_path: Path, *, whole: bool) -> None:
    boot, namespace, *_ = mine = ring.process(os.getpid())
    about = {"directory": str(tmp_path), "uid": UID, "process": [boot, namespace, "999999999", "1"]}
    for other in ({"directory": "elsewhere"}, {"process": mine}, {"process": None}):
        leave(place, **{**about, **other})
        assert list(salvage.left_in(tmp_path)) == []
        ring.discard(STREAM)
    leave(place, **about)
    if not whole:
        (place / f"torchtrack-{STREAM}-0.ttb").write_bytes(b"no ring")
    assert list(salvage.left_in(tmp_path)) == ([(UID, STREAM)] if whole else [])


def test_a_sidecar_keeps_what_the_ranks_of_a_run_have_and_only_for_a_reason_it_knows(node: Any, tmp_path: Path) -> None:
    streams = [STREAM, "ce" * 8]
    made = [ring.Ring(int(stream, 16), 0, ["w"], {}) for stream in streams]
    try:
        for one, stream in zip(made, streams, strict=True):
            one.write(0, 0, 0, one.rows)
            assert node.client.register(stream, UID, node.trainer().pid)
        assert not node.client.keep(STREAM, "../../etc")
        assert all(node.client.keep(stream, "nonfinite-7") for stream in streams)
        expected = [f"{stream}-0-nonfinite-7.ttb" for stream in streams]
        folder = tmp_path / UID / "nodes"
        node.eventually(lambda: sorted(path.name for path in folder.glob("*.ttb")) == expected)
    finally:
        for one in made:
            one.close(remove=True)
