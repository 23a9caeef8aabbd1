"""What an alert is, how often people are told, and who tells them: apprise, which knows Slack, Discord, mail, webhooks.

Recording an alert and delivering it are two things. `Run.alert` and the stability rules record events; the sidecar's
courier reads them back from the journals and delivers. The addresses are secrets: nothing here prints or keeps one.
"""

from __future__ import annotations

import importlib.util
import logging
import math
import queue
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from torchtrack import guard
from torchtrack.errors import MissingDependencyError

if TYPE_CHECKING:
    import apprise

LEVELS: Final = ("info", "warning", "error")
SEVERITIES: Final = ("info", "warning", "critical")
"""Of findings, the least first."""
DEFAULT_WAIT_S: Final = 60.0
PER_MINUTE: Final = 6
"""Messages of a run and node; what comes faster is put together in one."""
_MAX_WAITING: Final = 100
_MAX_LISTED: Final = 20
_MAX_TEXT: Final = 3000
_MAX_MESSAGES: Final = 32
_RETRIES_S: Final = (0.0, 1.0, 5.0, 25.0)
_WINDOW_S: Final = 60.0
_MISSING: Final = (
    "alerts are recorded but not delivered, since apprise is not installed: pip install 'torchtrack[alerts]'"
)


def level_of(value: Any) -> str:
    """A level as it is recorded; wandb's names and `AlertLevel` are taken too.

    Raises:
        ValueError: it is none.
    """
    name = str(getattr(value, "value", value)).lower()
    name = "warning" if name == "warn" else name
    if name not in LEVELS:
        raise ValueError(f"alert(level=) takes one of {', '.join(map(repr, LEVELS))}; got {value!r}; took 'info'")
    return name


def seconds_of(value: Any) -> float:
    """A `wait_duration` in seconds; None is a minute.

    Raises:
        TypeError: it is no time.
        ValueError: it is negative or not finite.
    """
    if value is None:
        return DEFAULT_WAIT_S
    seconds = value.total_seconds() if isinstance(value, timedelta) else value
    took = f"took {DEFAULT_WAIT_S:.0f} s"
    if isinstance(seconds, bool) or not isinstance(seconds, (int, float)):
        raise TypeError(f"alert(wait_duration=) takes seconds or a timedelta, got {type(value).__name__}; {took}")
    if not 0 <= seconds < math.inf:
        raise ValueError(f"alert(wait_duration=) takes zero seconds or more, got {value!r}; {took}")
    return float(seconds)


def missing() -> str | None:
    """Why nothing can be delivered, with the command that helps; None if it can. Imports nothing."""
    return None if importlib.util.find_spec("apprise") is not None else _MISSING


@dataclass(frozen=True)
class Alert:
    """Something that people should be told."""

    title: str
    text: str = ""
    level: str = "info"
    wait_s: float = DEFAULT_WAIT_S
    """How long another alert with the same key is kept back."""
    time_s: float = 0.0
    """When it was recorded."""
    key: str = ""
    """What `wait_s` goes by; the title if empty."""

    @classmethod
    def of_event(cls, kind: str, data: Mapping[str, Any], time_s: float, least: str) -> Alert | None:
        """The alert that an event of a journal stands for, if any.

        Args:
            kind: the event's type.
            data: what it says.
            time_s: when it was recorded.
            least: the severity from which on a finding is an alert; "none" for never.
        """
        if kind == "alert":
            level = guard.outcome(level_of, data.get("level"))
            wait_s = guard.outcome(seconds_of, data.get("wait_s"))
            return cls(
                str(data.get("title")),
                str(data.get("text") or ""),
                level if isinstance(level, str) else "info",
                wait_s if isinstance(wait_s, float) else DEFAULT_WAIT_S,
                time_s,
            )
        severity = data.get("severity")
        if kind != "finding" or severity not in SEVERITIES or least not in SEVERITIES:
            return None
        if data.get("cause") or data.get("again") or data.get("withdrawn"):
            return None  # told with the finding it follows from, or before
        if SEVERITIES.index(severity) < SEVERITIES.index(least):
            return None
        rule, first = str(data.get("rule") or "finding"), data.get("first_step")
        title = f"{severity}: {rule}" + ("" if first is None else f" since step {first}")
        text = "\n".join(filter(None, (data.get("why"), *followed(data, severity), data.get("look_at"))))
        level = {"critical": "error"}.get(severity, severity)
        return cls(title, text, level, math.inf, time_s)  # a finding is recorded again while it grows; told once


def followed(finding: Mapping[str, Any], severity: str) -> list[str]:
    """A line for each thing that followed from a finding and is as grave: it may be why this is told now."""
    listed = finding.get("consequences")
    parts = [part for part in listed if isinstance(part, dict)] if isinstance(listed, (list, tuple)) else []
    grave = [part for part in parts if part.get("severity") == severity]
    return [f"then {part.get('rule')} at step {part.get('first_step')}: {part.get('why')}" for part in grave]


@dataclass(frozen=True)
class Message:
    """What a target gets."""

    title: str
    body: str
    level: str


class Limiter:
    """Decides when what is told: each title once in its `wait_s`, all together `PER_MINUTE` messages.

    What comes faster waits and goes out as one message, so that nothing which passed its own title's limit is lost
    without being counted. Not thread-safe.
    """

    def __init__(self) -> None:
        self._last: dict[str, float] = {}
        self._waiting: list[Alert] = []
        self._more = 0
        self._sent: deque[float] = deque()

    def take(self, alert: Alert) -> bool:
        """Queue an alert. False if one with its title came less than `wait_s` before it."""
        key = alert.key or alert.title
        if alert.time_s - self._last.get(key, -math.inf) < alert.wait_s:
            return False
        self._last[key] = alert.time_s
        if len(self._waiting) < _MAX_WAITING:
            self._waiting.append(alert)
        else:
            self._more += 1
        return True

    def due(self, now_s: float, *, last: bool = False) -> list[Message]:
        """What may be told now; `last`: everything that waits, since nobody will ask again."""
        while self._sent and self._sent[0] <= now_s - _WINDOW_S:
            self._sent.popleft()
        free = max(PER_MINUTE - len(self._sent), int(last))
        if not self._waiting or not free:
            return []
        alone = len(self._waiting) + self._more <= free
        messages = list(map(_message, self._waiting)) if alone else [together(self._waiting, self._more)]
        self._waiting, self._more = [], 0
        self._sent.extend([now_s] * len(messages))
        return messages


def _message(alert: Alert) -> Message:
    return Message(alert.title, alert.text[:_MAX_TEXT], alert.level)


def together(alerts: Sequence[Alert], more: int = 0) -> Message:
    """Alerts in one message, with so many that are only counted; the worst decides its level."""
    if len(alerts) == 1 and not more:
        return _message(alerts[0])
    lines = [f"{alert.level}: {alert.title}" for alert in alerts[:_MAX_LISTED]]
    rest = len(alerts) - len(lines) + more
    lines += [f"and {rest} more"] if rest else []
    worst = max((alert.level for alert in alerts), key=LEVELS.index)
    return Message(f"{len(alerts) + more} alerts", "\n".join(lines)[:_MAX_TEXT], worst)


class Target:
    """One address, served by a thread of its own, so that one that hangs delays no other.

    Args:
        number: which it is in the list that the user gave, from 1: addresses are never written.
        notifier: apprise, with this address alone.
        failed: called on the thread with what went wrong, in words without the address.
    """

    def __init__(self, number: int, notifier: apprise.Apprise, failed: Callable[[str], None]) -> None:
        self._name = f"target {number}"
        self._notifier = notifier
        self._failed = failed
        self._messages: queue.Queue[Message] = queue.Queue(_MAX_MESSAGES)
        threading.Thread(target=self._main, name=f"torchtrack-{self._name}", daemon=True).start()

    def put(self, message: Message) -> None:
        """Queue a message. Never waits: where too many wait already, this one is given up."""
        try:
            self._messages.put_nowait(message)
        except queue.Full:
            self._failed(f"{self._name}: {_MAX_MESSAGES} messages wait already; {message.title!r} was given up")

    @property
    def idle(self) -> bool:
        """Whether all is delivered or given up."""
        return not self._messages.unfinished_tasks

    def _main(self) -> None:
        while True:
            message = self._messages.get()
            if not any(self._deliver(message, pause_s) for pause_s in _RETRIES_S):
                self._failed(f"{self._name}: {message.title!r} was given up after {len(_RETRIES_S)} tries")
            self._messages.task_done()

    def _deliver(self, message: Message, pause_s: float) -> bool:
        time.sleep(pause_s)
        return send(self._notifier, message)


def send(notifier: apprise.Apprise, message: Message) -> bool:
    """Give a message to a target, and wait for it. Whether it was taken; why not, apprise does not say."""
    kind = {"info": "info", "warning": "warning", "error": "failure"}[message.level]
    sent = guard.outcome(lambda: notifier.notify(message.body or message.title, message.title, kind))
    return not isinstance(sent, Exception) and bool(sent)  # None or False, or an object that is false, is a failure


def service_of(notifier: apprise.Apprise) -> str:
    """What serves a target, such as Slack: all of its address that may be told."""
    return str(getattr(next(iter(notifier)), "service_name", "?"))


def targets(addresses: Sequence[str], failed: Callable[[str], None]) -> list[Target]:
    """A target for each address that apprise understands, and for each in the configuration files among them.

    Args:
        addresses: URLs as apprise takes them, or paths of its configuration files.
        failed: told of each that is not understood, by its number, and of what a target gives up.

    Raises:
        MissingDependencyError: apprise is not installed.
    """
    return [Target(number, notifier, failed) for number, notifier in notifiers(addresses, failed)]


def notifiers(addresses: Sequence[str], failed: Callable[[str], None]) -> list[tuple[int, apprise.Apprise]]:
    """Apprise with one service each, for all that are named, with the number of its address from 1.

    Args:
        addresses: URLs as apprise takes them, or paths of its configuration files.
        failed: told of each that is not understood, by its number.

    Raises:
        MissingDependencyError: apprise is not installed.
    """
    if missing() is not None:
        raise MissingDependencyError(_MISSING)
    import apprise

    logging.getLogger("apprise").setLevel(logging.CRITICAL + 1)  # it would print addresses; uvicorn undoes `disabled`
    made: list[tuple[int, apprise.Apprise]] = []
    for number, address in enumerate(addresses, 1):
        known = apprise.Apprise()
        if "://" in address:
            known.add(address)
        elif Path(address).is_file():
            known.add(apprise.AppriseConfig(address))
        services = list(known)  # a configuration file holds several
        if not services:
            failed(f"target {number}: neither a URL that apprise knows nor a configuration file of it")
        made += [(number, apprise.Apprise(service)) for service in services]
    return made
