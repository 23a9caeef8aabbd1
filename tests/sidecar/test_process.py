"""Real sidecars, real processes that end in every way."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import psutil
import pytest

from torchtrack.sidecar.client import Sidecar

UID, OTHER_UID = "ab" * 8, "12" * 8
STREAM, OTHER_STREAM = "cd" * 8, "ef" * 8


@pytest.mark.parametrize(
    ("end", "code", "number"),
    [
        ("", 0, None),
        ("sys.exit(3)", 3, None),
        ("os._exit(5)", 5, None),
        ("os.kill(os.getpid(), 9)", None, signal.SIGKILL),
        ("os.kill(os.getpid(), 15)", None, signal.SIGTERM),
        ("os.abort()", None, signal.SIGABRT),
        ("raise ValueError", 1, None),
    ],
)
def test_how_a_process_ends_is_recorded(node: Any, end: str, code: int | None, number: int | None) -> None:
    trainer = node.trainer(end)
    assert node.client.register(STREAM, UID, trainer.pid)
    node.tell(trainer)
    node.eventually(node.exits)  # nobody has collected the trainer yet: torchrun looks every 0.1 s
    (exit_,) = node.exits()
    assert (exit_["code"], exit_["signal"]) == (code, number)
    assert (exit_["stream"], exit_["pid"]) == (STREAM, trainer.pid)


def test_a_process_that_was_collected_at_once_ended_somehow(node: Any) -> None:
    trainer = node.trainer()
    assert node.client.register(STREAM, UID, trainer.pid)
    sidecar = node.sidecar()
    sidecar.suspend()
    node.tell(trainer)
    trainer.wait()
    sidecar.resume()
    node.eventually(node.exits)
    (exit_,) = node.exits()
    assert (exit_["code"], exit_["signal"]) == (None, None)


def test_a_sidecar_without_pidfds_sees_the_exit_too(node: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "sitecustomize.py").write_text("import os\ndel os.pidfd_open\n")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path), prepend=os.pathsep)
    trainer = node.trainer("sys.exit(3)")
    assert node.client.register(STREAM, UID, trainer.pid)
    node.tell(trainer)
    node.eventually(node.exits)
    assert node.exits()[0]["code"] == 3


def test_how_a_process_ends_is_no_matter_of_the_runs_it_finished_before_it_began_another(node: Any) -> None:
    trainer, other = node.trainer("sys.exit(3)"), node.trainer("sys.exit(4)")
    streams = [f"{number:016x}" for number in range(3)]
    uids = [UID, OTHER_UID, "34" * 8]
    assert node.client.register(streams[0], uids[0], trainer.pid)
    assert node.client.register(STREAM, uids[0], other.pid, rank=1)
    assert node.client.ended(streams[0], "finish")
    assert node.client.register(streams[1], uids[1], trainer.pid)
    assert node.client.ended(streams[1], "exception")
    assert node.client.register(streams[2], uids[2], trainer.pid)
    assert node.client.ended(streams[2], "finish")
    for process in (trainer, other):
        node.tell(process)
    node.eventually(lambda: all(len(node.exits(uid)) == 1 for uid in uids))

    found = [(exit_["stream"], exit_["code"]) for uid in uids for exit_ in node.exits(uid)]
    assert found == [(STREAM, 4), (streams[1], 3), (streams[2], 3)]


def test_many_starts_at_once_make_one_sidecar(node: Any) -> None:
    trainer = node.trainer()
    clients = [Sidecar(node.directory, timeout_s=30.0) for _ in range(4)]
    done: list[bool] = []

    def register(index: int) -> None:
        done.append(clients[index].register(f"{index:016x}", UID, trainer.pid))

    threads = [threading.Thread(target=register, args=(index,)) for index in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert done == [True] * 4
    node.eventually(lambda: len(node.sidecars()) == 1)
    node.tell(trainer)
    node.eventually(lambda: len(node.exits()) == 4)


def test_the_sidecar_is_nobodys_child_and_holds_nothing_of_the_rank(node: Any) -> None:
    trainer = node.trainer()
    children = psutil.Process().children()
    assert node.client.register(STREAM, UID, trainer.pid)
    assert psutil.Process().children() == children
    sidecar = node.sidecar()
    assert os.getsid(sidecar.pid) != os.getsid(0)
    assert sidecar.cwd() == "/"
    files = [str(Path(f"/proc/{sidecar.pid}/fd/{number}").readlink()) for number in (0, 1, 2)]
    assert files == ["/dev/null"] * 3


def test_the_sidecar_is_light(node: Any) -> None:
    assert node.client.register(STREAM, UID, node.trainer().pid)
    sidecar = node.sidecar()
    maps = Path(f"/proc/{sidecar.pid}/maps").read_text()
    assert not [name for name in ("libarrow", "numpy", "libtorch") if name in maps]
    code = (
        "import sys, torchtrack.sidecar.process; print([m for m in ('torch', 'numpy', 'pyarrow') if m in sys.modules])"
    )
    assert subprocess.check_output([sys.executable, "-c", code], text=True).strip() == "[]"


def test_heartbeats_name_the_streams_that_live(node: Any) -> None:
    trainer, other = node.trainer(), node.trainer()
    assert node.client.register(STREAM, UID, trainer.pid)
    assert node.client.register(OTHER_STREAM, UID, other.pid)
    node.eventually(lambda: [sorted(beat["streams"]) for beat in node.heartbeats()][-1:] == [[STREAM, OTHER_STREAM]])
    assert node.client.ended(STREAM, "finish")
    node.eventually(lambda: [beat["streams"] for beat in node.heartbeats()][-1:] == [[OTHER_STREAM]])
    node.tell(trainer)
    node.eventually(node.exits)  # how it exits counts after finish() too


def test_a_stream_that_joins_a_run_is_recorded_there(node: Any) -> None:
    trainer = node.trainer("sys.exit(3)")
    assert node.client.register(STREAM, UID, trainer.pid)
    assert node.client.joined(STREAM, OTHER_UID)
    node.tell(trainer)
    node.eventually(lambda: node.exits(OTHER_UID))
    assert not node.exits(UID)


def test_the_sidecar_seals_and_leaves_with_the_last_process(node: Any) -> None:
    trainer = node.trainer()
    assert node.client.register(STREAM, UID, trainer.pid)
    node.tell(trainer)
    node.eventually(lambda: not node.sidecars())
    assert node.records()[-1]["reason"] == "no process left"


def test_the_next_launch_finds_a_sidecar_after_the_first_has_left(node: Any) -> None:
    first = node.trainer()
    assert node.client.register(STREAM, UID, first.pid)
    node.tell(first)
    node.eventually(lambda: not node.sidecars())
    second = node.trainer()
    assert Sidecar(node.directory, timeout_s=30.0).register(OTHER_STREAM, UID, second.pid)


def test_registering_again_replaces_a_sidecar_that_was_killed(node: Any) -> None:
    trainer = node.trainer("sys.exit(3)")
    assert node.client.register(STREAM, UID, trainer.pid)
    sidecar = node.sidecar()
    sidecar.kill()
    node.eventually(lambda: not node.is_up())
    assert not node.client.ended(STREAM, "finish")
    assert node.client.errors == 1
    node.client._start_at = 0.0  # 5 s later
    assert node.client.register(STREAM, UID, trainer.pid)
    assert node.client.register(STREAM, UID, trainer.pid)
    node.tell(trainer)
    node.eventually(node.exits)
    assert len(node.exits()) == 1


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGHUP, signal.SIGUSR1])
def test_signals_meant_for_the_job_do_not_end_the_sidecar(node: Any, number: signal.Signals) -> None:
    trainer = node.trainer("sys.exit(3)")
    assert node.client.register(STREAM, UID, trainer.pid)
    sidecar = node.sidecar()
    sidecar.send_signal(number)
    node.tell(trainer)
    node.eventually(node.exits)


def test_sigterm_seals_after_the_exits_of_ranks_terminated_with_it(node: Any) -> None:
    trainer, survivor = node.trainer(), node.trainer()
    assert node.client.register(STREAM, UID, trainer.pid)
    assert node.client.register(OTHER_STREAM, UID, survivor.pid)
    sidecar = node.sidecar()
    sidecar.suspend()  # so that no pause of ours comes between the two signals
    sidecar.send_signal(signal.SIGTERM)
    trainer.terminate()
    sidecar.resume()
    node.eventually(lambda: not node.sidecars())
    assert [exit_["signal"] for exit_ in node.exits()] == [signal.SIGTERM]
    assert node.records()[-1]["reason"] == "left"


def test_what_is_no_request_does_no_harm(node: Any) -> None:
    trainer = node.trainer("sys.exit(3)")
    assert node.client.register(STREAM, UID, trainer.pid)
    for request in (
        {"do": "register", "stream": "../../x", "uid": UID, "pid": 1},
        {"do": 1},
        {"stream": STREAM, "do": []},
    ):
        node.client._call(request, start=False)
    assert not node.client.register(OTHER_STREAM, "../../../tmp/x", trainer.pid)
    assert not node.client.register(OTHER_STREAM, UID, 2**22 + 1)
    node.tell(trainer)
    node.eventually(node.exits)


def test_without_a_sidecar_every_call_is_quiet_and_counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    client = Sidecar(tmp_path, timeout_s=0.1)
    monkeypatch.setattr(sys, "executable", "/nonexistent/python")
    assert not client.register(STREAM, UID, os.getpid())
    assert not client.joined(STREAM, UID)
    assert not client.ended(STREAM, "finish")
    assert client.errors == 3
    client.close()
    assert not client.register(STREAM, UID, os.getpid())
    assert client.errors == 3


def test_a_rank_that_is_killed_while_torchrun_kills_its_group_is_recorded(node: Any) -> None:
    code = (
        "import os, sys; from pathlib import Path; from torchtrack.sidecar.client import Sidecar\n"
        f"ok = Sidecar(Path(sys.argv[1]), timeout_s=30.0).register({STREAM!r}, {UID!r}, os.getpid())\n"
        "print(ok, flush=True); sys.stdin.read()"
    )
    command = [sys.executable, "-c", code, str(node.directory)]
    trainer = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, start_new_session=True)
    node.processes.append(trainer)
    assert trainer.stdout is not None
    assert trainer.stdout.readline() == b"True\n"
    assert psutil.Process(trainer.pid).children() == []
    os.killpg(trainer.pid, signal.SIGKILL)
    node.eventually(node.exits)
    assert node.exits()[0]["signal"] == signal.SIGKILL
