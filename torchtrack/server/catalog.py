"""What people type: names, tags and notes they gave runs, runs they deleted, views they saved, reports they wrote.

Of this the catalog is the truth, as the journal is of what a run recorded. An edit of a field wins over what the run
says, also after the index was built anew. SQLite by default, PostgreSQL by URL; several processes may use one catalog.
"""

from __future__ import annotations

import os
import re
import secrets
from collections.abc import Iterable, Mapping
from datetime import datetime
from pathlib import Path
from typing import Any, Final

import sqlalchemy as sa
from sqlalchemy.exc import IntegrityError

from torchtrack.errors import TorchtrackError
from torchtrack.server.audit import Audit
from torchtrack.server.firings import Firings
from torchtrack.server.homes import Homes
from torchtrack.server.people import People
from torchtrack.server.reports import Reports
from torchtrack.server.tables import alert_rules, aware, edits, firings, homes, now, tombstones, views

EDITABLE: Final[Mapping[str, type]] = {
    "name": str,
    "notes": str,
    "tags": list,
    "group": str,
    "archived": bool,
    "colour": str,
}
"""Fields of a run that people may set, and what their values are."""
MAX_TEXT: Final = 100_000
MAX_TAGS: Final = 1000
UNKNOWN_PROJECT: Final = "uncategorized"
"""Of a run that came with a key of several projects and has not said which it is of."""
_STEPS: Final = Path(__file__).parent / "migrations" / "versions"


class ConflictError(TorchtrackError):
    """Somebody else changed it meanwhile, or the name is taken."""


class Catalog:
    """The tables, brought to this version's form when it is opened.

    Args:
        url: SQLAlchemy's, such as `sqlite:////srv/torchtrack/catalog.db` or `postgresql+psycopg://user@host/name`.
        upto: the revision of the tables to make; an earlier one is for tests of what comes after it.
    """

    def __init__(self, url: str, *, upto: str = "head") -> None:
        self._engine = sa.create_engine(url)
        if self._engine.dialect.name == "sqlite":
            _make_private(self._engine.url.database)
            sa.event.listen(self._engine, "connect", _prepare_sqlite)
            sa.event.listen(self._engine, "begin", _begin_immediate)
        self.people = People(self._engine)
        """Users and keys."""
        self.audit = Audit(self._engine)
        self.homes = Homes(self._engine)
        """The projects of runs that came with a key of some projects only."""
        self.firings = Firings(self._engine)
        """What alert rules fired on."""
        self.reports = Reports(self._engine)
        try:
            self._migrate(upto)
        except BaseException:
            self.close()
            raise

    @classmethod
    def in_folder(cls, folder: Path) -> Catalog:
        """The catalog in a folder."""
        folder.mkdir(parents=True, exist_ok=True)
        return cls(f"sqlite:///{folder.resolve() / 'catalog.db'}")

    def close(self) -> None:
        """Let go of all connections."""
        self._engine.dispose()

    # -- runs ----------------------------------------------------------------------------------------------------------

    def edit(self, uid: str, changes: Mapping[str, Any], by: str) -> None:
        """Set fields of a run; None takes an edit back, so that the run's own value shows again.

        Raises:
            ValueError: no such field, or a value that is none for it; nothing is changed.
        """
        for field, value in changes.items():
            _check(field, value)
        with self._engine.begin() as connection:
            for field, value in changes.items():
                where = (edits.c.uid == uid) & (edits.c.field == field)
                connection.execute(sa.delete(edits).where(where))
                if value is not None:
                    row = {"uid": uid, "field": field, "value": value, "by": by, "at": now()}
                    connection.execute(sa.insert(edits).values(row))

    def edits(self, uids: Iterable[str] | None = None) -> dict[str, dict[str, Any]]:
        """By run: the fields people set, and the project its key belongs to, whatever the run says."""
        query = sa.select(edits.c.uid, edits.c.field, edits.c.value)
        home = sa.select(homes.c.uid, homes.c.project)
        if uids is not None:
            asked = list(uids)
            query, home = query.where(edits.c.uid.in_(asked)), home.where(homes.c.uid.in_(asked))
        found: dict[str, dict[str, Any]] = {}
        with self._engine.connect() as connection:
            for uid, project in connection.execute(home):
                found[uid] = {"project": project or UNKNOWN_PROJECT}
            for uid, field, value in connection.execute(query):
                found.setdefault(uid, {})[field] = value
        return found

    def delete(self, uid: str, by: str) -> None:
        """Say that a run is deleted: it is shown no more, also if its journals arrive again."""
        with self._engine.begin() as connection:
            connection.execute(sa.delete(tombstones).where(tombstones.c.uid == uid))
            connection.execute(sa.insert(tombstones).values(uid=uid, by=by, at=now()))

    def restore(self, uid: str) -> None:
        """Take that back."""
        with self._engine.begin() as connection:
            connection.execute(sa.delete(tombstones).where(tombstones.c.uid == uid))

    def deleted(self) -> set[str]:
        """The runs that are deleted."""
        with self._engine.connect() as connection:
            return set(connection.execute(sa.select(tombstones.c.uid)).scalars())

    def deleted_before(self, moment: datetime) -> set[str]:
        """The runs that were deleted before then."""
        with self._engine.connect() as connection:
            return set(connection.execute(sa.select(tombstones.c.uid).where(tombstones.c.at < moment)).scalars())

    # -- saved views ---------------------------------------------------------------------------------------------------

    def save_view(self, project: str, name: str, content: Any, by: str, owner: str = "") -> dict[str, Any]:
        """Save a new view.

        Args:
            project: where it is shown.
            name: for people.
            content: JSON of the page's.
            by: who saves it.
            owner: whose it is; empty: everybody's in the project.

        Raises:
            ConflictError: the owner has one of this name there.
        """
        row = {"id": secrets.token_hex(8), "project": project, "name": name, "content": content, "version": 1}
        try:
            with self._engine.begin() as connection:
                connection.execute(sa.insert(views).values(**row, owner=owner, by=by, at=now()))
        except IntegrityError as error:
            raise ConflictError(f"project {project!r} has a view {name!r} already; choose another name") from error
        return {**row, "owner": owner}

    def change_view(self, id_: str, content: Any, version: int, by: str) -> int:
        """Change a view that is still in the version one has seen; the new version.

        Raises:
            ConflictError: it is not, or it is gone.
        """
        where = (views.c.id == id_) & (views.c.version == version)
        change = sa.update(views).where(where).values(content=content, version=version + 1, by=by, at=now())
        with self._engine.begin() as connection:
            if connection.execute(change).rowcount == 0:
                raise ConflictError("somebody else changed or removed this view; load it again")
        return version + 1

    def remove_view(self, id_: str) -> None:
        """Remove a view; it may be gone already."""
        with self._engine.begin() as connection:
            connection.execute(sa.delete(views).where(views.c.id == id_))

    def view(self, id_: str) -> dict[str, Any] | None:
        """One view, None if there is none."""
        return next(iter(self._views(views.c.id == id_)), None)

    def views(self, project: str, owner: str = "") -> list[dict[str, Any]]:
        """The views of a project, everybody's and this owner's, by name."""
        return self._views((views.c.project == project) & views.c.owner.in_(["", owner]))

    def _views(self, where: sa.ColumnElement[bool]) -> list[dict[str, Any]]:
        columns = [views.c[name] for name in ("id", "project", "name", "content", "version", "owner", "by")]
        query = sa.select(*columns).where(where).order_by(views.c.name, views.c.owner)
        with self._engine.connect() as connection:
            return [dict(row) for row in connection.execute(query).mappings()]

    # -- alert rules ---------------------------------------------------------------------------------------------------

    def alert_rules(self, project: str | None = None) -> list[dict[str, Any]]:
        """The rules of a project by name, or all there are."""
        return self._rules(sa.true() if project is None else alert_rules.c.project == project)

    def alert_rule(self, id_: str) -> dict[str, Any] | None:
        """One rule, None if there is none."""
        return next(iter(self._rules(alert_rules.c.id == id_)), None)

    def save_alert_rule(
        self, project: str, name: str, filter_: str, severity: str, by: str, when: Mapping[str, Any] | None = None
    ) -> dict[str, Any]:
        """Save a rule; one of the same name in the project is replaced, and what that fired on is over.

        Args:
            project: of whose runs it is.
            name: for people.
            filter_: which of them; empty: all.
            severity: how much it matters.
            by: who saves it.
            when: what it waits for, as `rules.When`; None: that a run fits the filter.
        """
        row = {"id": secrets.token_hex(8), "project": project, "name": name, "filter": filter_, "severity": severity}
        with self._engine.begin() as connection:
            where = (alert_rules.c.project == project) & (alert_rules.c.name == name)
            row["id"] = connection.execute(sa.select(alert_rules.c.id).where(where)).scalar() or row["id"]
            connection.execute(sa.delete(alert_rules).where(where))
            connection.execute(_over(row["id"]))
            condition = None if when is None else dict(when)
            connection.execute(sa.insert(alert_rules).values(**row, condition=condition, by=by, at=now()))
        return {**row, "when": condition, "by": by}

    def remove_alert_rule(self, id_: str) -> None:
        """Remove a rule; it may be gone already. What it fired on stays in the list."""
        with self._engine.begin() as connection:
            connection.execute(sa.delete(alert_rules).where(alert_rules.c.id == id_))
            connection.execute(_over(id_))

    def _rules(self, where: sa.ColumnElement[bool]) -> list[dict[str, Any]]:
        columns = [alert_rules.c[name] for name in ("id", "project", "name", "filter", "severity", "by", "at")]
        query = sa.select(*columns, alert_rules.c.condition.label("when")).where(where).order_by(alert_rules.c.name)
        with self._engine.connect() as connection:
            return [{**row, "at": aware(row["at"])} for row in connection.execute(query).mappings()]

    # -- inside --------------------------------------------------------------------------------------------------------

    def _migrate(self, upto: str) -> None:
        if upto == "head" and self._version() == newest():
            return
        from torchtrack.server.migrations import upgrade  # alembic: few starts need it, and it takes a quarter second

        upgrade(self._engine, upto)

    def _version(self) -> str | None:
        """The last step that was applied, None if none was."""
        with self._engine.connect() as connection:
            if not sa.inspect(connection).has_table("alembic_version"):
                return None
            return connection.execute(sa.text("SELECT version_num FROM alembic_version")).scalar()


def newest() -> str:
    """The last step there is, told without alembic."""
    found = (re.search(r'^revision\b.*"(\w+)"', step.read_text(), re.MULTILINE) for step in _STEPS.glob("*.py"))
    return max(step[1] for step in found if step)


def _over(rule: str) -> sa.Update:
    """That what a rule fired on is over."""
    return sa.update(firings).where((firings.c.rule == rule) & firings.c.cleared.is_(None)).values(cleared=now())


def _check(field: str, value: Any) -> None:
    kind = EDITABLE.get(field)
    if kind is None:
        raise ValueError(f"no field {field!r} to edit; there are {', '.join(sorted(EDITABLE))}")
    if value is None:
        return
    if not isinstance(value, kind):
        raise ValueError(f"{field} is a {kind.__name__}, not {value!r}")
    texts = value if isinstance(value, list) else [value]
    if isinstance(value, list) and (len(value) > MAX_TAGS or not all(isinstance(each, str) for each in value)):
        raise ValueError(f"{field} is a list of at most {MAX_TAGS} texts")
    if any(isinstance(each, str) and (len(each) > MAX_TEXT or "\x00" in each) for each in texts):
        raise ValueError(f"{field} has at most {MAX_TEXT} characters, and no NUL")


def _make_private(file: str | None) -> None:
    """Make the file its user's alone before SQLite does; what SQLite puts beside it is like it."""
    if file and file != ":memory:":
        os.close(os.open(file, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600))


def _prepare_sqlite(connection: Any, record: Any) -> None:
    """Transactions are ours to begin; readers do not wait for a writer, writers wait for each other."""
    del record
    connection.isolation_level = None
    for pragma in ("busy_timeout = 30000", "journal_mode = WAL", "synchronous = FULL", "foreign_keys = ON"):
        connection.execute(f"PRAGMA {pragma}")


def _begin_immediate(connection: Any) -> None:
    connection.exec_driver_sql("BEGIN IMMEDIATE")
