"""`python -m torchtrack.launch [OPTIONS] script.py ...`: the interpreter starts again, with the script."""

from __future__ import annotations

import sys
from typing import Any

import click

from torchtrack.launch.command import CONTEXT, become, options
from torchtrack.launch.options import Options


@click.command(context_settings=CONTEXT)
@options
@click.option("-m", "module", is_flag=True, help="SCRIPT is the name of a module, as in python -m.")
@click.argument("script")
@click.argument("arguments", nargs=-1, type=click.UNPROCESSED)
def main(
    script: str, arguments: tuple[str, ...], project: str | None, name: str | None, *, module: bool, **watching: Any
) -> None:
    """Run SCRIPT as python would, and record what it trains."""
    if sys.flags.ignore_environment or sys.flags.no_site:
        click.echo("torchtrack: nothing is recorded, since python was started with -E, -I or -S", err=True)
    words = (["-m"] if module else []) + [script, *arguments]
    become(sys.executable, [sys.executable, *_interpreter_options(), *words], Options(**watching), project, name)


def _interpreter_options() -> list[str]:
    """What stood between `python` and `-m torchtrack.launch`."""
    words = sys.orig_argv[1 : len(sys.orig_argv) - len(sys.argv) + 1]
    module = words.pop()
    flag = words.pop() if module == "torchtrack.launch" else module.removesuffix("torchtrack.launch")
    rest = flag.removesuffix("m")  # -um is -u and -m
    return words if rest == "-" else [*words, rest]


if __name__ == "__main__":
    main(prog_name="python -m torchtrack.launch")
