"""`torchtrack show`: a run on one page of a terminal."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

import click

from torchtrack.cli import common

if TYPE_CHECKING:
    from torchtrack.api import Run


@click.command()
@click.argument("run", default="last")
@click.option("--params", default=12, show_default=True, type=click.IntRange(0), help="How many tensors to show.")
@click.option(
    "--kind",
    default="gradient",
    show_default=True,
    help="gradient, parameter, update, activation, optimizer or logged.",
)
@click.option("--name", "pattern", metavar="GLOB", help="Only tensors that match, such as 'layers.3.*'.")
@click.option("--json", "as_json", is_flag=True, help="JSON instead of a page.")
@common.folder_option
def show(run: str, params: int, kind: str, pattern: str | None, as_json: bool, folder: Path | None) -> None:
    """Show RUN: state, config, curves, gradients, findings. Without RUN the newest."""
    from torchtrack.cli import page, tensor_page

    with common.friendly():
        found = common.find_run(folder, run)
        view = tensor_page.view(found, kind, pattern)
        if pattern and view is None:
            raise ValueError(
                f"run {found.name} has no {kind} tensors that match {pattern!r}; leave out --name to see all"
            )
        if as_json:
            click.echo(json.dumps(common.jsonable(_describe(found, view)), indent=2))
            return
        console = common.console()
        for part in (
            *page.parts(found, console.width),
            *tensor_page.parts(view, params, console.width),
            *page.ending(found),
        ):
            console.print(part)
        link = run if "://" in run else _page(folder or common.default_folder(), found)
        if link:
            console.print(f"\npage: {link}", style="dim", soft_wrap=True, markup=False)


def _page(folder: Path, run: Run) -> str | None:
    """Where a running `torchtrack ui` shows the run."""
    from torchtrack.server.shown import page_of

    page = page_of(folder)
    return page and f"{page}#/p/{quote(run.project, safe='')}/r/{run.uid}"


def _describe(run: Run, view: Any) -> dict[str, Any]:
    from torchtrack.cli.list import describe

    return {
        **describe(run),
        "group": run.group,
        "job_type": run.job_type,
        "notes": run.notes,
        "attempts": [
            {
                key: getattr(attempt, key)
                for key in ("number", "world_size", "start", "end", "ranks", "hosts", "state", "why")
            }
            for attempt in run.attempts
        ],
        "config": run.config,
        "environment": run.environment,
        "findings": [finding.as_dict() for finding in run.findings()],
        "blackbox": [str(file.path) for file in run.blackbox_files()],
        "damages": [damage._asdict() | {"path": str(damage.path)} for damage in run.damages],
        "tensors": [] if view is None else [row.describe() for row in view.rows],
    }
