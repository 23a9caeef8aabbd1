"""The run of the process: init and the module-level calls, how processes end, and their children."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import torchtrack
from tests.runs import begin, column, finished, only_run, recorded, script
from torchtrack.active import _Process, active
from torchtrack.errors import NoActiveRunError, RunNotFoundError

pytestmark = pytest.mark.usefixtures("no_git")

# -- init and module-level calls --------------------------------------------------------------------------------------


CALLS: dict[str, Any] = {
    "log": lambda: torchtrack.log({"x": 1.0}),
    "watch": lambda: torchtrack.watch(None),
    "unwatch": lambda: torchtrack.unwatch(),
    "define_metric": lambda: torchtrack.define_metric("x"),
    "alert": lambda: torchtrack.alert("x"),
    "mark": lambda: torchtrack.mark("x"),
    "config": lambda: torchtrack.config,
    "summary": lambda: torchtrack.summary,
}


@pytest.mark.parametrize("name", CALLS)
def test_calls_before_init_say_that_init_is_missing(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torchtrack.active._process", _Process())
    with pytest.raises(NoActiveRunError, match=rf"torchtrack\.{name}.* needs a run: call torchtrack\.init"):
        CALLS[name]()
    assert torchtrack.run is None
    torchtrack.finish()


def test_module_level_calls_go_to_the_active_run() -> None:
    run = begin(config={"lr": 0.1})
    torchtrack.define_metric("x", summary="min")
    torchtrack.log({"x": 1.0}, step=3)
    torchtrack.log({"x": 2.0, "y": 1.0}, commit=False, reduce="sum")
    torchtrack.config.update({"a": 1})
    torchtrack.summary["s"] = 2
    torchtrack.alert("title", "text", "ERROR")
    torchtrack.mark("here")
    assert active() is run
    torchtrack.finish(quiet=True)
    read = recorded(run)

    assert torchtrack.run is None
    assert read.history("x").to_pydict()["x"] == [1.0, 2.0]
    assert (read.summary["x"], read.summary["s"], read.config) == (1.0, 2, {"lr": 0.1, "a": 1})
    assert [event.data["title"] for event in read.events("alert") + read.events("mark")] == ["title", "here"]


@pytest.mark.parametrize("mode", ["offline", "disabled"])
def test_module_level_calls_after_finish_raise_nothing(mode: str) -> None:
    begin(mode=mode)
    torchtrack.finish(quiet=True)

    assert torchtrack.run is None
    torchtrack.log({"x": 1.0})
    torchtrack.mark("late")
    torchtrack.finish()


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        ({"project": 3}, TypeError),
        ({"config": 3}, TypeError),
        ({"config": ["lr"]}, TypeError),
        ({"resume": "later"}, ValueError),
        ({"resume": "must", "id": "nowhere"}, RunNotFoundError),
        ({"mode": "online"}, ValueError),
        ({"dir": "a\0b"}, ValueError),
    ],
    ids=str,
)
def test_a_wrong_argument_of_init_raises_and_leaves_the_run_before_as_it_is(
    arguments: dict[str, Any], error: type[Exception]
) -> None:
    run = begin()
    with pytest.raises(error):
        begin(**arguments)
    assert torchtrack.run is run
    run.log({"x": 1.0})

    assert column(finished(run), "x") == [1.0]


def test_resume_true_and_false_are_auto_and_never() -> None:
    begin(id="mine").finish(quiet=True)
    with pytest.raises(ValueError, match="mine"):
        begin(id="mine", resume=False)
    run = begin(id="mine", resume=True)

    assert (run.attempt, run.resumed, run.id) == (2, True, "mine")
    run.finish(quiet=True)


def test_a_second_init_finishes_the_first_run_with_a_warning(caplog: pytest.LogCaptureFixture) -> None:
    first = begin()
    first.log({"x": 1.0})
    second = begin()
    second.log({"x": 2.0})

    assert "init() was called while run" in caplog.text
    assert recorded(first).state == "finished"
    assert (column(recorded(first), "x"), column(finished(second), "x")) == ([1.0], [2.0])


def test_two_runs_one_after_the_other_are_two_runs(caplog: pytest.LogCaptureFixture) -> None:
    runs = []
    for value in (1.0, 2.0):
        runs.append(begin())
        torchtrack.log({"x": value})
        torchtrack.finish(quiet=True)

    assert runs[0].uid != runs[1].uid
    assert [column(recorded(run), "x") for run in runs] == [[1.0], [2.0]]
    assert caplog.records == []


@pytest.mark.parametrize("environ", [{"TORCHTRACK_NAME": "n", "TORCHTRACK_TAGS": "a,b", "TORCHTRACK_RUN_ID": "i"}])
def test_variables_set_up_a_run(environ: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in environ.items():
        monkeypatch.setenv(name, value)
    run = begin()

    assert (run.name, run.tags, run.id) == ("n", ("a", "b"), "i")
    run.finish(quiet=True)


def test_importing_torchtrack_loads_neither_torch_numpy_nor_pyarrow() -> None:
    code = "import torchtrack, sys; print(sorted({'torch', 'numpy', 'pyarrow', 'psutil'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=50)

    assert done.stdout.strip() == "[]"


def test_a_run_needs_no_torch(tmp_path: Path) -> None:
    done = script(
        """
        import sys
        import torchtrack
        run = torchtrack.init(dir=DIR, system_interval=0)
        run.log({"x": 1.0, "t": "text", "h": torchtrack.Histogram.of([1.0])})
        torchtrack.finish()
        print("torch" in sys.modules)
        """,
        tmp_path,
    )

    assert (done.returncode, done.stdout) == (0, "False\n")
    assert column(only_run(tmp_path), "x") == [1.0]


# -- how a process ends -----------------------------------------------------------------------------------------------

HEAD = """
import os, sys, signal, torchtrack
import torchtrack.environment
torchtrack.environment.slow = dict
run = torchtrack.init(dir=DIR, system_interval=0)
for i in range(1000):
    run.log({"x": float(i)})
"""


@pytest.mark.parametrize(
    ("end", "code", "reason", "error"),
    [
        ("", 0, "exit", None),
        ("sys.exit(3)", 3, "exit", None),
        ("run.finish(); sys.exit(0)", 0, "finish", None),
        ("raise ValueError('with correct-horse-battery')", 1, "exception", "ValueError: with [redacted]"),
        ("sys.excepthook = lambda *_: None; 1 / 0", 1, "exception", "ZeroDivisionError: division by zero"),
        ("raise KeyboardInterrupt", -signal.SIGINT, "exception", "KeyboardInterrupt: "),
    ],
    ids=["end", "sys.exit", "finish", "exception", "other-hook", "ctrl-c"],
)
def test_the_end_of_a_process_is_recorded_and_nothing_is_lost(
    tmp_path: Path, end: str, code: int, reason: str, error: str | None
) -> None:
    done = script(HEAD + end, tmp_path, environ={"MY_API_TOKEN": "correct-horse-battery"})
    assert done.returncode in (code, 130), done.stderr
    read = only_run(tmp_path)
    (stream,) = read._streams()

    assert column(read, "x") == [float(i) for i in range(1000)]
    assert stream.ended is not None
    assert (stream.ended["reason"], stream.ended["error"]) == (reason, error)
    assert stream.seal is not None


def test_arrow_does_not_load_pandas_when_the_process_ends(tmp_path: Path) -> None:
    (tmp_path / "pandas.py").write_text("print('loaded')")
    done = script(
        """
        import torchtrack, torchtrack.recorder
        torchtrack.recorder.FLUSH_INTERVAL_S = 60  # nothing is written before
        torchtrack.init(dir=DIR, system_interval=0).log({"x": 1.0})
        """,
        tmp_path,
    )

    assert "loaded" not in done.stdout
    assert "dropped" not in done.stderr
    assert column(only_run(tmp_path), "x") == [1.0]


def test_a_handled_exception_is_no_reason_to_fail(tmp_path: Path) -> None:
    text = "\ntry:\n    1 / 0\nexcept ZeroDivisionError:\n    pass\n"
    script(HEAD + text, tmp_path)

    assert only_run(tmp_path).state == "finished"


def test_os_exit_loses_no_row_that_was_flushed(tmp_path: Path) -> None:
    done = script(HEAD + "run.flush(); os._exit(0)", tmp_path)
    (stream,) = only_run(tmp_path)._streams()

    assert done.returncode == 0
    assert len(column(only_run(tmp_path), "x")) == 1000
    assert stream.ended is None


# -- children ---------------------------------------------------------------------------------------------------------


def test_a_forked_child_writes_a_stream_of_its_own_and_no_row_twice(tmp_path: Path) -> None:
    done = script(
        HEAD
        + """
child = os.fork()
if child == 0:
    run.config.from_child = 1
    for i in range(1000, 1500):
        run.log({"x": float(i)})
    assert run.flush()
    run.finish()
    os._exit(0)
_, status = os.waitpid(child, 0)
for i in range(2000, 2500):
    run.log({"x": float(i)}, step=i)
sys.exit(status)
""",
        tmp_path,
    )
    assert done.returncode == 0, done.stderr
    read = only_run(tmp_path)

    assert sorted(column(read, "x")) == [float(i) for i in (*range(1500), *range(2000, 2500))]
    assert len(list((tmp_path / "runs" / read.uid).rglob("*.ttj"))) == 2
    assert sorted(stream.ended["reason"] for stream in read._streams() if stream.ended) == ["exit", "finish"]
    assert done.stderr.count("ended") == 1
    assert read.config["from_child"] == 1


def test_a_child_that_logs_nothing_leaves_no_trace(tmp_path: Path) -> None:
    done = script(HEAD + "child = os.fork()\nif child:\n    os.waitpid(child, 0)\n", tmp_path)
    read = only_run(tmp_path)

    assert done.stderr.count("ended") == 1
    assert len(read._streams()) == 1
    assert len(column(read, "x")) == 1000


def test_a_child_cannot_log_to_a_run_that_had_ended(tmp_path: Path) -> None:
    done = script(
        HEAD
        + """
import threading
run.finish()
child = os.fork()
if child == 0:
    run.log({"x": -1.0})
    print(threading.active_count(), flush=True)
    os._exit(0)
os.waitpid(child, 0)
""",
        tmp_path,
    )

    assert done.stdout == "1\n", done.stderr
    assert "log() after finish() records nothing" in done.stderr
    assert len(column(only_run(tmp_path), "x")) == 1000


def test_children_of_multiprocessing_flush_before_they_leave(tmp_path: Path) -> None:
    done = script(
        """
        import multiprocessing, os, sys
        import torchtrack, torchtrack.environment
        torchtrack.environment.slow = dict

        def forked(n):
            torchtrack.log({f"forked{n}": 1.0})

        def spawned(n):
            torchtrack.init(dir=DIR, system_interval=0, project="spawned")
            torchtrack.log({f"spawned{n}": 1.0})

        if __name__ == "__main__":
            torchtrack.init(dir=DIR, system_interval=0, project="main")
            torchtrack.log({"main": 1.0})
            for method, target in (("fork", forked), ("spawn", spawned)):
                context = multiprocessing.get_context(method)
                children = [context.Process(target=target, args=(n,)) for n in range(2)]
                for child in children:
                    child.start()
                for child in children:
                    child.join()
                    assert child.exitcode == 0
        """,
        tmp_path,
    )
    assert done.returncode == 0, done.stderr
    runs = torchtrack.Api(tmp_path / "runs").runs()
    names = {run.project: [name for name in run.keys() if not name.startswith("_tt/")] for run in runs}  # noqa: SIM118

    assert names["main"] == ["forked0", "forked1", "main"]
    assert {name for run in runs if run.project == "spawned" for name in run.keys()} >= {"spawned0", "spawned1"}  # noqa: SIM118
    assert {run.state for run in runs} == {"finished"}


LOADER = """
import os, sys, warnings
import torch, torchtrack
import torchtrack.environment
from torch.utils.data import DataLoader, Dataset
torchtrack.environment.slow = dict

def begin(worker):
    if worker == 1:  # a script that calls init wherever it comes by; the other worker is left as it is
        torchtrack.init(dir=DIR, system_interval=0)

class Numbers(Dataset):
    def __len__(self):
        return 8

    def __getitem__(self, i):
        if torchtrack.run is not None:
            torchtrack.log({"worker": float(i)})
        return i

if __name__ == "__main__":
    run = torchtrack.init(dir=DIR, system_interval=0)
    loader = DataLoader(Numbers(), batch_size=2, num_workers=2, multiprocessing_context=METHOD, worker_init_fn=begin)
    for batch in loader:
        run.log({"x": batch.sum()})
"""


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_workers_of_a_data_loader_start_no_run_and_write_nothing(tmp_path: Path, method: str) -> None:
    done = script(f"METHOD = {method!r}\n" + LOADER, tmp_path, environ={"OMP_NUM_THREADS": "1"})
    assert done.returncode == 0, done.stderr
    read = only_run(tmp_path)

    assert column(read, "x") == [1.0, 5.0, 9.0, 13.0]
    assert "worker" not in read.keys()  # noqa: SIM118
    assert len(list((tmp_path / "runs" / read.uid).rglob("*.ttj"))) == 1
    assert "failed and goes on" not in done.stderr
    assert done.stderr.count(" ended;") == 1


def test_a_signal_handler_of_the_user_may_log_and_finish(tmp_path: Path) -> None:
    done = script(
        HEAD
        + """
def preempted(*_):
    run.log({"preempted": 1.0})
    run.finish()
    sys.exit(0)
signal.signal(signal.SIGUSR1, preempted)
os.kill(os.getpid(), signal.SIGUSR1)
while True:
    run.log({"x": 0.0})
""",
        tmp_path,
    )
    assert done.returncode == 0, done.stderr

    assert column(only_run(tmp_path), "preempted") == [1.0]
    assert only_run(tmp_path).state == "finished"


def test_the_hooks_of_a_process_are_installed_once() -> None:
    code = f"""
import atexit, os, torchtrack
for _ in range(3):
    torchtrack.init(dir={os.devnull!r} + "/x", mode="disabled")
print(atexit._ncallbacks())
torchtrack.init(mode="disabled")
print(atexit._ncallbacks())
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=50)
    first, second = done.stdout.split()

    assert first == second
