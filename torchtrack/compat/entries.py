"""The files of an artifact: put in until it is logged, and given out.

`add_file` copies at once, in the thread that calls it, as the file may change later. What is never logged is removed.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import weakref
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import IO, Any

from torchtrack import guard
from torchtrack.blobs import Blob
from torchtrack.compat import digests, store
from torchtrack.compat.away import Away
from torchtrack.contents import Held, measure
from torchtrack.media import Medium
from torchtrack.mime import ending_of
from torchtrack.settings import Settings


class Entry:
    """One file of an artifact."""

    def __init__(self, artifact: Files, path: str) -> None:
        self._artifact, self.path, self.name = artifact, path, path

    @property
    def size(self) -> int:
        """In bytes."""
        return self._artifact.held(self.path).size

    @property
    def digest(self) -> str:
        """SHA-256 of the content in hex digits; with a `digest_algorithm`, its digest in base64, as there."""
        return self._artifact.digests().get(self.path) or self._artifact.held(self.path).sha256

    def local_path(self) -> str:
        """Where it lies; one on a server is fetched."""
        return str(self._artifact.at(self.path))

    def download(self, root: str | os.PathLike[str] | None = None, **_: Any) -> str:
        """Copy it into a folder; the path of the copy.

        Raises:
            ValueError: what lies there is not what was logged, by the artifact's `digest_algorithm`.
        """
        target = Path(root or self._artifact._default_root()) / self.path
        store.copy(self._artifact.at(self.path), target)
        self._artifact.compare(self.path, target)
        return str(target)


class Files:
    """What an artifact holds: files here or on a server, and references."""

    source_name: str
    version: str | None

    def __init__(self, digest_algorithm: str) -> None:
        self.digest_algorithm = digest_algorithm
        self._digests: dict[str, str] | None = None
        self._references: dict[str, str] = {}
        self._top: Path | None = None
        self._held: dict[str, Held] | None = None
        self._away: Away | None = None

    @property
    def name(self) -> str:
        """What the artifact is called."""
        raise NotImplementedError

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
        guard.attempt("add_file()", store.copy, source, target)
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
        path = name if Path(name).suffix else name + ending_of(blob.mime, ".table.json")
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
            if not (top / path).is_file() or measure(top / path).sha256 != self.held(path).sha256:
                raise ValueError(f"{top / path} is not what {self.name} holds")
            self.compare(path, top / path)

    def compare(self, path: str, copy: Path) -> None:
        """Compare a copy of one of its files with the digest that was kept of it, if it has such.

        Raises:
            ValueError: they differ; the copy is removed.
        """
        kept = self.digests().get(path) if self.version else None
        if kept is not None and digests.of_file(copy, self.digest_algorithm) != kept:
            copy.unlink()
            raise ValueError(f"{path!r} of {self.name} is not what was logged: its {self.digest_algorithm} differs")

    def paths(self) -> list[str]:
        """Where its files lie in it."""
        if self._away:
            return sorted(self._away.contents.files)
        if self._top is None:
            return []
        return sorted(path.relative_to(self._files).as_posix() for path in self._files.rglob("*") if path.is_file())

    @property
    def _files(self) -> Path:
        if self._top is None:
            self._top = Settings.resolve().dir / "artifacts" / f".new-{secrets.token_hex(8)}"
            weakref.finalize(self, store.discard, self._top)
            (self._top / "files").mkdir(parents=True, mode=0o700)
        return self._top / "files"

    def held(self, path: str) -> Held:
        """Size and digests of one of its files; of a logged one as it was then."""
        known = self._away.contents.files if self._away else self._held
        return measure(self._files / path) if known is None else known[path]

    def digests(self) -> Mapping[str, str]:
        """By `digest_algorithm`, in base64, of each file; empty without one. Of a logged one as they were then."""
        if self.digest_algorithm not in digests.SECOND:
            return {}
        known = self._away.contents.digests if self._away else self._digests
        if known is None:
            return {path: digests.of_file(self._files / path, self.digest_algorithm) for path in self.paths()}
        return known

    def references(self) -> Mapping[str, str]:
        """Where files lie that are not copied, by name."""
        return self._away.contents.references if self._away else self._references

    def at(self, path: str) -> Path:
        """Where one of its files lies; one on a server is fetched first."""
        return self._away.at(path) if self._away else self._files / path

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
