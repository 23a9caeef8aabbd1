"""`torchtrack keys`: API keys of a server."""

from __future__ import annotations

import json
from typing import Any

import click

from torchtrack.cli import common, remote


@click.group()
def keys() -> None:
    """Make, list and revoke API keys of the server you are logged in to."""


@keys.command("create")
@click.argument("name")
@click.option(
    "--scope",
    type=click.Choice(["read", "write", "admin"]),
    default="write",
    show_default=True,
    help="What it may: read; also upload and edit; also manage people.",
)
@click.option("--project", help="Where; by default everywhere its user may.")
@click.option("--user", "user", metavar="NAME", help="Whose it is: it never may more than they may.")
@click.option("--expires", "days", type=click.FloatRange(0, 3650, min_open=True), metavar="DAYS", help="When it ends.")
@remote.url_option
def create(name: str, scope: str, project: str | None, user: str | None, days: float | None, url: str | None) -> None:
    """Make a key called NAME and print it: it is shown this once.

    Standard output has the key alone, for `torchtrack keys create cluster > key` and `torchtrack login URL < key`.
    """
    with common.friendly():
        whose = None if user is None else remote.user_id(url, user)
        asked = {"name": name, "scope": scope, "project": project, "user": whose, "expires_days": days}
        made = remote.ask(url, "POST", "/keys", asked)
        until = f", until {made['expires'][:10]}" if made["expires"] else ""
        click.echo(f"key {made['id']} may {made['scope']} {_where(made)}{until}; it is shown this once:", err=True)
        click.echo(made["key"])


@keys.command("list")
@click.option("--all", "every", is_flag=True, help="Those that were revoked too.")
@click.option("--json", "as_json", is_flag=True, help="One JSON array instead of a table.")
@remote.url_option
def list_(every: bool, as_json: bool, url: str | None) -> None:
    """Your keys, and those of the projects you are an admin of; never what they are."""
    with common.friendly():
        found = [key for key in remote.ask(url, "GET", "/keys") if every or key["revoked"] is None]
        if as_json:
            click.echo(json.dumps(found, indent=2))
            return
        from rich.table import Table

        table = Table(box=None, header_style="dim", pad_edge=False)
        for column in ("id", "name", "begins", "may", "whose", "used", "ends"):
            table.add_column(column)
        for key in found:
            end = "revoked" if key["revoked"] else (key["expires"] or "never")[:10]
            used = (key["used"] or "never")[:10]
            may = f"{key['scope']} {_where(key)}"
            table.add_row(key["id"], key["name"], f"{key['start']}...", may, key["person"] or "nobody", used, end)
        common.console().print(table)


@keys.command()
@click.argument("key", metavar="ID")
@remote.url_option
def revoke(key: str, url: str | None) -> None:
    """Let the key with this ID (or this name, if it is the only one) in no more."""
    with common.friendly():
        found = [
            one for one in remote.ask(url, "GET", "/keys") if not one["revoked"] and key in (one["id"], one["name"])
        ]
        if len(found) != 1:
            ids = ", ".join(one["id"] for one in found)
            raise click.ClickException(f"{key!r} is {len(found)} keys{': give the id, ' + ids if ids else ''}")
        remote.ask(url, "DELETE", f"/keys/{found[0]['id']}")
        click.echo(f"revoked {found[0]['id']} ({found[0]['name']})")


def _where(key: dict[str, Any]) -> str:
    if key["project"]:
        return f"in {key['project']}"
    return "where its user may" if key["user"] else "everywhere"
