"""MLflow's stores: a folder `mlruns`, or an SQLite database. Read as they lie there, by their documented layout.

MLflow itself is not used: its client would bring the schema of a database up to its own version.
"""

from __future__ import annotations

import json
import math
import sqlite3
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from torchtrack.errors import MissingDependencyError
from torchtrack.importers import sqlite
from torchtrack.importers.source import About, Chunk, End, Losses, SourceRun
from torchtrack.importers.sources import Found

_STATES: Final = {1: "RUNNING", 2: "SCHEDULED", 3: "FINISHED", 4: "FAILED", 5: "KILLED"}
_ENDS: Final = {
    "FAILED": End("exception", "MLflow says FAILED"),
    "KILLED": End("signal", "MLflow says KILLED"),
}
_INFINITE: Final = sys.float_info.max
"""How a database holds infinity."""
_OURS: Final = ("mlflow.note.content", "mlflow.runName", "mlflow.parentRunId")
_ROWS: Final = 20_000


@dataclass
class _Facts:
    """What a store says of a run besides its metrics."""

    run_id: str
    experiment: str
    name: str
    state: str
    start_ms: int
    end_ms: int | None
    params: dict[str, str] = field(default_factory=dict)
    tags: dict[str, str] = field(default_factory=dict)


def recognises(path: Path) -> bool:
    """Whether this is a database of MLflow, or there is a folder of runs at or below a path."""
    if path.is_file():
        return _is_database(path)
    return any(True for _ in _stores(path)) or any(_is_database(each) for each in _databases(path))


def find(path: Path, project: str | None) -> Found:
    """The runs of all stores there; deleted ones are left out."""
    found = Found()
    databases = [path] if path.is_file() else [each for each in _databases(path) if _is_database(each)]
    for database in databases:
        _find_in_database(database, project, found)
    for store in _stores(path) if path.is_dir() else ():
        _find_in_folder(store, project, found)
    return found


class Run(SourceRun):
    """A run of MLflow, of either store: a subclass reads its metrics."""

    kind = "mlflow"

    def __init__(self, facts: _Facts, project: str | None) -> None:
        super().__init__()
        self._facts = facts
        self.key = facts.run_id
        tags = [f"{key}={value}" for key, value in facts.tags.items() if not key.startswith("mlflow.")]
        self.about = About(
            project=(project or facts.experiment or "mlflow").replace("/", "-"),
            id=facts.run_id,
            name=facts.name or facts.run_id,
            start_ns=facts.start_ms * 1_000_000,
            group=facts.tags.get("mlflow.parentRunId"),
            tags=tuple(tags),
            notes=facts.tags.get("mlflow.note.content"),
        )
        if facts.state in ("RUNNING", "SCHEDULED"):
            self.losses.note("runs that MLflow does not know the end of: shown as finished")
        end = _ENDS.get(facts.state, End("finish"))
        self.end = end._replace(time_ns=facts.end_ms * 1_000_000 if facts.end_ms else None)

    def read(self, cursor: Any) -> Iterator[Chunk]:
        """First what was set, if it has changed; then the metrics after the cursor."""
        cursor = cursor or {"set": None, "at": None}
        at = self._facts.start_ms * 1000
        told = json.dumps([self._facts.params, self._facts.tags], sort_keys=True)
        if told != cursor["set"]:
            chunk = Chunk(cursor={"set": told, "at": cursor["at"]})
            if self._facts.params:
                chunk.event(at, "config", {key: _number(text) for key, text in self._facts.params.items()})
            own = {k: v for k, v in self._facts.tags.items() if k.startswith("mlflow.") and k not in _OURS}
            if own:
                chunk.event(at, "environment", {"mlflow": own})
            yield chunk
        for chunk in self._metrics(cursor["at"]):
            chunk.cursor = {"set": told, "at": chunk.cursor}
            yield chunk

    def _metrics(self, at: Any) -> Iterator[Chunk]:
        raise NotImplementedError

    def _add(self, chunk: Chunk, name: str, value: float, time_ms: int, step: int) -> None:
        own = name.startswith("system/")  # the machine's: MLflow and torchtrack call them alike
        chunk.scalar(step, time_ms * 1000, name if own else self.named(name), value)


def _number(text: str) -> Any:
    """A parameter as the number or truth value it was written from; MLflow keeps text."""
    if text in ("True", "False"):
        return text == "True"
    for kind in (int, float):
        try:
            value = kind(text)
        except ValueError:
            continue
        return value if not isinstance(value, float) or math.isfinite(value) else text
    return text


# -- a database -------------------------------------------------------------------------------------------------------


def _databases(path: Path) -> list[Path]:
    return [each for pattern in ("*.db", "*.sqlite", "*.sqlite3") for each in sorted(path.glob(pattern))]


def _is_database(path: Path) -> bool:
    tables = {name for (name,) in sqlite.answers(path, "SELECT name FROM sqlite_master WHERE type = 'table'")}
    return {"experiments", "runs", "metrics", "params"} <= tables


def _find_in_database(path: Path, project: str | None, found: Found) -> None:
    connection = sqlite.connect(path)
    try:
        rows = connection.execute(
            "SELECT r.run_uuid, e.name, r.name, r.status, r.start_time, r.end_time, r.lifecycle_stage"
            " FROM runs r LEFT JOIN experiments e ON e.experiment_id = r.experiment_id ORDER BY r.start_time"
        ).fetchall()
        for run_id, experiment, name, state, start_ms, end_ms, stage in rows:
            if stage == "deleted":
                found.losses.note("runs that were deleted in MLflow: left out")
                continue
            facts = _Facts(run_id, experiment or "", name or "", state or "", start_ms or 0, end_ms)
            facts.params = dict(connection.execute("SELECT key, value FROM params WHERE run_uuid = ?", (run_id,)))
            facts.tags = dict(connection.execute("SELECT key, value FROM tags WHERE run_uuid = ?", (run_id,)))
            facts.name = facts.name or facts.tags.get("mlflow.runName", "")
            count = connection.execute("SELECT count(*) FROM metrics WHERE run_uuid = ?", (run_id,)).fetchone()[0]
            found.runs.append(_DatabaseRun(path, facts, count, project))
    except sqlite3.Error as error:
        found.losses.damage(f"the database {path.name} cannot be read to its end: {error}")
    finally:
        connection.close()


class _DatabaseRun(Run):
    """A run in a database."""

    def __init__(self, path: Path, facts: _Facts, count: int, project: str | None) -> None:
        super().__init__(facts, project)
        self._path = path
        self.size = count

    def _metrics(self, at: Any) -> Iterator[Chunk]:
        last, done = (0, 0) if at is None else at
        query = (
            "SELECT rowid, key, value, timestamp, step, is_nan FROM metrics"
            " WHERE run_uuid = ? AND rowid > ? ORDER BY rowid LIMIT ?"
        )
        connection = sqlite.connect(self._path)
        try:
            while rows := connection.execute(query, (self.key, last, _ROWS)).fetchall():
                chunk = Chunk()
                for _, name, value, time_ms, step, is_nan in rows:
                    infinite = math.copysign(math.inf, value) if abs(value) >= _INFINITE else value
                    self._add(chunk, name, math.nan if is_nan else infinite, time_ms, step)
                last, done = rows[-1][0], done + len(rows)
                chunk.cursor, chunk.position = (last, done), done
                yield chunk
        except sqlite3.Error as error:
            self.losses.damage(f"rows of metrics that cannot be read: {error}")
        finally:
            connection.close()


# -- a folder ---------------------------------------------------------------------------------------------------------


def _stores(path: Path) -> Iterator[Path]:
    """Folders of runs: each holds folders of experiments with a meta.yaml."""
    for place in (path, path / "mlruns"):
        if any(True for _ in place.glob("*/meta.yaml")):
            yield place
            return


def _find_in_folder(store: Path, project: str | None, found: Found) -> None:
    for experiment in sorted(each.parent for each in store.glob("*/meta.yaml")):
        meta = _meta(experiment / "meta.yaml", found.losses) or {}
        for folder in sorted(each.parent for each in experiment.glob("*/meta.yaml")):
            about = _meta(folder / "meta.yaml", found.losses)
            if about is None or "run_id" not in about:
                continue
            if about.get("lifecycle_stage") == "deleted":
                found.losses.note("runs that were deleted in MLflow: left out")
                continue
            facts = _Facts(
                str(about["run_id"]),
                str(meta.get("name") or experiment.name),
                str(about.get("run_name") or ""),
                _STATES.get(about.get("status", 0), str(about.get("status"))),
                int(about.get("start_time") or 0),
                about.get("end_time"),
                _texts(folder / "params"),
                _texts(folder / "tags"),
            )
            facts.name = facts.name or facts.tags.get("mlflow.runName", "")
            found.runs.append(_FolderRun(folder, facts, project))


def _meta(path: Path, losses: Losses) -> Mapping[str, Any] | None:
    try:
        import yaml
    except ImportError:
        raise MissingDependencyError(
            "folders of MLflow need PyYAML to be read: pip install 'torchtrack[mlflow]'"
        ) from None
    try:
        meta = yaml.safe_load(path.read_text(encoding="utf-8", errors="replace"))
    except (yaml.YAMLError, OSError):
        meta = None
    if not isinstance(meta, dict):
        losses.damage(f"runs or experiments whose meta.yaml cannot be read ({path.parent.name})")
        return None
    return meta


def _files(folder: Path) -> dict[str, Path]:
    return {each.relative_to(folder).as_posix(): each for each in sorted(folder.rglob("*")) if each.is_file()}


def _texts(folder: Path) -> dict[str, str]:
    return {name: path.read_text(encoding="utf-8", errors="replace") for name, path in _files(folder).items()}


class _FolderRun(Run):
    """A run in a folder."""

    def __init__(self, folder: Path, facts: _Facts, project: str | None) -> None:
        super().__init__(facts, project)
        self._metric_files = _files(folder / "metrics")
        self.size = sum(path.stat().st_size for path in self._metric_files.values())
        if any(_files(folder / "artifacts")):
            self.losses.note("artifacts stay with MLflow")

    def _metrics(self, at: Any) -> Iterator[Chunk]:
        offsets: dict[str, int] = dict(at or {})
        chunk = Chunk()
        for name, path in self._metric_files.items():
            with path.open("rb") as file:
                file.seek(offsets.get(name, 0))
                for line in file:
                    if not line.endswith(b"\n"):
                        self.losses.damage("metric files that end within a line: being written, or cut off")
                        break
                    self._line(chunk, name, line)
                    offsets[name] = offsets.get(name, 0) + len(line)
                    if chunk.full:
                        yield self._closed(chunk, offsets)
                        chunk = Chunk()
        if chunk.rows:
            yield self._closed(chunk, offsets)

    def _closed(self, chunk: Chunk, offsets: dict[str, int]) -> Chunk:
        chunk.cursor, chunk.position = dict(offsets), sum(offsets.values())
        return chunk

    def _line(self, chunk: Chunk, name: str, line: bytes) -> None:
        try:
            time_ms, value, *rest = line.split()
            self._add(chunk, name, float(value), int(time_ms), int(rest[0]) if rest else 0)
        except (ValueError, IndexError):
            self.losses.damage("lines of metric files that are none")
