"""`torchtrack ls`: the runs of a folder, newest first."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from torchtrack.cli import common

if TYPE_CHECKING:
    from collections.abc import Sequence

    from rich.table import Table

    from torchtrack.api import Run


@click.command()
@click.argument("folder", required=False, type=click.Path(path_type=Path), metavar="[DIR]")
@click.option("--project", help="Only runs of this project.")
@click.option("--json", "as_json", is_flag=True, help="One JSON array instead of a table.")
def ls(folder: Path | None, project: str | None, as_json: bool) -> None:
    """List the runs of DIR, newest first."""
    with common.friendly():
        api = common.open_source(folder)
        runs = api.runs(project)
        if as_json:
            click.echo(json.dumps([common.jsonable(describe(run)) for run in runs], indent=2))
            return
        console = common.console()
        if runs:
            console.print(_table(runs, console.width))
        else:
            where = f" of project {project!r}" if project else ""
            click.echo(f"no runs{where} in {folder or common.default_folder()}")
        for path, reason in api.unread.items():
            click.echo(f"not read: {path}: {reason} (torchtrack fsck says more)", err=True)


def describe(run: Run) -> dict[str, Any]:
    """What is said of a run in a list."""
    return {
        "name": run.name,
        "id": run.id,
        "uid": run.uid,
        "project": run.project,
        "state": run.state,
        "tags": run.tags,
        "ranks": run.world_size,
        "attempts": len(run.attempts),
        "last_step": run.last_step,
        "summary": run.summary,
        "created": run.created,
        "duration_s": run.duration,
        "dropped_rows": run.dropped,
    }


def main_metrics(summary: dict[str, Any]) -> list[str]:
    """The user's metrics, those with a loss in their name first."""
    from torchtrack.api.streams import OWN_PREFIXES

    names = [
        name for name, value in summary.items() if isinstance(value, (int, float)) and not name.startswith(OWN_PREFIXES)
    ]
    return sorted(names, key=lambda name: ("loss" not in name.lower(), "/" in name, name))


def _table(runs: Sequence[Run], width: int) -> Table:
    from rich.table import Table
    from rich.text import Text

    wide = width >= 120
    table = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False, header_style="dim", expand=False)
    table.add_column("run", overflow="ellipsis", no_wrap=True, max_width=26)
    table.add_column("state", no_wrap=True)
    table.add_column("uid", style="dim", no_wrap=True)
    for name, shown in (("project", True), ("ranks", True), ("att", wide), ("steps", True)):
        if shown:
            table.add_column(
                name, justify="left" if name == "project" else "right", no_wrap=True, overflow="ellipsis", max_width=16
            )
    table.add_column("metrics", no_wrap=True, overflow="ellipsis", ratio=1)
    table.add_column("started", justify="right", style="dim", no_wrap=True)
    if wide:
        table.add_column("took", justify="right", style="dim", no_wrap=True)
    for run in runs:
        sign, colour = common.STATES[run.state]
        steps = "" if run.last_step is None else f"{run.last_step + 1:,}"
        row = [Text(run.name, "bold"), Text(f"{sign} {run.state}", colour), Text(run.uid[:8]), Text(run.project)]
        row += [Text(str(run.world_size)), *([Text(str(len(run.attempts)))] if wide else []), Text(steps)]
        row += [_metrics(run, 3 if wide else 1), Text(common.age(run.created))]
        table.add_row(*row, *([Text(common.span(run.duration))] if wide else []))
    return table


def _metrics(run: Run, most: int) -> Any:
    from rich.text import Text

    summary, text = run.summary, Text()
    for name in main_metrics(summary)[:most]:
        text.append("  " if text else "").append(name, "dim").append(f" {common.short(summary[name])}")
    return text
