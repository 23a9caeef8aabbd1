"""Users, their roles, keys and sessions, in the catalog. Of keys and sessions only the SHA-256 is kept."""

from __future__ import annotations

import hashlib
import secrets
from collections.abc import Mapping
from datetime import datetime, timedelta
from typing import Any, Final, NamedTuple

import sqlalchemy as sa
from sqlalchemy.exc import IntegrityError

from torchtrack.errors import TorchtrackError
from torchtrack.server.audit import note
from torchtrack.server.rights import EVERYWHERE, SCOPES, Role, Scope, Who
from torchtrack.server.tables import aware, grants, iso, keys, now, sessions, users

PREFIX: Final = "tt_"
USED_EVERY: Final = timedelta(minutes=1)
"""How exactly it is known when a key was used last."""

_KEYS: Final = sa.select(keys, users.c.name.label("person")).outerjoin(users, users.c.id == keys.c.user)


class TakenError(TorchtrackError):
    """There is one of this name already."""


class UnknownError(TorchtrackError):
    """There is no such user or key."""


class Found(NamedTuple):
    """Who has a key or a session, and until when."""

    who: Who
    expires: datetime | None


def digest(secret: str) -> str:
    """What is kept of a secret. Secrets here are random and long, so a fast hash is enough."""
    return hashlib.sha256(secret.encode("utf-8", "surrogateescape")).hexdigest()


def new_key() -> str:
    """A key that nobody can guess."""
    return PREFIX + secrets.token_urlsafe(32)


class People:
    """**Threads:** any. Every change is written to the audit log in the same transaction."""

    def __init__(self, engine: sa.Engine) -> None:
        self._engine = engine

    # -- users ---------------------------------------------------------------------------------------------------------

    def all_users(self) -> list[dict[str, Any]]:
        """All users by name, with their roles."""
        with self._engine.connect() as connection:
            found = connection.execute(sa.select(users).order_by(users.c.name)).mappings().all()
            roles = _roles(connection)
        return [_user(row, roles.get(row["id"], {})) for row in found]

    def user(self, id_: str) -> dict[str, Any] | None:
        """A user with their roles, None if there is none."""
        with self._engine.connect() as connection:
            row = connection.execute(sa.select(users).where(users.c.id == id_)).mappings().first()
            return None if row is None else _user(row, _roles(connection, id_).get(id_, {}))

    def add_user(self, name: str, roles: Mapping[str, Role], by: Who, email: str | None = None) -> dict[str, Any]:
        """A new user.

        Raises:
            TakenError: there is one of this name.
        """
        id_ = secrets.token_hex(8)
        row = {"id": id_, "name": name, "email": email, "disabled": False, "by": by.name, "at": now()}
        try:
            with self._engine.begin() as connection:
                connection.execute(sa.insert(users).values(**row))
                _grant(connection, id_, roles, by)
                note(connection, by, "user.add", name, _only(roles), roles=dict(roles))
        except IntegrityError:
            raise TakenError(f"there is a user {name!r} already") from None
        return _user({**row, "issuer": None}, roles)

    def known_to(self, issuer: str, subject: str, name: str, email: str | None, role: Role | None) -> Who:
        """The user an identity provider vouches for, made at the first login with this role everywhere.

        A name that somebody else has gets a number: a provider's name never makes one somebody who is there already.

        Raises:
            UnknownError: the user was disabled here.
        """
        with self._engine.begin() as connection:
            where = (users.c.issuer == issuer) & (users.c.subject == subject)
            row = connection.execute(sa.select(users).where(where)).mappings().first()
            if row is None:
                taken = set(connection.execute(sa.select(users.c.name)).scalars())
                free = next(each for n in range(1, 10_000) if (each := name if n == 1 else f"{name}-{n}") not in taken)
                id_ = secrets.token_hex(8)
                about = {"id": id_, "name": free, "email": email, "disabled": False, "by": issuer[:256], "at": now()}
                connection.execute(sa.insert(users).values(**about, issuer=issuer, subject=subject))
                who = Who(id_, free, "user", {EVERYWHERE: role} if role else {}, id_)
                _grant(connection, id_, who.roles, who)
                note(connection, who, "user.add", free, None, issuer=issuer)
            elif row["disabled"]:
                raise UnknownError(f"the user {row['name']!r} was disabled")
            else:
                who = Who(row["id"], row["name"], "user", _roles(connection, row["id"]).get(row["id"], {}), row["id"])
            note(connection, who, "login", who.name, None)
        return who

    def set_role(self, user: str, project: str, role: Role | None, by: Who) -> None:
        """Give a user a role in a project (`*`: in all); None takes it away.

        Raises:
            UnknownError: there is no such user.
        """
        with self._engine.begin() as connection:
            name = _name_of(connection, user)
            connection.execute(sa.delete(grants).where((grants.c.user == user) & (grants.c.project == project)))
            if role is not None:
                _grant(connection, user, {project: role}, by)
            note(connection, by, "user.role", name, None if project == EVERYWHERE else project, role=role)

    def change_user(self, user: str, by: Who, *, disabled: bool) -> None:
        """Let a user in no more, or again; their keys and sessions go with them.

        Raises:
            UnknownError: there is no such user.
        """
        with self._engine.begin() as connection:
            name = _name_of(connection, user)
            connection.execute(sa.update(users).where(users.c.id == user).values(disabled=disabled))
            note(connection, by, "user.disable" if disabled else "user.enable", name, None)

    def remove_user(self, user: str, by: Who) -> None:
        """Remove a user with all their keys and sessions.

        Raises:
            UnknownError: there is no such user.
        """
        with self._engine.begin() as connection:
            name = _name_of(connection, user)
            for table in (grants, keys, sessions):
                connection.execute(sa.delete(table).where(table.c.user == user))
            connection.execute(sa.delete(users).where(users.c.id == user))
            note(connection, by, "user.remove", name, None)

    # -- keys ----------------------------------------------------------------------------------------------------------

    def all_keys(self) -> list[dict[str, Any]]:
        """All keys, the newest first, without what they are."""
        with self._engine.connect() as connection:
            return [_key(row) for row in connection.execute(_KEYS.order_by(keys.c.at.desc(), keys.c.id)).mappings()]

    def key(self, id_: str) -> dict[str, Any] | None:
        """What is known of a key, None if there is none."""
        with self._engine.connect() as connection:
            row = connection.execute(_KEYS.where(keys.c.id == id_)).mappings().first()
            return None if row is None else _key(row)

    def add_key(
        self,
        name: str,
        scope: Scope,
        by: Who,
        *,
        project: str | None = None,
        user: str | None = None,
        expires: datetime | None = None,
    ) -> tuple[str, dict[str, Any]]:
        """A new key, which is told once and kept nowhere, and what is known of it.

        Args:
            name: for people.
            scope: what it may.
            by: who makes it.
            project: where; None: everywhere its user may, or everywhere.
            user: whose it is: it never may more than they may. None: nobody's, such as a cluster's.
            expires: when it ends.

        Raises:
            UnknownError: there is no such user.
        """
        key = new_key()
        row: dict[str, Any] = {"id": secrets.token_hex(8), "name": name, "start": key[:7], "scope": scope}
        row |= {
            "project": project,
            "user": user,
            "by": by.name,
            "at": now(),
            "expires": expires,
            "used": None,
            "revoked": None,
        }
        with self._engine.begin() as connection:
            person = None if user is None else _name_of(connection, user)
            connection.execute(sa.insert(keys).values(**row, sha256=digest(key)))
            note(connection, by, "key.create", name, project, id=row["id"], scope=scope, user=person)
        return key, _key({**row, "person": person})

    def revoke_key(self, key: str, by: Who) -> None:
        """Let a key in no more. Done twice it is done once.

        Raises:
            UnknownError: there is no such key.
        """
        with self._engine.begin() as connection:
            row = connection.execute(sa.select(keys).where(keys.c.id == key)).mappings().first()
            if row is None:
                raise UnknownError(f"there is no key {key!r}")
            if row["revoked"] is None:
                connection.execute(sa.update(keys).where(keys.c.id == key).values(revoked=now()))
                note(connection, by, "key.revoke", row["name"], row["project"], id=key)

    def by_key(self, sha256: str) -> Found | None:
        """Whose key this is the hash of, if it still lets in. Also notes that it was used."""
        with self._engine.connect() as connection:
            row = connection.execute(sa.select(keys).where(keys.c.sha256 == sha256)).mappings().first()
            person = None if row is None or row["user"] is None else _person(connection, row["user"])
        if row is None or row["revoked"] is not None or _over(row["expires"]):
            return None
        if row["user"] is not None and person is None:
            return None
        roles = {row["project"] or EVERYWHERE: SCOPES[row["scope"]]}
        if person is not None:
            roles = person.limited(row["scope"], row["project"])
        self._note_use(row)
        label = row["name"] if person is None else f"{person.name} ({row['name']})"
        return Found(Who(row["id"], label[:256], "key", roles, row["user"]), aware(row["expires"]))

    def _note_use(self, row: Mapping[Any, Any]) -> None:
        used = aware(row["used"])
        if used is None or now() - used > USED_EVERY:
            with self._engine.begin() as connection:
                connection.execute(sa.update(keys).where(keys.c.id == row["id"]).values(used=now()))

    # -- sessions ------------------------------------------------------------------------------------------------------

    def begin_session(self, lasts: timedelta, *, key: str | None = None, user: str | None = None) -> str:
        """A session in place of a key, whose hash is given, or of a user; it is told once."""
        session = secrets.token_urlsafe(32)
        row = {"sha256": digest(session), "key": key, "user": user, "at": now(), "expires": now() + lasts}
        with self._engine.begin() as connection:
            connection.execute(sa.delete(sessions).where(sessions.c.expires < now()))
            connection.execute(sa.insert(sessions).values(**row))
        return session

    def by_session(self, sha256: str) -> tuple[str | None, Found | None]:
        """What a session stands for: the hash of a key, or a user."""
        with self._engine.connect() as connection:
            row = connection.execute(sa.select(sessions).where(sessions.c.sha256 == sha256)).mappings().first()
            if row is None or _over(row["expires"]):
                return None, None
            person = None if row["user"] is None else _person(connection, row["user"])
        return row["key"], None if person is None else Found(person, aware(row["expires"]))

    def end_session(self, sha256: str) -> None:
        """Log out."""
        with self._engine.begin() as connection:
            connection.execute(sa.delete(sessions).where(sessions.c.sha256 == sha256))


def _person(connection: sa.Connection, user: str) -> Who | None:
    row = connection.execute(sa.select(users).where(users.c.id == user)).mappings().first()
    if row is None or row["disabled"]:
        return None
    return Who(user, row["name"], "user", _roles(connection, user).get(user, {}), user)


def _name_of(connection: sa.Connection, user: str) -> str:
    name = connection.execute(sa.select(users.c.name).where(users.c.id == user)).scalar()
    if name is None:
        raise UnknownError(f"there is no user {user!r}")
    return str(name)


def _roles(connection: sa.Connection, user: str | None = None) -> dict[str, dict[str, Role]]:
    query = sa.select(grants.c.user, grants.c.project, grants.c.role)
    query = query if user is None else query.where(grants.c.user == user)
    found: dict[str, dict[str, Role]] = {}
    for name, project, role in connection.execute(query):
        found.setdefault(name, {})[project] = role
    return found


def _grant(connection: sa.Connection, user: str, roles: Mapping[str, Role], by: Who) -> None:
    for project, role in roles.items():
        row = {"user": user, "project": project, "role": role, "by": by.name, "at": now()}
        connection.execute(sa.insert(grants).values(**row))


def _only(roles: Mapping[str, Role]) -> str | None:
    """The project of roles in one project, for its admins to see."""
    return next(iter(roles)) if len(roles) == 1 and EVERYWHERE not in roles else None


def _over(expires: datetime | None) -> bool:
    end = aware(expires)
    return end is not None and end <= now()


def _user(row: Mapping[Any, Any], roles: Mapping[str, Role]) -> dict[str, Any]:
    about = {name: row[name] for name in ("id", "name", "email", "issuer", "disabled")}
    return {**about, "roles": dict(roles), "created": iso(row["at"])}


def _key(row: Mapping[Any, Any]) -> dict[str, Any]:
    about = {name: row[name] for name in ("id", "name", "start", "scope", "project", "user")}
    times = {name: iso(row[name]) for name in ("expires", "used", "revoked")}
    return {**about, "person": row["person"], "by": row["by"], "created": iso(row["at"]), **times}
