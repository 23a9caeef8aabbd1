"""`torchtrack forward`: runs that have ended, to other trackers."""

from __future__ import annotations

from pathlib import Path

import click

from torchtrack.cli import common


@click.command()
@click.argument("runs", nargs=-1, required=True, metavar="RUN...")
@click.option(
    "--to", "specs", multiple=True, required=True, metavar="SINK", help="tensorboard, wandb, mlflow, m:Class."
)
@common.folder_option
def forward(runs: tuple[str, ...], specs: tuple[str, ...], folder: Path | None) -> None:
    """Forward RUNs to other trackers, as `sinks=` does while a run goes on: numbers, and histograms with their counts.

    Behind = may stand where: --to tensorboard=logs, --to wandb=offline, --to mlflow=http://localhost:5000. What a
    sink has already is not sent again.
    """
    from torchtrack import guard
    from torchtrack.settings import check
    from torchtrack.sinks import Forwarder

    failed = False
    with common.friendly():
        place = (folder or common.default_folder()).absolute()
        api = common.open_source(place)
        for name in runs:
            run = common.open_run(api, name)
            for spec in check("sinks", list(specs), "--to"):
                forwarder = Forwarder(place, run.uid, spec)
                wrong = guard.outcome(forwarder.finish)
                how = f"{type(wrong).__name__}: {wrong}" if isinstance(wrong, Exception) else "done"
                failed |= isinstance(wrong, Exception)
                click.echo(f"{run.name} to {spec}: {common.plural(forwarder.steps, 'step')}, {how}")
    if failed:
        raise SystemExit(1)
