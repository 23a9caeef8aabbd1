"""An artifact: files with a name, a type and, once logged, a version.

`add_file` copies at once, in the thread that calls it, as the file may change later. What is never logged is removed.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import secrets
import shutil
import weakref
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import IO, Any, Final
from urllib.parse import quote

from torchtrack import guard
from torchtrack.blobs import Blob
from torchtrack.compat import store
from torchtrack.compat.said import no_effect
from torchtrack.media import Medium
from torchtrack.redact import plain
from torchtrack.settings import Settings

_NAME: Final = re.compile(r"[A-Za-z0-9_\-. ]{1,128}")
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
        return store.digest_of(self._artifact._files / self.path)

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
        use_as: no effect: what a run used is recorded without it.
        storage_region: no effect: artifacts lie on this machine.
        digest_algorithm: no effect: it is SHA-256.

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
        no_effect("Artifact", use_as=use_as, storage_region=storage_region, digest_algorithm=digest_algorithm)
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
        for path in self.paths():
            whole.update(f"{path}\0{store.digest_of(self._files / path)}\0".encode())
        for name, uri in sorted(self._references.items()):
            whole.update(f"{name}\0{uri}\0".encode())
        return whole.hexdigest()

    @property
    def size(self) -> int:
        """Bytes of all files."""
        return sum((self._files / path).stat().st_size for path in self.paths())

    @property
    def file_count(self) -> int:
        """How many files it has."""
        return len(self.paths()) + len(self._references)

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
        if name not in self.paths():
            raise KeyError(f"{self.name} has no file {name!r}; it has {', '.join(self.paths()[:8])}")
        return Entry(self, name)

    get_path = get_entry

    def get(self, name: str) -> Entry | None:
        """One of its files, None if there is no such one."""
        return Entry(self, name) if name in self.paths() else None

    def files(self, names: Iterable[str] | None = None, per_page: int = 50) -> list[Entry]:
        """Its files."""
        del per_page
        wanted = None if names is None else set(names)
        return [Entry(self, path) for path in self.paths() if wanted is None or path in wanted]

    def file(self, root: str | None = None) -> str:
        """The path of a copy of its only file.

        Raises:
            ValueError: it has none or several.
        """
        if len(self.paths()) != 1:
            raise ValueError(f"{self.name} has {len(self.paths())} files; file() is for one")
        return Entry(self, self.paths()[0]).download(root)

    def download(self, root: str | os.PathLike[str] | None = None, *_: Any, **__: Any) -> str:
        """Copy its files into a folder (./artifacts/name:version by default), and return that."""
        top = Path(root or self._default_root())
        top.mkdir(parents=True, exist_ok=True)
        for path in self.paths():
            Entry(self, path).download(top)
        return str(top)

    def checkout(self, root: str | None = None) -> str:
        """As `download`, and remove what else lies in that folder."""
        top = Path(self.download(root))
        for path in sorted(top.rglob("*"), reverse=True):
            if path.is_file() and path.relative_to(top).as_posix() not in self.paths():
                path.unlink()
        return str(top)

    def verify(self, root: str | None = None) -> None:
        """Compare a copy with what was logged.

        Raises:
            ValueError: a file differs or is not there.
        """
        top = Path(root or self._default_root())
        for path in self.paths():
            if not (top / path).is_file() or store.digest_of(top / path) != store.digest_of(self._files / path):
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
        from torchtrack.compat.artifacts import link

        link(self, target_path, aliases)
        return self

    def save(self, *_: Any, **__: Any) -> None:
        """Write changed metadata, description and aliases of a logged artifact."""
        if self._top is not None and self.version:
            self.write_manifest(self._top)
            store.point(self._top.parent, [*self.aliases], self.version)

    def write_manifest(self, top: Path, digest: str | None = None) -> None:
        """Write down what it is, in the folder of its version."""
        facts = {
            "format": 1,
            "name": self.source_name,
            "type": self.type,
            "project": self.project,
            "description": self.description,
            "metadata": plain(self.metadata),
            "tags": self.tags,
            "created_at": self.created_at,
            "digest": digest or self.digest,
            "files": {path: {"size": (top / "files" / path).stat().st_size} for path in self.paths()},
            "references": self._references,
        }
        store.write(top / "manifest.json", json.dumps(facts, indent=1, default=str))

    def delete(self, delete_aliases: bool = False) -> None:
        """Remove this version.

        Raises:
            ValueError: aliases name it, and `delete_aliases` is False.
        """
        if self._top is None or not self.version:
            return
        pointing = [alias for alias, version in store.aliases(self._top.parent).items() if version == self.version]
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
            weakref.finalize(self, shutil.rmtree, str(self._top), True)  # noqa: FBT003
            (self._top / "files").mkdir(parents=True, mode=0o700)
        return self._top / "files"

    def paths(self) -> list[str]:
        """Where its files lie in it."""
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
