"""The catalog's tables over time, as alembic keeps them: a file a step in `versions`, applied by `Catalog`."""
