"""Where reports and pages as files come from: a folder of runs, its page while that is up, or a server."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Protocol
from urllib.parse import quote, unquote

import click

from torchtrack.cli import common, remote

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from torchtrack.server.standalone import Ask

PATIENCE_S: Final = 600.0
"""A large file takes a server some time before its first byte."""
_REPORT: Final = re.compile(r"(https?://.+?)/(?:#/p/[^/]+/)?reports/([^/?#]+)")
"""A report on a server: as the page shows it, or plainly."""


class Source(Protocol):
    """What has reports, and makes files of them and of runs."""

    def reports(self, project: str | None = None) -> list[dict[str, Any]]:
        """The reports of a project or of all, the one that was changed last first."""
        ...

    def report_file(self, id_: str) -> bytes:
        """A report as HTML."""
        ...

    def run_file(self, uid: str) -> bytes:
        """The page of a run as HTML."""
        ...


class OnServer:
    """A server, or the page of a folder that is up.

    Args:
        url: its address.
        key: what it lets one in with; None: the one of `torchtrack login`.
    """

    def __init__(self, url: str, key: str | None = None) -> None:
        from torchtrack.api.remote import Server

        self._server = Server(url, key, timeout_s=PATIENCE_S)

    def reports(self, project: str | None = None) -> list[dict[str, Any]]:
        """The reports that one may read."""
        found: list[dict[str, Any]] = json.loads(
            self._server.get("reports", [("project", project)] if project is not None else [])
        )
        return found

    def report_file(self, id_: str) -> bytes:
        """A report as HTML."""
        return self._server.get(f"reports/{quote(id_, safe='')}/html")

    def run_file(self, uid: str) -> bytes:
        """The page of a run as HTML."""
        return self._server.get(f"runs/{uid}/html")


class InFolder:
    """A folder of runs.

    Args:
        folder: of the runs; None: the default one.
    """

    def __init__(self, folder: Path | None) -> None:
        self._folder = folder or common.default_folder()
        if not self._folder.is_dir():
            raise click.ClickException(
                f"no runs: there is no {self._folder}; give the folder with --dir or TORCHTRACK_DIR, or a server with "
                "--url"
            )

    def reports(self, project: str | None = None) -> list[dict[str, Any]]:
        """The reports that were written on the page of this folder."""
        with common.server_packages():
            from torchtrack.server.offline import catalog_of
        with catalog_of(self._folder) as catalog:
            return catalog.reports.of(None if project is None else [project])

    def report_file(self, id_: str) -> bytes:
        """A report as HTML."""
        with common.server_packages():
            from torchtrack.server.offline import catalog_of
            from torchtrack.server.standalone import report_file
        with catalog_of(self._folder) as catalog:
            report = catalog.reports.find(id_)
        if report is None:
            raise click.ClickException(f"there is no report {id_!r}")
        return self._made(lambda ask: report_file(report, ask), lambda up: up.report_file(id_))

    def run_file(self, uid: str) -> bytes:
        """The page of a run as HTML."""
        with common.server_packages():
            from torchtrack.server.media import MediaStore
            from torchtrack.server.standalone import run_file
        media = MediaStore(self._folder)
        return self._made(lambda ask: run_file(uid, ask, media), lambda up: up.run_file(uid))

    def _made(self, here: Callable[[Ask], Awaitable[bytes]], there: Callable[[OnServer], bytes]) -> bytes:
        """Made here, or by the page of the folder if that is up: one process alone has the index."""
        from torchtrack.server.offline import answered
        from torchtrack.server.shown import ADDRESS, index_folder

        try:
            return answered(self._folder, here)
        except BlockingIOError:
            url, _, token = json.loads((index_folder(self._folder) / ADDRESS).read_text())["url"].partition("#token=")
            return there(OnServer(url.rstrip("/"), token))


def source(folder: Path | None, url: str | None) -> Source:
    """The server that was named, else the folder."""
    return OnServer(remote.server_address(url)) if url else InFolder(folder)


def find_report(folder: Path | None, url: str | None, name: str) -> tuple[Source, dict[str, Any]]:
    """The report somebody typed: its id, the beginning of it, its title, or its address on a server.

    Raises:
        click.ClickException: there is none, or several.
    """
    address = _REPORT.match(name)
    if address is not None:
        url, name = address[1], unquote(address[2])
    where = source(folder, url)
    every = where.reports()
    found = [one for one in every if name in (one["id"], one["title"])] or [
        one for one in every if one["id"].startswith(name)
    ]
    if len(found) == 1:
        return where, found[0]
    if found:
        listed = ", ".join(f"{one['id']} ({one['project']})" for one in found[:10])
        raise click.ClickException(f"{len(found)} reports are called {name!r}: give the id, {listed}")
    listed = ", ".join(f"{one['id']} {one['title']!r}" for one in every[:10])
    raise click.ClickException(f"no report {name!r}; there are {listed or 'none yet: the page has them under Reports'}")


@contextmanager
def whole(path: Path) -> Iterator[Path]:
    """Where to write a file that is to be there as a whole or not at all."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        yield temporary
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
