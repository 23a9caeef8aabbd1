"""`torchtrack reindex`: a server's tables, made again from the journals."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import click

from torchtrack.cli import common

if TYPE_CHECKING:
    from torchtrack.server.indexer import Indexer


@click.command()
@click.option(
    "--data",
    type=click.Path(path_type=Path, exists=True, file_okay=False),
    default=Path("torchtrack-server"),
    show_default=True,
    help="Folder of everything the server keeps; the server must not run.",
)
@click.option(
    "--metrics",
    metavar="DSN",
    envvar="TORCHTRACK_METRICS",
    help="The ClickHouse server, if the tables do not lie in DATA.",
)
def reindex(data: Path, metrics: str | None) -> None:
    """Empty a server's tables and fill them again from the journals in DATA/runs.

    The journals are the truth and are only read; what people typed (names, tags, notes, views) is kept elsewhere and
    stays. Of use after damage to the tables, or to move to a ClickHouse server: `torchtrack reindex --metrics DSN`, and
    then `torchtrack server --metrics DSN`. It may be broken off: the server goes on where it ended.
    """
    with common.friendly():
        try:
            from torchtrack.server.app import take_hold
            from torchtrack.server.indexer import Indexer
            from torchtrack.server.metrics import MetricsStore
        except ImportError as error:
            raise click.ClickException(
                f"{error}; install what the server needs: pip install 'torchtrack[server]'"
            ) from None
        runs = data / "runs"
        if not runs.is_dir():
            raise click.ClickException(f"{data} is no data folder of a server: there is no {runs}")
        try:
            hold = take_hold(data)
        except BlockingIOError:
            raise click.ClickException(f"a server runs on {data}; stop it, then reindex") from None
        with hold:
            began = time.monotonic()
            store = MetricsStore(metrics) if metrics else MetricsStore.in_folder(data / "index")
            indexer = Indexer(runs, store)
            try:
                with _shown(indexer, runs):
                    rows = indexer.rebuild()
            finally:
                store.close()
    click.echo(f"{rows:,} rows from {runs} in {time.monotonic() - began:.1f} s")


@contextmanager
def _shown(indexer: Indexer, runs: Path) -> Iterator[None]:
    """A line that moves, on a terminal."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    from torchtrack.journal.reader import find_streams

    console = Console(stderr=True)
    if not console.is_terminal:
        yield
        return
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True) as bar:
        task = bar.add_task("journals", total=len(find_streams(runs)))
        indexer.on_followed = lambda: bar.update(task, advance=1)
        yield
