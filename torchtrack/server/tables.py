"""The catalog's tables as this version knows them; `migrations` makes them, and a test compares the two."""

from __future__ import annotations

from datetime import datetime, timezone
from typing import Any, Final

import sqlalchemy as sa

metadata = sa.MetaData()


def _by() -> tuple[sa.Column[Any], sa.Column[Any]]:
    """Who made a row, and when."""
    return sa.Column("by", sa.String(256), nullable=False), sa.Column("at", _TIME, nullable=False)


_TIME: Final = sa.DateTime(timezone=True)

edits: Final = sa.Table(
    "edits",
    metadata,
    sa.Column("uid", sa.String(64), primary_key=True),
    sa.Column("field", sa.String(64), primary_key=True),
    sa.Column("value", sa.JSON, nullable=False),
    *_by(),
)
tombstones: Final = sa.Table("tombstones", metadata, sa.Column("uid", sa.String(64), primary_key=True), *_by())
views: Final = sa.Table(
    "saved_views",
    metadata,
    sa.Column("id", sa.String(32), primary_key=True),
    sa.Column("project", sa.String(256), nullable=False),
    sa.Column("owner", sa.String(64), nullable=False),  # whose it is; empty: the project's
    sa.Column("name", sa.String(256), nullable=False),
    sa.Column("content", sa.JSON, nullable=False),
    sa.Column("version", sa.Integer, nullable=False),
    *_by(),
    sa.UniqueConstraint("project", "owner", "name"),
)
users: Final = sa.Table(
    "users",
    metadata,
    sa.Column("id", sa.String(32), primary_key=True),
    sa.Column("name", sa.String(256), nullable=False, unique=True),
    sa.Column("email", sa.String(320), nullable=True),
    sa.Column("issuer", sa.String(1024), nullable=True),  # of the identity provider that knows them
    sa.Column("subject", sa.String(256), nullable=True),  # and their name there, which never changes
    sa.Column("disabled", sa.Boolean, nullable=False),
    *_by(),
    sa.UniqueConstraint("issuer", "subject"),
)
grants: Final = sa.Table(
    "grants",
    metadata,
    sa.Column("user", sa.String(32), sa.ForeignKey("users.id", ondelete="CASCADE"), primary_key=True),
    sa.Column("project", sa.String(256), primary_key=True),  # "*": of all projects
    sa.Column("role", sa.String(16), nullable=False),
    *_by(),
)
keys: Final = sa.Table(
    "keys",
    metadata,
    sa.Column("id", sa.String(32), primary_key=True),
    sa.Column("name", sa.String(256), nullable=False),
    sa.Column("sha256", sa.String(64), nullable=False, unique=True),
    sa.Column("start", sa.String(16), nullable=False),  # how it begins, to know it again
    sa.Column("scope", sa.String(16), nullable=False),
    sa.Column("project", sa.String(256), nullable=True),
    sa.Column("user", sa.String(32), sa.ForeignKey("users.id", ondelete="CASCADE"), nullable=True, index=True),
    *_by(),
    sa.Column("expires", _TIME, nullable=True),
    sa.Column("used", _TIME, nullable=True),
    sa.Column("revoked", _TIME, nullable=True),
)
sessions: Final = sa.Table(
    "sessions",
    metadata,
    sa.Column("sha256", sa.String(64), primary_key=True),
    sa.Column("key", sa.String(64), nullable=True),  # SHA-256 of the key it was traded for
    sa.Column("user", sa.String(32), sa.ForeignKey("users.id", ondelete="CASCADE"), nullable=True),
    sa.Column("at", _TIME, nullable=False),
    sa.Column("expires", _TIME, nullable=False),
)
homes: Final = sa.Table(
    "homes",
    metadata,
    sa.Column("uid", sa.String(16), primary_key=True),
    sa.Column("project", sa.String(256), nullable=True),  # not known yet: only `by` may go on
    *_by(),
)
audit: Final = sa.Table(
    "audit",
    metadata,
    sa.Column("id", sa.Integer, primary_key=True, autoincrement=True),
    sa.Column("at", _TIME, nullable=False),
    sa.Column("who", sa.String(256), nullable=False),
    sa.Column("who_id", sa.String(64), nullable=False),
    sa.Column("action", sa.String(64), nullable=False),
    sa.Column("target", sa.String(320), nullable=False),
    sa.Column("project", sa.String(256), nullable=True),
    sa.Column("detail", sa.JSON, nullable=False),
)
alert_rules: Final = sa.Table(
    "alert_rules",
    metadata,
    sa.Column("id", sa.String(32), primary_key=True),
    sa.Column("project", sa.String(256), nullable=False),
    sa.Column("name", sa.String(256), nullable=False),
    sa.Column("filter", sa.Text, nullable=False),
    sa.Column("severity", sa.String(16), nullable=False),
    sa.Column("condition", sa.JSON, nullable=True),  # null: that a run fits the filter
    *_by(),
    sa.UniqueConstraint("project", "name"),
)
firings: Final = sa.Table(
    "firings",
    metadata,
    sa.Column("id", sa.Integer, primary_key=True, autoincrement=True),
    sa.Column("rule", sa.String(32), nullable=False),
    sa.Column("uid", sa.String(64), nullable=False),
    sa.Column("what", sa.String(64), nullable=False),  # one of several things a rule finds in a run; else empty
    sa.Column("project", sa.String(256), nullable=False, index=True),
    sa.Column("name", sa.String(256), nullable=False),
    sa.Column("severity", sa.String(16), nullable=False),
    sa.Column("run", sa.String(256), nullable=False),
    sa.Column("text", sa.Text, nullable=False),
    sa.Column("attempt", sa.Integer, nullable=False),
    sa.Column("step", sa.BigInteger, nullable=True),
    sa.Column("last_step", sa.BigInteger, nullable=True),  # where it still held, once it is over
    sa.Column("since_us", sa.BigInteger, nullable=False),  # by the clock of the run
    sa.Column("last_us", sa.BigInteger, nullable=True),
    sa.Column("at", _TIME, nullable=False),
    sa.Column("cleared", _TIME, nullable=True),
    sa.Index(
        "one_at_a_time",
        *("rule", "uid", "what"),
        unique=True,
        sqlite_where=sa.text("cleared IS NULL"),
        postgresql_where=sa.text("cleared IS NULL"),
    ),
)
deliveries: Final = sa.Table(
    "deliveries",
    metadata,
    sa.Column("firing", sa.Integer, sa.ForeignKey("firings.id", ondelete="CASCADE"), primary_key=True),
    sa.Column("target", sa.Integer, primary_key=True),  # its number: an address is a secret
    sa.Column("service", sa.String(64), nullable=False),
    sa.Column("state", sa.String(16), nullable=False, index=True),  # waiting, sent, given up
    sa.Column("tries", sa.Integer, nullable=False),
)

reports: Final = sa.Table(
    "reports",
    metadata,
    sa.Column("id", sa.String(32), primary_key=True),
    sa.Column("project", sa.String(256), nullable=False, index=True),
    sa.Column("version", sa.Integer, nullable=False),  # the newest one
    sa.Column("removed", sa.Boolean, nullable=False),
    *_by(),
)
report_versions: Final = sa.Table(
    "report_versions",
    metadata,
    sa.Column("report", sa.String(32), sa.ForeignKey("reports.id", ondelete="CASCADE"), primary_key=True),
    sa.Column("version", sa.Integer, primary_key=True),
    sa.Column("title", sa.String(256), nullable=False),
    sa.Column("text", sa.Text, nullable=False),
    *_by(),
)


def now() -> datetime:
    """The present, as it is kept."""
    return datetime.now(timezone.utc)


def aware(time: datetime | None) -> datetime | None:
    """A time as it was kept: SQLite forgets that it is UTC."""
    return time.replace(tzinfo=timezone.utc) if time is not None and time.tzinfo is None else time


def iso(time: datetime | None) -> str | None:
    """For an answer."""
    known = aware(time)
    return None if known is None else known.isoformat()
