"""Who is told what alert rules fire on: what is refused comes later, what was told comes once, no address is shown."""

from __future__ import annotations

import os
import signal
import threading
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa

from tests.api.journals import UID, RankJournal
from tests.hook import Hook
from tests.runs import until
from tests.server.running import Running
from torchtrack import alerts, wire
from torchtrack.server import firings
from torchtrack.server.app import Config
from torchtrack.server.budget import Limits
from torchtrack.server.catalog import Catalog
from torchtrack.server.delivery import Delivery
from torchtrack.server.firings import Firing
from torchtrack.server.rules import Rule

pytestmark = pytest.mark.filterwarnings("ignore:'imghdr' is deprecated:DeprecationWarning")  # apprise imports it
SECRET = "very-secret-word"  # noqa: S105


@pytest.fixture(scope="module", autouse=True)
def threads_of_apprise() -> None:
    """It has some for as long as the process lives; they are all there before a test."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from apprise.apprise import get_shared_executor
    executor = get_shared_executor()
    together = threading.Barrier(executor._max_workers)
    list(executor.map(lambda _: together.wait(), range(executor._max_workers)))


@pytest.fixture
def hook() -> Iterator[Hook]:
    made = Hook()
    yield made
    made.close()


@pytest.fixture
def catalog(tmp_path: Path) -> Iterator[Catalog]:
    made = Catalog.in_folder(tmp_path)
    yield made
    made.close()


def fire(catalog: Catalog, run: str, targets: int = 1) -> None:
    if not catalog.alert_rules("llm"):
        catalog.save_alert_rule("llm", "high", "", "critical", "ann", {"kind": "ended"})
    rule = Rule.of(catalog.alert_rules("llm")[0])
    firing = Firing(run, f"run-{run}", "", "it ended as failed", 0, 7, 1)
    assert catalog.firings.add(rule, firing, ["JSON"] * targets) is not None


def told(catalog: Catalog) -> list[list[tuple[str, int]]]:
    """By firing, the oldest first: what became of the message to each target, and after how many tries."""
    rows = reversed(catalog.firings.of("llm", 100))
    return [[(each["state"], each["tries"]) for each in row["told"]] for row in rows]


@contextmanager
def delivering(catalog: Catalog, *hooks: Hook, page: str = "") -> Iterator[Delivery]:
    notifiers = [each for _, each in alerts.notifiers([hook.url for hook in hooks], pytest.fail)]
    made = Delivery(catalog.firings, notifiers, page=page, apart_s=0.01)
    made.start()
    try:
        yield made
    finally:
        for hook in hooks:
            hook.gate.set()
        made.stop()


def test_a_message_says_which_run_what_and_where(catalog: Catalog, hook: Hook) -> None:
    fire(catalog, "a1")
    with delivering(catalog, hook, page="https://tracker.example/"):
        until(lambda: told(catalog) == [[("sent", 1)]])
    (message,) = hook.got

    assert message["title"] == "[run-a1] high"
    assert message["message"].splitlines() == [
        "it ended as failed",
        "project llm, run a1, step 7",
        "https://tracker.example/#/p/llm/r/a1/stability",
    ]
    assert message["type"] == "failure"


def test_what_a_target_refuses_is_tried_until_it_takes_it(catalog: Catalog, hook: Hook) -> None:
    hook.status = 500
    fire(catalog, "a1")
    with delivering(catalog, hook) as delivery:
        until(lambda: hook.asks >= 3)
        ((state, tries),) = told(catalog)[0]
        assert (state, tries >= 1) == ("waiting", True)
        hook.status = 200
        until(lambda: told(catalog)[0][0][0] == "sent")
        fire(catalog, "a2")
        delivery.wake()
        until(lambda: len(hook.got) == 2)


def test_what_fires_together_is_one_message(catalog: Catalog, hook: Hook) -> None:
    for number in range(30):
        fire(catalog, f"a{number}")
    with delivering(catalog, hook):
        until(lambda: told(catalog) == [[("sent", 1)]] * 30)

    assert [message["title"] for message in hook.got] == ["30 alerts"]


def test_a_target_that_hangs_holds_up_no_other_and_not_the_end(
    catalog: Catalog, hook: Hook, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("torchtrack.server.delivery.PATIENCE_S", 0.1)
    hanging = Hook()
    hanging.gate.clear()
    try:
        fire(catalog, "a1", targets=2)
        with delivering(catalog, hanging, hook) as delivery:
            until(lambda: told(catalog) == [[("waiting", 0), ("sent", 1)]])
            began = threading.active_count()
            delivery.stop()
            assert threading.active_count() < began
    finally:
        hanging.close()
    until(lambda: not [thread for thread in threading.enumerate() if "target" in thread.name])


def test_what_nobody_could_be_told_of_for_a_day_is_given_up(
    catalog: Catalog, hook: Hook, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(firings, "KEPT_UP", timedelta(0))
    hook.status = 500
    fire(catalog, "a1")
    with delivering(catalog, hook):
        until(lambda: told(catalog) == [[("given up", 1)]])


def test_a_catalog_that_fails_stops_no_delivery(
    catalog: Catalog, hook: Hook, monkeypatch: pytest.MonkeyPatch, expect_internal_failures: Any
) -> None:
    waiting, calls = catalog.firings.waiting, []

    def failing(target: int) -> list[dict[str, Any]]:
        calls.append(target)
        if len(calls) == 1:
            raise sa.exc.OperationalError("SELECT", {}, OSError("gone"))
        return waiting(target)

    monkeypatch.setattr(catalog.firings, "waiting", failing)
    fire(catalog, "a1")
    with delivering(catalog, hook):
        until(lambda: told(catalog) == [[("sent", 1)]])


@pytest.fixture
def server(tmp_path: Path, hook: Hook, capfd: pytest.CaptureFixture[str]) -> Iterator[Running]:
    """A server that tells two targets, of which one is not there; what its processes print is captured."""
    del capfd
    gone = Hook()
    gone.close()
    limits = Limits(job_requests_per_s=1000, interval_s=0.01, key_requests_per_s=2000)
    made = Running(Config(data=tmp_path / "data", limits=limits, alert_urls=[hook.url, gone.url]))
    yield made
    made.stop()


def send(server: Running, folder: Path, uid: str, loss: float) -> None:
    with RankJournal(folder, uid, project="llm", start_us=time.time_ns() // 1000) as rank:
        rank.about(name=f"run-{uid[:2]}", project="llm")
        rank.log(3, {"loss": loss})
    path = next((folder / uid).glob("*/*.ttj"))
    body, _ = wire.pack([wire.Section(int(path.stem[-16:], 16), 0, path.read_bytes())], zstd=False)
    assert server.client().ask("POST", "/api/v1/frames", body, {"Content-Type": wire.FRAMES_TYPE}).status == 200


def test_a_rule_tells_once_of_a_run_whoever_is_killed(
    server: Running, hook: Hook, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    rule = b'{"project": "llm", "name": "high", "when": {"kind": "above", "metric": "loss", "value": 10}}'
    client = server.client()
    assert client.ask("POST", "/api/v1/alert-rules", rule, {"Content-Type": "application/json"}).status == 201
    send(server, tmp_path / "local", UID, 11.0)
    until(lambda: client.ask("GET", "/api/v1/projects/llm/alarms").body.count(b'"sent"') == 1, 60)
    engine = server.app.state.worker.engine
    os.kill(engine.process.pid, signal.SIGKILL)
    until(lambda: engine.starts == 2, 60)
    send(server, tmp_path / "local", "b1b2b3b4b5b6b7b8", 12.0)
    until(lambda: len(hook.got) == 2, 60)
    until(lambda: client.ask("GET", "/api/v1/projects/llm/alarms").body.count(b'"sent"') == 2, 60)
    answer = client.ask("GET", "/api/v1/projects/llm/alarms")

    assert [message["title"] for message in hook.got] == ["[run-a1] high", "[run-b1] high"]
    lines = answer.json()["lines"]
    assert [(line["run"], line["text"], line["step"]) for line in lines] == [
        ("run-b1", "loss is above 10: 12", 3),
        ("run-a1", "loss is above 10: 11", 3),
    ]
    assert answer.json()["targets"] == ["JSON", "JSON"]
    assert {each["state"] for each in lines[1]["told"]} == {"sent", "waiting"}
    everywhere = [answer.body, *(path.read_bytes() for path in server.config.data.rglob("*") if path.is_file())]
    assert not any(SECRET.encode() in each for each in everywhere)
    printed = "".join(capfd.readouterr())
    assert SECRET not in printed
    assert "notification" not in printed  # apprise's own words hold addresses
    assert SECRET not in repr(server.config)
