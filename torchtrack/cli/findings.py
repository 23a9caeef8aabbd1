"""`torchtrack findings`: what the stability rules say of a run."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import click

from torchtrack.cli import common

if TYPE_CHECKING:
    from torchtrack.api import Finding

_SIGNS: Final = {"critical": ("▲", common.CRITICAL), "warning": ("◆", common.WARN), "info": ("○", "dim")}
_NAMES: Final = 4


@click.command()
@click.argument("run", default="last")
@click.option(
    "--severity",
    type=click.Choice(["info", "warning", "critical"]),
    default="info",
    show_default=True,
    help="The least severity to show.",
)
@click.option("--json", "as_json", is_flag=True, help="One JSON array instead of a table.")
@common.folder_option
def findings(run: str, severity: str, as_json: bool, folder: Path | None) -> None:
    """Say what went wrong in RUN: since when, in which tensor, on which rank, why, and what to look at.

    The rules are replayed over the rows. The exit code is 1 if a finding is critical.
    """
    with common.friendly():
        found = common.find_run(folder, run)
        every = found.findings()
        shown = [finding for finding in every if _rank(finding.severity) >= _rank(severity)]
        if as_json:
            click.echo(json.dumps(common.jsonable([finding.as_dict() for finding in shown]), indent=2))
        elif shown:
            console = common.console()
            for part in _parts(shown):
                console.print(part, soft_wrap=False)
        else:
            least = "" if severity == "info" else f" of severity {severity} or more"
            click.echo(f"no findings{least} in run {found.name}")
    if any(finding.severity == "critical" for finding in shown):
        raise SystemExit(1)


def _rank(severity: str) -> int:
    return list(_SIGNS)[::-1].index(severity)


def _parts(shown: Sequence[Finding]) -> Iterator[Any]:
    from rich.padding import Padding
    from rich.text import Text

    for finding in shown:
        sign, colour = _SIGNS[finding.severity]
        title = Text.assemble((f"{sign} {finding.severity} {finding.rule}", colour), ("  " + _where(finding), "bold"))
        yield title
        yield Padding(Text(finding.why), (0, 0, 0, 2))
        if finding.look_at:
            yield Padding(Text(f"Look at: {finding.look_at}", "dim"), (0, 0, 0, 2))
        for follower in finding.consequences:
            line = f"then {follower.get('rule')} at step {follower.get('first_step'):,}: {follower.get('why')}"
            yield Padding(Text(line, "dim", overflow="ellipsis", no_wrap=True), (0, 0, 0, 4))


def _where(finding: Finding) -> str:
    """Steps, ranks and tensors in one line."""
    steps = f"step {finding.first_step:,}"
    if finding.is_open:
        steps += " on"
    elif finding.last_step != finding.first_step:
        steps += f" to {finding.last_step:,}"
    ranks = f"rank{'s' if len(finding.ranks) > 1 else ''} {', '.join(map(str, finding.ranks))}" if finding.ranks else ""
    names = ", ".join(finding.names[:_NAMES]) + (f" and {n} more" if (n := len(finding.names) - _NAMES) > 0 else "")
    return " · ".join(part for part in (steps, ranks, names) if part)
