"""Who asks, and what they may: roles of people, scopes of keys, both by project. Knows no database and no HTTP."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final, Literal

Role = Literal["viewer", "editor", "admin"]
Scope = Literal["read", "write", "admin"]
Kind = Literal["owner", "anyone", "key", "user"]

ROLES: Final[tuple[Role, ...]] = ("viewer", "editor", "admin")
"""Each may what the one before it may."""
SCOPES: Final[Mapping[Scope, Role]] = {"read": "viewer", "write": "editor", "admin": "admin"}
"""A key of a scope may what the role may."""
EVERYWHERE: Final = "*"
"""In place of a project: all of them."""


def at_least(role: Role | None, least: Role) -> bool:
    """Whether a role includes another one."""
    return role is not None and ROLES.index(role) >= ROLES.index(least)


def lower(first: Role, second: Role) -> Role:
    """What both may."""
    return ROLES[min(ROLES.index(first), ROLES.index(second))]


@dataclass(frozen=True)
class Who:
    """Who makes a request.

    Attributes:
        id: of the key, the user, `owner` or `anyone`: no two are alike.
        name: for people.
        kind: what lets them in.
        roles: by project; `*` is all of them.
        user: the id of the person, whose views these are; None for a key of nobody.
    """

    id: str
    name: str
    kind: Kind
    roles: Mapping[str, Role] = field(default_factory=dict)
    user: str | None = None

    def role(self, project: str) -> Role | None:
        """What they are in a project."""
        held = [role for name in (project, EVERYWHERE) if (role := self.roles.get(name)) is not None]
        return max(held, key=ROLES.index, default=None)

    def may(self, scope: Scope, project: str | None = None) -> bool:
        """Whether they may do this in a project, `*` for all; without one: in any."""
        if project is not None:
            return at_least(self.role(project), SCOPES[scope])
        return any(at_least(role, SCOPES[scope]) for role in self.roles.values())

    def projects(self, scope: Scope) -> frozenset[str] | None:
        """Where they may do this; None is everywhere."""
        if self.may(scope, EVERYWHERE):
            return None
        return frozenset(name for name, role in self.roles.items() if at_least(role, SCOPES[scope]))

    @property
    def person(self) -> str:
        """Whose views these are."""
        return self.user or self.id

    def limited(self, scope: Scope, project: str | None) -> dict[str, Role]:
        """Of these roles, what a key of this scope has, for one project if it is for one."""
        most = SCOPES[scope]
        if project is None:
            return {name: lower(role, most) for name, role in self.roles.items()}
        held = self.role(project)
        return {} if held is None else {project: lower(held, most)}


OWNER: Final = Who("owner", "owner", "owner", {EVERYWHERE: "admin"})
"""Who has the server's own token."""
ANYONE: Final = Who("anyone", "anyone", "anyone", {EVERYWHERE: "admin"})
"""Who asks a server without a token, which only this machine reaches."""
