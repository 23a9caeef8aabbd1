"""Artifacts: folders of files with a name, a type and versions.

    <dir>/artifacts/<project>/<name>/v0/manifest.json    what it is, and its digest
    <dir>/artifacts/<project>/<name>/v0/files/...        copies of what was added
    <dir>/artifacts/<project>/<name>/aliases/best        the version an alias stands for, as text

A version is complete or not there: it is made beside the others and renamed. They lie on this machine and are not sent
to a server. `add_file` copies at once, in the thread that calls it, as the file may change later.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import secrets
import shutil
import time
import weakref
from collections.abc import Iterable, Iterator, Mapping
from datetime import datetime, timezone
from pathlib import Path
from typing import IO, Any, Final
from urllib.parse import quote, unquote

from torchtrack import guard
from torchtrack.blobs import Blob
from torchtrack.errors import ServerError
from torchtrack.media import Medium
from torchtrack.redact import plain
from torchtrack.run import Run
from torchtrack.settings import Settings

_NAME: Final = re.compile(r"[A-Za-z0-9_\-. ]{1,128}")
_CHUNK: Final = 1 << 20
_SUFFIXES: Final = {"image/png": ".png", "image/jpeg": ".jpg", "image/gif": ".gif", "audio/wav": ".wav"}


class Entry:
    """One file of an artifact."""

    def __init__(self, artifact: Artifact, path: str) -> None:
        self._artifact, self.path, self.name = artifact, path, path

    @property
    def size(self) -> int:
        """In bytes."""
        return (self._artifact._files / self.path).stat().st_size

    @property
    def digest(self) -> str:
        """SHA-256 of the content."""
        return _digest(self._artifact._files / self.path)

    def local_path(self) -> str:
        """Where it lies."""
        return str(self._artifact._files / self.path)

    def download(self, root: str | os.PathLike[str] | None = None, **_: Any) -> str:
        """Copy it into a folder; the path of the copy."""
        target = Path(root or self._artifact._default_root()) / self.path
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(self._artifact._files / self.path, target)
        return str(target)


class Artifact:
    """Files with a name, a type and, once logged, a version.

    Args:
        name: letters, digits, `_`, `-`, `.` and spaces.
        type: such as "model" or "dataset".
        description: free text.
        metadata: a mapping of plain values.
        incremental: start from the files of the newest version.
        use_as: accepted: what a run used is recorded without it.
        storage_region: accepted: artifacts lie on this machine.
        digest_algorithm: accepted: SHA-256 is used.

    Raises:
        ValueError: a name with other characters.
    """

    def __init__(
        self,
        name: str,
        type: str,  # noqa: A002
        description: str | None = None,
        metadata: Mapping[str, Any] | None = None,
        incremental: bool = False,
        use_as: str | None = None,
        storage_region: str | None = None,
        digest_algorithm: str | None = None,
    ) -> None:
        del use_as, storage_region, digest_algorithm
        if not _NAME.fullmatch(str(name)):
            raise ValueError(f"the name of an artifact has letters, digits, '_', '-', '.' and spaces, got {name!r}")
        self.source_name, self.type, self.description = name, type, description
        self.metadata: dict[str, Any] = dict(metadata or {})
        self.incremental = incremental
        self.project, self.entity = "", ""
        self.version: str | None = None
        self.aliases: list[str] = []
        self.tags: list[str] = []
        self.created_at: str | None = None
        self._references: dict[str, str] = {}
        self._top: Path | None = None
        self._staged: weakref.finalize[[str, bool], Artifact] | None = None

    # -- what it is ---------------------------------------------------------------------------------------------------

    @property
    def name(self) -> str:
        """`name`, or `name:v0` once it has a version."""
        return f"{self.source_name}:{self.version}" if self.version else self.source_name

    @property
    def qualified_name(self) -> str:
        """`project/name:v0`."""
        return f"{self.project}/{self.name}" if self.project else self.name

    full_name = qualified_name

    @property
    def id(self) -> str | None:
        """Its digest, once logged."""
        return self.digest if self.version else None

    @property
    def state(self) -> str:
        """PENDING until it is logged, then COMMITTED."""
        return "COMMITTED" if self.version else "PENDING"

    @property
    def is_draft(self) -> bool:
        """Whether it has no version yet."""
        return self.version is None

    @property
    def digest(self) -> str:
        """SHA-256 over names and contents of the files, and references."""
        whole = hashlib.sha256()
        for path in self._paths():
            whole.update(f"{path}\0{_digest(self._files / path)}\0".encode())
        for name, uri in sorted(self._references.items()):
            whole.update(f"{name}\0{uri}\0".encode())
        return whole.hexdigest()

    @property
    def size(self) -> int:
        """Bytes of all files."""
        return sum((self._files / path).stat().st_size for path in self._paths())

    @property
    def file_count(self) -> int:
        """How many files it has."""
        return len(self._paths()) + len(self._references)

    # -- what is in it ------------------------------------------------------------------------------------------------

    def add_file(
        self, local_path: str | os.PathLike[str], name: str | None = None, *_: Any, overwrite: bool = True, **__: Any
    ) -> Entry:
        """Copy a file in.

        Args:
            local_path: which.
            name: its path in the artifact; by default its name.
            overwrite: False refuses a path that is taken.

        Raises:
            ValueError: there is no such file, or the path is taken, or it leads out of the artifact.
        """
        source = Path(local_path)
        if not source.is_file():
            raise ValueError(f"add_file(): {source} is no file")
        target = self._place(name or source.name, overwrite=overwrite)
        guard.attempt("add_file()", shutil.copy2, source, target)
        return Entry(self, name or source.name)

    def add_dir(self, local_path: str | os.PathLike[str], name: str | None = None, *_: Any, **__: Any) -> None:
        """Copy all files below a folder in, under the path `name`.

        Raises:
            ValueError: it is no folder.
        """
        top = Path(local_path)
        if not top.is_dir():
            raise ValueError(f"add_dir(): {top} is no folder")
        for path in sorted(top.rglob("*")):
            if path.is_file():
                inside = path.relative_to(top).as_posix()
                self.add_file(path, name=f"{name.rstrip('/')}/{inside}" if name else inside)

    @contextlib.contextmanager
    def new_file(self, name: str, mode: str = "w", encoding: str | None = None) -> Iterator[IO[Any]]:
        """A new file of it, open for writing."""
        with self._place(name).open(mode, encoding=encoding) as file:
            yield file

    def add(self, obj: Any, name: str, overwrite: bool = True) -> Entry:
        """Add an image, a table or another medium as a file.

        Raises:
            TypeError: it is none.
        """
        if not isinstance(obj, Medium):
            raise TypeError(f"add() takes an Image, Audio, Table or another medium, got {type(obj).__name__}")
        blob: Blob = obj.snapshot().encode()
        path = name if Path(name).suffix else name + _SUFFIXES.get(blob.mime, ".table.json")
        self._place(path, overwrite=overwrite).write_bytes(blob.data)
        return Entry(self, path)

    def add_reference(self, uri: Any, name: str | None = None, *_: Any, **__: Any) -> list[str]:
        """Note where a file lies that is not copied."""
        text = uri.local_path() if isinstance(uri, Entry) else str(uri)
        self._references[name or text.rstrip("/").rpartition("/")[2]] = text
        return [text]

    def remove(self, item: Any) -> None:
        """Take a file out again, before it is logged."""
        path = item.path if isinstance(item, Entry) else str(item)
        if self._references.pop(path, None) is None:
            (self._files / path).unlink()

    def get_entry(self, name: str) -> Entry:
        """One of its files.

        Raises:
            KeyError: it has no such file.
        """
        if name not in self._paths():
            raise KeyError(f"{self.name} has no file {name!r}; it has {', '.join(self._paths()[:8])}")
        return Entry(self, name)

    get_path = get_entry

    def get(self, name: str) -> Entry | None:
        """One of its files, None if there is no such one."""
        return Entry(self, name) if name in self._paths() else None

    def files(self, names: Iterable[str] | None = None, per_page: int = 50) -> list[Entry]:
        """Its files."""
        del per_page
        wanted = None if names is None else set(names)
        return [Entry(self, path) for path in self._paths() if wanted is None or path in wanted]

    def file(self, root: str | None = None) -> str:
        """The path of a copy of its only file.

        Raises:
            ValueError: it has none or several.
        """
        if len(self._paths()) != 1:
            raise ValueError(f"{self.name} has {len(self._paths())} files; file() is for one")
        return Entry(self, self._paths()[0]).download(root)

    def download(self, root: str | os.PathLike[str] | None = None, *_: Any, **__: Any) -> str:
        """Copy its files into a folder (./artifacts/name:version by default), and return that."""
        top = Path(root or self._default_root())
        top.mkdir(parents=True, exist_ok=True)
        for path in self._paths():
            Entry(self, path).download(top)
        return str(top)

    def checkout(self, root: str | None = None) -> str:
        """As `download`, and remove what else lies in that folder."""
        top = Path(self.download(root))
        for path in sorted(top.rglob("*"), reverse=True):
            if path.is_file() and path.relative_to(top).as_posix() not in self._paths():
                path.unlink()
        return str(top)

    def verify(self, root: str | None = None) -> None:
        """Compare a copy with what was logged.

        Raises:
            ValueError: a file differs or is not there.
        """
        top = Path(root or self._default_root())
        for path in self._paths():
            if not (top / path).is_file() or _digest(top / path) != _digest(self._files / path):
                raise ValueError(f"{top / path} is not what {self.name} holds")

    # -- its life -----------------------------------------------------------------------------------------------------

    def wait(self, timeout: int | None = None) -> Artifact:
        """It is there once `log_artifact` has returned."""
        del timeout
        return self

    def finalize(self) -> None:
        """Nothing is left to do."""

    def link(self, target_path: str, aliases: Iterable[str] | None = None) -> Artifact:
        """Give the version these names in a collection: see `link_artifact`."""
        _link(self, target_path, aliases)
        return self

    def save(self, *_: Any, **__: Any) -> None:
        """Write changed metadata, description and aliases of a logged artifact."""
        if self._top is not None and self.version:
            _write_manifest(self._top, self)
            _point(self._top.parent, [*self.aliases], self.version)

    def delete(self, delete_aliases: bool = False) -> None:
        """Remove this version.

        Raises:
            ValueError: aliases name it, and `delete_aliases` is False.
        """
        if self._top is None or not self.version:
            return
        pointing = [alias for alias, version in _aliases(self._top.parent).items() if version == self.version]
        if pointing and not delete_aliases:
            raise ValueError(
                f"{self.name} is also {', '.join(pointing)}; delete(delete_aliases=True) removes those too"
            )
        for alias in pointing:
            (self._top.parent / "aliases" / quote(alias, safe="")).unlink()
        shutil.rmtree(self._top)

    @property
    def _files(self) -> Path:
        if self._top is None:
            self._top = Settings.resolve().dir / "artifacts" / f".new-{secrets.token_hex(8)}"
            self._staged = weakref.finalize(self, shutil.rmtree, str(self._top), True)  # noqa: FBT003
            (self._top / "files").mkdir(parents=True, mode=0o700)
        return self._top / "files"

    def _paths(self) -> list[str]:
        if self._top is None:
            return []
        return sorted(path.relative_to(self._files).as_posix() for path in self._files.rglob("*") if path.is_file())

    def _place(self, name: str, *, overwrite: bool = True) -> Path:
        if self.version:
            raise ValueError(
                f"{self.name} is logged and does not change; make a new Artifact({self.source_name!r}, ...)"
            )
        path = Path(os.path.normpath(name))
        if path.is_absolute() or ".." in path.parts:
            raise ValueError(f"a file of an artifact lies inside it, got {name!r}")
        target = self._files / path
        if target.exists() and not overwrite:
            raise ValueError(f"{self.source_name} has a file {name!r} already")
        target.parent.mkdir(parents=True, exist_ok=True)
        return target

    def _default_root(self) -> str:
        return str(Path("artifacts") / self.name)


# -- the store --------------------------------------------------------------------------------------------------------


def log_artifact(
    run: Run,
    artifact_or_path: Artifact | str | os.PathLike[str],
    name: str | None = None,
    type: str | None = None,  # noqa: A002
    aliases: Iterable[str] | None = None,
    tags: Iterable[str] | None = None,
    **_: Any,
) -> Artifact:
    """Keep an artifact as the next version of its name; the one that is there if nothing changed.

    Args:
        run: that made it.
        artifact_or_path: it, or a file or folder to make one of.
        name: by default `run-<id>-<file>`.
        type: by default "unspecified".
        aliases: names of the version besides "latest".
        tags: labels.
    """
    artifact = artifact_or_path
    if not isinstance(artifact, Artifact):
        path = Path(artifact)
        artifact = Artifact(name or f"run-{run.id}-{path.name}", type or "unspecified")
        artifact.add_dir(path) if path.is_dir() else artifact.add_file(path)
    named = [aliases] if isinstance(aliases, str) else list(aliases or ())
    if run.disabled:
        return artifact
    artifact.tags = list(dict.fromkeys([*artifact.tags, *(tags or ())]))
    guard.attempt("log_artifact()", _log, run, artifact, named)
    return artifact


def _log(run: Run, artifact: Artifact, named: list[str]) -> None:
    folder = _folder(run.settings.dir, run.project, artifact.source_name)
    if not artifact.version:
        _keep(artifact, folder, run.project)
    artifact.aliases = list(dict.fromkeys([*artifact.aliases, "latest", *named]))
    _point(folder, named, str(artifact.version))
    run._event("artifact", {"action": "logged", **_facts(artifact)})


def use_artifact(run: Run, artifact_or_name: Artifact | str, type: str | None = None, **_: Any) -> Artifact:  # noqa: A002
    """An artifact by `name:version`, `name:alias` or `project/name:alias`; that the run used it is recorded.

    Raises:
        ServerError: there is none (`wandb.errors.CommError`).
        ValueError: it is of another type.
    """
    if isinstance(artifact_or_name, Artifact):
        artifact = artifact_or_name if artifact_or_name.version else log_artifact(run, artifact_or_name)
    else:
        artifact = find(run.settings.dir, run.project, artifact_or_name)
    if type is not None and artifact.type != type:
        raise ValueError(f"{artifact.name} is of type {artifact.type!r}, not {type!r}")
    run._event("artifact", {"action": "used", **_facts(artifact)})
    return artifact


def link_artifact(run: Run, artifact: Artifact, target_path: str, aliases: Iterable[str] | None = None) -> Artifact:
    """Give a version further names: `target_path` is a collection, whose versions are copies.

    Returns:
        The artifact of the collection.
    """
    logged = artifact if artifact.version or run.disabled else log_artifact(run, artifact)
    return logged if run.disabled else _link(logged, target_path, aliases)


def find(top: Path, project: str, name: str) -> Artifact:
    """An artifact by `name`, `name:version`, `name:alias`, `project/name:...` or `entity/project/name:...`.

    Raises:
        ServerError: there is none.
    """
    path, _, wanted = name.partition(":")
    *places, own = path.split("/")
    project = places[-1] if places else project
    folder = _folder(top, project, own)
    known = versions(folder)
    version = _aliases(folder).get(wanted, wanted) if wanted and wanted != "latest" else known[-1] if known else ""
    if version not in known:
        there = f"its versions are {', '.join(known)}" if known else f"{folder} is not there"
        raise ServerError(f"no artifact {name!r} in project {project!r}: {there}")
    return load(folder / version)


def versions(folder: Path) -> list[str]:
    """The versions of a name, oldest first."""
    names = [path.name for path in folder.iterdir()] if folder.is_dir() else []
    return sorted((name for name in names if re.fullmatch(r"v\d+", name)), key=lambda name: int(name[1:]))


def load(top: Path) -> Artifact:
    """The artifact of a version's folder."""
    facts = json.loads((top / "manifest.json").read_text())
    artifact = Artifact(facts["name"], facts["type"], facts["description"], facts["metadata"])
    artifact.version, artifact.project, artifact.created_at = top.name, facts["project"], facts["created_at"]
    artifact.tags, artifact._references, artifact._top = facts["tags"], facts["references"], top
    artifact.aliases = [alias for alias, version in _aliases(top.parent).items() if version == top.name]
    if versions(top.parent)[-1:] == [top.name]:
        artifact.aliases.append("latest")
    return artifact


def names(top: Path, project: str) -> list[str]:
    """The names of a project's artifacts."""
    folder = top / "artifacts" / quote(project, safe=" ")
    return sorted(unquote(path.name) for path in folder.iterdir()) if folder.is_dir() else []


def _folder(top: Path, project: str, name: str) -> Path:
    return top / "artifacts" / quote(project, safe=" ") / quote(name, safe=" ")


def _keep(artifact: Artifact, folder: Path, project: str) -> None:
    known = versions(folder)
    if artifact.incremental and known:
        newest = load(folder / known[-1])
        for path in set(newest._paths()) - set(artifact._paths()):
            artifact.add_file(newest._files / path, name=path)
    staged = artifact._files.parent
    digest = artifact.digest
    if known and json.loads((folder / known[-1] / "manifest.json").read_text())["digest"] == digest:
        artifact.version, artifact.project, artifact._top = known[-1], project, folder / known[-1]
        shutil.rmtree(staged, ignore_errors=True)
        return
    artifact.project, artifact.created_at = project, datetime.now(timezone.utc).isoformat(timespec="seconds")
    _write_manifest(staged, artifact, digest)
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    number = int(known[-1][1:]) + 1 if known else 0
    while not _renamed(staged, folder / f"v{number}"):
        number += 1  # another rank was faster
    artifact.version, artifact._top = f"v{number}", folder / f"v{number}"


def _renamed(staged: Path, target: Path) -> bool:
    if target.exists():
        return False
    try:
        staged.rename(target)
    except OSError as error:
        if target.exists():
            return False
        if staged.stat().st_dev == target.parent.stat().st_dev:
            raise error
        beside = target.parent / staged.name
        shutil.copytree(staged, beside)
        return _renamed(beside, target)
    return True


def _write_manifest(top: Path, artifact: Artifact, digest: str | None = None) -> None:
    facts = {
        "format": 1,
        "name": artifact.source_name,
        "type": artifact.type,
        "project": artifact.project,
        "description": artifact.description,
        "metadata": plain(artifact.metadata),
        "tags": artifact.tags,
        "created_at": artifact.created_at,
        "digest": digest or artifact.digest,
        "files": {path: {"size": (top / "files" / path).stat().st_size} for path in artifact._paths()},
        "references": artifact._references,
    }
    _write(top / "manifest.json", json.dumps(facts, indent=1, default=str))


def _aliases(folder: Path) -> dict[str, str]:
    at = folder / "aliases"
    return (
        {unquote(path.name): path.read_text() for path in at.iterdir() if path.suffix != ".new"} if at.is_dir() else {}
    )


def _point(folder: Path, aliases: Iterable[str], version: str) -> None:
    for alias in aliases:
        if alias != "latest":
            (folder / "aliases").mkdir(exist_ok=True, mode=0o700)
            _write(folder / "aliases" / quote(alias, safe=""), version)


def _write(path: Path, text: str) -> None:
    beside = path.with_name(f"{path.name}.{os.getpid()}.{time.monotonic_ns()}.new")
    beside.write_text(text)
    beside.replace(path)


def _link(artifact: Artifact, target_path: str, aliases: Iterable[str] | None) -> Artifact:
    if artifact._top is None or not artifact.version:
        raise ValueError(f"link(): {artifact.source_name} has to be logged first")
    path, _, alias = target_path.partition(":")
    *places, own = path.split("/")
    project = places[-1] if places else artifact.project
    top = artifact._top.parents[3]
    copy = Artifact(own, artifact.type, artifact.description, artifact.metadata)
    copy.add_dir(artifact._files)
    _keep(copy, _folder(top, project, own), project)
    named = [each for each in [*(aliases or ()), alias] if each]
    copy.aliases = ["latest", *named]
    _point(_folder(top, project, own), named, str(copy.version))
    return copy


def _facts(artifact: Artifact) -> dict[str, Any]:
    return {
        "name": artifact.qualified_name,
        "type": artifact.type,
        "digest": artifact.digest,
        "aliases": artifact.aliases,
        "metadata": plain(artifact.metadata),
        "files": artifact.file_count,
        "bytes": artifact.size,
    }


def _digest(path: Path) -> str:
    whole = hashlib.sha256()
    with path.open("rb") as file:
        while piece := file.read(_CHUNK):
            whole.update(piece)
    return whole.hexdigest()
