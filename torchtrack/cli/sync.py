"""`torchtrack sync`: have a server take what it has not yet."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import click

from torchtrack.cli import common, remote

if TYPE_CHECKING:
    from torchtrack.sidecar.upload.engine import Uploader
    from torchtrack.sidecar.upload.tail import Tail

_OUT_OF_REACH: Final = ("unreachable", "busy", "refused")
_NO_USE: Final = ("no_key", "version")


@click.command()
@click.argument("runs", nargs=-1, metavar="[RUN]...")
@common.folder_option
@remote.url_option
@common.timeout_option("--timeout", "How long the server may be out of reach.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object instead of sentences.")
def sync(runs: tuple[str, ...], folder: Path | None, url: str | None, timeout_s: float, as_json: bool) -> None:
    """Send RUNs, or all runs of the folder, to the server. May be done at any time, as often as you like.

    What is there already is not sent again, and a run may be written meanwhile: then its rows so far are sent. The exit
    code is 0 only if the server confirms the number and the checksum of all frames there are.
    """
    with common.friendly():
        address = remote.server_address(url)
        place = folder or common.default_folder()
        paths = _paths(place, runs)
        uploader = uploader_of(place, address, paths)
        with common.progress("sending", lambda: _size(uploader), "DownloadColumn", quiet=as_json) as show:
            uploader.on_read = lambda size: show(advance=size)
            gave_up = send(uploader, timeout_s)
    told = report(uploader, address, gave_up)
    click.echo(json.dumps(told, indent=2) if as_json else _in_words(told))
    if not told["synced"]:
        raise SystemExit(1)


def _paths(place: Path, runs: Sequence[str]) -> list[Path]:
    """The journals of these runs, of all if none are named."""
    from torchtrack.journal.reader import find_streams

    if not place.exists():
        common.open_source(place)
    paths = find_streams(place)
    if runs:
        api = common.open_source(place)
        uids = {common.open_run(api, name).uid for name in runs}
        paths = [path for path in paths if _belongs(path, uids)]
    if not paths:
        raise click.ClickException(f"no journals in {place}")
    return paths


def _belongs(path: Path, uids: set[str]) -> bool:
    from torchtrack.journal.reader import Stream

    if path.parent.parent.name in uids:
        return True
    stream = Stream(path)
    for _ in stream.stored():
        if stream.joined is not None:
            break
    return stream.uid in uids


def uploader_of(place: Path, url: str, paths: Sequence[Path]) -> Uploader:
    """What sends these journals of a folder, and what their processes left."""
    from torchtrack import credentials
    from torchtrack.sidecar.upload.engine import Uploader
    from torchtrack.sidecar.upload.left import left_in
    from torchtrack.sidecar.upload.progress import Progress
    from torchtrack.sidecar.upload.transport import Http

    uploader = Uploader(Http(url, lambda: credentials.key_for(url)), Progress(place, url, "sync"))
    for path in paths:
        tail = uploader.follow(path, 0 if path.parent.name == "nodes" else 2)
        tail.hurried = True
    names = {f"{number:016x}" for number in uploader.tails}
    for folder in sorted({path.parent.parent for path in paths}):
        uploader.files.want(path for stream, path in left_in(folder) if stream in names)
    return uploader


def send(uploader: Uploader, timeout_s: float) -> str | None:
    """Until there is nothing more to send; else why not."""
    good = time.monotonic()
    while True:
        wait = uploader.step()
        if uploader.state == "ok":
            good = time.monotonic()
            if uploader.idle:
                return None
        elif uploader.state in _NO_USE:
            return uploader.problem
        elif uploader.state in _OUT_OF_REACH and time.monotonic() + wait > good + timeout_s:
            return f"the server was out of reach for {timeout_s:.0f} s: {uploader.problem}"
        time.sleep(wait)


def _size(uploader: Uploader) -> int:
    return sum(tail.path.stat().st_size for tail in uploader.tails.values() if tail.path.exists())


def report(uploader: Uploader, url: str, gave_up: str | None) -> dict[str, Any]:
    """What was sent and what was not; `synced` if the server has all there is, `open` counts streams without an end."""
    problems: list[dict[str, str]] = [] if gave_up is None else [{"where": url, "why": gave_up}]
    for tail in uploader.tails.values():
        problems += [{"where": tail.path.name, "why": why} for why in _why(tail)]
    files = [{"where": name, "why": why} for name, why in uploader.files_left.items()]
    tails = uploader.tails.values()
    return {
        "synced": not problems and not files,
        "url": url,
        "streams": len(tails),
        "files": uploader.files.sent,
        "frames": sum(tail.at.frames for tail in tails),
        "open": sum(not tail.sealed for tail in tails),
        "problems": problems + files,
    }


def _why(tail: Tail) -> list[str]:
    """What of a stream the server does not have, or what is not as it should be."""
    why = [each for each in (tail.problem, tail.trouble) if each]
    if not tail.problem and tail.acked < tail.at.next:
        why.append(f"frames {tail.acked} to {tail.at.next - 1} have not arrived")
    if not tail.problem and tail.acked > tail.at.next:
        why.append(f"the server has {tail.acked} frames, here are {tail.at.next}: this is an older copy")
    lost = sum(high - low + 1 for low, high in tail.lost)
    there = sum(high - low + 1 for low, high in tail.missing_there)
    if lost:
        why.append(f"{common.plural(lost, 'frame')} damaged here (torchtrack fsck says more)")
    if there and not lost:
        why.append(f"{common.plural(there, 'frame')} missing on the server")
    if tail.pending and not tail.sealed:
        why.append("its end cannot be read: it is being written, or was cut off")
    return why


def _in_words(report: dict[str, Any]) -> str:
    lines = [f"  {each['where']}: {each['why']}" for each in report["problems"]]
    what = f"{common.plural(report['frames'], 'frame')} of {common.plural(report['streams'], 'journal')}"
    still = f"; {common.plural(report['open'], 'journal')} not ended yet" if report["open"] else ""
    if report["synced"]:
        return f"synced: {report['url']} has all {what}, and their checksums agree{still}"
    return "\n".join([f"not synced to {report['url']}: {what}{still}", *lines])
