"""`torchtrack server`: take runs from many machines."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import click

from torchtrack import alerts, settings
from torchtrack.cli import common


@click.command()
@click.option(
    "--data",
    type=click.Path(path_type=Path),
    default=Path("torchtrack-server"),
    show_default=True,
    help="Folder of everything the server keeps.",
)
@click.option("--host", default="127.0.0.1", show_default=True, help="Where it listens.")
@click.option("--port", type=click.IntRange(0, 65535), default=7420, show_default=True, help="0 takes a free one.")
@click.option("--allow-host", "hosts", multiple=True, metavar="NAME", help="A name under which it is asked; repeat it.")
@common.metrics_options
@click.option(
    "--catalog",
    metavar="URL",
    envvar="TORCHTRACK_CATALOG",
    help="A database for what people type; by default a file in DATA.",
)
@click.option(
    "--blobs",
    metavar="URL",
    envvar="TORCHTRACK_BLOBS",
    help="An object store for media (s3://, gs://, az://); by default they lie in DATA.",
)
@click.option("--oidc-issuer", metavar="URL", help="An identity provider by which people log in on the page.")
@click.option("--oidc-client", metavar="ID", help="What it knows this server by; TORCHTRACK_OIDC_SECRET is its secret.")
@click.option(
    "--oidc-role",
    type=click.Choice(["viewer", "editor", "admin", "none"]),
    default="viewer",
    show_default=True,
    help="What somebody may in all projects after the first login.",
)
@click.option(
    "--public-url", metavar="URL", help="The address people have this server under, for the provider and for alerts."
)
@click.option(
    "--alert-urls",
    metavar="URLS",
    envvar="TORCHTRACK_ALERT_URLS",
    help="Who is told what alert rules fire on: URLs as apprise takes them, or files of them, with commas between.",
)
@click.option("--no-token", is_flag=True, help="Let in everyone on this machine. Refused where others can connect.")
def server(
    data: Path,
    host: str,
    port: int,
    hosts: tuple[str, ...],
    metrics: str | None,
    cluster: str | None,
    replicated: bool,
    keep: tuple[str, ...],
    catalog: str | None,
    blobs: str | None,
    oidc_issuer: str | None,
    oidc_client: str | None,
    oidc_role: str,
    public_url: str | None,
    alert_urls: str | None,
    no_token: bool,
) -> None:
    """Take runs from many machines and keep them as their ranks wrote them.

    Its first key is made at the first start and lies in DATA/token. Log in on the machines that train with
    `torchtrack login URL`. What has arrived lies in DATA/runs and is read by every command: `torchtrack ls DATA/runs`.
    Put a server that serves TLS before it where others can listen on the network.
    """
    with common.friendly():
        with common.server_packages():
            from torchtrack.server.app import Config
            from torchtrack.server.serve import serve
        provider = _provider(oidc_issuer, oidc_client, oidc_role, public_url)
        layout = common.layout_of(metrics, cluster, keep, replicated=replicated)
        stores: dict[str, Any] = {"metrics": metrics, "catalog": catalog, "blobs": blobs, "provider": provider}
        telling: dict[str, Any] = {"alert_urls": _addresses(alert_urls), "public_url": public_url}
        config = Config(data=data, host=host, hosts=hosts, token=not no_token, layout=layout, **stores, **telling)

        def say(address: str, key: str | None) -> None:
            how = f"its key lies in {data / 'token'}" if key else "it needs no key, and only this machine reaches it"
            click.echo(f"torchtrack server listens on {address}; {how}", err=True)
            click.echo(f"runs are kept in {config.runs}", err=True)

        serve(config, port, say)


def _addresses(given: str | None) -> tuple[str, ...]:
    """Who is told; nobody if that is not said."""
    urls = [each.strip() for each in (given or "").split(",") if each.strip()]
    if urls and (why := alerts.missing()) is not None:
        raise click.ClickException(f"--alert-urls: {why}")
    checked: tuple[str, ...] = settings.check("alert_urls", urls, "--alert-urls")
    return checked


def _provider(issuer: str | None, client: str | None, role: str, public_url: str | None) -> Any:
    """By whom people log in, None if by nobody."""
    if issuer is None:
        return None
    if client is None:
        raise click.UsageError("--oidc-issuer needs --oidc-client: what the provider knows this server by")
    try:
        from torchtrack.server.oidc import Provider
    except ImportError as error:
        raise click.ClickException(f"{error}; install what logins need: pip install 'torchtrack[oidc]'") from None
    secret = os.environ.get("TORCHTRACK_OIDC_SECRET") or None
    given: Any = None if role == "none" else role
    return Provider(issuer=issuer, client_id=client, client_secret=secret, role=given, public_url=public_url)
