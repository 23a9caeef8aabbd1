"""The police of leaks."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from torchtrack.testing import leaks


def found(before: leaks.Snapshot) -> str:
    left = leaks.since(before, grace_s=0)
    leaks.restore(before)
    return "\n".join(left)


def test_nothing_done_is_nothing_left() -> None:
    assert leaks.since(leaks.snapshot(), grace_s=0) == []


def test_a_thread_is_found() -> None:
    before, stop = leaks.snapshot(), threading.Event()
    thread = threading.Thread(target=stop.wait, name="forgotten")
    thread.start()

    assert "thread 'forgotten' is alive" in found(before)
    stop.set()
    thread.join()


def test_a_thread_that_is_ending_has_a_moment() -> None:
    before, stop = leaks.snapshot(), threading.Event()
    threading.Thread(target=stop.wait).start()
    threading.Timer(0.05, stop.set).start()

    assert leaks.since(before, grace_s=10) == []


def test_a_child_process_is_found_and_ended() -> None:
    before = leaks.snapshot()
    child = subprocess.Popen([sys.executable, "-c", "import threading; threading.Event().wait()"])

    assert f"process {child.pid} is a child" in found(before)
    child.wait()
    assert leaks.since(before, grace_s=0) == []


def test_a_child_that_nobody_waited_for_is_found() -> None:
    before = leaks.snapshot()
    child = subprocess.Popen([sys.executable, "-c", ""])
    os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)

    assert f"process {child.pid} is a child (zombie)" in "\n".join(leaks.since(before, grace_s=0))
    child.wait()


def test_an_exempt_child_is_none() -> None:
    before = leaks.snapshot()
    child = subprocess.Popen([sys.executable, "-c", "import threading; threading.Event().wait()"])
    leaks.exempt_processes.add(child.pid)

    assert leaks.since(before, grace_s=0) == []
    leaks.exempt_processes.remove(child.pid)
    child.kill()
    child.wait()


def test_an_open_file_is_found(tmp_path: Path) -> None:
    before = leaks.snapshot()
    with (tmp_path / "0.ttj").open("w"):
        assert f"file {tmp_path}/0.ttj is open" in found(before)


def test_variables_are_found_and_put_back(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TO_CHANGE", "old")
    monkeypatch.setenv("TO_REMOVE", "old")
    before = leaks.snapshot()
    os.environ["NEW"] = "1"
    os.environ["TO_CHANGE"] = "new"
    del os.environ["TO_REMOVE"]

    text = found(before)

    assert "environment variable NEW was set" in text
    assert "environment variable TO_CHANGE was changed" in text
    assert "environment variable TO_REMOVE was removed" in text
    assert leaks.since(before, grace_s=0) == []


def test_another_working_directory_is_found_and_put_back(tmp_path: Path) -> None:
    before = leaks.snapshot()
    os.chdir(tmp_path)

    assert f"the working directory is {tmp_path}" in found(before)
    assert leaks.since(before, grace_s=0) == []


def test_a_signal_handler_is_found_and_put_back() -> None:
    before = leaks.snapshot()
    signal.signal(signal.SIGUSR1, lambda *_: None)

    assert "the handler of SIGUSR1 was changed" in found(before)
    assert signal.getsignal(signal.SIGUSR1) == signal.SIG_DFL


def test_an_optimizer_hook_is_found() -> None:
    from torch.optim.optimizer import register_optimizer_step_pre_hook

    before = leaks.snapshot()
    handle = register_optimizer_step_pre_hook(lambda *_: None)

    assert "_global_optimizer_pre_hooks was changed" in found(before)
    handle.remove()
    assert leaks.since(before, grace_s=0) == []


def test_a_replaced_torch_function_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    from torch.nn.utils import clip_grad

    before = leaks.snapshot()
    monkeypatch.setattr(clip_grad, "_clip_grads_with_norm_", lambda *_: None)

    assert "torch.nn.utils.clip_grad._clip_grads_with_norm_ was changed" in found(before)


def test_a_process_group_is_found_and_destroyed(tmp_path: Path) -> None:
    from torch import distributed

    before = leaks.snapshot()
    distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)

    assert "torch.distributed is still initialised" in found(before)
    assert not distributed.is_initialized()
