"""A real run with a real sidecar tells a real server."""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

import torchtrack
from tests.hook import Hook
from tests.rules.source import ROOT
from tests.runs import begin, script

GUIDE = ROOT / "docs" / "guides" / "alerts.md"


def couriers(folder: Path) -> list[psutil.Process]:
    """The couriers of a runs folder that live."""
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            command = process.cmdline()
            if "torchtrack.sidecar.courier" in command and str(folder) in command:
                found.append(process)
    return found


@pytest.fixture
def hooks() -> Iterator[list[Hook]]:
    made = [Hook(), Hook()]
    yield made
    for hook in made:
        hook.close()


def test_alerts_reach_a_target_while_another_hangs_and_finish_does_not_wait(
    node: Any, hooks: list[Hook], tmp_path: Path
) -> None:
    good, hanging = hooks
    hanging.gate.clear()
    run = begin(dir=tmp_path, sidecar=True, alert_urls=[hanging.url, good.url], config={"hook": good.url})
    run.alert("Loss is high", "look", "warning")
    run.alert("Loss is high", "again")
    run._event("finding", {"rule": "nonfinite", "severity": "critical", "first_step": 3, "why": "NaN in layer 2"})
    run._event("finding", {"rule": "skew", "severity": "warning", "first_step": 3})
    node.eventually(hanging.asked.is_set)
    run.finish(quiet=True)
    assert not hanging.got
    node.eventually(lambda: len(good.got) >= 2)

    first, second = good.got
    assert first["title"].endswith("Loss is high")
    assert (first["type"], "look" in first["message"]) == ("warning", True)
    assert "nonfinite since step 3" in second["title"]
    assert len(torchtrack.Api(tmp_path).run(run.uid).events("alert")) == 2
    written = b"".join(path.read_bytes() for path in tmp_path.rglob("*") if path.is_file())
    assert b"very-secret-word" not in written


def test_an_alert_is_not_told_twice_when_the_sidecar_is_replaced(node: Any, hooks: list[Hook], tmp_path: Path) -> None:
    good = hooks[0]
    run = begin(dir=tmp_path, sidecar=True, alert_urls=[good.url])
    run.alert("one", wait_duration=0)
    node.eventually(lambda: len(good.got) == 1)
    sidecar = node.sidecar()
    sidecar.kill()
    node.eventually(lambda: not sidecar.is_running())
    node.eventually(lambda: not couriers(tmp_path))
    again = run._sidecar
    assert again is not None
    node.eventually(lambda: again.register(f"{run._stream:016x}", run.uid, os.getpid()))  # not at once after a start
    run.alert("two", wait_duration=0)
    node.eventually(lambda: len(good.got) >= 2)
    run.finish(quiet=True)
    node.sidecar().terminate()
    node.eventually(lambda: not couriers(tmp_path))

    assert [got["title"].split("] ")[-1] for got in good.got] == ["one", "two"]


def test_the_guides_program_runs(node: Any, hooks: list[Hook], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (program,) = re.findall(r"^```python\n(.+?)^```", GUIDE.read_text(), re.MULTILINE | re.DOTALL)
    assert "json://localhost:8080/hook" in program
    monkeypatch.setenv("TORCHTRACK_SIDECAR", "1")
    done = script(program.replace("json://localhost:8080/hook", hooks[0].url), tmp_path)
    assert done.returncode == 0, done.stderr
    node.eventually(lambda: hooks[0].got)
    assert hooks[0].got[0]["type"] == "warning"
    node.directory = tmp_path / "runs"  # whose sidecar is to be ended
