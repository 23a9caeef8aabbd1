"""Reports of a project: Markdown with panels, of which every version that was saved is kept."""

from __future__ import annotations

import secrets
from collections.abc import Collection
from typing import Any, Final

import sqlalchemy as sa

from torchtrack.errors import TorchtrackError
from torchtrack.server.audit import note
from torchtrack.server.rights import Who
from torchtrack.server.tables import iso, now, report_versions, reports

MAX_TEXT: Final = 1 << 20
"""Characters of a report."""
KEPT: Final = 200
"""Versions of a report: an older one goes when a newer one comes."""


class ChangedError(TorchtrackError):
    """Somebody else saved the report meanwhile, or it is gone."""


class Reports:
    """The reports of all projects. **Threads:** any.

    Args:
        engine: of the catalog.
    """

    def __init__(self, engine: sa.Engine) -> None:
        self._engine = engine

    def create(self, project: str, title: str, text: str, by: Who) -> dict[str, Any]:
        """A new report, in its first version."""
        id_ = secrets.token_hex(8)
        with self._engine.begin() as connection:
            row = {"id": id_, "project": project, "version": 1, "removed": False, "by": by.name, "at": now()}
            connection.execute(sa.insert(reports).values(row))
            _keep(connection, id_, 1, title, text, by)
            note(connection, by, "report.create", title, project, id=id_)
        return _there(self.find(id_))

    def save(self, id_: str, title: str, text: str, version: int, by: Who) -> dict[str, Any]:
        """A further version of a report that is still in the version one has seen.

        Raises:
            ChangedError: it is not, or it is gone.
        """
        seen = (reports.c.id == id_) & (reports.c.version == version) & ~reports.c.removed
        with self._engine.begin() as connection:
            if connection.execute(sa.update(reports).where(seen).values(version=version + 1)).rowcount == 0:
                raise ChangedError("somebody else changed or removed this report; load it again")
            _keep(connection, id_, version + 1, title, text, by)
            old = (report_versions.c.report == id_) & (report_versions.c.version <= version + 1 - KEPT)
            connection.execute(sa.delete(report_versions).where(old))
            project = connection.execute(sa.select(reports.c.project).where(reports.c.id == id_)).scalar()
            note(connection, by, "report.save", title, project, id=id_, version=version + 1)
        return _there(self.find(id_))

    def remove(self, id_: str, by: Who, *, removed: bool = True) -> None:
        """Show a report no more, or again; nothing of it is lost."""
        found = _there(self.find(id_))
        with self._engine.begin() as connection:
            connection.execute(sa.update(reports).where(reports.c.id == id_).values(removed=removed))
            action = "report.remove" if removed else "report.restore"
            note(connection, by, action, found["title"], found["project"], id=id_)

    def find(self, id_: str, version: int | None = None) -> dict[str, Any] | None:
        """A report with its text, removed or not; None if there is none in this version.

        Args:
            id_: of the report.
            version: an earlier one; None: the newest.
        """
        which = reports.c.version if version is None else version
        query = _versions().add_columns(report_versions.c.text)
        with self._engine.connect() as connection:
            where = (reports.c.id == id_) & (report_versions.c.version == which)
            row = connection.execute(query.where(where)).mappings().first()
        return None if row is None else _shown(row)

    def of(self, projects: Collection[str] | None) -> list[dict[str, Any]]:
        """The reports of some projects without their texts, the one that was changed last first; None: of all."""
        query = _versions().where(~reports.c.removed & (report_versions.c.version == reports.c.version))
        query = query if projects is None else query.where(reports.c.project.in_(sorted(projects)))
        return self._rows(query.order_by(report_versions.c.at.desc(), reports.c.id))

    def versions(self, id_: str) -> list[dict[str, Any]]:
        """The versions of a report that are kept, without their texts, the newest first."""
        return self._rows(_versions().where(reports.c.id == id_).order_by(report_versions.c.version.desc()))

    def _rows(self, query: sa.Select[Any]) -> list[dict[str, Any]]:
        with self._engine.connect() as connection:
            return [_shown(row) for row in connection.execute(query).mappings()]


def _keep(connection: sa.Connection, id_: str, version: int, title: str, text: str, by: Who) -> None:
    row = {"report": id_, "version": version, "title": title, "text": text, "by": by.name, "at": now()}
    connection.execute(sa.insert(report_versions).values(row))


def _versions() -> sa.Select[Any]:
    kept = (report_versions.c[name] for name in ("version", "title", "by", "at"))
    query = sa.select(reports.c.id, reports.c.project, reports.c.version.label("newest"), reports.c.removed, *kept)
    return query.join(report_versions, report_versions.c.report == reports.c.id)


def _shown(row: Any) -> dict[str, Any]:
    return {**row, "at": iso(row["at"])}


def _there(found: dict[str, Any] | None) -> dict[str, Any]:
    if found is None:
        raise ChangedError("the report is gone")
    return found
