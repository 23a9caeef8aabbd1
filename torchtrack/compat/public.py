"""`Api` with wandb's arguments and paths: `torchtrack.Api`, and what `wandb.Api` is under `install()`."""

from __future__ import annotations

import importlib
import os
import shutil
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, Final, cast

from torchtrack import api
from torchtrack.compat import artifacts, store
from torchtrack.compat.artifact import Artifact
from torchtrack.compat.files import FOLDER
from torchtrack.compat.said import no_effect
from torchtrack.errors import ServerError
from torchtrack.records import Table
from torchtrack.settings import Settings

_OPERATORS: Final = {
    "$eq": lambda value, other: value == other,
    "$gt": lambda value, other: value is not None and value > other,
    "$gte": lambda value, other: value is not None and value >= other,
    "$in": lambda value, other: value in other,
    "$lt": lambda value, other: value is not None and value < other,
    "$lte": lambda value, other: value is not None and value <= other,
    "$ne": lambda value, other: value != other,
    "$nin": lambda value, other: value not in other,
}
_FIELDS: Final = {"display_name": "name", "displayName": "name", "jobType": "job_type", "job_type": "job_type"}


class Api(api.Api):
    """Reads runs; takes the arguments and the paths of wandb's Api too.

    A path with an entity, `entity/project/id`, gives the run with the methods that wandb's has.

    Args:
        source: see `torchtrack.api.Api`; by default the folder that runs are written to.
        overrides: {"project": ...}: the project that a path without one is in.
        timeout: no effect.
        api_key: no effect: a server's key is that of `torchtrack login`, or `TORCHTRACK_API_KEY`.

    Raises:
        ValueError, FileNotFoundError: as there, where a source is given.
    """

    as_there = False
    """Whether every run has wandb's methods."""

    def __init__(
        self,
        source: str | os.PathLike[str] | None = None,
        *,
        overrides: Mapping[str, Any] | None = None,
        timeout: int | None = None,
        api_key: str | None = None,
    ) -> None:
        no_effect("Api", timeout=timeout, api_key=api_key)
        settings = Settings.resolve(mode="offline")
        self._project = str((overrides or {}).get("project") or settings.project)
        self._dir = Path(source) if source is not None and "://" not in str(source) else settings.dir
        if source is None:
            self._dir.mkdir(parents=True, exist_ok=True, mode=0o700)
        super().__init__(self._dir if source is None else source)

    @property
    def default_entity(self) -> str:
        """There are none here."""
        return os.environ.get("WANDB_ENTITY", "")

    @property
    def viewer(self) -> None:
        """Nobody is logged in."""

    @property
    def _plain(self) -> api.Api:
        """The same runs without wandb's methods."""
        return api.Api.of(self._source)

    def run(self, name: str = "", **others: Any) -> api.Run:
        """One run; by a path with an entity, with wandb's methods. See `torchtrack.api.Api`."""
        *places, last = str(name).strip("/").split("/")
        places = [place for place in places if place != "runs"]
        if self.as_there or len(places) > 1:
            return cast("api.Run", Seen(self, self._plain.run("/".join([*places[-1:], last]), **others)))
        return super().run(name, **others)

    def runs(
        self, project: str | None = None, filters: Mapping[str, Any] | None = None, **others: Any
    ) -> list[api.Run]:
        """The runs, newest first; of a path `entity/project`, with wandb's methods, filters and order.

        Args:
            project: or `entity/project`, or `path=`.
            filters: as `torchtrack.api.Api` takes them, or in the operators of wandb's.
            others: path, order ("+created_at", "-summary_metrics.loss"), per_page.
        """
        path = others.pop("path", None) or project
        unknown = sorted(set(others) - {"order", "per_page", "include_sweeps", "lazy"})
        if unknown:
            raise TypeError(f"runs() got an unexpected keyword argument {unknown[0]!r}")
        if not (self.as_there or others or (path and "/" in path)):
            return super().runs(path, filters)
        wanted = (path or self._project).rpartition("/")[2]
        found = [Seen(self, run) for run in self._plain.runs(wanted)]
        kept = [run for run in found if _holds(run, filters or {})]
        order = others.get("order") or ""
        if order:
            kept.sort(key=lambda run: _sortable(_value(run, order.lstrip("+-"))), reverse=order.startswith("-"))
        return cast("list[api.Run]", kept)

    def projects(self, entity: str | None = None, per_page: int = 200) -> list[str]:
        """The names of the projects."""
        del entity, per_page
        return sorted({run.project for run in self._plain.runs()})

    def artifact(self, name: str, type: str | None = None) -> Artifact:  # noqa: A002
        """An artifact by `name:alias`, `project/name:alias` or with an entity before.

        Raises:
            ServerError: there is none.
            ValueError: it is of another type.
        """
        return artifacts.of_type(artifacts.find(self._dir, self._project, name), type)

    def artifact_exists(self, name: str, type: str | None = None) -> bool:  # noqa: A002
        """Whether there is such an artifact."""
        try:
            return self.artifact(name, type).version is not None
        except (ServerError, ValueError):
            return False

    def artifacts(
        self, type_name: str, name: str, per_page: int = 50, tags: Iterable[str] | None = None
    ) -> list[Artifact]:
        """All versions of an artifact, newest first."""
        del per_page
        *places, own = name.split("/")
        folder = store.folder_of(self._dir, places[-1] if places else self._project, own)
        found = [artifacts.load(folder / version) for version in reversed(store.versions(folder))]
        return [each for each in found if each.type == type_name and set(tags or ()) <= set(each.tags)]

    def artifact_versions(self, type_name: str, name: str, per_page: int = 50) -> list[Artifact]:
        """All versions of an artifact, by an older name."""
        return self.artifacts(type_name, name, per_page)

    def flush(self) -> None:
        """Every access looks for what is new."""


class SeenApi(Api):
    """`wandb.Api` under `install()`: every run has wandb's methods."""

    as_there = True

    def __init__(
        self, overrides: Mapping[str, Any] | None = None, timeout: int | None = None, api_key: str | None = None
    ) -> None:
        super().__init__(overrides=overrides, timeout=timeout, api_key=api_key)


class Seen:
    """A recorded run with wandb's methods; whatever else it is asked, the run itself answers."""

    def __init__(self, source: Api, run: api.Run) -> None:
        self._source, self._run = source, run

    def __getattr__(self, name: str) -> Any:
        return getattr(self._run, name)

    def __repr__(self) -> str:
        return repr(self._run)

    @property
    def entity(self) -> str:
        """There are none here."""
        return self._source.default_entity

    @property
    def path(self) -> list[str]:
        """Entity, project and id."""
        return [self.entity, self._run.project, self._run.id]

    @property
    def url(self) -> str:
        """What to type to look at it."""
        return f"torchtrack show {self._run.uid}"

    @property
    def tags(self) -> list[str]:
        """Its tags."""
        return list(self._run.tags)

    @property
    def created_at(self) -> str:
        """When it began, in ISO 8601."""
        return self._run.created.isoformat()

    @property
    def summary(self) -> Summary:
        """One value a metric."""
        return Summary(self._run.summary)

    summary_metrics = summary

    @property
    def metadata(self) -> dict[str, Any]:
        """Machine, versions, git, command."""
        return self._run.environment

    @property
    def system_metrics(self) -> dict[str, float]:
        """The last of each system metric."""
        keys = self._run.keys("system/")
        row = self._run.history(keys).to_pylist() if keys else []
        return {key: value for each in row for key, value in each.items() if key in keys and value is not None}

    @property
    def lastHistoryStep(self) -> int:  # noqa: N802
        """The last step; -1 if nothing was logged."""
        return -1 if self._run.last_step is None else self._run.last_step

    def history(
        self,
        samples: int = 500,
        keys: Iterable[str] | None = None,
        x_axis: str = "_step",
        pandas: bool = True,
        stream: str = "default",
    ) -> Any:
        """The metrics, a row a step, at most `samples` of them, as a dataframe, or as a list of dicts.

        Args:
            samples: rows at most, evenly chosen.
            keys: metrics; rows that lack one of them are left out.
            x_axis: "_step" or a metric that is in every row.
            pandas: False gives dicts. So it is where pandas is not installed.
            stream: "system" for the system's metrics.
        """
        wanted = list(keys) if keys is not None else None
        if stream == "system":
            wanted = self._run.keys("system/")
        if wanted is not None and x_axis not in ("_step", *wanted):
            wanted.append(x_axis)
        rows = list(self.scan_history(wanted))
        if len(rows) > samples:
            rows = [rows[i * len(rows) // samples] for i in range(samples)]
        if pandas:
            try:
                return importlib.import_module("pandas").DataFrame.from_records(rows)
            except ImportError:
                return rows
        return rows

    def scan_history(
        self,
        keys: Iterable[str] | None = None,
        page_size: int = 1000,
        min_step: int = 0,
        max_step: int | None = None,
        use_cache: bool = True,
    ) -> Iterator[dict[str, Any]]:
        """Every row as a dict; of the steps from `min_step` up to before `max_step`."""
        del page_size, use_cache
        wanted = list(keys) if keys is not None else None
        named = None if wanted is None else [key for key in wanted if not key.startswith("_")]
        for row in self._run.history(named, start=min_step or None, stop=max_step).to_pylist():
            at = {"_step": row.pop("step"), "_timestamp": row.pop("time").timestamp()}
            full = {**{name.removeprefix("logged/"): value for name, value in row.items()}, **at}
            if wanted is None:
                yield {name: value for name, value in full.items() if value is not None}
            elif all(full.get(name) is not None for name in wanted):
                yield {name: full[name] for name in wanted}

    def files(self, names: Iterable[str] | None = None, per_page: int = 50) -> list[SavedFile]:
        """The files that `save` kept."""
        del per_page
        top = self._source._dir / self._run.uid / FOLDER
        found = [SavedFile(top, path.relative_to(top).as_posix()) for path in sorted(top.rglob("*")) if path.is_file()]
        return [each for each in found if not names or each.name in set(names)]

    def file(self, name: str) -> SavedFile:
        """One of them; it may turn out not to be there."""
        return SavedFile(self._source._dir / self._run.uid / FOLDER, name)

    def logged_artifacts(self, per_page: int = 100) -> list[Artifact]:
        """The artifacts that it logged."""
        del per_page
        return self._artifacts("logged")

    def used_artifacts(self, per_page: int = 100) -> list[Artifact]:
        """The artifacts that it used."""
        del per_page
        return self._artifacts("used")

    def load(self, force: bool = False) -> None:
        """Every access looks for what is new."""

    def media(self) -> Any:
        """Logged media, a row each."""
        return self._run.rows(Table.MEDIA)

    def _artifacts(self, action: str) -> list[Artifact]:
        events = [event.data for event in self._run.events("artifact") if event.data["action"] == action]
        found = {event["name"]: event for event in events}
        return [self._source.artifact(name) for name in found if self._source.artifact_exists(name)]


class SavedFile:
    """A file of a run."""

    def __init__(self, top: Path, name: str) -> None:
        self._top, self.name = top, name

    @property
    def size(self) -> int:
        """In bytes; 0 if it is not there."""
        path = self._top / self.name
        return path.stat().st_size if path.is_file() else 0

    def download(self, root: str = ".", replace: bool = False, exist_ok: bool = False, **_: Any) -> Any:
        """Copy it into a folder, and open the copy.

        Raises:
            ValueError: there is one already, and neither `replace` nor `exist_ok`.
            ServerError: the run has no such file.
        """
        source, target = self._top / self.name, Path(root) / self.name
        if not source.is_file():
            raise ServerError(f"no file {self.name!r} was saved by this run")
        if target.exists() and not (replace or exist_ok):
            raise ValueError(f"{target} is there already; download(replace=True) overwrites it")
        if replace or not target.exists():
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(source, target)
        return target.open()


class Summary(dict[str, Any]):
    """A summary; `_json_dict` is what scripts of others read."""

    @property
    def _json_dict(self) -> dict[str, Any]:
        return dict(self)


def _value(run: Seen, field: str) -> Any:
    head, _, key = field.partition(".")
    if head in ("config", "summary", "summary_metrics"):
        held: Any = run.config if head == "config" else run.summary
        return held.get(key, held.get(key.removesuffix(".value")))
    return getattr(run, _FIELDS.get(head, head), None)


def _sortable(value: Any) -> tuple[bool, Any]:
    return value is not None, value if isinstance(value, (int, float)) else str(value)


def _holds(run: Seen, filters: Mapping[str, Any]) -> bool:
    for field, wanted in filters.items():
        if field in ("$and", "$or"):
            each = [_holds(run, part) for part in wanted]
            if not (all(each) if field == "$and" else any(each)):
                return False
            continue
        value = _value(run, field)
        if isinstance(wanted, Mapping):
            if not all(_operator(name)(value, other) for name, other in wanted.items()):
                return False
        elif callable(wanted):
            if not wanted(value):
                return False
        elif not (wanted in value if isinstance(value, list) else value == wanted):
            return False
    return True


def _operator(name: str) -> Any:
    if name == "$regex":
        import re

        return lambda value, other: re.search(other, str(value)) is not None
    if name not in _OPERATORS:
        raise ValueError(f"no operator {name!r} to filter by; there are {', '.join((*_OPERATORS, '$regex'))}")
    return _OPERATORS[name]
