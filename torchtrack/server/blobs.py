"""Files of received runs in an object store: <uid>/media/<sha256> under a URL, laid out as in the folder.

A file waits in a folder of this machine until its SHA-256 is known to be right: nothing else is ever sent on, so no
upload of several parts has to be taken back because of what a client sent.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import re
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from pathlib import Path
from typing import Final, NamedTuple
from urllib.parse import urlsplit

import obstore
from obstore.exceptions import BaseError
from obstore.store import from_url

from torchtrack.server.media import MediaStore, Part

SCHEMES: Final = ("s3", "s3a", "gs", "az", "azure", "adl", "abfs", "abfss")
_PIECE: Final = 4 << 20
"""Bytes asked for at a time, each in a request that can be made again."""
_TOGETHER: Final = 4
"""Questions of one request, or parts of one file, at a time."""
_ROOM: Final = 24
"""Requests to the store at a time: of the 40 threads of the server some stay free, however long the store takes."""
_KEY: Final = re.compile(r"([0-9a-f]{16})/media/([0-9a-f]{64})")
_log = logging.getLogger("torchtrack.server")


class Blob(NamedTuple):
    """A file of a run in a bucket, and when it was put there, in seconds since 1970."""

    uid: str
    name: str
    size: int
    put_s: float


class Bucket:
    """Files of runs under a URL. **Threads:** any. What goes wrong is an OSError, in words for a client.

    Args:
        url: `s3://bucket/prefix`, `gs://bucket/prefix`, `az://container/prefix`. Keys and addresses come from the
            variables that the cloud's own tools read.

    Raises:
        ValueError: this is no such URL, or it holds a secret.
    """

    def __init__(self, url: str) -> None:
        parts = urlsplit(url)
        if parts.scheme not in SCHEMES:
            raise ValueError(f"blobs lie under s3://, gs:// or az://, not under {parts.scheme or 'no scheme'}:")
        if parts.password or parts.query:
            raise ValueError(
                "the URL of the blobs holds a secret; give it in the variables of the cloud, as for its own tools"
            )
        self.url = url
        self._room = threading.BoundedSemaphore(_ROOM)
        try:
            self._store = from_url(url, retry_config={"max_retries": 2, "retry_timeout": timedelta(seconds=20)})
        except BaseError as error:
            raise ValueError(f"the URL of the blobs cannot be used: {_first_line(error)}") from None

    def size(self, uid: str, name: str) -> int | None:
        """Bytes of a file, None if it is not there."""
        with self._asking():
            try:
                return obstore.head(self._store, _key(uid, name))["size"]
            except FileNotFoundError:
                return None

    def read(self, uid: str, name: str, first: int, stop: int) -> Iterator[bytes]:
        """The bytes from `first` to before `stop` of a file that is there, piece by piece."""
        for start in range(first, stop, _PIECE):
            with self._asking():
                piece = obstore.get_range(self._store, _key(uid, name), start=start, end=min(start + _PIECE, stop))
            yield bytes(piece)

    def put(self, uid: str, name: str, file: Path) -> None:
        """Send a file; it is there when this returns."""
        with self._asking():
            obstore.put(self._store, _key(uid, name), file, max_concurrency=_TOGETHER)

    def copy(self, uid: str, name: str, other: str) -> None:
        """Have a file of another run under this one too; the store does it alone."""
        with self._asking():
            obstore.copy(self._store, _key(other, name), _key(uid, name))

    def blobs(self, uid: str | None = None) -> Iterator[Blob]:
        """All files of a run, or of all runs; what else lies there is nobody's business here."""
        found = obstore.list(self._store, None if uid is None else _key(uid, ""), chunk_size=1000)
        while True:
            with self._asking():
                some = next(found, None)
            if some is None:
                return
            for each in some:
                key = _KEY.fullmatch(each["path"])
                if key is not None:
                    yield Blob(key[1], key[2], each["size"], each["last_modified"].timestamp())

    def remove(self, uid: str, name: str) -> None:
        """Remove a file."""
        with self._asking():
            obstore.delete(self._store, _key(uid, name))

    @contextlib.contextmanager
    def _asking(self) -> Iterator[None]:
        """Around a request."""
        if not self._room.acquire(blocking=False):
            raise OSError(errno.EAGAIN, "the blob store has too much to do; nothing is lost, ask again later")
        try:
            yield
        except (BaseError, FileNotFoundError) as error:  # not found: there is no such bucket, or a file was removed
            _log.warning("the blob store: %s", _first_line(error))
            why = "the blob store does not take or give files now; nothing is lost, ask again later"
            raise OSError(errno.EIO, why) from None
        finally:
            self._room.release()


class BlobStore(MediaStore):
    """The files in an object store, and those that lie in the folder from before. **Threads:** any.

    Args:
        folder: of all runs; nothing is written there.
        waiting: where files wait until they are whole; what lies there is removed. Of this server alone.
        url: of a `Bucket`.

    Raises:
        ValueError: this is no such URL, or it holds a secret.
    """

    def __init__(self, folder: Path, waiting: Path, url: str) -> None:
        super().__init__(folder)
        self._bucket = Bucket(url)
        self._waiting = waiting
        waiting.mkdir(0o700, exist_ok=True)
        for left in waiting.glob(".*"):
            left.unlink()

    def missing(self, uid: str, names: Sequence[str]) -> list[str]:
        """Those that are neither there nor in the folder."""
        with ThreadPoolExecutor(_TOGETHER) as threads:
            sizes = threads.map(lambda name: self.size(uid, name), names)
            return [name for name, size in zip(names, sizes, strict=True) if size is None]

    def size(self, uid: str, name: str) -> int | None:
        """Bytes of a file, None if it is not there."""
        here = super().size(uid, name)
        return self._bucket.size(uid, name) if here is None else here

    def every(self, uid: str) -> Iterator[tuple[str, int]]:
        """Name and size of the files of a run, in the folder and then in the store."""
        here = dict(super().every(uid))
        yield from here.items()
        yield from ((blob.name, blob.size) for blob in self._bucket.blobs(uid) if blob.name not in here)

    def read(self, uid: str, name: str, first: int, stop: int) -> Iterator[bytes]:
        """The bytes from `first` to before `stop` of a file that is there, piece by piece."""
        here = super().size(uid, name) is not None
        yield from super().read(uid, name, first, stop) if here else self._bucket.read(uid, name, first, stop)

    def share(self, uid: str, names: Sequence[str], other: str) -> None:
        """Let files of another run be files of this one too; those that it has not are left out."""
        here = [name for name in names if super(BlobStore, self).size(other, name) is not None]
        super().share(uid, here, other)
        for name in set(names) - set(here):
            if self._bucket.size(other, name) is not None:
                self._bucket.copy(uid, name, other)

    @contextlib.contextmanager
    def receive(self, uid: str, name: str) -> Iterator[Part]:
        """A file that is coming in; it is in the store only once it is kept."""
        self._path(uid, name)  # a bad name
        part = _Waiting(self._waiting / name, lambda file: self._bucket.put(uid, name, file))
        try:
            yield part
        finally:
            part.drop()


class _Waiting(Part):
    """A file that is sent on when it is whole, and then removed here."""

    def __init__(self, path: Path, send: Callable[[Path], None]) -> None:
        super().__init__(path)
        self._send = send

    def keep(self) -> None:
        self._send(self._path.with_name(self._name))


def _key(uid: str, name: str) -> str:
    return f"{uid}/media/{name}"


def _first_line(error: Exception) -> str:
    """What an error says, without queries of addresses: they may hold a signature."""
    return re.sub(r"\?\S+", "?...", str(error).partition("\n")[0])
