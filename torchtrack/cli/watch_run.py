"""`torchtrack watch-run`: a run while it goes on, until it ends."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import click

from torchtrack import alerts
from torchtrack.cli import common
from torchtrack.cli.list import main_metrics

if TYPE_CHECKING:
    from rich.console import Console
    from rich.text import Text

    from torchtrack.api import Run
    from torchtrack.api.facts import Event

_LOOK_S: Final = 1.0
_METRICS: Final = 8


@click.command("watch-run")
@click.argument("run", default="last")
@click.option("--once", is_flag=True, help="Print how it stands and exit.")
@common.folder_option
def watch_run(run: str, once: bool, folder: Path | None) -> None:
    """Follow RUN until it ends: state, step, newest metrics, findings and alerts. Without RUN the newest."""
    with common.friendly():
        found = common.find_run(folder, run)
        console = common.console()
        try:
            _follow(found, console, once=once)
        except KeyboardInterrupt:
            raise SystemExit(130) from None


def _follow(run: Run, console: Console, *, once: bool) -> None:
    from rich.live import Live

    told, before = 0, ""
    with Live(console=console, auto_refresh=False, transient=True) as live:
        while True:
            running = run.state == "running"  # before the rest: what was written until then is shown
            events = _events(run)
            for event in events[told:]:
                live.console.print(_event(event))
            told = len(events)
            status = _status(run)
            over = once or not running
            if over or not console.is_terminal:
                if status.plain != before:
                    live.console.print(status)
            else:
                live.update(status, refresh=True)
            before = status.plain
            if over:
                return
            time.sleep(_LOOK_S)


def _events(run: Run) -> list[Event]:
    """Findings and alerts in the order in which they were found here.

    A finding that grows is told once, and once more when it has become graver; what follows from it is told with it.
    """
    chosen: dict[Any, Event] = {}
    for number, event in enumerate([*run.events("finding"), *run.events("alert")]):
        data = event.data
        is_finding = event.type == "finding"
        if is_finding and (data.get("cause") or data.get("withdrawn")):
            continue
        key = (data.get("rule"), data.get("first_step", event.step), data.get("severity")) if is_finding else number
        chosen.setdefault(key, event)
    return sorted(chosen.values(), key=lambda event: (event.time, event.rank))


def _event(event: Event) -> Text:
    from rich.text import Text

    data = event.data
    level = str(data.get("severity") or data.get("level") or "info").lower()
    colour = {"critical": common.CRITICAL, "error": common.CRITICAL, "warning": common.WARN}.get(level, common.ACCENT)
    step = data.get("first_step", event.step)
    text = Text.assemble((f"{level}: {data.get('rule') or data.get('title')}", colour))
    ranks = [event.rank] if event.rank >= 0 else data.get("ranks") or ()  # a node's process speaks of ranks
    by = f"  rank{'s' * (len(ranks) > 1)} {', '.join(map(str, ranks))}" if ranks else ""
    text.append("" if step is None else f"  step {step:,}", "dim").append(by, "dim")
    whys = [str(data.get("why") or data.get("text") or ""), *alerts.followed(data, level)]
    return text.append("".join(f"  {why}" for why in whys if why))


def _status(run: Run) -> Text:
    """State, step and the newest metrics in one line."""
    from rich.text import Text

    state, summary, step = run.state, run.summary, run.last_step
    sign, colour = common.STATES[state]
    text = Text.assemble((run.name, "bold"), "  ", (f"{sign} {state}", colour))
    attempts = run.attempts
    if attempts and state not in ("running", "finished") and attempts[-1].why:
        text.append(f"  {attempts[-1].why}", "dim")
    text.append("" if step is None else f"  step {step:,}")
    for name in main_metrics(summary)[:_METRICS]:
        text.append(f"  {name} ", "dim").append(common.short(summary[name]))
    return text
