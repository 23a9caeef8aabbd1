"""What people change: names, tags, notes of runs, runs they delete, views they save. It goes to the catalog alone."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Any

from fastapi import APIRouter, Header, Path, Query, Request
from pydantic import BaseModel, ConfigDict, Field

from torchtrack.server.catalog import Catalog, ConflictError
from torchtrack.server.problems import ApiError

Uid = Annotated[str, Path(pattern="^[0-9a-f]{16}$")]
ViewId = Annotated[str, Path(pattern="^[0-9a-f]{16}$")]


class Changes(BaseModel):
    """Fields to set; null takes an edit back."""

    model_config = ConfigDict(extra="forbid")
    name: str | None = None
    notes: str | None = None
    tags: list[str] | None = None
    group: str | None = None
    archived: bool | None = None
    colour: str | None = None


class BulkChanges(BaseModel):
    """The same fields of several runs."""

    model_config = ConfigDict(extra="forbid")
    uids: list[Annotated[str, Field(pattern="^[0-9a-f]{16}$")]] = Field(max_length=10_000)
    changes: Changes


class NewView(BaseModel):
    """A view to save."""

    model_config = ConfigDict(extra="forbid")
    project: str = Field(min_length=1, max_length=256)
    name: str = Field(min_length=1, max_length=256)
    content: dict[str, Any]


def router(catalog: Catalog, who: Callable[[Request], str]) -> APIRouter:
    """The routes.

    Args:
        catalog: where it is kept.
        who: the name of whoever asks.
    """
    routes = APIRouter(tags=["curation"])
    _of_runs(routes, catalog, who)
    _of_views(routes, catalog, who)
    return routes


def _of_runs(routes: APIRouter, catalog: Catalog, who: Callable[[Request], str]) -> None:
    def edit(uids: list[str], changes: Changes, request: Request) -> None:
        for uid in uids:
            catalog.edit(uid, changes.model_dump(exclude_unset=True), who(request))

    @routes.patch("/runs/{uid}", status_code=204)
    def patch_run(uid: Uid, changes: Changes, request: Request) -> None:
        """Set fields of a run."""
        edit([uid], changes, request)

    @routes.post("/runs/bulk", status_code=204)
    def patch_runs(bulk: BulkChanges, request: Request) -> None:
        """Set fields of several runs."""
        edit(bulk.uids, bulk.changes, request)

    @routes.delete("/runs/{uid}", status_code=204)
    def delete_run(uid: Uid, request: Request) -> None:
        """Hide a run for good; its journals stay until `gc` removes them, and `restore` takes it back."""
        catalog.delete(uid, who(request))

    @routes.post("/runs/{uid}/restore", status_code=204)
    def restore_run(uid: Uid) -> None:
        """Show a deleted run again."""
        catalog.restore(uid)


def _of_views(routes: APIRouter, catalog: Catalog, who: Callable[[Request], str]) -> None:
    @routes.get("/views")
    def views(project: Annotated[str, Query(min_length=1, max_length=256)]) -> list[dict[str, Any]]:
        """The saved views of a project."""
        return catalog.views(project)

    @routes.post("/views", status_code=201)
    def save_view(view: NewView, request: Request) -> dict[str, Any]:
        """Save a view."""
        try:
            return catalog.save_view(view.project, view.name, view.content, who(request))
        except ConflictError as error:
            raise ApiError(409, "conflict", str(error)) from error

    @routes.put("/views/{id}")
    def change_view(
        id: ViewId,  # noqa: A002
        content: dict[str, Any],
        request: Request,
        if_match: Annotated[int, Header(ge=1, le=1 << 30)],
    ) -> dict[str, int]:
        """Change a view; If-Match is the version one has seen."""
        try:
            return {"version": catalog.change_view(id, content, if_match, who(request))}
        except ConflictError as error:
            raise ApiError(409, "conflict", str(error)) from error

    @routes.delete("/views/{id}", status_code=204)
    def remove_view(id: ViewId) -> None:  # noqa: A002
        """Remove a view."""
        catalog.remove_view(id)
