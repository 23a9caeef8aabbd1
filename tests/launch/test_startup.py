"""Waiting for an import: called once after it, and nothing is left of it."""

from __future__ import annotations

import importlib
import inspect
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest

from torchtrack.launch.startup import Waiting

NAME = "module_that_is_waited_for"


@pytest.fixture
def seen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[list[ModuleType]]:
    monkeypatch.syspath_prepend(tmp_path)
    found: list[ModuleType] = []
    waiting = Waiting({NAME: found.append})
    sys.meta_path.insert(0, waiting)
    yield found
    sys.meta_path.remove(waiting)
    sys.modules.pop(NAME, None)


def test_the_call_comes_once_after_the_module_was_executed(seen: list[ModuleType], tmp_path: Path) -> None:
    (tmp_path / f"{NAME}.py").write_text("VALUE = 3\n")
    module = importlib.import_module(NAME)
    importlib.reload(module)

    assert seen == [module]
    assert "exec_module" not in vars(module.__loader__)
    assert type(module.__spec__).__name__ == "ModuleSpec"
    assert inspect.getsource(module) == "VALUE = 3\n"


def test_a_module_that_fails_or_is_not_there_raises_as_without(seen: list[ModuleType], tmp_path: Path) -> None:
    with pytest.raises(ModuleNotFoundError, match=NAME):
        importlib.import_module(NAME)
    (tmp_path / f"{NAME}.py").write_text("1 / 0\n")
    importlib.invalidate_caches()
    with pytest.raises(ZeroDivisionError):
        importlib.import_module(NAME)
    assert seen == []


def test_a_module_that_comes_later_is_waited_for(seen: list[ModuleType], tmp_path: Path) -> None:
    with pytest.raises(ModuleNotFoundError):
        importlib.import_module(NAME)
    (tmp_path / f"{NAME}.py").write_text("VALUE = 3\n")
    importlib.invalidate_caches()

    assert seen == [importlib.import_module(NAME)]


def test_a_failing_call_does_not_fail_the_import(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from torchtrack import guard

    def fail(module: ModuleType) -> None:
        raise RuntimeError(module.__name__)

    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(sys, "meta_path", [Waiting({NAME: fail}), *sys.meta_path])
    (tmp_path / f"{NAME}.py").write_text("VALUE = 3\n")
    module = importlib.import_module(NAME)
    del sys.modules[NAME]

    assert module.VALUE == 3
    assert guard.failures.pop("launch: RuntimeError") == 1
