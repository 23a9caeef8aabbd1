"""A real run with a real sidecar: findings while it goes on, told by the courier, whatever a user's rule does."""

from __future__ import annotations

import json
import math
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import torchtrack
from tests.hook import Hook
from tests.runs import begin
from tests.sidecar.conftest import UID

RULES = """
class Broken:
    name, patience, calm, causes = "broken", 1, 1, frozenset()
    def update(self, step):
        raise RuntimeError("no such luck")

class Odd:
    name, patience, calm, causes = "odd", 1, 1, frozenset()
    def update(self, step):
        from torchtrack.stability import Sign
        value = step.scalars.get("oddness", 0.0)
        return {"oddness": Sign("It is odd.", "Look.", value, "warning", names=("oddness",)) if value else None}
"""


@pytest.fixture
def hook() -> Iterator[Hook]:
    made = Hook()
    yield made
    made.close()


@pytest.fixture
def rules_of_a_user(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A package with two rules, installed for the processes that are started."""
    site = tmp_path / "site"
    info = site / "odd_rules-1.0.dist-info"
    info.mkdir(parents=True)
    (site / "odd_rules.py").write_text(RULES)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: odd-rules\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[torchtrack.rules]\nbroken = odd_rules:Broken\nodd = odd_rules:Odd\n")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(site), os.environ.get("PYTHONPATH", "")]))


@pytest.mark.usefixtures("rules_of_a_user")
def test_findings_are_recorded_and_told_while_the_run_goes_on_and_at_its_end(
    node: Any, hook: Hook, tmp_path: Path
) -> None:
    options = {"sidecar": True, "live_findings": True, "alert_urls": [hook.url], "alert_findings": "warning"}
    run = begin(dir=tmp_path / "runs", **options)
    node.directory = tmp_path / "runs"
    run.log({"loss": 1.0, "oddness": 1.0})

    def goes_on() -> bool:
        run.log({"accuracy": 1.0})
        return bool(hook.got)

    node.eventually(goes_on)  # told before the run has ended
    run.log({"loss": math.nan})
    run.finish(quiet=True)
    node.sidecar().terminate()
    node.eventually(lambda: len(hook.got) > 1)

    first, second = hook.got
    assert "warning: odd since step 0" in first["title"]
    assert "critical: non_finite since step" in second["title"]
    read = torchtrack.Api(tmp_path / "runs").run(run.uid)
    assert {one.rule for one in read.findings()} == {"odd", "non_finite"}  # here the rule "odd" is not installed
    (warning,) = read.events("warning")
    assert "rule broken failed and goes on without it: no such luck" in warning.data["text"]


def test_without_live_findings_there_is_no_lookout(node: Any, tmp_path: Path) -> None:
    run = begin(dir=tmp_path, sidecar=True, live_findings=False)
    run.log({"loss": math.nan})
    node.eventually(node.is_up)
    run.finish(quiet=True)
    node.sidecar().terminate()
    node.eventually(lambda: not node.sidecars())
    read = torchtrack.Api(tmp_path).run(run.uid)
    assert (read.events("finding"), [one.rule for one in read.findings()]) == ([], ["non_finite"])


def test_a_rule_that_never_returns_does_not_keep_the_lookout_alive(tmp_path: Path) -> None:
    program = """
import sys, time
from pathlib import Path
from torchtrack.lookout.__main__ import Lookouts
from torchtrack.stability import Monitor
def hang(*_):
    print("hangs", flush=True)
    while True:
        time.sleep(0.01)
Monitor.__init__ = hang
Lookouts(Path(sys.argv[1]), 0, last_s=1).run()
"""
    (tmp_path / UID).mkdir()
    process = subprocess.Popen(
        [sys.executable, "-c", program, str(tmp_path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert process.stdin is not None
    assert process.stdout is not None
    with process:
        process.stdin.write(json.dumps({"stream": "ab" * 8, "uid": UID, "rank": 0}).encode() + b"\n")
        process.stdin.flush()
        assert process.stdout.readline() == b"hangs\n"
        process.stdin.close()
        assert process.wait(timeout=60) == -signal.SIGALRM
