"""trackio's databases: one SQLite file a project, media in a folder beside it."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterator
from datetime import datetime, timezone
from pathlib import Path
from typing import Any, Final

from torchtrack.importers import sqlite
from torchtrack.importers.logged import flat, put
from torchtrack.importers.source import About, Chunk, SourceRun, file_in
from torchtrack.importers.sources import Found

_ROWS: Final = 2_000


def recognises(path: Path) -> bool:
    """Whether this is a database of trackio, or a folder with some."""
    return any(_has_runs(each) for each in _databases(path))


def find(path: Path, project: str | None) -> Found:
    """The runs of each database."""
    found = Found()
    for database in _databases(path):
        if _has_runs(database):
            _find_in(database, project, found)
    return found


def _databases(path: Path) -> list[Path]:
    return [path] if path.is_file() else sorted(path.glob("*.db"))


def _has_runs(path: Path) -> bool:
    columns = {row[1] for row in sqlite.answers(path, "PRAGMA table_info(metrics)")}
    return {"run_name", "metrics", "step", "timestamp"} <= columns


def _find_in(path: Path, project: str | None, found: Found) -> None:
    connection = sqlite.connect(path)
    try:
        by_id = "run_id" in {row[1] for row in connection.execute("PRAGMA table_info(metrics)")}
        key = "run_id" if by_id else "run_name"
        counted = f"SELECT {key}, run_name, count(*), min(timestamp) FROM metrics GROUP BY {key} ORDER BY min(id)"  # noqa: S608  # one of two names
        configs: dict[str, dict[str, Any]] = {}
        if connection.execute("SELECT 1 FROM sqlite_master WHERE name = 'configs'").fetchone():
            for run, config in connection.execute(f"SELECT {key}, config FROM configs"):  # noqa: S608  # the same
                configs[run] = _decoded(config) or {}
        for run, name, count, began in connection.execute(counted).fetchall():
            found.runs.append(Run(path, key, run, name, count, began, configs.get(run, {}), project))
    except sqlite3.Error as error:
        found.losses.damage(f"the database {path.name} cannot be read to its end: {error}")
    finally:
        connection.close()


def _decoded(text: str | bytes) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return None


def _time_us(text: str) -> int:
    moment = datetime.fromisoformat(text)
    return int((moment if moment.tzinfo else moment.replace(tzinfo=timezone.utc)).timestamp() * 1e6)


class Run(SourceRun):
    """A run of trackio.

    Args:
        path: of the database.
        column: what runs are told apart by.
        run: its value.
        name: for people.
        count: rows of metrics.
        began: time of the first.
        config: as trackio keeps it, with fields of its own.
        project: to list it in; that of the database by default.
    """

    kind = "trackio"

    def __init__(
        self,
        path: Path,
        column: str,
        run: str,
        name: str,
        count: int,
        began: str,
        config: dict[str, Any],
        project: str | None,
    ) -> None:
        super().__init__()
        self.key = f"{path.stem}/{run}"
        self.size = count
        self._path, self._column, self._run = path, column, run
        self._config = {key: value for key, value in config.items() if not key.startswith("_")}
        start = config.get("_Created") or began
        group = config.get("_Group") or None
        self.about = About((project or path.stem), run.replace("/", "-"), name, _time_us(start) * 1000, group)

    def read(self, cursor: Any) -> Iterator[Chunk]:
        """Rows by their number."""
        cursor = cursor or {"metrics": 0, "system_metrics": 0, "alerts": 0, "config": None}
        told = json.dumps(self._config, sort_keys=True)
        if self._config and told != cursor["config"]:
            chunk = Chunk(cursor={**cursor, "config": told})
            chunk.event(self.about.start_ns // 1000, "config", self._config)
            yield chunk
        cursor = {**cursor, "config": told}
        connection = sqlite.connect(self._path)
        try:
            tables = {name for (name,) in connection.execute("SELECT name FROM sqlite_master")}
            for table in [name for name in ("metrics", "system_metrics", "alerts") if name in tables]:
                columns = {row[1] for row in connection.execute(f"PRAGMA table_info({table})")}
                wanted = [n for n in ("id", "timestamp", "step", "metrics", "title", "text", "level") if n in columns]
                query = (
                    f"SELECT {', '.join(wanted)} FROM {table} WHERE {self._column} = ? AND id > ? "  # noqa: S608
                    "ORDER BY id LIMIT ?"
                )
                while rows := connection.execute(query, (self._run, cursor[table], _ROWS)).fetchall():
                    chunk = Chunk()
                    for row in rows:
                        self._take(chunk, table, dict(zip(wanted, row, strict=True)))
                    cursor = {**cursor, table: rows[-1][0]}
                    chunk.cursor, chunk.position = cursor, min(self.size, len(rows))
                    yield chunk
        except sqlite3.Error as error:
            self.losses.damage(f"rows that cannot be read: {error}")
        finally:
            connection.close()

    def _take(self, chunk: Chunk, table: str, row: dict[str, Any]) -> None:
        try:
            at = _time_us(row["timestamp"])
        except ValueError:
            at = self.about.start_ns // 1000
        if table == "alerts":
            level = {"warn": "warning", "error": "critical"}.get(row["level"], "info")
            said = {"title": row["title"], "text": row["text"] or "", "level": level, "wait_s": 0.0}
            chunk.event(at, "alert", said, row.get("step"))
            return
        values = _decoded(row["metrics"])
        if not isinstance(values, dict):
            self.losses.damage("rows that are no JSON")
            return
        for name, value in flat(values):
            if table == "system_metrics":
                if isinstance(value, (int, float)):
                    chunk.scalar(0, at, f"system/{name}", float(value))
            else:
                put(self, chunk, int(row["step"]), at, name, value, self._file)

    def _file(self, path: str) -> bytes | None:
        file = file_in(self._path.parent / "media", path)
        return None if file is None else file.read_bytes()
