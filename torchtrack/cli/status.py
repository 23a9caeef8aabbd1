"""`torchtrack status`: what has been sent, what has not, and why."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import click

from torchtrack.cli import common


@click.command()
@common.folder_option
@click.option("--json", "as_json", is_flag=True, help="One JSON object instead of a table.")
def status(folder: Path | None, as_json: bool) -> None:
    """Say what of the runs in the folder is on a server, and how it stands with sending. Asks nobody.

    The exit code is 1 if something is stuck: the server out of reach, a wrong key, a journal it refuses.
    """
    with common.friendly():
        place = folder or common.default_folder()
        if not place.exists():
            common.open_source(folder)
        senders, journals = _senders(place), _journals(place)
        stuck = [each for each in senders if each["problem"]] + [each for each in journals if each["problem"]]
        if as_json:
            click.echo(json.dumps({"senders": senders, "journals": journals}, indent=2))
        else:
            _show(senders, journals)
    if stuck:
        raise SystemExit(1)


def _senders(place: Path) -> list[dict[str, Any]]:
    from torchtrack.sidecar.upload.progress import read

    names = ("url", "state", "problem", "requests", "bytes", "resent")
    return [
        {**{name: each.get(name) for name in names}, "seconds_ago": round((time.time_ns() - each["time_ns"]) / 1e9)}
        for each in read(place)
    ]


def _journals(place: Path) -> list[dict[str, Any]]:
    """Each journal: frames here, and how far it is known to have arrived."""
    from torchtrack.api.arrival import arrivals

    return [
        {
            "run": each.uid,
            "journal": each.path.name,
            "frames": each.frames,
            "arrived": each.arrived,
            "sealed": each.sealed,
            "dropped_rows": each.dropped_rows,
            "damaged": each.damaged,
            "problem": each.problem,
        }
        for each in arrivals(place, place)
    ]


def _show(senders: list[dict[str, Any]], journals: list[dict[str, Any]]) -> None:
    from rich.table import Table

    table = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False, header_style="dim")
    for name in ("run", "journals", "frames", "arrived", "dropped rows", "damaged"):
        table.add_column(name, justify="left" if name == "run" else "right", no_wrap=True)
    for uid in dict.fromkeys(each["run"] for each in journals):
        mine = [each for each in journals if each["run"] == uid]
        sums = [sum(each[name] for each in mine) for name in ("frames", "arrived", "dropped_rows", "damaged")]
        table.add_row(uid, str(len(mine)), *(f"{number:,}" for number in sums))
    common.console().print(table)
    for each in journals:
        if each["problem"]:
            click.echo(f"refused: {each['journal']}: {each['problem']}")
    for each in senders:
        said = f": {each['problem']}" if each["problem"] else ""
        click.echo(f"{each['url']}: {each['state']}{said} ({each['seconds_ago']} s ago, {each['requests']} requests)")
    if not senders:
        click.echo("nothing has been sent from here: no server was used (torchtrack login, torchtrack sync)")
