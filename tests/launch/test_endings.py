"""How launched scripts end, and what goes wrong: as without."""

from __future__ import annotations

import re
import signal
import textwrap

import pytest

from tests.launch.launcher import COMMAND, MODULE, PYTHON, TORCHRUN, Launcher, path
from tests.runs import column
from torchtrack.launch.options import LOGGED
from torchtrack.watch.watcher import KINDS

OURS = re.compile(r"^torchtrack: .*\n", re.MULTILINE)
NO_CTRL_C = pytest.mark.skipif(
    signal.getsignal(signal.SIGINT) is signal.SIG_IGN, reason="not run: a shell's job in the background gets no Ctrl-C"
)


def test_an_exception_is_the_scripts_own(launcher: Launcher) -> None:
    script = [path("failing.py"), "exception"]
    plain, done = launcher.both([*PYTHON, *script], [*MODULE, *script])
    (run,) = launcher.runs()

    assert (plain.code, plain.out) == (done.code, done.out) == (1, "trained\n")
    assert "KeyError: 'exception'" in plain.err
    assert OURS.sub("", done.err) == plain.err  # the same traceback, without a frame of ours
    assert run.state == "failed"
    assert column(run, "loss") == [0.0]


def test_an_exit_code_is_the_scripts_own(launcher: Launcher) -> None:
    script = [path("failing.py"), "status"]
    plain, done = launcher.both([*PYTHON, *script], [*COMMAND, *PYTHON, *script])
    (run,) = launcher.runs()

    assert (plain.code, plain.out) == (done.code, done.out) == (7, "trained\n")
    assert OURS.sub("", done.err) == plain.err == ""
    assert column(run, "loss") == [0.0]


SIGNALS = [
    pytest.param("waiting", signal.SIGTERM, -signal.SIGTERM, id="SIGTERM"),
    pytest.param("waiting", signal.SIGINT, -signal.SIGINT, id="SIGINT", marks=NO_CTRL_C),
    pytest.param("handler", signal.SIGTERM, 9, id="SIGTERM handled"),
    pytest.param("at once", signal.SIGUSR1, 5, id="os._exit"),
]


@pytest.mark.parametrize(("how", "number", "code"), SIGNALS)
def test_a_signal_ends_a_script_as_without(launcher: Launcher, how: str, number: signal.Signals, code: int) -> None:
    script = [path("failing.py"), how]
    plain, done = launcher.signalled([*PYTHON, *script], [*COMMAND, *PYTHON, *script], number)
    (run,) = launcher.runs()

    assert (plain.code, done.code) == (code, code)
    assert done.out == plain.out == ("saved\n" if how == "handler" else "")
    assert OURS.sub("", done.err).splitlines()[-1:] == plain.err.splitlines()[-1:]
    assert column(run, "loss") == [0.0]


@pytest.mark.parametrize(
    ("number", "launched"),
    [
        pytest.param(signal.SIGTERM, [*COMMAND, *TORCHRUN], id="SIGTERM"),
        pytest.param(signal.SIGINT, [*TORCHRUN, "-m", "torchtrack.launch"], id="SIGINT", marks=NO_CTRL_C),
    ],
)
def test_a_signal_ends_torchrun_and_its_ranks_as_without(
    launcher: Launcher, number: signal.Signals, launched: list[str]
) -> None:
    script = [path("failing.py"), "waiting"]
    plain, done = launcher.signalled([*TORCHRUN, *script], [*launched, *script], number, ranks=2)
    (run,) = launcher.runs()

    assert done.code == plain.code != 0
    assert done.out == plain.out == ""
    assert run.world_size == 2


def test_runs_that_cannot_be_written_change_nothing(launcher: Launcher) -> None:
    (launcher.folder / "runs").write_text("a file")
    done = launcher.end(launcher.start([*MODULE, path("failing.py"), "status"]))

    assert (done.code, done.out) == (7, "trained\n")
    assert "torchtrack cannot write to" in done.err


def test_a_failure_in_torchtrack_changes_nothing(launcher: Launcher) -> None:
    fault = """
        import torchtrack.columns, torchtrack.redact
        def fail(*args, **kwargs):
            raise RuntimeError("on purpose")
        torchtrack.columns.Layout.of = fail
        torchtrack.redact.Redactor.value = fail
    """
    (launcher.folder / "sitecustomize.py").write_text(textwrap.dedent(fault))
    launcher.environ["PYTHONPATH"] += f":{launcher.folder}"
    done = launcher.end(launcher.start([*COMMAND, "--", *PYTHON, path("failing.py"), "status"]))

    assert (done.code, done.out) == (7, "trained\n")
    assert "failed and goes on without it: on purpose" in done.err


def test_a_script_that_trains_nothing_leaves_no_run_and_the_paths_are_its_own(launcher: Launcher) -> None:
    names = "import sys, os; print(sys.path, sys.argv, __name__, 'torchtrack.run' in sys.modules)"
    plain, done = launcher.both([*PYTHON, "-c", names, "a"], [*COMMAND, *PYTHON, "-c", names, "a"])
    (launcher.folder / "pack.py").write_text(names)
    module, seen = launcher.both(
        [*PYTHON, "-m", "pack", "-m", "b"], [*MODULE, "--log", "none", "-m", "pack", "-m", "b"]
    )

    assert (done.code, done.out, done.err) == (0, plain.out, "")
    assert (seen.code, seen.out, seen.err) == (0, module.out, "")
    assert launcher.runs() == []


def test_a_sitecustomize_that_ours_hides_is_run(launcher: Launcher) -> None:
    (launcher.folder / "sitecustomize.py").write_text("print('theirs', __name__)")
    launcher.environ["PYTHONPATH"] += f":{launcher.folder}"
    done = launcher.end(launcher.start([*COMMAND, *PYTHON, "-c", "import sitecustomize as s; print(s.__file__)"]))

    assert done.out.splitlines()[-2:] == ["theirs sitecustomize", str(launcher.folder / "sitecustomize.py")]


def test_what_may_be_logged_is_what_watch_can() -> None:
    assert set(LOGGED) == set(KINDS)


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        (["--log", "weights", "python"], 2, 'takes "all", "none" or some of gradients'),
        (["--log-freq", "0", "python"], 2, "--log-freq"),
        (["no-such-program"], 127, "torchtrack: cannot run no-such-program: No such file or directory"),
        (["./train.py"], 126, "to run a script: python ./train.py"),
        ([], 2, "Missing argument"),
    ],
)
def test_a_wrong_command_is_told(launcher: Launcher, words: list[str], code: int, message: str) -> None:
    (launcher.folder / "train.py").write_text("")
    done = launcher.end(launcher.start([*COMMAND, *words]))

    assert done.code == code
    assert message in " ".join(done.err.split())
