"""Which kernel a device gets, and when."""

from __future__ import annotations

import importlib
import os
import subprocess
import sys
import threading
from types import ModuleType

import pytest
import torch

from torchtrack.testing import leaks
from torchtrack.watch import kernels
from torchtrack.watch.kernels import compile as compiler
from torchtrack.watch.kernels import reference

CPU = torch.device("cpu")


@pytest.fixture
def nothing_chosen(monkeypatch: pytest.MonkeyPatch) -> None:
    kernels.wait()
    monkeypatch.setattr(kernels, "_chosen", {})
    monkeypatch.setattr(kernels, "_loaders", [])


@pytest.mark.usefixtures("nothing_chosen")
def test_the_reference_counts_until_the_fast_one_is_ready(monkeypatch: pytest.MonkeyPatch) -> None:
    fast, compiled = ModuleType("fast"), threading.Event()
    fast.statistics = lambda *_: None  # type: ignore[attr-defined]

    def slow(name: str) -> ModuleType:
        assert compiled.wait(30), name
        return fast

    monkeypatch.setattr(importlib, "import_module", slow)
    before = kernels.choose(CPU)
    compiled.set()
    kernels.wait()
    assert (before, kernels.choose(CPU)) == (reference.statistics, fast.statistics)


@pytest.mark.usefixtures("nothing_chosen")
def test_a_missing_package_is_named_once_with_what_installs_it(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setitem(sys.modules, "numba", None)
    for _ in range(3):
        assert kernels.choose(CPU) is reference.statistics
        kernels.wait()
    [line] = caplog.messages
    assert "pip install 'torchtrack[cpu]'" in line


@pytest.mark.usefixtures("nothing_chosen")
def test_a_gpu_without_triton_is_told_what_to_install(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setitem(sys.modules, "triton", None)
    assert kernels.choose(torch.device("cuda", 0)) is reference.statistics
    kernels.wait()
    assert kernels.choose(torch.device("cuda", 0)) is reference.statistics
    [line] = caplog.messages
    assert "on cuda; pip install triton" in line


@pytest.mark.usefixtures("nothing_chosen")
def test_a_package_that_fails_is_reported_once_and_done_without(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def broken(_: str) -> ModuleType:
        raise OSError("libsomething.so: cannot open shared object file")

    monkeypatch.setattr(importlib, "import_module", broken)
    for _ in range(3):
        assert kernels.choose(CPU) is reference.statistics
        kernels.wait()
    assert caplog.messages == [
        "torchtrack watch counts with plain torch operators, as numba fails here: "
        "libsomething.so: cannot open shared object file"
    ]


@pytest.mark.usefixtures("nothing_chosen")
def test_a_device_without_a_kernel_of_its_own_has_the_reference() -> None:
    assert kernels.choose(torch.device("meta")) is reference.statistics
    assert kernels._loaders == []


def test_importing_watch_loads_no_compiler() -> None:
    code = "import sys; from torchtrack.watch import kernels; print({'numba', 'llvmlite', 'triton'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


def test_the_loader_is_known_to_the_search_for_leaks() -> None:
    assert kernels.THREAD in leaks.ENDING_THREADS
    assert compiler.COMMAND == leaks.ENDING_PROCESS


@pytest.mark.usefixtures("nothing_chosen")
def test_what_is_not_compiled_yet_is_compiled_by_another_process(monkeypatch: pytest.MonkeyPatch) -> None:
    commands: list[list[str]] = []

    class Process:
        def __init__(self, command: list[str], **_: object) -> None:
            commands.append(command)

        def poll(self) -> int:
            return 0

    monkeypatch.setattr(compiler, "is_needed", lambda: True)
    monkeypatch.setattr(subprocess, "Popen", Process)
    kernels.prepare(CPU)
    kernels.wait()
    assert commands == [[sys.executable, "-c", compiler.COMMAND]]
    assert kernels.choose(CPU) is not reference.statistics


def test_what_is_compiled_is_not_compiled_again() -> None:
    kernels.choose(CPU)
    kernels.wait()
    compiler.main()
    assert not compiler.is_needed()


@pytest.mark.usefixtures("nothing_chosen")
def test_a_fork_does_not_wait_while_another_process_compiles(monkeypatch: pytest.MonkeyPatch) -> None:
    forked = threading.Event()
    monkeypatch.setattr(kernels, "_compile_elsewhere", lambda: forked.wait(30))
    kernels.prepare(CPU)
    child = os.fork()
    if child == 0:
        os._exit(7 if kernels.choose(CPU) is reference.statistics else 8)
    forked.set()
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7
    kernels.wait()
