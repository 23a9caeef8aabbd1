"""The black box's file: the last steps, whatever happened to whoever wrote them."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from torchtrack.journal import ring

NAMES = ["a", "b", "c"]
STREAM = 0xFEED_0000_0000_0001


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[ring.Ring]:
    monkeypatch.setattr(ring, "places", lambda: [tmp_path / "none", tmp_path])
    made = ring.Ring(STREAM, 0, NAMES, {"process": ring.process(os.getpid())})
    yield made
    made.close(remove=True)
    assert list(tmp_path.iterdir()) == []


def write(made: ring.Ring, number: int, *, skipped: bool = False) -> None:
    made.rows[:] = [(number, 2 * number, row) for row in range(3)]
    made.write(number, number + 100, number + 1000, made.rows, skipped=skipped)


def test_it_holds_the_last_steps_in_order_and_no_more(made: ring.Ring) -> None:
    for number in range(0, 3 * ring.STEPS, 2):  # every second step is looked at
        write(made, number, skipped=number % 8 == 0)
    names, records, torn = ring.read(made.path.read_bytes())
    assert (names, torn) == (NAMES, 0)
    assert [record.number for record in records] == list(range(ring.STEPS, 3 * ring.STEPS, 2))
    last, number = records[-1], 3 * ring.STEPS - 2
    assert (last.step, last.time_ns, last.skipped) == (number + 100, number + 1000, number % 8 == 0)
    assert last.rows.tolist() == [(number, 2 * number, row) for row in range(3)]


def test_a_step_that_is_written_again_replaces_itself(made: ring.Ring) -> None:
    for number in (0, 1, 1, 1, 2):
        write(made, number)
    assert [record.number for record in ring.read(made.path.read_bytes())[1]] == [0, 1, 2]


class Killing:
    """A mapping whose process is killed after the first half of what a record holds."""

    def __init__(self, mapped: Any) -> None:
        self.mapped = mapped

    def __setitem__(self, where: slice, data: bytes) -> None:
        if where.stop - where.start == len(NAMES) * 12:
            half = len(data) // 2
            self.mapped[where.start : where.start + half] = data[:half]
            os.kill(os.getpid(), signal.SIGKILL)
        self.mapped[where] = data


def test_a_record_that_a_kill_tore_is_left_out_and_counted(made: ring.Ring) -> None:
    for number in range(ring.STEPS):
        write(made, number)
    child = os.fork()
    if child == 0:
        made._map = Killing(made._map)  # type: ignore[assignment]
        write(made, ring.STEPS)
    assert os.waitpid(child, 0)[1] == signal.SIGKILL
    _, records, torn = ring.read(made.path.read_bytes())
    assert (torn, [record.number for record in records]) == (1, list(range(1, ring.STEPS)))


def test_it_is_as_large_as_its_rows_need_and_never_above_its_limit(
    monkeypatch: pytest.MonkeyPatch, made: ring.Ring
) -> None:
    assert made.path.stat().st_size < ring.STEPS * (32 + 3 * 12 + 8) + 4096
    monkeypatch.setattr(ring, "MAX_BYTES", 4096)
    small = ring.Ring(STREAM, 1, NAMES, {})
    assert small.path.stat().st_size <= 4096
    for number in range(500):
        write(small, number)
    numbers = [record.number for record in ring.read(small.path.read_bytes())[1]]
    assert numbers == list(range(500 - len(numbers), 500))
    small.close(remove=True)
    with pytest.raises(ValueError, match="too many for a black box"):
        ring.Ring(STREAM, 2, [f"tensor {i}" for i in range(1000)], {})


def test_whose_process_lives_is_not_over_and_whose_is_gone_is(made: ring.Ring) -> None:
    described = ring.describe(made.path.read_bytes())
    assert not ring.is_over(described)
    boot, namespace, pid, started = described["process"]
    assert ring.is_over({"process": [boot, namespace, pid, str(int(started) + 1)]})  # the number was given anew
    assert not ring.is_over({"process": [boot, "1", "1", "1"]})  # of another container: who knows
    child = os.fork()
    if child == 0:
        os._exit(0)
    written = [boot, namespace, *ring.process(child)[2:]]
    os.waitid(os.P_PID, child, os.WEXITED | os.WNOWAIT)
    assert ring.is_over({"process": written})  # nobody has collected it
    os.waitpid(child, 0)
    assert ring.is_over({"process": written})


def test_what_is_no_ring_is_refused(made: ring.Ring) -> None:
    data = made.path.read_bytes()
    for wrong in (b"", b"TTRING01", b"x" * 100, data[:20] + b"!" + data[21:]):
        with pytest.raises(ValueError, match="black box"):
            ring.read(wrong)
