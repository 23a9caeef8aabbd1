"""`torchtrack launch`: record a training command that knows nothing of torchtrack."""

from __future__ import annotations

import os
import secrets
import signal
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any, NoReturn

import click

from torchtrack.cli import common
from torchtrack.launch.command import CONTEXT, become, options
from torchtrack.launch.options import Options

if TYPE_CHECKING:
    from torchtrack.sidecar.upload.waiting import Left

_ROWS_S = 5.0
"""How long rows are counted that have not arrived."""


@click.command(context_settings=CONTEXT)
@options
@common.timeout_option(
    "--upload-timeout", "With a server: how long to stay after the command while nothing arrives there."
)
@click.argument("command", nargs=-1, type=click.UNPROCESSED, required=True)
def launch(command: tuple[str, ...], project: str | None, name: str | None, timeout_s: float, **watching: Any) -> None:
    """Run COMMAND and record what every Python process below it trains: torchtrack launch -- torchrun train.py.

    Where runs go to a server, it stays until they are there: a pod or a SLURM job ends with its last process.
    """

    def start() -> NoReturn:
        become(command[0], command, Options(**watching), project, name)

    url = _server()
    if url is None or not timeout_s:
        start()
    _stay(start, url, timeout_s)


def _server() -> str | None:
    """Where runs are sent, if anywhere and if a process could wait for it here."""
    from torchtrack import credentials

    if os.environ.get("TORCHTRACK_MODE", "").strip().lower() in ("offline", "disabled"):
        return None
    url = credentials.default_url()
    if url is None:
        return None
    from torchtrack.launch import beside

    try:
        return credentials.check_url(url) if beside.supported() else None
    except ValueError:
        return None  # the run says what is wrong with it


def _stay(start: Any, url: str, timeout_s: float) -> NoReturn:
    from torchtrack.launch import beside
    from torchtrack.sidecar.client import LAUNCH_VARIABLE
    from torchtrack.sidecar.upload.waiting import Left, Wait

    number = os.environ[LAUNCH_VARIABLE] = secrets.token_hex(8)
    folder = common.default_folder()
    wait = Wait(folder, url, number, timeout_s)
    status = beside.run(start)
    left: Left | None
    try:
        signal.signal(signal.SIGTERM, _interrupt)
        left = wait.until_sent(lambda count: _say(f"sending {common.plural(count, 'journal')} to {url}; Ctrl-C leaves"))
    except KeyboardInterrupt:
        left = Left("interrupted", wait.streams)
    if left is not None and left.streams:
        _say(_in_words(left, folder, url))
    beside.end_as(status)


def _interrupt(number: int, frame: FrameType | None) -> None:
    del number, frame
    raise KeyboardInterrupt


def _say(text: str) -> None:
    click.echo(f"torchtrack: {text}", err=True)


def _in_words(left: Left, folder: Path, url: str) -> str:
    """What is not there, why, where it lies, and what to do."""
    uids = sorted({str(each["uid"]) for each in left.streams.values()})
    rows = _rows(left, folder)
    what = f"{common.plural(rows, 'row')} in {common.plural(len(left.streams), 'journal')}"
    what += f" of {common.plural(len(uids), 'run')} may not be on {url} yet ({left.why})"
    where = ", ".join(str(folder / uid) for uid in uids[:4]) + (" and others" if len(uids) > 4 else "")
    return f"{what}; they lie in {where} and are sent by: torchtrack sync {' '.join(uids[:4])} --dir {folder}"


def _rows(left: Left, folder: Path) -> int:
    import time

    from torchtrack.sidecar.upload.tail import rows_from

    deadline = time.monotonic() + _ROWS_S
    rows = 0
    for name, each in left.streams.items():
        # What sends it may not have come to look where it lies.
        found = [folder / str(each["path"])] if each["path"] else folder.glob(f"*/[0-9]*/*-{name}.ttj")
        rows += sum(rows_from(path, int(each.get("acked") or 0), deadline) for path in found if path.exists())
    return rows
