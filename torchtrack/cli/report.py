"""`torchtrack report`: the reports that were written on the page."""

from __future__ import annotations

import json
from pathlib import Path

import click

from torchtrack.cli import common, remote, standalone


@click.group()
def report() -> None:
    """List reports, and make files of them that open anywhere."""


@report.command("list")
@click.option("--project", help="Only reports of this project.")
@click.option("--json", "as_json", is_flag=True, help="One JSON array instead of a table.")
@common.folder_option
@remote.named_url_option
def list_(project: str | None, as_json: bool, folder: Path | None, url: str | None) -> None:
    """The reports of the folder, or of a server with --url; the one that was changed last first."""
    with common.friendly():
        found = standalone.source(folder, url).reports(project)
        if as_json:
            click.echo(json.dumps(found, indent=2))
            return
        if not found:
            click.echo("no reports; the page has them under Reports", err=True)
            return
        from rich.table import Table
        from rich.text import Text

        table = Table(box=None, header_style="dim", pad_edge=False)
        for column in ("id", "project", "title", "version", "changed", "by"):
            table.add_column(column)
        for one in found:
            row = (one["id"], one["project"], one["title"], str(one["version"]), one["at"][:16], one["by"])
            table.add_row(*map(Text, row))
        common.console().print(table)


@report.command()
@click.argument("report_", metavar="REPORT")
@click.option("-o", "--output", type=click.Path(path_type=Path), required=True, help="The HTML file.")
@click.option("--force", is_flag=True, help="Overwrite the file.")
@common.folder_option
@remote.named_url_option
def export(report_: str, output: Path, force: bool, folder: Path | None, url: str | None) -> None:
    """Write REPORT to one HTML file that needs no network, with what its panels show now.

    REPORT is an id or its beginning, a title, or the address of a report on a server.
    """
    if output.exists() and not force:
        raise click.ClickException(f"{output} exists; --force overwrites it")
    with common.friendly():
        where, found = standalone.find_report(folder, url, report_)
        content = where.report_file(found["id"])
        with standalone.whole(output) as temporary:
            temporary.write_bytes(content)
        click.echo(f"{output}: {found['title']}, {len(content) / 1e6:.1f} MB", err=True)
