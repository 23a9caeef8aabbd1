"""Runs on a server, read as those in a folder are: the records of their streams come first, rows when asked for."""

from __future__ import annotations

import contextlib
import hashlib
import json
import secrets
import shutil
import tempfile
import weakref
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import quote, urlencode

import pyarrow as pa

from torchtrack import credentials
from torchtrack.api.held import Shelf
from torchtrack.errors import ServerError
from torchtrack.journal.ring import LEFT_NAME
from torchtrack.records import SCHEMAS, Table

if TYPE_CHECKING:
    from urllib3 import BaseHTTPResponse

TIMEOUT_S: Final = 60.0
_TRIES: Final = 4
_PIECE: Final = 1 << 20
MAX_QUERY: Final = 8000
"""Characters of a query that every server between takes."""


class Server:
    """A server's answers.

    Args:
        url: of the server, without `/api/v1`.
        key: what it lets one in with; by default `TORCHTRACK_API_KEY`, else what `torchtrack login` kept for it.
        timeout_s: how long it may take for an answer.
    """

    def __init__(self, url: str, key: str | None = None, timeout_s: float = TIMEOUT_S) -> None:
        import urllib3

        self.url = url.rstrip("/")
        key = key if key is not None else credentials.key_for(self.url)
        self.key = key
        headers = {"Authorization": f"Bearer {key}"} if key else {}
        retries = urllib3.Retry(
            _TRIES, backoff_factor=0.2, status_forcelist=(429, 502, 503, 504), raise_on_status=False
        )
        self._folder: Path | None = None
        self._pool = urllib3.PoolManager(headers=headers, retries=retries, timeout=timeout_s)

    def me(self) -> dict[str, Any]:
        """Who one is there: name and roles.

        Raises:
            ServerError: it does not answer, or does not know the key.
        """
        return dict(self.json("me"))

    def json(self, path: str, **query: Any) -> Any:
        """An answer that is JSON; see `get`."""
        return json.loads(self.get(path, **query))

    def shelf(self) -> Shelf:
        """All its streams."""
        shelf = Shelf(self.url, self._changes, self._rows, self._left, self._media)
        shelf.history = self._history
        return shelf

    def _changes(self, cursor: int) -> tuple[int, list[Mapping[str, Any]]]:
        answer = json.loads(self.get("streams", since=cursor))
        return answer["cursor"], answer["streams"]

    def _rows(self, stream: int, table: Table, first_seq: int, stop_seq: int) -> pa.Table:
        path = f"streams/{stream:016x}/{table.name.lower()}"
        with pa.ipc.open_stream(self.get(path, first=first_seq, stop=stop_seq)) as reader:
            return reader.read_all().cast(SCHEMAS[table])

    def _history(
        self, uid: str, keys: Sequence[str], ranks: str, start: int | None, stop: int | None
    ) -> pa.Table | None:
        """What `Run.history` gives, combined there; None if so many keys do not fit into an address."""
        query = [("keys", key) for key in keys]
        query += [("ranks", ranks), ("format", "arrow")]
        query += [(name, str(step)) for name, step in (("start", start), ("stop", stop)) if step is not None]
        if len(urlencode(query)) > MAX_QUERY:
            return None
        with pa.ipc.open_stream(self.get(f"runs/{uid}/history", query)) as reader:
            return reader.read_all()

    def _left(self, folder: Path) -> list[Path]:
        """What processes left in the folder of a run; each file is fetched once, and again when it has grown."""
        place = f"runs/{folder.name}/files"
        try:
            listed = json.loads(self.get(place))["files"]
        except (ServerError, ValueError, KeyError):
            return []  # a server from before there were such routes
        found = []
        for name, size in ((str(each["name"]), int(each["size"])) for each in listed):
            if LEFT_NAME.fullmatch(name):  # it becomes a path
                path = self._kept() / folder.name / name
                if not path.exists() or path.stat().st_size != size:
                    path.parent.mkdir(parents=True, exist_ok=True)
                    path.write_bytes(self.get(f"{place}/{name}"))
                found.append(path)
        return found

    def _media(self, folder: Path, sha256: str) -> Path | None:
        """A file that a run logged, fetched once; it is there only once its content is what its name says."""
        path = self._kept() / folder.name / "media" / sha256
        there = path.exists() or self.fetch(f"runs/{folder.name}/media/{sha256}", sha256, path)
        return path if there else None

    def fetch(self, place: str, sha256: str, target: Path) -> bool:
        """Fetch a file; where it was cut off it goes on. It is there only once its content has this SHA-256.

        Args:
            place: of the file below /api/v1.
            sha256: of its content.
            target: where to.

        Returns:
            False if the server has no such file.

        Raises:
            ServerError: the server refuses, does not answer, or sends something else.
            OSError: it cannot be written.
        """
        target.parent.mkdir(parents=True, exist_ok=True)
        part = target.with_name(f".{sha256}.{secrets.token_hex(8)}")
        digest, size, found = hashlib.sha256(), 0, False
        try:
            with part.open("xb") as file:
                while not found:
                    before = size
                    try:
                        with self._asked(place, stream=True, first_byte=size) as answer:
                            if answer.status == 404:
                                return False
                            _check(self.url, answer)
                            for piece in answer.stream(_PIECE):
                                digest.update(piece)
                                size += file.write(piece)
                        found = True
                    except CutError:
                        if size == before:
                            raise
            if digest.hexdigest() != sha256:
                raise ServerError(f"{self.url} sends another content than that of {sha256}; ask again")
            part.rename(target)
        finally:
            part.unlink(missing_ok=True)
        return True

    def _kept(self) -> Path:
        """A folder for what is fetched, which goes with this object."""
        if self._folder is None:
            self._folder = Path(tempfile.mkdtemp(prefix="torchtrack-"))
            weakref.finalize(self, shutil.rmtree, self._folder, ignore_errors=True)
        return self._folder

    def get(self, path: str, pairs: Sequence[tuple[str, str]] = (), **query: Any) -> bytes:
        """The body of an answer.

        Args:
            path: below /api/v1.
            pairs: of the query, of which a name may come twice.
            query: more of it.

        Raises:
            ValueError: the server says that the question makes no sense.
            ServerError: it refuses, or does not answer.
        """
        with self._asked(path, pairs, **query) as answer:
            _check(self.url, answer)
            return bytes(answer.data)

    @contextlib.contextmanager
    def _asked(
        self,
        path: str,
        pairs: Sequence[tuple[str, str]] = (),
        *,
        stream: bool = False,
        first_byte: int = 0,
        **query: Any,
    ) -> Iterator[BaseHTTPResponse]:
        """An answer, whatever its status; with `stream` its content comes as it is read, from `first_byte` on."""
        import urllib3

        url = f"{self.url}/api/v1/{quote(path)}?{urlencode([*pairs, *query.items()])}"
        headers = {**self._pool.headers, **({"Range": f"bytes={first_byte}-"} if first_byte else {})}
        try:  # a key goes nowhere else: nothing is redirected
            answer = self._pool.request("GET", url, headers=headers, redirect=False, preload_content=not stream)
            with contextlib.closing(answer) if stream else contextlib.nullcontext():
                yield answer
        except urllib3.exceptions.HTTPError as error:
            raise CutError(f"{self.url} does not answer: {error}") from error


class CutError(ServerError):
    """No answer came, or it was cut off."""


def _check(url: str, answer: BaseHTTPResponse) -> None:
    """Raise unless it is a success."""
    if answer.status == 400:
        raise ValueError(_message(answer.data))
    if answer.status not in (200, 206):
        raise ServerError(f"{url} answers {answer.status}: {_message(answer.data)}")


def _message(body: bytes) -> str:
    try:
        return str(json.loads(body)["error"]["message"])
    except (ValueError, KeyError, TypeError):
        return body[:200].decode(errors="replace")
