"""`torchtrack sweep` and `torchtrack agent`: many runs of one program, each with parameters that a method draws."""

from __future__ import annotations

import importlib
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from torchtrack.cli import common

if TYPE_CHECKING:
    from torchtrack.sweeps import Sweep


@click.command()
@click.argument("what", metavar="FILE | SWEEP")
@click.option("--project", help="The project of its runs, instead of the one in FILE.")
@common.folder_option
def sweep(what: str, project: str | None, folder: Path | None) -> None:
    """Make a sweep of the configuration in FILE (YAML or JSON) and say how to start agents, or show SWEEP by its id.

    The sweep lies in the folder of runs; whoever shares the folder can take part in it.
    """
    from torchtrack.sweeps import Sweep

    with common.friendly():
        if not Path(what).is_file():
            if Path(what).suffix:
                raise click.ClickException(f"{what}: no such file")
            _show(Sweep(what, folder))
            return
        made = Sweep.make(_read(Path(what)), project=project, directory=folder)
        end = "" if made.size is None else f", {common.plural(made.size, 'trial')}"
        where = f" --dir {made.directory}" if folder else ""
        click.echo(f"sweep {made.id} in {made.directory} ({made.plan.method}{end}); start agents, as many as you like:")
        click.echo(f"  torchtrack agent {made.id}{where}")


@click.command()
@click.argument("sweep", metavar="SWEEP")
@click.option("--count", type=click.IntRange(1), metavar="N", help="Trials at most.")
@common.folder_option
def agent(sweep: str, count: int | None, folder: Path | None) -> None:
    """Run trials of SWEEP, one after the other, until it is over.

    Each is the program that the sweep's configuration names, with the parameters as arguments, and in the config of its
    run whatever it does with the arguments.
    """
    from torchtrack.sweeps import Sweep, work

    with common.friendly():
        work(Sweep(sweep, folder), count=count)


def _show(sweep: Sweep) -> None:
    """The trials, the best first; those without a result last."""
    from rich.table import Table
    from rich.text import Text

    outcomes, best, plan = sweep.outcomes(), sweep.best(), sweep.plan
    end = "" if sweep.size is None else f" of {sweep.size:,}"
    goal = f", to {plan.goal} {plan.metric}" if plan.metric else ""
    click.echo(f"sweep {sweep.id} in project {sweep.project}: {plan.method}{goal}; {len(outcomes):,}{end} drawn")
    sign = 1.0 if plan.goal == "minimize" else -1.0
    outcomes.sort(key=lambda each: (each.value is None, sign * (each.value or 0.0), each.trial.number))
    table = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False, header_style="dim")
    for name in ("trial", "state", *([plan.metric] if plan.metric else []), *map(".".join, plan.parameters)):
        table.add_column(name, no_wrap=True, overflow="ellipsis", justify="left" if name == "state" else "right")
    for each in outcomes:
        mark, colour = common.STATES[each.state] if each.state else ("·", "dim")
        value = [] if plan.metric is None else ["" if each.value is None else common.short(each.value)]
        cells = [*value, *(common.short(each.trial.values.get(place)) for place in plan.parameters)]
        style = "bold" if best is not None and each.trial.number == best.trial.number else ""
        row = [Text(str(each.trial.number), style), Text(f"{mark} {each.state or 'not begun'}", colour)]
        table.add_row(*row, *(Text(cell, style) for cell in cells))
    common.console().print(table)


def _read(path: Path) -> Any:
    text = path.read_text()
    try:
        return json.loads(text)
    except ValueError:
        pass
    try:
        yaml = importlib.import_module("yaml")
    except ImportError:
        raise ValueError(f"{path} is no JSON, and YAML needs pip install pyyaml") from None
    try:
        return yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ValueError(f"{path} is neither JSON nor YAML: {error}") from None
