"""`torchtrack launch -- CMD` and `python -m torchtrack.launch script.py`: this process becomes the program.

Nothing of ours stays between: exit code, signals, streams and terminal are the program's own.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Sequence
from typing import Any, NoReturn, TypeVar

import click

from torchtrack.launch.options import Options, parse_log

_F = TypeVar("_F", bound=Callable[..., Any])
CONTEXT = {"help_option_names": ["-h", "--help"], "allow_interspersed_args": False}


def _parsed_log(context: click.Context, parameter: click.Parameter, value: str) -> Any:
    del context
    try:
        return parse_log(value)
    except ValueError as error:
        raise click.BadParameter(str(error), param=parameter) from None


def options(function: _F) -> _F:
    """The options that both commands take."""
    for option in (
        click.option("--name", help="Name of the run, for people."),
        click.option("--project", help="Project the run is listed in."),
        click.option(
            "--budget",
            type=click.FloatRange(0, 1, min_open=True, max_open=True),
            help="Sample as often as this share of the training time pays for, such as 0.01, instead of --log-freq.",
        ),
        click.option(
            "--log-freq",
            type=click.IntRange(1),
            default=Options.log_freq,
            show_default=True,
            help="Optimizer steps from one sample of gradients and parameters to the next.",
        ),
        click.option(
            "--log",
            callback=_parsed_log,
            default="all",
            show_default=True,
            help="What is sampled: all (gradients,parameters), none, or some of gradients, parameters, updates, "
            "activations and optimizer with commas between.",
        ),
    ):
        function = option(function)
    return function


def become(program: str, argv: Sequence[str], options: Options, project: str | None, name: str | None) -> NoReturn:
    """Run a program in this process's place.

    Args:
        program: its path, or its name on PATH.
        argv: its command line, with its name first.
        options: how what it trains is watched.
        project: of its run.
        name: of its run.

    Raises:
        SystemExit: it cannot be run. The exit code is a shell's: 127 if there is no such program, else 126.
    """
    sys.stdout.flush()
    sys.stderr.flush()
    try:
        os.execvpe(program, list(argv), options.environment(os.environ, project=project, name=name))  # noqa: S606
    except OSError as error:
        hint = f"; to run a script: python {program}" if program.endswith(".py") else ""
        click.echo(f"torchtrack: cannot run {program}: {error.strerror}{hint}", err=True)
        sys.exit(127 if isinstance(error, FileNotFoundError) else 126)
