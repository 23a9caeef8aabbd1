"""`torchtrack users` and `torchtrack audit`: the people of a server, and what they did."""

from __future__ import annotations

import json

import click

from torchtrack.cli import common, remote

_ROLES = click.Choice(["viewer", "editor", "admin"])


@click.group()
def users() -> None:
    """Add users of the server you are logged in to, and say what they may."""


@users.command("add")
@click.argument("name")
@click.option("--role", type=_ROLES, help="What they may; without it nothing yet.")
@click.option("--project", help="Where; by default in all projects.")
@click.option("--email", help="For people; nothing is sent there.")
@remote.url_option
def add(name: str, role: str | None, project: str | None, email: str | None, url: str | None) -> None:
    """Add the user NAME. They come in with a key: `torchtrack keys create laptop --user NAME`."""
    with common.friendly():
        if project is not None and role is None:
            raise click.UsageError("--project needs a --role")
        roles = {} if role is None else {project or "*": role}
        remote.ask(url, "POST", "/users", {"name": name, "email": email, "roles": roles})
        click.echo(f"added {name}{_may(roles)}; a key for them: torchtrack keys create laptop --user {name}")


@users.command()
@click.argument("name")
@click.argument("role", type=click.Choice(["viewer", "editor", "admin", "none"]))
@click.option("--project", help="Where; by default in all projects.")
@remote.url_option
def role(name: str, role: str, project: str | None, url: str | None) -> None:
    """Make the user NAME a viewer, editor or admin; `none` takes the role away."""
    with common.friendly():
        given = None if role == "none" else role
        remote.ask(url, "PUT", f"/users/{remote.user_id(url, name)}/roles", {"project": project or "*", "role": given})
        click.echo(f"{name} is {role} {'in ' + project if project else 'in all projects'}")


@users.command()
@click.argument("name")
@remote.url_option
def disable(name: str, url: str | None) -> None:
    """Let the user NAME in no more, with any of their keys."""
    _let_in(name, url, disabled=True)


@users.command()
@click.argument("name")
@remote.url_option
def enable(name: str, url: str | None) -> None:
    """Let the user NAME in again."""
    _let_in(name, url, disabled=False)


@users.command()
@click.argument("name")
@remote.url_option
def remove(name: str, url: str | None) -> None:
    """Remove the user NAME with all their keys. What they did stays in the audit log."""
    with common.friendly():
        remote.ask(url, "DELETE", f"/users/{remote.user_id(url, name)}")
        click.echo(f"removed {name}")


@users.command("list")
@click.option("--json", "as_json", is_flag=True, help="One JSON array instead of a table.")
@remote.url_option
def list_(as_json: bool, url: str | None) -> None:
    """The users and their roles."""
    with common.friendly():
        found = remote.ask(url, "GET", "/users")
        if as_json:
            click.echo(json.dumps(found, indent=2))
            return
        for user in found:
            click.echo(f"{user['name']}{' (disabled)' if user['disabled'] else ''}{_may(user['roles'])}")


@click.command()
@click.option("--project", help="Of this project only.")
@click.option("--limit", type=click.IntRange(1, 1000), default=50, show_default=True, help="How many lines.")
@click.option("--json", "as_json", is_flag=True, help="One JSON array instead of lines.")
@remote.url_option
def audit(project: str | None, limit: int, as_json: bool, url: str | None) -> None:
    """What people did on the server you are logged in to, the newest first."""
    from urllib.parse import urlencode

    with common.friendly():
        asked = {"limit": limit, **({} if project is None else {"project": project})}
        lines = remote.ask(url, "GET", f"/audit?{urlencode(asked)}")["lines"]
        if as_json:
            click.echo(json.dumps(lines, indent=2))
            return
        for line in lines:
            where = f" in {line['project']}" if line["project"] else ""
            detail = " ".join(f"{name}={value}" for name, value in line["detail"].items() if value is not None)
            text = f"{line['at'][:19]}  {line['who']}  {line['action']}  {line['target']}{where}  {detail}"
            click.echo(text.translate(_PLAIN).rstrip())


_PLAIN = dict.fromkeys((*range(32), 127, *range(128, 160)), "?")
"""Names are typed by others: nothing of them moves this terminal's cursor."""


def _let_in(name: str, url: str | None, *, disabled: bool) -> None:
    with common.friendly():
        remote.ask(url, "PATCH", f"/users/{remote.user_id(url, name)}", {"disabled": disabled})
        click.echo(f"{name} is let in {'no more' if disabled else 'again'}")


def _may(roles: dict[str, str]) -> str:
    told = [f"{role} {'in all projects' if at == '*' else 'in ' + at}" for at, role in sorted(roles.items())]
    return f": {', '.join(told)}" if told else ": no role yet"
