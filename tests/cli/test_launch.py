"""`torchtrack launch` where runs go to a server: it stays until they are there, and ends as its command."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path

import pytest

import torchtrack
from tests.runs import until
from tests.server.running import Running
from tests.server.simulated import stored
from torchtrack.journal.reader import find_streams
from torchtrack.server.app import Config
from torchtrack.server.budget import Limits

SCRIPT = """
import sys, torchtrack
run = torchtrack.init(system_interval=0, sidecar=True, live_findings=False, finish_timeout=1.0)
for step in range(50):
    run.log({"loss": step})
run.flush(30)
run.finish()
sys.exit(3)
"""


class Launch:
    """Starts launched commands whose runs go to some server."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.folder, self.runs = folder, folder / "runs"
        self._patch = monkeypatch

    def __call__(
        self, url: str, *command: str, key: str = "tt_x", options: tuple[str, ...] = ()
    ) -> subprocess.Popen[str]:
        self._patch.setenv("TORCHTRACK_URL", url)
        self._patch.setenv("TORCHTRACK_API_KEY", key)
        return subprocess.Popen(
            [sys.executable, "-m", "torchtrack.cli", "launch", *options, "--", *command],
            cwd=self.folder,
            env={**os.environ, "PYTHONPATH": str(Path(torchtrack.__file__).parent.parent)},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def script(self, text: str = SCRIPT) -> tuple[str, str]:
        path = self.folder / "train.py"
        path.write_text(textwrap.dedent(text))
        return sys.executable, str(path)


@pytest.fixture
def launch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Launch:
    return Launch(tmp_path, monkeypatch)


@pytest.fixture
def mute() -> Iterator[str]:
    """A server that takes connections and never says a word."""
    with socket.create_server(("127.0.0.1", 0)) as bound:
        yield f"http://127.0.0.1:{bound.getsockname()[1]}"


def test_it_stays_until_the_server_has_every_frame_and_exits_as_the_script(
    launch: Launch, tmp_path_factory: pytest.TempPathFactory
) -> None:
    server = Running(Config(data=tmp_path_factory.mktemp("server"), limits=Limits(interval_s=0.05), queries=False))
    process = launch(server.url, *launch.script(), key=server.key)
    _, said = process.communicate(timeout=60)
    there = {key: raw for path in find_streams(server.config.runs) for key, raw in stored(path).items()}
    server.stop()
    here = {key: raw for path in find_streams(launch.runs) for key, raw in stored(path).items()}

    assert process.returncode == 3, said
    assert "may not be on" not in said
    assert len(here) > 4
    assert there == here


@pytest.mark.skipif(
    signal.getsignal(signal.SIGINT) is signal.SIG_IGN, reason="not run: a shell's job in the background gets no Ctrl-C"
)
def test_ctrl_c_ends_the_wait_and_what_is_not_there_is_named(launch: Launch, mute: str) -> None:
    process = launch(mute, *launch.script())
    assert process.stderr is not None
    until(lambda: "Ctrl-C leaves" in process.stderr.readline())  # type: ignore[union-attr]  # it is a pipe
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=60)
    (run,) = torchtrack.Api(launch.runs).runs()

    assert process.returncode == 3
    assert "(interrupted)" in said
    assert int(said.partition(" rows in")[0].rpartition(" ")[2]) >= 50
    assert f"{launch.runs / run.uid} and are sent by: torchtrack sync {run.uid}" in said
    for helper in _helpers(launch.runs):
        os.kill(helper, signal.SIGKILL)


def _helpers(runs: Path) -> list[int]:
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            words = path.read_bytes().decode(errors="replace").split("\0")
        except OSError:
            continue
        if str(runs) in words and any(word.startswith("torchtrack.sidecar") for word in words):
            found.append(int(path.parent.name))
    return found


WAITS = "import signal, sys; print('ready', flush=True); sys.stdin.read(1); {}"


@pytest.mark.parametrize(
    ("end", "code"),
    [
        ("sys.exit(7)", 7),
        ("signal.raise_signal(signal.SIGSEGV)", -signal.SIGSEGV),
        ("signal.raise_signal(signal.SIGKILL)", -signal.SIGKILL),
    ],
)
def test_a_command_that_records_nothing_ends_as_without(launch: Launch, mute: str, end: str, code: int) -> None:
    process = launch(mute, sys.executable, "-c", WAITS.format(end))
    out, said = process.communicate("x", timeout=60)

    assert (process.returncode, out, said) == (code, "ready\n", "")


def test_a_signal_reaches_the_command_which_may_handle_it(launch: Launch, mute: str) -> None:
    handler = "signal.signal(signal.SIGUSR1, lambda *_: sys.exit(9)); print('ready', flush=True); signal.pause()"
    process = launch(mute, sys.executable, "-c", f"import signal, sys; {handler}")
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    process.send_signal(signal.SIGUSR1)
    process.communicate(timeout=60)

    assert process.returncode == 9


def test_a_launch_that_is_killed_takes_the_command_with_it(launch: Launch, mute: str) -> None:
    process = launch(mute, sys.executable, "-c", "import os; print(os.getpid(), flush=True); input()")
    assert process.stdout is not None
    pid = int(process.stdout.readline())
    process.kill()
    process.communicate(timeout=60)

    until(lambda: not Path(f"/proc/{pid}").exists() or ") Z" in Path(f"/proc/{pid}/stat").read_text())


def test_a_command_that_is_not_there_is_told_as_without(launch: Launch, mute: str) -> None:
    process = launch(mute, "no-such-command")
    _, said = process.communicate(timeout=60)

    assert process.returncode == 127
    assert "cannot run no-such-command" in said


def test_offline_it_becomes_the_command(launch: Launch, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCHTRACK_MODE", "offline")
    process = launch("http://127.0.0.1:9", sys.executable, "-c", "import os; print(os.getpid())")
    out, _ = process.communicate(timeout=60)

    assert int(out) == process.pid
