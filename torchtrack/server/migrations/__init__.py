"""The catalog's tables over time, as alembic keeps them: a file a step in `versions`, applied by `Catalog`."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any, Final

import sqlalchemy as sa
from alembic.config import Config
from alembic.runtime.environment import EnvironmentContext
from alembic.script import ScriptDirectory

from torchtrack.server.tables import metadata

_migrating: Final = threading.Lock()


def script() -> tuple[Config, ScriptDirectory]:
    """The steps, and alembic's configuration."""
    config = Config()
    config.set_main_option("script_location", str(Path(__file__).parent).replace("%", "%%"))
    return config, ScriptDirectory.from_config(config)


def upgrade(engine: sa.Engine, upto: str) -> None:
    """Apply what this version has and the tables do not, all or nothing; several at once wait for each other.

    Args:
        engine: of the catalog.
        upto: the last step, "head" for all.
    """
    config, steps = script()

    def wanted(revision: Any, context: Any) -> Any:
        del context
        return steps._upgrade_revs(upto, revision)  # what alembic's own command does

    with (
        _migrating,  # alembic keeps what it is doing in a global
        EnvironmentContext(config, steps, fn=wanted) as environment,
        engine.begin() as connection,
    ):
        if engine.dialect.name == "postgresql":
            connection.execute(sa.text("SELECT pg_advisory_xact_lock(7420)"))
        environment.configure(connection=connection, target_metadata=metadata)
        environment.run_migrations()
