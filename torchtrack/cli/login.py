"""`torchtrack login`: keep the key of a server."""

from __future__ import annotations

import sys

import click

from torchtrack.cli import common


@click.command()
@click.argument("url")
@click.option("--no-check", is_flag=True, help="Do not ask the server whether it knows the key.")
def login(url: str, no_check: bool) -> None:
    """Keep the key of the server at URL; from now on runs are sent there.

    The key is the server's own, or one that was made for you by `torchtrack keys create`. It is asked for, or read from
    standard input: `torchtrack login URL < DATA/token`. It is never given on the command line, where others could see
    it.
    """
    from torchtrack import credentials

    with common.friendly():
        address = credentials.check_url(url)
        if sys.stdin.isatty():
            key = click.prompt(f"API key for {address}", hide_input=True, err=True)
        else:
            key = sys.stdin.readline()
        key = key.strip()
        if not key:
            raise click.ClickException("no key was given; the server's first one lies in its DATA/token")
        who = "" if no_check else f" as {_check(address, key)}"
        click.echo(f"logged in to {address}{who}; the key is kept in {credentials.keep(address, key)}")


def _check(url: str, key: str) -> str:
    """Who the server says one is."""
    from torchtrack.sidecar.upload.transport import Http, UnreachableError
    from torchtrack.wire import API

    try:
        reply = Http(url, lambda: key).ask("GET", f"{API}/me")
    except UnreachableError as error:
        raise click.ClickException(f"{url} does not answer: {error}; --no-check keeps the key anyhow") from None
    if reply.status != 200:
        raise click.ClickException(f"{url}: {reply.problem()}; nothing was kept")
    me = reply.json()
    roles = ", ".join(f"{role} of {'all projects' if at == '*' else at}" for at, role in me.get("roles", {}).items())
    return f"{me.get('name')} ({roles or 'no role yet'})"
