"""What commands that talk to a server share."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any, TypeVar

import click

_F = TypeVar("_F", bound=Callable[..., Any])


def url_option(function: _F) -> _F:
    """The option --url."""
    text = "The server; default TORCHTRACK_URL, else the one logged in to."
    return click.option("--url", help=text)(function)


def named_url_option(function: _F) -> _F:
    """The option --url of a command that reads a folder without it."""
    return click.option("--url", help="A server, instead of a folder of runs.")(function)


def server_address(url: str | None) -> str:
    """The server to use: this one, else TORCHTRACK_URL's, else the one logged in to."""
    from torchtrack import credentials

    address = url or credentials.default_url()
    if address is None:
        raise click.ClickException("no server: give --url, set TORCHTRACK_URL, or use torchtrack login")
    return credentials.check_url(address)


def ask(url: str | None, method: str, path: str, body: object = None) -> Any:
    """What the server answers: JSON, or None where it has nothing to say.

    Raises:
        click.ClickException: there is no server, it does not answer, or it refuses; says what it said.
    """
    from torchtrack import credentials
    from torchtrack.sidecar.upload.transport import Http, UnreachableError
    from torchtrack.wire import API

    address = server_address(url)
    data = None if body is None else json.dumps(body).encode()
    http = Http(address, lambda: credentials.key_for(address))
    try:
        reply = http.ask(method, f"{API}{path}", data, {"Content-Type": "application/json"})
    except UnreachableError as error:
        raise click.ClickException(f"{address} does not answer: {error}") from None
    finally:
        http.close()
    if reply.status >= 300:
        raise click.ClickException(f"{address}: {reply.problem()}")
    return json.loads(reply.body) if reply.body else None


def user_id(url: str | None, name: str) -> str:
    """The id of a user by name.

    Raises:
        click.ClickException: there is none.
    """
    people = ask(url, "GET", "/users")
    for person in people:
        if name in (person["name"], person["id"]):
            return str(person["id"])
    known = ", ".join(sorted(person["name"] for person in people)[:20])
    raise click.ClickException(f"no user {name!r}; there are {known or 'none yet: torchtrack users add NAME'}")
