"""What people did, in order: rows are added and never changed. No value of a key or a setting is written here."""

from __future__ import annotations

from typing import Any, Final

import sqlalchemy as sa

from torchtrack.server.rights import Who
from torchtrack.server.tables import audit, iso, now

MAX_PAGE: Final = 1000


def note(connection: sa.Connection, who: Who, action: str, target: str, project: str | None, **detail: Any) -> None:
    """Add a line, in the transaction of what it tells of."""
    line = {"who": who.name[:256], "who_id": who.id, "action": action, "target": target[:320], "project": project}
    connection.execute(sa.insert(audit).values(**line, detail=detail, at=now()))


class Audit:
    """Reads the log, and adds what happened elsewhere. **Threads:** any."""

    def __init__(self, engine: sa.Engine) -> None:
        self._engine = engine

    def note(self, who: Who, action: str, target: str, project: str | None = None, **detail: Any) -> None:
        """Add a line."""
        with self._engine.begin() as connection:
            note(connection, who, action, target, project, **detail)

    def lines(
        self, projects: frozenset[str] | None = None, before: int | None = None, limit: int = 100
    ) -> list[dict[str, Any]]:
        """The newest lines first.

        Args:
            projects: of these only; None: all, those of no project too.
            before: only lines with a smaller id.
            limit: how many.
        """
        query = sa.select(audit).order_by(audit.c.id.desc()).limit(min(limit, MAX_PAGE))
        query = query if before is None else query.where(audit.c.id < before)
        query = query if projects is None else query.where(audit.c.project.in_(sorted(projects)))
        with self._engine.connect() as connection:
            return [{**row, "at": iso(row["at"])} for row in connection.execute(query).mappings()]
