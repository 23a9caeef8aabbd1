"""Users, their roles, keys, sessions, whose a run is, the audit log, alert rules; views have an owner."""

from __future__ import annotations

from typing import Any, Final

import sqlalchemy as sa
from alembic import op

revision: Final = "0002"
down_revision: Final = "0001"
_TIME: Final = sa.DateTime(timezone=True)


def _by() -> tuple[sa.Column[Any], sa.Column[Any]]:
    return sa.Column("by", sa.String(256), nullable=False), sa.Column("at", _TIME, nullable=False)


def _user() -> sa.ForeignKey:
    return sa.ForeignKey("users.id", ondelete="CASCADE")


def upgrade() -> None:
    """Make the tables; views there are become the project's."""
    _people()
    _rest()
    op.create_table(
        "saved_views",
        sa.Column("id", sa.String(32), primary_key=True),
        sa.Column("project", sa.String(256), nullable=False),
        sa.Column("owner", sa.String(64), nullable=False),
        sa.Column("name", sa.String(256), nullable=False),
        sa.Column("content", sa.JSON, nullable=False),
        sa.Column("version", sa.Integer, nullable=False),
        *_by(),
        sa.UniqueConstraint("project", "owner", "name"),
    )
    op.execute(
        'INSERT INTO saved_views (id, project, owner, name, content, version, "by", at) '
        "SELECT id, project, '', name, content, version, \"by\", at FROM views"
    )
    op.drop_table("views")


def _people() -> None:
    op.create_table(
        "users",
        sa.Column("id", sa.String(32), primary_key=True),
        sa.Column("name", sa.String(256), nullable=False, unique=True),
        sa.Column("email", sa.String(320)),
        sa.Column("issuer", sa.String(1024)),
        sa.Column("subject", sa.String(256)),
        sa.Column("disabled", sa.Boolean, nullable=False),
        *_by(),
        sa.UniqueConstraint("issuer", "subject"),
    )
    op.create_table(
        "grants",
        sa.Column("user", sa.String(32), _user(), primary_key=True),
        sa.Column("project", sa.String(256), primary_key=True),
        sa.Column("role", sa.String(16), nullable=False),
        *_by(),
    )
    op.create_table(
        "keys",
        sa.Column("id", sa.String(32), primary_key=True),
        sa.Column("name", sa.String(256), nullable=False),
        sa.Column("sha256", sa.String(64), nullable=False, unique=True),
        sa.Column("start", sa.String(16), nullable=False),
        sa.Column("scope", sa.String(16), nullable=False),
        sa.Column("project", sa.String(256)),
        sa.Column("user", sa.String(32), _user(), index=True),
        *_by(),
        sa.Column("expires", _TIME),
        sa.Column("used", _TIME),
        sa.Column("revoked", _TIME),
    )
    op.create_table(
        "sessions",
        sa.Column("sha256", sa.String(64), primary_key=True),
        sa.Column("key", sa.String(64)),
        sa.Column("user", sa.String(32), _user()),
        sa.Column("at", _TIME, nullable=False),
        sa.Column("expires", _TIME, nullable=False),
    )


def _rest() -> None:
    op.create_table(
        "homes",
        sa.Column("uid", sa.String(16), primary_key=True),
        sa.Column("project", sa.String(256)),
        *_by(),
    )
    op.create_table(
        "audit",
        sa.Column("id", sa.Integer, primary_key=True, autoincrement=True),
        sa.Column("at", _TIME, nullable=False),
        sa.Column("who", sa.String(256), nullable=False),
        sa.Column("who_id", sa.String(64), nullable=False),
        sa.Column("action", sa.String(64), nullable=False),
        sa.Column("target", sa.String(320), nullable=False),
        sa.Column("project", sa.String(256)),
        sa.Column("detail", sa.JSON, nullable=False),
    )
    op.create_table(
        "alert_rules",
        sa.Column("id", sa.String(32), primary_key=True),
        sa.Column("project", sa.String(256), nullable=False),
        sa.Column("name", sa.String(256), nullable=False),
        sa.Column("filter", sa.Text, nullable=False),
        sa.Column("severity", sa.String(16), nullable=False),
        *_by(),
        sa.UniqueConstraint("project", "name"),
    )


def downgrade() -> None:
    """Keep the views of projects; the rest has no place in the form before."""
    op.create_table(
        "views",
        sa.Column("id", sa.String(32), primary_key=True),
        sa.Column("project", sa.String(256), nullable=False, index=True),
        sa.Column("name", sa.String(256), nullable=False),
        sa.Column("content", sa.JSON, nullable=False),
        sa.Column("version", sa.Integer, nullable=False),
        *_by(),
        sa.UniqueConstraint("project", "name"),
    )
    op.execute(
        'INSERT INTO views (id, project, name, content, version, "by", at) '
        "SELECT id, project, name, content, version, \"by\", at FROM saved_views WHERE owner = ''"
    )
    for name in ("saved_views", "alert_rules", "audit", "homes", "sessions", "keys", "grants", "users"):
        op.drop_table(name)
