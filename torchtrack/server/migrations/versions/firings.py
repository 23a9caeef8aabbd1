"""What an alert rule waits for, when rules fired, and whom that was told."""

from __future__ import annotations

from typing import Final

import sqlalchemy as sa
from alembic import op

revision: Final = "0003"
down_revision: Final = "0002"
_TIME: Final = sa.DateTime(timezone=True)


def upgrade() -> None:
    """Make the tables; rules there are wait for a run that fits their filter."""
    op.add_column("alert_rules", sa.Column("condition", sa.JSON, nullable=True))
    op.create_table(
        "firings",
        sa.Column("id", sa.Integer, primary_key=True, autoincrement=True),
        sa.Column("rule", sa.String(32), nullable=False),
        sa.Column("uid", sa.String(64), nullable=False),
        sa.Column("what", sa.String(64), nullable=False),
        sa.Column("project", sa.String(256), nullable=False, index=True),
        sa.Column("name", sa.String(256), nullable=False),
        sa.Column("severity", sa.String(16), nullable=False),
        sa.Column("run", sa.String(256), nullable=False),
        sa.Column("text", sa.Text, nullable=False),
        sa.Column("attempt", sa.Integer, nullable=False),
        sa.Column("step", sa.BigInteger, nullable=True),
        sa.Column("last_step", sa.BigInteger, nullable=True),
        sa.Column("since_us", sa.BigInteger, nullable=False),
        sa.Column("last_us", sa.BigInteger, nullable=True),
        sa.Column("at", _TIME, nullable=False),
        sa.Column("cleared", _TIME, nullable=True),
    )
    open_ones = sa.text("cleared IS NULL")
    op.create_index(
        *("one_at_a_time", "firings", ["rule", "uid", "what"]),
        unique=True,
        sqlite_where=open_ones,
        postgresql_where=open_ones,
    )
    op.create_table(
        "deliveries",
        sa.Column("firing", sa.Integer, sa.ForeignKey("firings.id", ondelete="CASCADE"), primary_key=True),
        sa.Column("target", sa.Integer, primary_key=True),
        sa.Column("service", sa.String(64), nullable=False),
        sa.Column("state", sa.String(16), nullable=False, index=True),
        sa.Column("tries", sa.Integer, nullable=False),
    )


def downgrade() -> None:
    """Remove them."""
    op.drop_table("deliveries")
    op.drop_table("firings")
    op.drop_column("alert_rules", "condition")
