"""`torchtrack diff`: where two runs part."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Final

import click

from torchtrack.cli import common

if TYPE_CHECKING:
    from torchtrack.api import Run
    from torchtrack.stability.difference import Difference, Parting

_SHOWN: Final = 8


@click.command()
@click.argument("first")
@click.argument("second")
@click.option(
    "--tolerance", type=float, default=0.02, show_default=True, help="Octaves, and relative norm, that count as equal."
)
@click.option("--json", "as_json", is_flag=True, help="JSON instead of sentences.")
@common.folder_option
def diff(first: str, second: str, tolerance: float, as_json: bool, folder: Path | None) -> None:
    """Say at which step, in which kind of which tensor the runs FIRST and SECOND part, whatever the layout of each.

    The exit code is 1 if they part.
    """
    with common.friendly():
        api = common.open_source(folder)
        one, two = common.open_run(api, first), common.open_run(api, second)
        found = one.diff(two, tolerance)
        if as_json:
            click.echo(json.dumps(common.jsonable(dataclasses.asdict(found)), indent=2))
        else:
            for line in _lines(one, two, found):
                click.echo(line)
    if found.parted:
        raise SystemExit(1)


def _lines(one: Run, two: Run, found: Difference) -> Iterator[str]:
    names = f"{one.name} and {two.name}"
    size = f"{common.plural(found.samples, 'sample')} of {common.plural(found.tensors, 'tensor')}"
    if found.parted:
        first = found.parted[0]
        since = "from their start" if found.last_step is None else f"after step {found.last_step:,}"
        yield f"{names} part at step {first.step:,} in the {first.kind} {first.name}, {since}"
        for part in found.parted[:_SHOWN]:
            yield f"  {part.kind} {part.name}: {_far(part)}"
        if len(found.parted) > _SHOWN:
            yield f"  and {len(found.parted) - _SHOWN:,} more {first.kind}s"
        if found.samples:
            yield f"the same before: {size}"
    else:
        yield f"{names} are the same up to step {found.last_step:,}: {size}"
    if found.furthest is not None:
        far = found.furthest
        yield f"within the tolerance, furthest: {far.kind} {far.name} at step {far.step:,}: {_far(far)}"
    for run, only in ((one, found.only_first), (two, found.only_second)):
        if only:
            yield f"only in {run.name}: {common.plural(len(only), 'tensor')}: {', '.join(only[:_SHOWN])}"
    if found.rounding:
        yield f"left out, their gradients are rounding: {', '.join(found.rounding[:_SHOWN])}"


def _far(part: Parting) -> str:
    return f"{part.distance:.2g} octaves, norm x {part.norm_ratio:.6g}"
