"""SQLite files of other trackers, which are read and never changed."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Any


def connect(path: Path) -> sqlite3.Connection:
    """A connection that only reads."""
    return sqlite3.connect(f"{path.resolve().as_uri()}?mode=ro", uri=True)


def damage(path: Path) -> list[str]:
    """Databases at a path, or in a folder, of which not even the tables can be told, and why."""
    found = []
    for file in [path] if path.is_file() else sorted(path.glob("*.db")):
        try:
            with file.open("rb") as opened:
                is_one = opened.read(16) == b"SQLite format 3\0"
            if is_one:
                with closing(connect(file)) as connection:
                    connection.execute("SELECT name FROM sqlite_master").fetchall()
        except (sqlite3.Error, OSError) as error:
            found.append(f"{file.name} cannot be read: {error}")
    return found


def answers(path: Path, query: str) -> list[tuple[Any, ...]]:
    """What a file answers; nothing if it is no database."""
    try:
        with path.open("rb") as file:
            if file.read(16) != b"SQLite format 3\0":
                return []
        with closing(connect(path)) as connection:
            return connection.execute(query).fetchall()
    except (sqlite3.Error, OSError):
        return []
