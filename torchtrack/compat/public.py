"""`Api` with wandb's arguments and paths: `torchtrack.Api`, and what `wandb.Api` is under `install()`."""

from __future__ import annotations

import importlib
import os
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, cast

import pyarrow as pa

from torchtrack import api, contents
from torchtrack.api.remote import Server
from torchtrack.compat import artifacts, away, store
from torchtrack.compat.artifact import Artifact
from torchtrack.compat.files import FOLDER
from torchtrack.compat.said import no_effect
from torchtrack.errors import ServerError
from torchtrack.records import Table
from torchtrack.settings import Settings

if TYPE_CHECKING:
    from torchtrack.compat.sweeps import SeenSweep

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
_FIELDS: Final = {"display_name": "name", "displayName": "name", "jobType": "job_type", "sweep": "sweep_name"}


class Api(api.Api):
    """Reads runs; takes the arguments and the paths of wandb's Api too.

    A path with an entity, `entity/project/id`, gives the run with the methods that wandb's has.

    Args:
        source: see `torchtrack.api.Api`; by default the folder that runs are written to.
        overrides: {"project": ...}: the project that a path without one is in.
        timeout: seconds that a server may take for an answer.
        api_key: the key of the server; not used where a folder is read, since it is one of wandb's then.

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
        is_away = source is not None and "://" in str(source)
        if not is_away:
            no_effect("Api", timeout=timeout, api_key=api_key)
        settings = Settings.resolve(mode="offline")
        self._project = str((overrides or {}).get("project") or settings.project)
        self._dir = settings.dir if source is None or is_away else Path(source)
        if source is None:
            self._dir.mkdir(parents=True, exist_ok=True, mode=0o700)
        patience = {} if timeout is None else {"timeout_s": float(timeout)}
        key = api_key if is_away else None
        super().__init__(self._dir if source is None else source, key=key, **patience)
        self._server = Server(str(source), key, **patience) if is_away else None

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
        return cast("list[api.Run]", self.ordered(kept, others.get("order") or ""))

    def seen(self, run: api.Run) -> Seen:
        """A run with wandb's methods."""
        return Seen(self, run)

    def ordered(self, runs: Iterable[Seen], order: str) -> list[Seen]:
        """Runs by a value of theirs, such as "-summary_metrics.loss"; those that have none come last."""
        if not order:
            return list(runs)
        keyed = [(_sortable(_value(run, order.lstrip("+-"))), run) for run in runs]
        some = sorted((pair for pair in keyed if pair[0][0]), key=lambda p: p[0], reverse=order.startswith("-"))
        return [run for _, run in (*some, *(pair for pair in keyed if not pair[0][0]))]

    def sweep(self, path: str = "") -> SeenSweep:
        """A sweep by `id`, `project/id` or with an entity before.

        Raises:
            TorchtrackError: there is none.
        """
        from torchtrack.compat.sweeps import SeenSweep
        from torchtrack.sweeps import Sweep

        return SeenSweep(self, Sweep(path, self._dir))

    def projects(self, entity: str | None = None, per_page: int = 200) -> list[str]:
        """The names of the projects."""
        del entity, per_page
        return sorted({run.project for run in self._plain.runs()})

    def artifact(self, name: str, type: str | None = None) -> Artifact:  # noqa: A002
        """An artifact by `name:alias`, `project/name:alias` or with an entity before; of a server, if it reads one.

        Raises:
            ServerError: there is none, or the server does not answer.
            ValueError: it is of another type.
        """
        server = self._server
        found = artifacts.find_there(server, self._dir, self._project, name) if server else None
        return artifacts.of_type(found or artifacts.find(self._dir, self._project, name), type)

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
        project = places[-1] if places else self._project
        if server := self._server:
            known = away.versions(server, project, own)
            found = [artifacts.there_is(server, self._dir, each) for each in reversed(known)]
        else:
            folder = store.folder_of(self._dir, project, own)
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
    def sweep_name(self) -> str | None:
        """The id of the sweep that it is a trial of, if any."""
        told = self._run.events("sweep")
        return str(told[0].data["id"]) if told else None

    @property
    def sweep(self) -> SeenSweep | None:
        """The sweep that it is a trial of, if any."""
        return self._source.sweep(self.sweep_name) if self.sweep_name else None

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
        """The files that `save` kept; of a run on a server those that were sent."""
        del per_page
        top = self._source._dir / self._run.uid / FOLDER
        if self._source._server is not None:
            found = [SavedFile(path.removeprefix(f"{FOLDER}/"), self._fetching(path)) for path in self._run.saved]
        else:
            here = (path.relative_to(top).as_posix() for path in sorted(top.rglob("*")) if path.is_file())
            found = [SavedFile(path, Here(top / path)) for path in here]
        return [each for each in found if not names or each.name in set(names)]

    def file(self, name: str) -> SavedFile:
        """One of them; it may turn out not to be there."""
        if self._source._server is not None:
            path = next((path for path in (f"{FOLDER}/{name}", name) if path in self._run.saved), name)
            return SavedFile(name, self._fetching(path))
        top = self._source._dir / self._run.uid
        return SavedFile(name, Here(next((at for at in (top / FOLDER / name, top / name) if at.is_file()), top / name)))

    def _fetching(self, path: str) -> Fetched:
        about = self._run.saved.get(path, {})
        return Fetched(self._source._server, self._source._dir, self._run.uid, path, about)

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
        """Logged media, a row each; with the column `grouping`, what `Image(grouping=)` said of them."""
        rows = self._run.rows(Table.MEDIA)
        said = [event.data for event in self._run.events("medium")]
        grouped = {(each["name"], each["step"], each["sha256"]): each.get("grouping") for each in said}
        keys = zip(*(rows.column(name).to_pylist() for name in ("name", "step", "sha256")), strict=True)
        return rows.append_column("grouping", pa.array([grouped.get(key) for key in keys], pa.int64()))

    def _artifacts(self, action: str) -> list[Artifact]:
        events = [event.data for event in self._run.events("artifact") if event.data["action"] == action]
        found = {event["name"]: event for event in events}
        return [self._source.artifact(name) for name in found if self._source.artifact_exists(name)]


class Here:
    """A saved file that lies on this machine."""

    def __init__(self, path: Path) -> None:
        self._path = path

    @property
    def size(self) -> int:
        """In bytes; 0 if it is not there."""
        return self._path.stat().st_size if self._path.is_file() else 0

    def at(self) -> Path | None:
        """Where it lies; None if it is not there."""
        return self._path if self._path.is_file() else None


class Fetched:
    """A saved file on a server.

    Args:
        server: which.
        runs: the folder of runs, where contents that were fetched are kept.
        uid: of the run.
        path: in the run's folder.
        about: what the run said of it; nothing if there is no such file.
    """

    def __init__(self, server: Server | None, runs: Path, uid: str, path: str, about: Mapping[str, Any]) -> None:
        self._server, self._about = server, about
        self._place = f"runs/{uid}/contents/{about.get('contents')}/{path}"
        self._cache = runs / "artifacts" / ".content"

    @property
    def size(self) -> int:
        """In bytes; 0 if it is not there."""
        return int(self._about.get("size", 0))

    def at(self) -> Path | None:
        """Where it lies here, once it is fetched; None if the server has not got it."""
        digest = self._about.get("sha256")
        if self._server is None or not contents.is_digest(digest):
            return None
        kept = self._cache / str(digest)
        return kept if kept.exists() or self._server.fetch(self._place, str(digest), kept) else None


class SavedFile:
    """A file that a run saved."""

    def __init__(self, name: str, place: Here | Fetched) -> None:
        self.name, self._place = name, place

    @property
    def size(self) -> int:
        """In bytes; 0 if it is not there."""
        return self._place.size

    def at(self) -> Path:
        """Where it lies on this machine; one on a server is fetched.

        Raises:
            ServerError: the run has no such file.
        """
        found = self._place.at()
        if found is None:
            raise ServerError(f"no file {self.name!r} was saved by this run")
        return found

    def download(self, root: str = ".", replace: bool = False, exist_ok: bool = False, **_: Any) -> Any:
        """Copy it into a folder, and open the copy.

        Raises:
            ValueError: there is one already, and neither `replace` nor `exist_ok`.
            ServerError: the run has no such file.
        """
        source, target = self.at(), Path(root) / self.name
        if target.exists() and not (replace or exist_ok):
            raise ValueError(f"{target} is there already; download(replace=True) overwrites it")
        if replace or not target.exists():
            store.copy(source, target)
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
