"""`torchtrack launch`: record a training command that knows nothing of torchtrack."""

from __future__ import annotations

from typing import Any

import click

from torchtrack.launch.command import CONTEXT, become, options
from torchtrack.launch.options import Options


@click.command(context_settings=CONTEXT)
@options
@click.argument("command", nargs=-1, type=click.UNPROCESSED, required=True)
def launch(command: tuple[str, ...], project: str | None, name: str | None, **watching: Any) -> None:
    """Run COMMAND and record what every Python process below it trains: torchtrack launch -- torchrun train.py."""
    become(command[0], command, Options(**watching), project, name)
