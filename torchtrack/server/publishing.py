"""Reports: written, read, and handed out as files of their own, as the page of a run is."""

from __future__ import annotations

from collections.abc import Coroutine
from typing import Annotated, Any
from urllib.parse import quote

from fastapi import APIRouter, Header, Query, Request, Response
from fastapi.concurrency import run_in_threadpool
from fastapi.responses import HTMLResponse
from pydantic import Field

from torchtrack.server.auth import key_of, need
from torchtrack.server.bodies import Body, Id
from torchtrack.server.catalog import Catalog
from torchtrack.server.curation import Project, Text, Uid
from torchtrack.server.front import Worker
from torchtrack.server.media import MediaStore
from torchtrack.server.problems import ApiError, also
from torchtrack.server.reports import MAX_TEXT, ChangedError
from torchtrack.server.rights import Scope
from torchtrack.server.standalone import Ask, StandaloneError, report_file, run_file

Written = Annotated[str, Field(max_length=MAX_TEXT, pattern=r"^[^\x00]*$", description="Markdown.")]
_GONE = "there is no such report"
_HTML: dict[int | str, dict[str, Any]] = {200: {"description": "The file.", "content": {"text/html": {}}}}
_FIRST = also(conflict="Somebody else was first: load it again.")


class NewReport(Body):
    """A report to begin."""

    project: Text
    title: Text
    text: Written = ""


class NewVersion(Body):
    """A report as it is now."""

    title: Text
    text: Written


def router(catalog: Catalog, worker: Worker, media: MediaStore) -> APIRouter:
    """The routes by which reports are read, and reports and runs become files; for who may read.

    Args:
        catalog: where reports are kept.
        worker: answers what their panels ask.
        media: the files of runs.
    """
    routes = APIRouter(tags=["reports"])
    _reading(routes, catalog)
    _files(routes, catalog, worker, media)
    return routes


def writing_router(catalog: Catalog) -> APIRouter:
    """The routes by which reports are written; for editors."""
    routes = APIRouter(tags=["reports"])
    _writing(routes, catalog)
    return routes


def _found(catalog: Catalog, id_: str, request: Request, scope: Scope, version: int | None = None) -> dict[str, Any]:
    """A report that whoever asks may do this to, removed or not."""
    found = catalog.reports.find(id_, version)
    if found is None:
        raise ApiError(404, "not_found", _GONE)
    need(key_of(request), scope, found["project"], _GONE)
    return found


def _there(found: dict[str, Any]) -> dict[str, Any]:
    if found["removed"]:
        raise ApiError(404, "not_found", "the report was removed; an editor of the project can restore it")
    return found


def _reading(routes: APIRouter, catalog: Catalog) -> None:
    @routes.get("/reports")
    def reports(request: Request, project: Project | None = None) -> list[dict[str, Any]]:
        """The reports of a project, or of all, without their texts; the one that was changed last first."""
        who = key_of(request)
        if project is not None:
            need(who, "read", project)
        return catalog.reports.of(who.projects("read") if project is None else [project])

    @routes.get("/reports/{id}")
    def report(
        id: Id,  # noqa: A002
        request: Request,
        version: Annotated[int | None, Query(ge=1, le=1 << 30)] = None,
    ) -> dict[str, Any]:
        """A report: title, text, version, who saved it and when; or one of its earlier versions."""
        return _there(_found(catalog, id, request, "read", version))

    @routes.get("/reports/{id}/versions")
    def versions(id: Id, request: Request) -> list[dict[str, Any]]:  # noqa: A002
        """The versions of a report that are kept, without their texts, the newest first."""
        _there(_found(catalog, id, request, "read"))
        return catalog.reports.versions(id)


def _writing(routes: APIRouter, catalog: Catalog) -> None:
    @routes.post("/reports", status_code=201)
    def create(report: NewReport, request: Request) -> dict[str, Any]:
        """Begin a report."""
        who = key_of(request)
        need(who, "write", report.project)
        return catalog.reports.create(report.project, report.title, report.text, who)

    @routes.put("/reports/{id}", responses=_FIRST)
    def save(
        id: Id,  # noqa: A002
        report: NewVersion,
        request: Request,
        if_match: Annotated[int, Header(ge=1, le=1 << 30)],
    ) -> dict[str, Any]:
        """Save a report; If-Match is the version one has seen. Those before it are kept."""
        _there(_found(catalog, id, request, "write"))
        try:
            return catalog.reports.save(id, report.title, report.text, if_match, key_of(request))
        except ChangedError as error:
            raise ApiError(409, "conflict", str(error)) from error

    @routes.delete("/reports/{id}", status_code=204)
    def remove(id: Id, request: Request) -> None:  # noqa: A002
        """Remove a report; `restore` takes it back."""
        _found(catalog, id, request, "write")
        catalog.reports.remove(id, key_of(request))

    @routes.post("/reports/{id}/restore", status_code=204)
    def restore(id: Id, request: Request) -> None:  # noqa: A002
        """Show a removed report again."""
        _found(catalog, id, request, "write")
        catalog.reports.remove(id, key_of(request), removed=False)


def _files(routes: APIRouter, catalog: Catalog, worker: Worker, media: MediaStore) -> None:
    def asks(request: Request) -> Ask:
        async def ask(path: str, body: Any) -> tuple[int, bytes]:
            return await worker.fetch(path, body, key_of(request).projects("read"))

        return ask

    @routes.get("/reports/{id}/html", response_class=Response, responses=_HTML)
    async def report_html(id: Id, request: Request) -> Response:  # noqa: A002
        """A report as one HTML file that needs no server, with what its panels show now."""
        found = _there(await run_in_threadpool(_found, catalog, id, request, "read"))
        return await _saved(report_file(found, asks(request)), found["title"])

    @routes.get("/runs/{uid}/html", response_class=Response, responses=_HTML)
    async def run_html(uid: Uid, request: Request) -> Response:
        """The page of a run as one HTML file that needs no server, as the run is now."""
        return await _saved(run_file(uid, asks(request), media), uid)


async def _saved(made: Coroutine[Any, Any, bytes], name: str) -> Response:
    """A file to be saved: shown from here it would be of this server, and could ask it anything."""
    try:
        content = await made
    except StandaloneError as error:
        again = 1 if error.status == 503 else None
        code = {404: "not_found", 503: "starting"}.get(error.status, "bad_request")
        raise ApiError(error.status, code, str(error), retry_after_s=again) from error
    headers = {
        "Content-Disposition": f"attachment; filename*=UTF-8''{quote(name[:80], safe='')}.html",
        "Content-Security-Policy": "sandbox",
        "Cache-Control": "no-store",
    }
    return HTMLResponse(content, headers=headers)
