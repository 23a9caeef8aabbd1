"""`torchtrack fsck`: whether journals are whole, and copies of what is left of those that are not."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from torchtrack.cli import common

if TYPE_CHECKING:
    from torchtrack.journal import Report


@click.command()
@click.argument("paths", nargs=-1, type=click.Path(path_type=Path), metavar="[PATH]...")
@click.option(
    "--repair",
    type=click.Path(path_type=Path),
    metavar="DIR",
    help="Write what can be read of damaged journals below DIR.",
)
@click.option("--quiet", is_flag=True, help="Say only what is damaged.")
def fsck(paths: tuple[Path, ...], repair: Path | None, quiet: bool) -> None:
    """Check journals: files, folders of a run, folders of runs.

    The exit code is 1 if anything is damaged. The files themselves are never changed.
    """
    from torchtrack.journal import find_archives

    with common.friendly():
        places = paths or (common.default_folder(),)
        files = [file for path in places for file in _journals(path)]
        archives = [archive for path in places for archive in find_archives(path)]
        if not files and not archives:
            raise click.ClickException(f"no journals in {', '.join(map(str, paths)) or common.default_folder()}")
        damaged = sum([_check(file, repair, quiet=quiet) for file in files])
        damaged += sum([_check_gathered(archive, quiet=quiet) for archive in archives])
        boxes = _boxes(places, files)
        damaged += sum([_check_box(box, quiet=quiet) for box in boxes])
        also = f", {common.plural(len(archives), 'gathered file')}" if archives else ""
        also += f", {len(boxes):,} black box{'' if len(boxes) == 1 else 'es'}" if boxes else ""
        click.echo(f"{common.plural(len(files), 'journal')}{also}, {damaged or 'none'} damaged")
    if damaged:
        raise SystemExit(1)


def _journals(path: Path) -> list[Path]:
    from torchtrack.journal import find_streams

    if not path.exists():
        raise click.ClickException(f"{path}: no such file or folder; default is TORCHTRACK_DIR, else ./torchtrack-runs")
    return find_streams(path)


def _check(path: Path, repair: Path | None, *, quiet: bool) -> bool:
    """Check one journal and say how it is. True if it is damaged."""
    from torchtrack.errors import JournalError
    from torchtrack.journal import check

    try:
        report = check(path)
    except JournalError as error:
        _say("✗", common.CRITICAL, path, str(error))
        return True
    faults = _faults(report)
    if not faults:
        if not quiet:
            _say("✓", common.OK, path, _contents(report))
        return False
    _say("✗", common.CRITICAL, path, _contents(report))
    for fault in faults:
        click.echo(f"    {fault}")
    if repair is not None:
        target = repair / path.parent.parent.name / path.parent.name / path.name
        target.parent.mkdir(parents=True, exist_ok=True)
        written = check(path, repair_to=target).repaired
        click.echo(f"    repaired: {', '.join(map(str, written))}")
    return True


def _check_gathered(path: Path, *, quiet: bool) -> bool:
    """Check that every byte of a gathered file is accounted for; what is in it is checked as the journals it holds."""
    from torchtrack.journal import Archive

    archive = Archive(path)
    archive.read()
    damaged = bool(archive.error or archive.gaps)
    torn = f", {archive.torn:,} bytes not complete" if archive.torn else ""
    if damaged or not quiet:
        sign, colour = ("✗", common.CRITICAL) if damaged else ("✓", common.OK)
        _say(sign, colour, path, archive.error or f"holds {common.plural(len(archive.places), 'journal file')}{torn}")
    for gap in archive.gaps:
        click.echo(f"    {path.name} at byte {gap.offset:,}: {gap.length:,} bytes, unreadable")
    return damaged


def _boxes(places: Sequence[Path], journals: Sequence[Path]) -> list[Path]:
    """Black boxes of runs, and those that processes of these journals left on this node with nobody to see it."""
    from torchtrack.journal import ring

    salvaged = [box for place in places if place.is_dir() for box in sorted(place.rglob("*.ttb"))]
    streams = {path.name.partition(".")[0].rpartition("-")[2] for path in journals}
    return salvaged + [box for stream in sorted(streams) for box in ring.left_by(stream) if box.suffix == ".ttb"]


def _check_box(path: Path, *, quiet: bool) -> bool:
    """Check a black box. A record that was being written when its process died is no damage."""
    from torchtrack.journal import ring

    try:
        names, records, torn = ring.read(path.read_bytes())
    except FileNotFoundError:
        return False  # its run has ended, or it was salvaged
    except ValueError as error:
        _say("✗", common.CRITICAL, path, str(error))
        return True
    if not quiet:
        what = f"{common.plural(len(records), 'step')} of {common.plural(len(names), 'gradient')}"
        _say("✓", common.OK, path, what + (f", {torn} not complete" if torn else ""))
    return False


def _say(sign: str, colour: str, path: Path, what: str) -> None:
    from rich.text import Text

    line: Any = Text.assemble((sign, colour), " ", str(path), "  ", (what, "dim"))
    common.console().print(line, soft_wrap=True)


def _contents(report: Report) -> str:
    rows = ", ".join(f"{count:,} {table}" for table, count in sorted(report.rows.items())) or "no rows"
    torn = f", {report.torn:,} bytes not complete" if report.torn else ""
    dropped = sum(int(gap.get("rows", 0)) for gap in report.gaps)
    return f"{common.plural(report.frames, 'frame')}, {rows}, {'sealed' if report.seal else 'not sealed'}{torn}" + (
        f", {common.plural(dropped, 'row')} dropped by the writer" if dropped else ""
    )


def _faults(report: Report) -> list[str]:
    faults = []
    for damage in report.damages:
        lost = common.plural(damage.lost, "frame")
        where = f"{damage.path.name} at byte {damage.offset:,}"
        faults.append(f"{where}: {damage.length:,} bytes, {lost} lost: {damage.reason}")
    faults += [f"frame {seq} holds no rows of its table" for seq in report.invalid]
    if not report.opening:
        faults.append("it does not begin with a journal's opening record")
    if report.seal_agrees is False:
        faults.append("the seal counts other rows or frames than there are")
    return faults
