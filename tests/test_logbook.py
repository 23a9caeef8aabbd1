"""What log() takes, what it refuses, and that it never raises; read back through the journal."""

from __future__ import annotations

import enum
import fractions
import logging
import math
import struct
import threading
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given
from hypothesis import settings as examples
from hypothesis import strategies as st

import torchtrack
from tests.runs import begin, column, finished, own, recorded, texts, until
from torchtrack import records
from torchtrack.background import Background
from torchtrack.run import Reduce, Run

pytestmark = pytest.mark.usefixtures("no_git")


@pytest.fixture
def run() -> Iterator[Run]:
    run = begin()
    yield run
    run.finish(quiet=True)


@pytest.fixture
def strict() -> Iterator[Run]:
    run = begin(strict=True)
    yield run
    run.finish(quiet=True)


def bits(value: float) -> int:
    return int(struct.unpack("<Q", struct.pack("<d", value))[0])


class Level(enum.IntEnum):
    HIGH = 3


class Half(float):
    """A float of the user's own."""


NUMBERS = {
    "float": (0.1, 0.1),
    "int": (7, 7.0),
    "bool": (True, 1.0),
    "int-enum": (Level.HIGH, 3.0),
    "float-subclass": (Half(0.5), 0.5),
    "fraction": (fractions.Fraction(1, 4), 0.25),
    "largest-exact-int": (2**53, float(2**53)),
    "np-float64": (np.float64(0.1), 0.1),
    "np-float32": (np.float32(0.1), float(np.float32(0.1))),
    "np-float16": (np.float16(0.1), float(np.float16(0.1))),
    "np-longdouble": (np.longdouble(0.5), 0.5),
    "np-int8": (np.int8(-3), -3.0),
    "np-int64": (np.int64(-9), -9.0),
    "np-uint64": (np.uint64(9), 9.0),
    "np-bool": (np.bool_(True), 1.0),
    "np-0-dim": (np.array(2.5), 2.5),
    "np-one-element": (np.array([[3]]), 3.0),
    "fp32": (torch.tensor(0.1), float(np.float32(0.1))),
    "fp64": (torch.tensor(0.1, dtype=torch.float64), 0.1),
    "bf16": (torch.tensor(1.5, dtype=torch.bfloat16), 1.5),
    "int64": (torch.tensor(12), 12.0),
    "bool-tensor": (torch.tensor(True), 1.0),
    "requires-grad": (torch.tensor(2.0, requires_grad=True) * 3, 6.0),
    "parameter": (torch.nn.Parameter(torch.tensor([4.0])), 4.0),
}


def test_a_number_of_any_kind_is_recorded_as_a_float64(strict: Run) -> None:
    for name, (value, _) in NUMBERS.items():
        strict.log({f"{name} alone": value})
        strict.log({f"{name} beside a text": value, "text": "x"})
    read = finished(strict)

    for name, (_, expected) in NUMBERS.items():
        assert column(read, f"{name} alone") == [expected]
        assert column(read, f"{name} beside a text") == [expected]


SPECIAL = {
    "nan": 0x7FF8000000000000,
    "nan-with-payload": 0x7FF8DEADBEEF1234,
    "negative-nan": 0xFFF8000000000001,
    "infinity": 0x7FF0000000000000,
    "minus-infinity": 0xFFF0000000000000,
    "minus-zero": 0x8000000000000000,
    "smallest-subnormal": 0x0000000000000001,
    "largest": 0x7FEFFFFFFFFFFFFF,
}


@pytest.mark.parametrize("kind", [float, np.float64], ids=["float", "numpy"])
def test_special_floats_come_back_bit_for_bit(run: Run, kind: type) -> None:
    for name, pattern in SPECIAL.items():
        (value,) = struct.unpack("<d", struct.pack("<Q", pattern))
        run.log({name: kind(value)})
        run.log({f"{name} mixed": kind(value), "text": "x"})
    rows = finished(run).rows(records.Table.SCALARS)
    kept = dict(zip(rows.column("name").to_pylist(), rows.column("value").to_numpy(), strict=True))

    for name, pattern in SPECIAL.items():
        assert bits(kept[name]) == pattern
        assert bits(kept[f"{name} mixed"]) == pattern


def test_a_tensor_that_changes_right_after_is_recorded_as_it_was(run: Run) -> None:
    loss = torch.tensor(1.0)
    for _ in range(100):
        run.log({"loss": loss})
        loss += 1

    assert column(finished(run), "loss") == [float(i) for i in range(1, 101)]


def test_nested_dicts_are_joined_by_slashes(run: Run) -> None:
    run.log({"eval": {"acc": {"top1": 0.5, "top5": 0.9}, "n": 10}, "lr": 0.1, "empty": {}})
    run.log({3: 4.0})  # type: ignore[dict-item]  # as people do

    assert own(finished(run)) == ["3", "eval/acc/top1", "eval/acc/top5", "eval/n", "lr"]


def test_texts_are_kept_apart_from_numbers(run: Run) -> None:
    run.log({"note": "warm-up \u00fc", "nothing": None, "raw": b"\xffab", "np": np.str_("numpy"), "loss": 1.0})
    run.log({"half": "a\ud800b"})
    read = finished(run)

    assert texts(read) == {"note": "warm-up \u00fc", "nothing": None, "raw": "\\xffab", "np": "numpy", "half": "a?b"}
    assert column(read, "loss") == [1.0]


@pytest.mark.parametrize("value", [2**53 + 1, -(2**53) - 1, 10**300, np.int64(2**62), np.uint64(2**64 - 1)])
def test_an_integer_that_no_float_holds_becomes_a_text_and_the_row_stays(run: Run, value: Any) -> None:
    run.log({"tokens": 1, "loss": 0.0})
    run.log({"tokens": value, "loss": 1.0})
    run.log({"tokens": torch.tensor(2**53 + 1), "loss": 2.0})
    read = finished(run)

    assert [row["text"] for row in read.texts().to_pylist()] == [str(int(value)), str(2**53 + 1)]
    assert column(read, "loss") == [0.0, 1.0, 2.0]
    assert read.texts().column("step").to_pylist() == [1, 2]


def test_a_histogram_is_recorded_exactly(run: Run) -> None:
    values = np.array([0.0, 1.0, 1.5, -2.0, math.nan, math.inf])
    run.log({"weights": torchtrack.Histogram.of(values)}, step=5)
    read = finished(run)

    assert read.histogram("logged", "weights", 5) == torchtrack.Histogram.of(values)


def test_media_are_stored_beside_the_journal(run: Run) -> None:
    pyplot = pytest.importorskip("matplotlib.pyplot")
    figure = pyplot.figure()
    run.log(
        {
            "image": torchtrack.Image(np.zeros((4, 4, 3)), caption="all \ud800black"),
            "sound": torchtrack.Audio(np.zeros(100), sample_rate=8000),
            "table": torchtrack.Table(columns=["a"], data=[[1]]),
            "figure": figure,
            "loss": 1.0,
        }
    )
    pyplot.close(figure)
    read = finished(run)
    media = {row["name"]: row for row in read.media().to_pylist()}

    assert set(media) == {"image", "sound", "table", "figure"}
    assert media["image"]["caption"] == "all ?black"
    for row in media.values():
        stored = run.settings.dir / run.uid / "media" / row["sha256"]
        assert stored.stat().st_size == row["size"]
    assert column(read, "loss") == [1.0]


# -- steps ------------------------------------------------------------------------------------------------------------


def test_rows_without_a_step_are_counted_on(run: Run) -> None:
    for i in range(3):
        assert run.step == i
        run.log({"loss": float(i)})

    assert finished(run).history("loss").column("step").to_pylist() == [0, 1, 2]


def test_an_uncommitted_row_merges_with_the_next(run: Run) -> None:
    run.log({"a": 1.0}, commit=False)
    run.log({"b": "text", "c": 3.0}, commit=False)
    run.log({"d": 4.0})
    run.log({"a": 5.0})
    table = finished(run).history(["a", "c", "d"]).to_pydict()

    assert table["step"] == [0, 1]
    assert (table["a"], table["c"], table["d"]) == ([1.0, 5.0], [3.0, None], [4.0, None])


def test_an_explicit_step_counts_and_the_next_row_goes_on_from_there(run: Run) -> None:
    run.log({"x": 1.0}, step=100)
    run.log({"x": 2.0})
    run.log({"x": 3.0}, step=np.int64(7))
    run.log({"x": 4.0})
    table = finished(run).history("x").to_pydict()

    assert (table["step"], table["x"]) == ([7, 8, 100, 101], [3.0, 4.0, 1.0, 2.0])


def test_repeated_and_decreasing_steps_are_all_kept_and_the_last_wins(run: Run) -> None:
    for value, step in [(1.0, 5), (2.0, 5), (3.0, 4), (4.0, 5)]:
        run.log({"x": value}, step=step)
    read = finished(run)

    assert sorted(column(read, "x")) == [1.0, 2.0, 3.0, 4.0]
    assert read.history("x").to_pydict()["x"] == [3.0, 4.0]


def test_the_largest_step_is_kept_and_logging_goes_on(run: Run) -> None:
    last = 2**63 - 1
    run.log({"x": 1.0}, step=last)
    run.log({"x": 2.0})
    run.log({"x": 3.0}, step=-(2**63))
    run.log({"x": 4.0})
    rows = finished(run).rows(records.Table.SCALARS).to_pylist()

    assert [(r["step"], r["value"]) for r in rows if r["name"] == "x"] == [
        (last, 1.0),
        (last, 2.0),
        (-(2**63), 3.0),
        (-(2**63) + 1, 4.0),
    ]


def test_the_last_of_two_values_wins_whatever_else_their_rows_held(run: Run) -> None:
    run.log({"x": 1.0, "y": 1.0}, step=3)
    run.log({"x": 2.0}, step=3)
    run.log({"z": 0.0, "x": 3.0, "text": "t"}, step=3)
    run.log({"y": 5.0, "x": 4.0}, step=3)
    run.log({"x": 9.0, "y": 9.0}, step=4)
    table = finished(run).history(["x", "y"]).to_pydict()

    assert (table["x"], table["y"]) == ([4.0, 9.0], [5.0, 9.0])


def test_reduce_is_recorded_with_each_row(run: Run) -> None:
    reduces: tuple[Reduce, ...] = ("mean", "sum", "min", "max")
    for reduce in reduces:
        run.log({reduce: 1.0}, reduce=reduce)
        run.log({reduce: 1.0, "text": "t"}, reduce=reduce)
    rows = finished(run).rows(records.Table.SCALARS).to_pylist()

    assert {(r["name"], r["reduce"]) for r in rows if not r["name"].startswith("_tt/")} == {
        (name, name) for name in ("mean", "sum", "min", "max")
    }


# -- what cannot be recorded ------------------------------------------------------------------------------------------


class Sly:
    """Looks like a number and is none."""

    device = "cpu"

    def __float__(self) -> float:
        raise AssertionError("the user's own code failed")


class Real(fractions.Fraction):
    def __float__(self) -> float:
        raise AssertionError("the user's own code failed")


BAD_VALUES = {
    "object": object(),
    "sly": Sly(),
    "failing-float": Real(1, 2),
    "too-large-fraction": fractions.Fraction(10**400),
    "matrix": torch.zeros(2, 2),
    "meta-tensor": torch.zeros((), device="meta"),
    "array": np.zeros(3),
    "list": [1, 2],
    "set": {1},
    "complex": 1j,
    "complex-numpy": np.complex64(1),
    "complex-tensor": torch.tensor(1j),
    "huge-string": "x" * (2**20 + 1),
    "huge-bytes": b"x" * (2**20 + 1),
    "endless-int": 10**5000,
    "bad-image": torchtrack.Image(np.zeros((2, 2, 2, 2))),
}


@pytest.mark.parametrize("value", BAD_VALUES.values(), ids=BAD_VALUES.keys())
def test_a_value_that_cannot_be_recorded_is_left_out_counted_and_warned_of_once(
    run: Run, value: Any, caplog: pytest.LogCaptureFixture
) -> None:
    for _ in range(3):
        run.log({"before": 1.0, "bad": value, "after": "text"})
    read = finished(run)
    warnings = [record.getMessage() for record in caplog.records]

    assert len([message for message in warnings if "'bad' was not recorded" in message]) == 1
    assert len(warnings) == 1
    assert column(read, "before") == [1.0] * 3
    assert read.texts().column("text").to_pylist() == ["text"] * 3
    assert column(read, "_tt/bad_values")[-1] == 3
    assert [event.data["key"] for event in read.events("warning")] == ["bad"]


@pytest.mark.parametrize("value", BAD_VALUES.values(), ids=BAD_VALUES.keys())
def test_strict_raises_what_cannot_be_recorded(strict: Run, value: Any) -> None:
    with pytest.raises((TypeError, ValueError, ArithmeticError, RuntimeError, AssertionError)):
        strict.log({"bad": value})


@pytest.mark.parametrize("prefix", ["watch", "system", "_tt"])
def test_names_that_are_our_own_are_refused(run: Run, prefix: str, caplog: pytest.LogCaptureFixture) -> None:
    run.log({f"{prefix}/x": 1.0, "kept": 2.0})
    run.log({prefix: {"y": 1.0}})
    run.log({f"{prefix}_of_mine": 3.0, f"a/{prefix}/b": 4.0})
    read = finished(run)

    assert not {f"{prefix}/x", f"{prefix}/y"} & set(read.keys())
    assert own(read) == sorted(["kept", f"{prefix}_of_mine", f"a/{prefix}/b"])
    assert column(read, "_tt/bad_values")[-1] == 2
    assert f"names under {prefix}/ are torchtrack's own" in caplog.text


@pytest.mark.parametrize("metrics", [None, 3, "loss", [("a", 1.0)], torch.zeros(3)], ids=lambda m: type(m).__name__)
def test_a_row_that_is_no_dict_is_refused(run: Run, metrics: Any, caplog: pytest.LogCaptureFixture) -> None:
    run.log(metrics)
    run.log({"x": 1.0})

    assert caplog.text.count(f"log() takes a dict of metrics, got {type(metrics).__name__}") == 1
    assert finished(run).history("x").column("step").to_pylist() == [0]


@pytest.mark.parametrize(
    "step", [1.5, "3", True, 2**63, -(2**63) - 1, [1], None.__class__, torch.zeros((), device="meta")]
)
def test_a_step_that_is_none_is_refused_and_the_row_kept(run: Run, step: Any, caplog: pytest.LogCaptureFixture) -> None:
    run.log({"x": 1.0}, step=step)
    run.log({"x": 2.0}, step=step)

    assert caplog.text.count("log(step=) takes a whole number") == 1
    assert finished(run).history("x").to_pydict()["step"] == [0, 1]


@pytest.mark.parametrize("reduce", ["avg", None, 3, ["mean"], {"mean": 1}, np.array(["mean", "sum"])], ids=str)
def test_a_reduce_that_is_none_is_refused_and_the_row_kept(
    run: Run, reduce: Any, caplog: pytest.LogCaptureFixture
) -> None:
    run.log({"x": 1.0}, reduce=reduce)
    run.log({"x": 2.0, "text": "t"}, reduce=reduce)

    assert caplog.text.count("log(reduce=) takes one of mean, sum, min, max") == 1
    assert column(finished(run), "x") == [1.0, 2.0]


@pytest.mark.parametrize("wrong", [{"step": 1.5}, {"reduce": "avg"}], ids=["step", "reduce"])
def test_strict_raises_wrong_arguments_of_log(strict: Run, wrong: dict[str, Any]) -> None:
    with pytest.raises((TypeError, ValueError), match=r"log\((step|reduce)=\)"):
        strict.log({"x": 1.0}, **wrong)
    with pytest.raises(TypeError, match="takes a dict"):
        strict.log([1])  # type: ignore[arg-type]


def test_a_name_no_file_can_hold_costs_no_other_row(run: Run) -> None:
    run.log({"a\ud800": 1.0, "b": 2.0})
    run.log({"b": 3.0, "\u00fc": 4.0})
    run.log({"outer": {"c\udfff": "text"}})
    read = finished(run)

    assert (column(read, "a?"), column(read, "b"), column(read, "\u00fc")) == ([1.0], [2.0, 3.0], [4.0])
    assert texts(read) == {"outer/c?": "text"}


def test_a_name_of_a_whole_document_is_refused(run: Run, caplog: pytest.LogCaptureFixture) -> None:
    run.log({"n" * 2000: 1.0, "b": 2.0})
    run.log({"m" * 1024: 3.0})

    assert "a name of 2000 characters" in caplog.text
    assert own(finished(run)) == ["b", "m" * 1024]


def test_thousands_of_bad_names_make_a_bounded_number_of_warnings(run: Run, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        run.log({f"bad{i}": object() for i in range(3000)})

    assert 1000 <= len(caplog.records) <= 1001
    assert column(finished(run), "_tt/bad_values")[-1] == 3000


def test_a_dict_that_holds_itself_ends(run: Run) -> None:
    endless: dict[str, Any] = {"x": 1.0}
    endless["again"] = endless
    run.log(endless)

    assert "x" in own(finished(run))


def test_key_sets_that_never_repeat_do_not_pile_up(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torchtrack.logbook._MAX_LAYOUTS", 50)
    for i in range(300):
        run.log({f"a{i}": 1.0})
        run.log({f"b{i}": 1.0, "text": "t"})

    assert len(run._logbook._layouts) <= 50
    assert len(own(finished(run))) == 600


def test_an_image_that_cannot_be_encoded_is_counted_and_warned_of(run: Run, caplog: pytest.LogCaptureFixture) -> None:
    run.log({"sound": torchtrack.Audio(np.zeros(8, np.complex64), sample_rate=8000), "x": 1.0})
    read = finished(run)

    assert "'sound' was not recorded: Audio takes floats" in caplog.text
    assert column(read, "_tt/bad_values")[-1] == 1
    assert read.media().num_rows == 0


def test_media_that_a_full_queue_refused_take_no_room_from_those_that_follow(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    image = torchtrack.Image(np.zeros((2, 2, 3), np.uint8))
    with monkeypatch.context() as full:
        full.setattr(Background, "submit", lambda *_: False)
        for step in range(100):
            run.log({"dropped": image}, step=step)
    run.log({"kept": image}, step=100)

    assert finished(run).media()["name"].to_pylist() == ["kept"]


def test_secrets_in_texts_and_lines_stay_out_of_the_journal(run: Run) -> None:
    run.log({"note": "key ghp_0123456789abcdefghij"})
    run._logbook.line("stdout", "AKIA0123456789ABCDEF and \udcff")
    read = finished(run)
    journal = b"".join(path.read_bytes() for path in (run.settings.dir / run.uid).rglob("*.ttj"))

    assert texts(read)["note"] == "key [redacted]"
    assert read.logs().column("line").to_pylist() == ["[redacted] and ?"]
    assert b"ghp_0123456789" not in journal


# -- many threads, random sequences -----------------------------------------------------------------------------------


def test_eight_threads_that_log_at_once_lose_and_double_nothing(run: Run) -> None:
    def work(thread: int) -> None:
        for i in range(10_000):
            run.log({f"t{thread}": float(i), "shared": float(thread)}, step=i)

    threads = [threading.Thread(target=work, args=(n,)) for n in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    rows = finished(run).rows(records.Table.SCALARS)
    names = np.array(rows.column("name").to_pylist())
    values = rows.column("value").to_numpy()

    for number in range(8):
        assert values[names == f"t{number}"].tolist() == [float(i) for i in range(10_000)]
    assert np.bincount(values[names == "shared"].astype(int)).tolist() == [10_000] * 8


NAMES = st.sampled_from(["a", "b", "c/d", "e"])
VALUES = st.one_of(
    st.floats(allow_nan=False),
    st.integers(-(2**53), 2**53),
    st.booleans(),
    st.text(max_size=3),
    st.none(),
    st.floats(width=32, allow_nan=False).map(np.float32),
    st.floats(width=32, allow_nan=False).map(torch.tensor),
)
CALLS = st.lists(
    st.tuples(
        st.dictionaries(NAMES, VALUES, max_size=4),
        st.one_of(st.none(), st.integers(-5, 40)),
        st.booleans(),
    ),
    max_size=30,
)


@examples(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(calls=CALLS)
def test_any_sequence_of_log_calls_reads_back_as_a_dict_would_hold_it(calls: list[Any]) -> None:
    run = begin()
    numbers: list[tuple[str, int, float]] = []
    words: list[tuple[str, int, str | None]] = []
    step = 0
    for metrics, at, commit in calls:
        run.log(metrics, step=at, commit=commit)
        now = step if at is None else at
        for name, value in metrics.items():
            if value is None or isinstance(value, str):
                words.append((name, now, value and value.encode("utf-8", "replace").decode()))
            else:
                numbers.append((name, now, float(value)))
        step = now + 1 if commit else step
    read = finished(run)
    rows = read.rows(records.Table.SCALARS).to_pylist()
    kept = [(r["name"], r["step"], r["value"]) for r in rows if not r["name"].startswith("_tt/")]

    for name in {name for name, _, _ in numbers}:
        assert [row for row in kept if row[0] == name] == [row for row in numbers if row[0] == name]
    assert len(kept) == len(numbers)
    assert sorted(map(str, words)) == sorted(str((t["name"], t["step"], t["text"])) for t in read.texts().to_pylist())
    last = {(name, at): value for name, at, value in numbers}
    if numbers:
        history = read.history(sorted({name for name, _, _ in numbers})).to_pylist()
        seen = {
            (n, row["step"]): row[n] for row in history for n in row if n not in ("step", "time") and row[n] is not None
        }
        assert seen == last


def test_rows_are_readable_while_the_run_goes_on(run: Run) -> None:
    run.log({"x": 1.0})
    assert run.flush()
    assert column(recorded(run), "x") == [1.0]

    run.log({"x": 2.0})
    until(lambda: column(recorded(run), "x") == [1.0, 2.0])
