"""What people change: names, tags, notes of runs, runs they delete, views, alert rules. The catalog alone has it.

A route that names runs asks first which projects they are of, and whether whoever asks may write there.
"""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Annotated, Any, Final

from fastapi import APIRouter, Header, Path, Query, Request
from fastapi.concurrency import run_in_threadpool
from pydantic import AfterValidator, Field, model_validator

from torchtrack.server.auth import key_of, need
from torchtrack.server.bodies import HEX16, Body, Id
from torchtrack.server.catalog import Catalog, ConflictError
from torchtrack.server.problems import ApiError, also
from torchtrack.server.rules import Severity, When

Uid = Annotated[str, Path(pattern=HEX16, description="Of the run.")]
Project = Annotated[str, Query(min_length=1, max_length=256, pattern=r"^[^\x00]+$", description="Its name.")]
Text = Annotated[str, Field(min_length=1, max_length=256, pattern=r"^[^\x00]+$")]
MAX_VIEW: Final = 1 << 20
"""Bytes of a view."""


def _plain(content: dict[str, Any]) -> dict[str, Any]:
    """JSON as everybody reads it: no NaN, no half characters; and not too much of it."""
    try:
        size = len(json.dumps(content, allow_nan=False, ensure_ascii=False).encode())
    except (ValueError, RecursionError):  # UnicodeEncodeError is one
        raise ValueError("it holds what is no JSON: NaN, an infinity, half a character, or too many levels") from None
    if size > MAX_VIEW:
        raise ValueError(f"a view has at most {MAX_VIEW} bytes")
    return content


Content = Annotated[dict[str, Any], AfterValidator(_plain)]
Where = Callable[[Sequence[str]], Awaitable[Mapping[str, str]]]
"""By uid the project of runs that there are, deleted or not."""
_GONE = "there is no such run"


class Changes(Body):
    """Fields to set; null takes an edit back."""

    name: str | None = None
    notes: str | None = None
    tags: list[str] | None = None
    group: str | None = None
    archived: bool | None = None
    colour: str | None = None


class BulkChanges(Body):
    """The same fields of several runs."""

    uids: list[Annotated[str, Field(pattern=HEX16)]] = Field(max_length=10_000)
    changes: Changes


class NewView(Body):
    """A view to save: one's own, or, `shared`, everybody's in the project, for which one has to be an editor."""

    project: Text
    name: Text
    content: Content
    shared: bool = False


class NewRule(Body):
    """A rule: of which runs (a filter as in `runs/query`) what somebody wants to know, and how much it matters."""

    project: Text
    name: Text
    filter: str = Field("", max_length=1000, pattern=r"^[^\x00]*$")
    severity: Severity = "warning"
    when: When = When()

    @model_validator(mode="after")
    def _check(self) -> NewRule:
        from torchtrack.server.filters import compile_filter  # they bring the engine's client, which few requests need
        from torchtrack.server.reading import FIELDS

        compile_filter(self.filter, FIELDS)
        if self.when.kind == "matches" and not self.filter.strip():
            raise ValueError("every run fits an empty filter: give one, or say with `when` what the rule waits for")
        return self


def router(catalog: Catalog, where: Where) -> APIRouter:
    """The routes that change runs; for those who may write.

    Args:
        catalog: where it is kept.
        where: which projects runs are of.
    """
    routes = APIRouter(tags=["curation"])
    _of_runs(routes, catalog, where)
    _of_rules(routes, catalog)
    return routes


def readers_router(catalog: Catalog) -> APIRouter:
    """The routes for those who may read: saved views, of which they may save their own, and alert rules to look at."""
    routes = APIRouter(tags=["curation"])
    _of_views(routes, catalog)

    @routes.get("/alert-rules")
    def rules(project: Project, request: Request) -> list[dict[str, Any]]:
        """The rules of a project. What they fired on, `alarms` says."""
        need(key_of(request), "read", project)
        return [_rule(rule) for rule in catalog.alert_rules(project)]

    return routes


def _of_runs(routes: APIRouter, catalog: Catalog, where: Where) -> None:
    async def may(request: Request, uids: Sequence[str]) -> Mapping[str, str]:
        who = key_of(request)
        if who.may("write", "*"):
            return {}
        projects = await where(uids)
        for uid in uids:
            if uid not in projects:
                raise ApiError(404, "not_found", _GONE)
            need(who, "write", projects[uid], _GONE)
        return projects

    async def edit(uids: Sequence[str], changes: Changes, request: Request) -> None:
        projects, given = await may(request, uids), changes.model_dump(exclude_unset=True)
        who = key_of(request)
        for uid in uids:
            try:
                await run_in_threadpool(catalog.edit, uid, given, who.name)
            except ValueError as error:
                raise ApiError(422, "bad_request", str(error)) from None
            note = catalog.audit.note
            await run_in_threadpool(note, who, "run.edit", uid, projects.get(uid), fields=sorted(given))

    @routes.patch("/runs/{uid}", status_code=204)
    async def patch_run(uid: Uid, changes: Changes, request: Request) -> None:
        """Set fields of a run."""
        await edit([uid], changes, request)

    @routes.post("/runs/bulk", status_code=204)
    async def patch_runs(bulk: BulkChanges, request: Request) -> None:
        """Set fields of several runs."""
        await edit(bulk.uids, bulk.changes, request)

    @routes.delete("/runs/{uid}", status_code=204)
    async def delete_run(uid: Uid, request: Request) -> None:
        """Hide a run for good; its journals stay until `gc` removes them, and `restore` takes it back."""
        projects, who = await may(request, [uid]), key_of(request)
        await run_in_threadpool(catalog.delete, uid, who.name)
        await run_in_threadpool(catalog.audit.note, who, "run.delete", uid, projects.get(uid))

    @routes.post("/runs/{uid}/restore", status_code=204)
    async def restore_run(uid: Uid, request: Request) -> None:
        """Show a deleted run again."""
        projects, who = await may(request, [uid]), key_of(request)
        await run_in_threadpool(catalog.restore, uid)
        await run_in_threadpool(catalog.audit.note, who, "run.restore", uid, projects.get(uid))


def _of_views(routes: APIRouter, catalog: Catalog) -> None:
    def mine(id_: str, request: Request) -> dict[str, Any]:
        """A view that whoever asks may change."""
        who, view = key_of(request), catalog.view(id_)
        if view is None or view["owner"] not in ("", who.person):
            raise ApiError(404, "not_found", "there is no such view")
        need(who, "read" if view["owner"] else "write", view["project"], "there is no such view")
        return view

    @routes.get("/views")
    def views(project: Project, request: Request) -> list[dict[str, Any]]:
        """The saved views of a project: everybody's, and one's own (`shared` is false)."""
        who = key_of(request)
        need(who, "read", project)
        return [_shown(view) for view in catalog.views(project, who.person)]

    @routes.post("/views", status_code=201, responses=also(conflict="The name is taken."))
    def save_view(view: NewView, request: Request) -> dict[str, Any]:
        """Save a view."""
        who = key_of(request)
        need(who, "write" if view.shared else "read", view.project)
        owner = "" if view.shared else who.person
        try:
            return _shown(catalog.save_view(view.project, view.name, view.content, who.name, owner))
        except ConflictError as error:
            raise ApiError(409, "conflict", str(error)) from error

    @routes.put("/views/{id}", responses=also(conflict="Somebody else was first: load it again."))
    def change_view(
        id: Id,  # noqa: A002
        content: Content,
        request: Request,
        if_match: Annotated[int, Header(ge=1, le=1 << 30)],
    ) -> dict[str, int]:
        """Change a view; If-Match is the version one has seen."""
        mine(id, request)
        try:
            return {"version": catalog.change_view(id, content, if_match, key_of(request).name)}
        except ConflictError as error:
            raise ApiError(409, "conflict", str(error)) from error

    @routes.delete("/views/{id}", status_code=204)
    def remove_view(id: Id, request: Request) -> None:  # noqa: A002
        """Remove a view."""
        view = mine(id, request)
        catalog.remove_view(id)
        if not view["owner"]:
            catalog.audit.note(key_of(request), "view.remove", view["name"], view["project"])


def _shown(view: Mapping[str, Any]) -> dict[str, Any]:
    return {
        **{name: view[name] for name in ("id", "project", "name", "content", "version")},
        "shared": not view["owner"],
    }


def _of_rules(routes: APIRouter, catalog: Catalog) -> None:
    @routes.post("/alert-rules", status_code=201)
    def save_rule(rule: NewRule, request: Request) -> dict[str, Any]:
        """Save a rule; one of the same name is replaced."""
        who = key_of(request)
        need(who, "write", rule.project)
        when = rule.when.model_dump(exclude_none=True)
        saved = catalog.save_alert_rule(rule.project, rule.name, rule.filter, rule.severity, who.name, when)
        catalog.audit.note(who, "rule.save", rule.name, rule.project)
        return _rule(saved)

    @routes.delete("/alert-rules/{id}", status_code=204)
    def remove_rule(id: Id, request: Request) -> None:  # noqa: A002
        """Remove a rule."""
        who, rule = key_of(request), catalog.alert_rule(id)
        if rule is None:
            raise ApiError(404, "not_found", "there is no such rule")
        need(who, "write", rule["project"], "there is no such rule")
        catalog.remove_alert_rule(id)
        catalog.audit.note(who, "rule.remove", rule["name"], rule["project"])


def _rule(row: Mapping[str, Any]) -> dict[str, Any]:
    """A rule for an answer; `says` is what it waits for in words."""
    when = When(**(row["when"] or {}))
    about = {name: row[name] for name in ("id", "project", "name", "filter", "severity", "by")}
    return {**about, "when": when.model_dump(exclude_none=True), "says": str(when)}
