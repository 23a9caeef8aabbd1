"""`torchtrack export`: the tables of a run as files other programs read, or its page as a file people read."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import click
from click.core import ParameterSource

from torchtrack.cli import common, standalone

if TYPE_CHECKING:
    import pyarrow as pa

    from torchtrack.api import Run

FORMATS: Final = ("parquet", "csv", "arrow", "jsonl", "html")
TABLES: Final = ("history", "scalars", "tensors", "events", "logs", "texts")
_ROWS_AT_ONCE: Final = 10_000


@click.command()
@click.argument("run")
@click.option(
    "-o", "--output", type=click.Path(path_type=Path), required=True, help="The file; its suffix is the format."
)
@click.option("--table", type=click.Choice(TABLES), default="history", show_default=True, help="What to write.")
@click.option("--format", "kind", type=click.Choice(FORMATS), help="The format, whatever the suffix.")
@click.option("--force", is_flag=True, help="Overwrite the file.")
@common.folder_option
def export(run: str, output: Path, table: str, kind: str | None, force: bool, folder: Path | None) -> None:
    """Write a table of RUN to a .parquet, .csv, .arrow or .jsonl file, or its page to an .html file.

    history has a row a step and rank and a column a metric; scalars has a row a value as it was logged; tensors are
    combined over ranks, every element counted once; the others are as recorded, with the rank.

    NaN and infinities stay what they are: nan, inf and -inf in CSV (an empty cell is null), the strings "NaN",
    "Infinity" and "-Infinity" in JSON lines.

    The .html file is the page of the run as it is now. It needs no network and no server, and opens in any browser.
    """
    kind = kind or output.suffix.lstrip(".")
    if kind not in FORMATS:
        suffixes = ", ".join(f".{name}" for name in FORMATS)
        raise click.UsageError(f"{output}: a suffix of {suffixes} says the format; for another name give --format")
    if output.exists() and not force:
        raise click.ClickException(f"{output} exists; --force overwrites it")
    if kind == "html":
        if click.get_current_context().get_parameter_source("table") is not ParameterSource.DEFAULT:
            raise click.UsageError("--table is for the other formats: an .html file is the whole page of the run")
        _page(folder, run, output)
        return
    with common.friendly():
        rows = _rows(common.find_run(folder, run), table)
        with standalone.whole(output) as temporary:
            _WRITERS[kind](rows, temporary)
        click.echo(f"{output}: {common.plural(rows.num_rows, 'row')} of {table}", err=True)


def _page(folder: Path | None, run: str, output: Path) -> None:
    with common.friendly():
        place = common.run_address(run)
        where = standalone.source(folder, place and place[0])
        content = where.run_file(common.find_run(folder, run).uid)
        with standalone.whole(output) as temporary:
            temporary.write_bytes(content)
        click.echo(f"{output}: the page of {run}, {len(content) / 1e6:.1f} MB", err=True)


def _rows(run: Run, table: str) -> pa.Table:
    from torchtrack.records import Table

    if table == "history":
        return run.history(run.keys(), ranks="all", attempts="latest")
    if table == "tensors":
        return run.tensors()
    return run.rows(Table[table.upper()])


def _parquet(rows: pa.Table, path: Path) -> None:
    import pyarrow.parquet

    pyarrow.parquet.write_table(rows, path)


def _arrow(rows: pa.Table, path: Path) -> None:
    import pyarrow as pa

    with pa.ipc.new_file(path, rows.schema) as file:
        file.write_table(rows)


def _csv(rows: pa.Table, path: Path) -> None:
    import pyarrow.csv

    pyarrow.csv.write_csv(_flat(rows), path)


def _flat(rows: pa.Table) -> pa.Table:
    """Dictionaries as plain text and lists as JSON, since CSV has neither."""
    import pyarrow as pa

    for at, field in enumerate(rows.schema):
        if pa.types.is_dictionary(field.type):
            rows = rows.set_column(at, field.name, rows.column(at).cast(pa.string()))
        elif pa.types.is_list(field.type):
            texts = [None if value is None else json.dumps(value) for value in rows.column(at).to_pylist()]
            rows = rows.set_column(at, field.name, pa.array(texts, pa.string()))
    return rows


def _jsonl(rows: pa.Table, path: Path) -> None:
    with path.open("w", encoding="utf-8") as file:
        for batch in rows.to_batches(max_chunksize=_ROWS_AT_ONCE):
            lines: list[dict[str, Any]] = batch.to_pylist()
            file.writelines(json.dumps(common.jsonable(line), ensure_ascii=False) + "\n" for line in lines)


_WRITERS: Final = {"parquet": _parquet, "csv": _csv, "arrow": _arrow, "jsonl": _jsonl}
