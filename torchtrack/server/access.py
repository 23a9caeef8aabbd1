"""Routes about people: who am I, keys, users and their roles, and the audit log.

Who may what: an admin of the server (`admin` in all projects) everything; an admin of a project the keys and roles of
that project; everybody their own keys, which never may more than they do.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import timedelta
from typing import Annotated, Any

from fastapi import APIRouter, Query, Request
from pydantic import Field, field_validator

from torchtrack.server.auth import Keys, key_of, need
from torchtrack.server.bodies import HEX16, Body, Id
from torchtrack.server.catalog import Catalog
from torchtrack.server.people import TakenError, UnknownError
from torchtrack.server.problems import ApiError, also
from torchtrack.server.rights import EVERYWHERE, Role, Scope, Who, at_least
from torchtrack.server.tables import now

Label = Annotated[str, Field(min_length=1, max_length=200, pattern=r"^[^\x00-\x1f\x7f]+$")]
Project = Annotated[str, Field(min_length=1, max_length=256, pattern=r"^[^\x00-\x1f\x7f/]+$")]


class NewKey(Body):
    """A key to make. Without `project` it is for all projects its maker, or its user, may use."""

    name: Label
    scope: Scope
    project: Project | None = None
    user: Annotated[str, Field(pattern=HEX16)] | None = Field(None, description="Whose it is; null: nobody's")
    expires_days: float | None = Field(None, gt=0, le=3650)

    @field_validator("project")
    @classmethod
    def _of_one(cls, project: str | None) -> str | None:
        return None if project == EVERYWHERE else project


class NewUser(Body):
    """A user to add; `roles` by project, `*` for all."""

    name: Label
    email: Annotated[str, Field(max_length=320, pattern=r"^[^\x00-\x1f\x7f]*$")] | None = None
    roles: dict[Project, Role] = Field(default={}, max_length=1000)


class UserChange(Body):
    """Whether a user is let in."""

    disabled: bool


class RoleChange(Body):
    """A role in a project, `*` for all; null takes it away."""

    project: Project
    role: Role | None


def router(catalog: Catalog, keys: Keys) -> APIRouter:
    """The routes for everybody.

    Args:
        catalog: where people are kept.
        keys: what lets them in, to be told of changes.
    """
    routes = APIRouter(tags=["access"])
    _of_keys(routes, catalog, keys)
    return routes


def admin_router(catalog: Catalog, keys: Keys) -> APIRouter:
    """The routes for admins, of the server or of some project."""
    routes = APIRouter(tags=["access"])
    _of_users(routes, catalog, keys)
    _of_roles(routes, catalog, keys)
    _of_audit(routes, catalog)
    return routes


def about_me(login: str | None = None) -> APIRouter:
    """The route for who may nothing yet, too.

    Args:
        login: the name of the identity provider one can log in by, if there is one.
    """
    routes = APIRouter(tags=["access"])

    @routes.get("/me")
    def me(request: Request) -> dict[str, Any]:
        """Who asks, and their role by project (`*`: all of them)."""
        who = key_of(request)
        about = {"id": who.id, "name": who.name, "kind": who.kind, "user": who.user}
        return {**about, "roles": dict(who.roles), "login": login}

    return routes


def _of_keys(routes: APIRouter, catalog: Catalog, keys: Keys) -> None:
    @routes.get("/keys")
    def list_keys(request: Request) -> list[dict[str, Any]]:
        """One's own keys, and those of the projects one is an admin of; never what they are."""
        who = key_of(request)
        return [key for key in catalog.people.all_keys() if _sees(who, key)]

    @routes.post("/keys", status_code=201)
    def create_key(new: NewKey, request: Request) -> dict[str, Any]:
        """Make a key. The answer has it as `key`: it is told this once."""
        who = key_of(request)
        own = who.user if new.user is None and not who.may("admin", new.project or EVERYWHERE) else new.user
        if own is None or own != who.user:
            need(who, "admin", new.project or EVERYWHERE)
        if own is not None:
            _not_above(who, _user(catalog, own), new)
        expires = None if new.expires_days is None else now() + timedelta(days=new.expires_days)
        try:
            key, about = catalog.people.add_key(
                new.name, new.scope, who, project=new.project, user=own, expires=expires
            )
        except UnknownError as error:
            raise ApiError(404, "not_found", str(error)) from None
        return {**about, "key": key}

    @routes.delete("/keys/{id}", status_code=204)
    def revoke_key(id: Id, request: Request) -> None:  # noqa: A002
        """Let a key in no more, nor the sessions it was traded for."""
        who = key_of(request)
        key = catalog.people.key(id)
        if key is None or not _sees(who, key):
            raise ApiError(404, "not_found", "there is no such key")
        catalog.people.revoke_key(id, who)
        keys.forget()


def _of_users(routes: APIRouter, catalog: Catalog, keys: Keys) -> None:
    @routes.get("/users")
    def list_users(request: Request) -> list[dict[str, Any]]:
        """For an admin: the users, with their roles in the projects one is an admin of."""
        mine = _administered(key_of(request))
        found = catalog.people.all_users()
        if mine is None:
            return found
        return [{**user, "roles": {p: r for p, r in user["roles"].items() if p in mine}} for user in found]

    @routes.post("/users", status_code=201, responses=also(conflict="The name is taken."))
    def add_user(new: NewUser, request: Request) -> dict[str, Any]:
        """Add a user. They come in with a key that is made for them, or by the identity provider."""
        who = key_of(request)
        for project in new.roles or {EVERYWHERE: "viewer"}:
            need(who, "admin", project)
        try:
            return catalog.people.add_user(new.name, new.roles, who, new.email)
        except TakenError as error:
            raise ApiError(409, "conflict", str(error)) from None

    @routes.patch("/users/{id}", status_code=204)
    def change_user(id: Id, change: UserChange, request: Request) -> None:  # noqa: A002
        """Let a user in no more, or again."""
        who = key_of(request)
        need(who, "admin", EVERYWHERE)
        _user(catalog, id)
        catalog.people.change_user(id, who, disabled=change.disabled)
        keys.forget()

    @routes.delete("/users/{id}", status_code=204)
    def remove_user(id: Id, request: Request) -> None:  # noqa: A002
        """Remove a user with all their keys and sessions."""
        who = key_of(request)
        need(who, "admin", EVERYWHERE)
        _user(catalog, id)
        catalog.people.remove_user(id, who)
        keys.forget()


def _of_roles(routes: APIRouter, catalog: Catalog, keys: Keys) -> None:
    @routes.put("/users/{id}/roles", status_code=204)
    def set_role(id: Id, change: RoleChange, request: Request) -> None:  # noqa: A002
        """Give a user a role in a project, or take it away."""
        who = key_of(request)
        need(who, "admin", change.project)
        _user(catalog, id)
        catalog.people.set_role(id, change.project, change.role, who)
        keys.forget()


def _of_audit(routes: APIRouter, catalog: Catalog) -> None:
    @routes.get("/audit")
    def audit(
        request: Request,
        project: Annotated[str | None, Query(min_length=1, max_length=256, pattern=r"^[^\x00]+$")] = None,
        before: Annotated[int | None, Query(ge=1, le=1 << 31, description="Lines with a smaller id.")] = None,
        limit: Annotated[int, Query(ge=1, le=1000)] = 100,
    ) -> dict[str, Any]:
        """What people did in the projects one is an admin of, the newest first."""
        mine = _administered(key_of(request))
        if project is not None:
            need(key_of(request), "admin", project)
            mine = frozenset({project})
        lines = catalog.audit.lines(mine, before, limit)
        return {"lines": lines, "before": lines[-1]["id"] if len(lines) == limit else None}


def _administered(who: Who) -> frozenset[str] | None:
    """The projects somebody is an admin of, None for all."""
    return who.projects("admin")


def _sees(who: Who, key: dict[str, Any]) -> bool:
    """Whether a key is somebody's own, or of a project of theirs."""
    own = key["id"] == who.id or (key["user"] is not None and key["user"] == who.user)
    return own or who.may("admin", key["project"] or EVERYWHERE)


def _user(catalog: Catalog, id_: str) -> dict[str, Any]:
    user = catalog.people.user(id_)
    if user is None:
        raise ApiError(404, "not_found", "there is no such user")
    return user


def _not_above(who: Who, user: Mapping[str, Any], new: NewKey) -> None:
    """Refuse a key that may nothing, or more than who makes it."""
    roles = Who(user["id"], user["name"], "user", user["roles"]).limited(new.scope, new.project)
    if not roles:
        raise ApiError(403, "not_allowed", f"{user['name']!r} has no role there; give one first")
    if not all(at_least(who.role(project), role) for project, role in roles.items()):
        raise ApiError(403, "not_allowed", f"{who.name!r} may not make a key that may more than they may")
