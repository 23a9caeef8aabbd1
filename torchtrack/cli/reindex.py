"""`torchtrack reindex`: a server's tables, made again from the journals."""

from __future__ import annotations

import time
from pathlib import Path

import click

from torchtrack.cli import common


@click.command()
@click.option(
    "--data",
    type=click.Path(path_type=Path, exists=True, file_okay=False),
    default=Path("torchtrack-server"),
    show_default=True,
    help="Folder of everything the server keeps; the server must not run.",
)
@common.metrics_options
def reindex(data: Path, metrics: str | None, cluster: str | None, replicated: bool, keep: tuple[str, ...]) -> None:
    """Empty a server's tables and fill them again from the journals in DATA/runs.

    The journals are the truth and are only read; what people typed (names, tags, notes, views) is kept elsewhere and
    stays. Of use after damage to the tables, or to move to a ClickHouse server: `torchtrack reindex --metrics DSN`, and
    then `torchtrack server --metrics DSN`. It may be broken off: the server goes on where it ended. Rows that are older
    than --keep says come back with it, and are removed again within hours.
    """
    with common.friendly():
        with common.server_packages():
            from torchtrack.journal.reader import find_streams
            from torchtrack.server.engine import take_hold
            from torchtrack.server.indexer import Indexer
            from torchtrack.server.metrics import MetricsStore
        runs = data / "runs"
        if not runs.is_dir():
            raise click.ClickException(f"{data} is no data folder of a server: there is no {runs}")
        try:
            hold = take_hold(data)
        except BlockingIOError:
            raise click.ClickException(f"a server runs on {data}; stop it, then reindex") from None
        with hold:
            began = time.monotonic()
            layout = common.layout_of(metrics, cluster, keep, replicated=replicated)
            index = data / "index"
            store = MetricsStore(metrics, layout=layout) if metrics else MetricsStore.in_folder(index, layout)
            indexer = Indexer(runs, store)
            try:
                with common.progress("journals", lambda: len(find_streams(runs)), "MofNCompleteColumn") as show:
                    indexer.on_followed = lambda: show(advance=1)
                    rows = indexer.rebuild()
            finally:
                store.close()
    click.echo(f"{rows:,} rows from {runs} in {time.monotonic() - began:.1f} s")
