"""The run as a script holds it: what it says about itself, its end, and what it must leave alone."""

from __future__ import annotations

import argparse
import copy
import dataclasses
import logging
import pickle
import random
import re
import shutil
import signal
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import omegaconf
import pytest
import torch

import torchtrack
from tests.runs import begin, column, finished, recorded, script, until
from torchtrack.run import Run

pytestmark = pytest.mark.usefixtures("no_git")


@pytest.fixture
def run() -> Iterator[Run]:
    run = begin(project="llm", name="first", group="g", job_type="train", tags=["a"], notes="n")
    yield run
    run.finish(quiet=True)


def journal(run: Run) -> bytes:
    return b"".join(path.read_bytes() for path in run.settings.dir.rglob("*.ttj"))


# -- what it is -------------------------------------------------------------------------------------------------------


def test_a_run_says_what_it_is(run: Run) -> None:
    assert re.fullmatch("[0-9a-f]{16}", run.uid)
    assert (run.id, run.name, run.project, run.group, run.job_type) == (run.uid, "first", "llm", "g", "train")
    assert (run.tags, run.notes, run.url, run.resumed, run.attempt) == (("a",), "n", None, False, 1)
    assert (run.rank, run.world_size, run.step) == (0, 1, 0)
    assert run.dir == str(run.settings.dir / run.uid)
    read = finished(run)
    assert (read.id, read.name, read.project, read.group, read.job_type) == (run.uid, "first", "llm", "g", "train")
    assert (read.tags, read.notes, read.state) == (("a",), "n", "finished")


def test_a_run_without_a_name_has_one_for_people(monkeypatch: pytest.MonkeyPatch) -> None:
    run = begin()

    assert re.fullmatch(r"[a-z]+-[a-z]+-\d+", run.name)
    run.finish(quiet=True)


def test_name_tags_and_notes_can_be_changed(run: Run) -> None:
    run.name = "second"
    run.tags += ("b", "a")
    run.notes = None
    assert (run.name, run.tags, run.notes) == ("second", ("a", "b"), None)
    run.tags = "only"
    read = finished(run)

    assert (read.name, read.tags, read.notes) == ("second", ("only",), None)


def test_a_wrong_name_or_tag_is_refused_and_raises_nothing(run: Run, caplog: pytest.LogCaptureFixture) -> None:
    run.name = 5  # type: ignore[assignment]
    run.tags = 7  # type: ignore[assignment]

    assert (run.name, run.tags) == ("first", ("a",))
    assert "run.name = takes a string, got int 5" in caplog.text
    assert "run.tags = takes a list of strings, got 7" in caplog.text


def test_the_mesh_is_recorded() -> None:
    run = begin(mesh={"dp": 3, "tp": 0})

    assert [event.data for event in finished(run).events("mesh")] == [{"rank": 0, "coordinates": {"dp": 3, "tp": 0}}]


# -- config and summary -----------------------------------------------------------------------------------------------


@dataclasses.dataclass
class Settings:
    lr: float = 0.1
    model: dict[str, int] = dataclasses.field(default_factory=lambda: {"depth": 12})


@pytest.mark.parametrize(
    "config",
    [
        {"lr": 0.1, "model": {"depth": 12}},
        argparse.Namespace(lr=0.1, model={"depth": 12}),
        Settings(),
        omegaconf.OmegaConf.create({"lr": 0.1, "depth": 12, "model": {"depth": "${depth}"}}),
    ],
    ids=["dict", "namespace", "dataclass", "omegaconf"],
)
def test_config_is_taken_from_whatever_holds_it(config: Any) -> None:
    run = begin(config=config)

    assert (run.config.lr, run.config["model"]) == (0.1, {"depth": 12})
    read = finished(run).config
    assert (read["lr"], read["model"]) == (0.1, {"depth": 12})


def test_the_config_argument_wins_over_the_variable_key_by_key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCHTRACK_CONFIG", '{"lr": 1.0, "seed": 3}')
    run = begin(config={"lr": 0.1})

    assert dict(run.config) == {"lr": 0.1, "seed": 3}
    assert finished(run).config == {"lr": 0.1, "seed": 3}


def test_config_that_changes_is_recorded(run: Run) -> None:
    run.config.update({"a": 1, "b": {"c": [1, 2]}})
    run.config.a = 2
    run.config["d"] = torch.tensor(3)

    assert finished(run).config == {"a": 2, "b": {"c": [1, 2]}, "d": 3}


def test_secrets_can_be_read_back_but_are_not_written_down(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MY_API_TOKEN", "correct-horse-battery")
    run = begin(config={"api_key": "abc123secret", "note": "it is correct-horse-battery", "max_tokens": 5})
    run.summary["password"] = "hunter2-hunter2"  # noqa: S105  # that it is one is the point
    run.alert("correct-horse-battery")

    assert run.config.api_key == "abc123secret"
    read = finished(run)
    assert (read.config["api_key"], read.config["max_tokens"]) == ("[redacted]", 5)
    assert not re.search(b"abc123secret|correct-horse|hunter2", journal(run))


def test_a_summary_set_by_hand_wins_over_the_last_value(run: Run) -> None:
    run.log({"loss": 2.0, "acc": 0.5})
    run.summary["acc"] = 0.9
    run.summary.best = "epoch 3"
    run.log({"loss": 1.0, "acc": 0.6})
    summary = finished(run).summary

    assert (summary["loss"], summary["acc"], summary["best"]) == (1.0, 0.9, "epoch 3")


# -- define_metric, alert, mark ---------------------------------------------------------------------------------------


def test_define_metric_decides_the_summary(run: Run) -> None:
    run.define_metric("low", summary="min")
    run.define_metric("eval/*", step_metric="epoch", summary="best", goal="maximize")
    run.define_metric("hidden", summary="none")
    for value in (3.0, 1.0, 2.0):
        run.log({"low": value, "eval/acc": value, "hidden": value, "plain": value})
    summary = finished(run).summary

    assert {name: summary.get(name) for name in ("low", "eval/acc", "hidden", "plain")} == {
        "low": 1.0,
        "eval/acc": 3.0,
        "hidden": None,
        "plain": 2.0,
    }


def test_what_is_said_later_of_a_metric_is_added_unless_it_is_to_overwrite() -> None:
    run: Any = begin()
    for name in ("added", "other"):
        run.define_metric(name, summary="min", hidden=True)
    run.define_metric("added", step_metric="epoch")
    run.define_metric("other", step_metric="epoch", overwrite=True)
    run.log({"added": 1.0, "other": 1.0, "epoch": 0})
    definitions = finished(run).definitions

    assert definitions == {
        "added": {"name": "added", "summary": "min", "hidden": True, "step_metric": "epoch"},
        "other": {"name": "other", "step_metric": "epoch", "overwrite": True},
    }


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"name": 3}, TypeError, "define_metric() takes names as strings, got 3"),
        ({"name": ""}, TypeError, "takes names as strings"),
        ({"name": "x", "step_metric": 4}, TypeError, "step_metric=4"),
        ({"name": "x", "summary": "median"}, ValueError, "takes one of last, min, max, mean, best, none; got 'median'"),
        ({"name": "x", "goal": "up"}, ValueError, "takes 'minimize' or 'maximize'; got 'up'"),
        ({"name": "x", "summary": "best"}, ValueError, "needs goal='minimize' or goal='maximize'"),
    ],
)
def test_wrong_arguments_of_define_metric_raise(
    run: Run, arguments: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error) as raised:
        run.define_metric(**arguments)

    assert message in str(raised.value)


def test_alerts_and_marks_are_events_at_the_current_step(run: Run, caplog: pytest.LogCaptureFixture) -> None:
    run.log({"x": 1.0}, step=6)
    run.alert("Loss is high", "look", "warn")
    run.alert("Odd", level="LOUD")
    run.mark("warm-up ends")
    read = finished(run)

    assert [(e.step, e.data["title"], e.data["text"], e.data["level"]) for e in read.events("alert")] == [
        (7, "Loss is high", "look", "warning"),
        (7, "Odd", "", "info"),
    ]
    assert [(e.step, e.data["title"]) for e in read.events("mark")] == [(7, "warm-up ends")]
    assert "alert(level=) takes one of 'info', 'warning', 'error'; got 'LOUD'; took 'info'" in caplog.text
    assert "was not recorded" not in caplog.text  # it was, as the line above says


def test_strict_raises_a_wrong_level() -> None:
    with begin(strict=True) as run, pytest.raises(ValueError, match="takes one of 'info'"):
        run.alert("x", level="LOUD")


# -- the end ----------------------------------------------------------------------------------------------------------


def test_finish_writes_all_and_says_where(capsys: pytest.CaptureFixture[str]) -> None:
    run = begin()
    for i in range(1000):
        run.log({"x": float(i)})
    run.finish()
    run.finish()
    read = recorded(run)

    assert column(read, "x") == [float(i) for i in range(1000)]
    assert read.state == "finished"
    assert column(read, "_tt/dropped_rows")[-1] == 0.0
    output = capsys.readouterr()
    assert output.out == ""
    assert output.err.count("ended") == 1
    assert f"torchtrack show {run.uid} --dir" in output.err


def test_log_after_finish_is_counted_and_raises_nothing(run: Run, caplog: pytest.LogCaptureFixture) -> None:
    run.log({"x": 1.0})
    run.finish(quiet=True)
    for _ in range(3):
        run.log({"x": 2.0})
    run.summary["late"] = 1
    run.mark("late")
    run.name = "late"

    assert run._logbook.bad_values == {"log()": 3, "summary": 1, "mark": 1, "run": 1}
    assert [r.getMessage().count("after finish()") for r in caplog.records] == [1] * 4
    assert column(recorded(run), "x") == [1.0]


def test_log_after_finish_raises_if_strict() -> None:
    run = begin(strict=True)
    run.finish(quiet=True)
    with pytest.raises(RuntimeError, match=r"log\(\) after finish\(\) records nothing"):
        run.log({"x": 1.0})


def test_an_exit_code_marks_the_run_as_failed(run: Run) -> None:
    run.finish(exit_code=3, quiet=True)

    assert recorded(run).state == "failed"


def test_a_with_block_finishes_the_run() -> None:
    with begin() as run:
        run.log({"x": 1.0})

    assert recorded(run).state == "finished"
    assert torchtrack.run is None


def test_an_exception_in_a_with_block_passes_and_is_recorded_without_secrets(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MY_API_TOKEN", "correct-horse-battery")
    with pytest.raises(RuntimeError, match="battery"), begin() as run:
        raise RuntimeError("no access with correct-horse-battery")

    read = recorded(run)
    assert read.state == "failed"
    assert b"RuntimeError: no access with [redacted]" in journal(run)


class WordlessError(Exception):
    def __str__(self) -> str:
        raise ValueError("not even this")


def test_an_exception_without_words_ends_the_run_too() -> None:
    with pytest.raises(WordlessError), begin() as run:
        raise WordlessError

    assert recorded(run).state == "failed"


@pytest.mark.parametrize(("code", "state"), [(0, "finished"), (None, "finished"), (2, "failed")])
def test_sys_exit_in_a_with_block_is_judged_by_its_code(code: int | None, state: str) -> None:
    with pytest.raises(SystemExit), begin() as run:
        sys.exit(code)

    assert recorded(run).state == state


def test_finish_returns_in_time_when_the_disk_hangs_and_says_so(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    hangs, go_on = threading.Event(), threading.Event()
    append = torchtrack.journal.Writer.append

    def hang(*args: Any, **kwargs: Any) -> Any:
        hangs.set()
        go_on.wait(20)
        return append(*args, **kwargs)

    monkeypatch.setattr("torchtrack.journal.writer.Writer.append", hang)
    run = begin(finish_timeout=0.5)
    assert hangs.wait(20)
    run.log({"x": 1.0})
    ended = threading.Event()
    thread = threading.Thread(target=lambda: (run.finish(), ended.set()))  # type: ignore[func-returns-value]
    thread.start()
    in_time = ended.wait(10)
    go_on.set()
    thread.join()
    run._recorder._thread.join(20)

    assert in_time
    assert "the disk did not take everything in time" in capsys.readouterr().err


def test_what_was_not_written_before_the_end_is_written_by_finish(run: Run) -> None:
    for i in range(10_000):
        run.log({"t": "text"}, step=i)

    assert finished(run).texts().column("step").to_pylist() == list(range(10_000))


# -- disabled ---------------------------------------------------------------------------------------------------------


def test_a_disabled_run_takes_every_call_writes_no_file_and_starts_no_thread(tmp_path: Path) -> None:
    threads = threading.active_count()
    run = begin(mode="disabled", config={"lr": 1}, name="n")
    run.log({"x": object()})
    run.watch(torch.nn.Linear(2, 2))
    run.unwatch()
    run.config.update({"a": 1})
    run.summary["b"] = 2
    run.tags = ["x"]
    run.define_metric("x", summary="min")
    run.alert("x", level="LOUD")
    run.mark("x")

    assert run.flush()
    assert (run.name, run.config["lr"], run.summary.b, run.tags, run.disabled) == ("n", 1, 2, ("x",), True)
    assert (run.rank, run.world_size, run.attempt, run.url) == (0, 1, 1, None)
    assert threading.active_count() == threads
    run.finish()
    run.log({"x": 1})
    assert not (tmp_path / "runs").exists()


# -- leaving things alone ---------------------------------------------------------------------------------------------


def test_no_random_state_is_touched() -> None:
    random.seed(1)
    np.random.seed(1)
    torch.manual_seed(1)
    before = (random.getstate(), str(np.random.get_state()), torch.get_rng_state().tolist())
    run = begin(console=True)
    model = torch.nn.Linear(2, 2)
    after_model = torch.get_rng_state().tolist()
    run.watch(model, log_freq=1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for _ in range(3):
        model(torch.ones(1, 2)).sum().backward()
        optimizer.step()
        run.log({"x": torch.tensor(1.0), "text": "t", "h": torchtrack.Histogram.of([1.0])})
    run.finish(quiet=True)

    assert (random.getstate(), str(np.random.get_state())) == before[:2]
    assert torch.get_rng_state().tolist() == after_model


def test_signals_hooks_and_streams_stay_as_they_are() -> None:
    def state() -> list[Any]:
        handlers = [signal.getsignal(number) for number in signal.valid_signals()]
        return [*handlers, sys.excepthook, threading.excepthook, sys.stdout, sys.stderr, sys.displayhook]

    before = state()
    run = begin()
    during = state()
    run.finish(quiet=True)

    assert during == before
    assert state() == before


def test_console_lines_are_recorded_and_the_streams_given_back() -> None:
    before = (sys.stdout, sys.stderr)
    run = begin(console=True)
    sys.stdout.write("epoch 1\n")
    sys.stderr.write("careful\n")
    run.log({"x": 1.0})
    read = finished(run)

    assert (sys.stdout, sys.stderr) == before
    lines = [(row["stream"], row["line"]) for row in read.logs().to_pylist()]
    assert {("stdout", "epoch 1"), ("stderr", "careful")} <= set(lines)


def test_a_folder_that_cannot_be_written_is_one_warning_and_training_goes_on(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_text("in the way")
    run = begin(dir=tmp_path / "file" / "runs")
    for i in range(100):
        run.log({"x": float(i), "text": "t"})
    run.flush()
    run.finish()

    output = capsys.readouterr().err
    assert "is recorded in" not in output
    assert "the disk did not take everything" in output
    warnings = [r for r in caplog.records if r.levelno >= logging.WARNING]
    assert len([r for r in warnings if "cannot write to" in r.getMessage()]) == 1
    assert str(tmp_path / "file" / "runs") in warnings[-1].getMessage()
    torchtrack.guard.failures.clear()


STRACED = """
    import sys, threading, os, logging
    import torchtrack
    run = torchtrack.init(dir=DIR, sidecar=False, system_interval=0)
    run.log({"loss": 1.0, "lr": 2.0})
    run.flush()
    sys.stderr.write(f"BEGIN {threading.get_native_id()}\\n"); sys.stderr.flush()
    for i in range(10_000):
        run.log({"loss": float(i), "lr": 2.0})
    sys.stderr.write("END\\n"); sys.stderr.flush()
    run.finish(quiet=True)
"""


@pytest.mark.skipif(shutil.which("strace") is None, reason="needs strace")
def test_the_training_thread_makes_no_system_call_that_writes_or_waits(tmp_path: Path) -> None:
    calls = "write,writev,pwrite64,fsync,fdatasync,openat,sendto,sendmsg,connect,mkdir,rename,poll,select,nanosleep"
    (tmp_path / "strace").mkdir()
    watched = ["-e", f"trace={calls}", "-e", "signal=none"]  # a child that ends (git) is no call of ours
    done = script(STRACED, tmp_path, prefix=["strace", "-f", "-qq", *watched, "-o", str(tmp_path / "trace")])
    assert done.returncode == 0, done.stderr
    (thread,) = re.findall(r"BEGIN (\d+)", done.stderr)
    lines = (tmp_path / "trace").read_text().splitlines()
    begin_at = next(i for i, line in enumerate(lines) if "BEGIN" in line)
    end_at = next(i for i, line in enumerate(lines) if '"END' in line)
    between = lines[begin_at + 1 : end_at]

    begun = [line for line in between if "resumed>" not in line]  # the write of BEGIN itself may end in here
    assert [line for line in begun if line.split(maxsplit=1)[0] == thread] == []
    assert [line for line in lines[end_at:] if "writev" in line] != []


def test_a_copy_of_what_holds_the_run_holds_the_same_run(run: Run) -> None:
    assert copy.deepcopy({"run": run})["run"] is run


def test_a_run_that_is_sent_to_another_process_records_nothing_there(run: Run) -> None:
    there = pickle.loads(pickle.dumps(run))
    there.log({"loss": 1.0})
    assert there.disabled


class SlowSidecar:
    """A sidecar that is not there when it is asked for the first times."""

    calls: ClassVar[list[str]]
    absences: ClassVar[int]

    def __init__(self, *_: object, **__: object) -> None:
        self.is_there = False

    def register(self, *_: object, **__: object) -> bool:
        self.is_there = self.calls.count("register") >= self.absences
        self.calls.append("register")
        return self.is_there

    def ended(self, *_: object) -> bool:
        self.calls.append("ended")
        return self.is_there

    def close(self) -> None:
        pass


def test_a_run_that_ends_before_its_sidecar_has_started_is_registered_at_its_end(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    class Slow(SlowSidecar):
        calls: ClassVar[list[str]] = []
        absences = 1

    monkeypatch.setattr(sys.modules[Run.__module__], "Sidecar", Slow)
    begin(sidecar=True).finish(quiet=True)

    assert Slow.calls == ["register", "register", "ended"]


@pytest.mark.parametrize(("absences", "asked"), [(2, 3), (1000, 4)])
def test_a_sidecar_that_does_not_answer_is_asked_again_at_once_but_not_without_end(
    absences: int, asked: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Slow(SlowSidecar):
        calls: ClassVar[list[str]] = []

    Slow.absences = absences
    monkeypatch.setattr(sys.modules[Run.__module__], "Sidecar", Slow)
    run = begin(sidecar=True)
    until(lambda: len(Slow.calls) >= asked)
    run.finish(quiet=True)

    at_the_end = ["register"] if absences > asked else []
    assert Slow.calls == [*["register"] * asked, *at_the_end, "ended"]
