"""`torchtrack gc`: remove what nobody needs."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import datetime, timedelta, timezone
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import click

from torchtrack.cli import common, remote

if TYPE_CHECKING:
    from torchtrack.server.garbage import Garbage


@click.command()
@common.folder_option
@click.option(
    "--data",
    type=click.Path(path_type=Path, exists=True, file_okay=False),
    help="The data folder of a server instead, which must not run: runs that were deleted on it go too.",
)
@click.option(
    "--catalog",
    metavar="URL",
    envvar="TORCHTRACK_CATALOG",
    help="The database for what people type, if it does not lie in DATA.",
)
@click.option(
    "--blobs",
    metavar="URL",
    envvar="TORCHTRACK_BLOBS",
    help="The object store of that server, if its media do not lie in DATA.",
)
@click.option(
    "--deleted-days",
    type=click.FloatRange(0),
    default=7.0,
    show_default=True,
    metavar="DAYS",
    help="How long ago a run must have been deleted.",
)
@click.option(
    "--artifact-days",
    type=click.FloatRange(0, min_open=True),
    metavar="DAYS",
    help="Of --dir: how old versions of artifacts may get that have no `ttl` of their own.",
)
@click.option("--uploaded", is_flag=True, help="Of --dir: also runs of which the server you are logged in to has all.")
@click.option("--yes", is_flag=True, help="Remove it; without this nothing is.")
def gc(
    folder: Path | None,
    data: Path | None,
    catalog: str | None,
    blobs: str | None,
    deleted_days: float,
    artifact_days: float | None,
    uploaded: bool,
    yes: bool,
) -> None:
    """Say what nobody needs in a folder of runs, and remove it with --yes.

    That is: parts of files that never came whole, media that no row names, versions of artifacts that are older than
    their `ttl`, on a server runs that were deleted (with --blobs in its object store too), and with --uploaded runs
    that are over and lie on the server frame by frame. What is in doubt stays: runs that are being written or never
    ended, media of damaged journals, files younger than a day, versions that have an alias besides "latest".
    """
    if data is not None and (folder is not None or uploaded or artifact_days is not None):
        raise click.UsageError(
            "--data is a server's folder; --dir, --artifact-days and --uploaded are for runs of this machine"
        )
    with common.friendly():
        try:
            with _found(folder, data, catalog, blobs, deleted_days) as garbage:
                items = list(garbage)
                items += _old(folder or common.default_folder(), artifact_days) if data is None else []
                items += _uploaded(folder or common.default_folder()) if uploaded else []
                for item in items:
                    click.echo(f"{item.size:>15,} bytes  {item.why}  {item.place}")
                    if yes:
                        item.remove()
        except ImportError as error:
            raise click.ClickException(
                f"{error}; install what a server needs: pip install 'torchtrack[server]'"
            ) from None
    size = sum(item.size for item in items)
    end = "removed" if yes or not items else "would be removed: run it again with --yes"
    click.echo(f"{common.plural(len(items), 'thing')}, {size:,} bytes {end}")


@contextmanager
def _found(
    folder: Path | None, data: Path | None, catalog: str | None, blobs: str | None, days: float
) -> Iterator[Iterator[Garbage]]:
    from torchtrack.server import garbage

    if data is None:
        runs = folder or common.default_folder()
        common.open_source(runs)
        yield garbage.find(runs)
        return
    from torchtrack.server.app import Config
    from torchtrack.server.blobs import Bucket
    from torchtrack.server.catalog import Catalog
    from torchtrack.server.engine import take_hold

    config = Config(data=data, catalog=catalog)
    if not config.runs.is_dir():
        raise click.ClickException(f"{data} is no data folder of a server: there is no {config.runs}")
    try:
        hold = take_hold(data)
    except BlockingIOError:
        raise click.ClickException(f"a server runs on {data}; stop it first") from None
    typed = Catalog(config.catalog_url)
    try:
        deleted = typed.deleted_before(datetime.now(timezone.utc) - timedelta(days=days))
        bucket = None if blobs is None else Bucket(blobs)
        yield garbage.find(config.runs, deleted, bucket=bucket)
    finally:
        typed.close()
        hold.close()


def _old(folder: Path, days: float | None) -> list[Garbage]:
    """Versions of artifacts that are older than they may get."""
    from torchtrack.compat import store, ttl
    from torchtrack.server.garbage import Garbage, of_path

    inherited_s = None if days is None else timedelta(days=days).total_seconds()
    return [
        Garbage(version, of_path(version, "").size, f"{called}, older than its ttl", partial(store.remove, version))
        for version, called in ttl.over(folder, datetime.now(timezone.utc).timestamp(), inherited_s)
    ]


def _uploaded(folder: Path) -> Sequence[Garbage]:
    """Runs that are over and of which the server confirms every frame and file."""
    from torchtrack.cli.sync import report, send, uploader_of
    from torchtrack.journal.reader import find_streams
    from torchtrack.server.garbage import of_path

    url = remote.server_address(None)
    by_run: dict[Path, list[Path]] = {}
    for path in find_streams(folder):
        by_run.setdefault(path.parent.parent, []).append(path)
    gone = []
    for run, paths in sorted(by_run.items()):
        uploader = uploader_of(folder, url, paths)
        told = report(uploader, url, send(uploader, 10.0))
        if told["synced"] and not told["open"]:
            gone.append(of_path(run, "uploaded run"))
    return gone
