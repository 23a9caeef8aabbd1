"""Runs on a server, read as those in a folder are: the records of their streams come first, rows when asked for."""

from __future__ import annotations

import json
import shutil
import tempfile
import weakref
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final
from urllib.parse import quote, urlencode

import pyarrow as pa

from torchtrack import credentials
from torchtrack.api.held import Shelf
from torchtrack.errors import ServerError
from torchtrack.journal.ring import LEFT_NAME
from torchtrack.records import SCHEMAS, Table

TIMEOUT_S: Final = 60.0
_TRIES: Final = 4
MAX_QUERY: Final = 8000
"""Characters of a query that every server between takes."""


class Server:
    """A server's answers.

    Args:
        url: of the server, without `/api/v1`.
        key: what it lets one in with; by default `TORCHTRACK_API_KEY`, else what `torchtrack login` kept for it.
    """

    def __init__(self, url: str, key: str | None = None) -> None:
        import urllib3

        self.url = url.rstrip("/")
        key = key if key is not None else credentials.key_for(self.url)
        headers = {"Authorization": f"Bearer {key}"} if key else {}
        retries = urllib3.Retry(
            _TRIES, backoff_factor=0.2, status_forcelist=(429, 502, 503, 504), raise_on_status=False
        )
        self._folder: Path | None = None
        self._pool = urllib3.PoolManager(headers=headers, retries=retries, timeout=TIMEOUT_S)

    def shelf(self) -> Shelf:
        """All its streams."""
        shelf = Shelf(self.url, self._changes, self._rows, self._left)
        shelf.history = self._history
        return shelf

    def _changes(self, cursor: int) -> tuple[int, list[Mapping[str, Any]]]:
        answer = json.loads(self._get("streams", since=cursor))
        return answer["cursor"], answer["streams"]

    def _rows(self, stream: int, table: Table, first_seq: int, stop_seq: int) -> pa.Table:
        path = f"streams/{stream:016x}/{table.name.lower()}"
        with pa.ipc.open_stream(self._get(path, first=first_seq, stop=stop_seq)) as reader:
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
        with pa.ipc.open_stream(self._get(f"runs/{uid}/history", query)) as reader:
            return reader.read_all()

    def _left(self, folder: Path) -> list[Path]:
        """What processes left in the folder of a run; each file is fetched once, and again when it has grown."""
        place = f"runs/{folder.name}/files"
        try:
            listed = json.loads(self._get(place))["files"]
        except (ServerError, ValueError, KeyError):
            return []  # a server from before there were such routes
        if self._folder is None:
            self._folder = Path(tempfile.mkdtemp(prefix="torchtrack-"))
            weakref.finalize(self, shutil.rmtree, self._folder, ignore_errors=True)
        found = []
        for name, size in ((str(each["name"]), int(each["size"])) for each in listed):
            if LEFT_NAME.fullmatch(name):  # it becomes a path
                path = self._folder / folder.name / name
                if not path.exists() or path.stat().st_size != size:
                    path.parent.mkdir(parents=True, exist_ok=True)
                    path.write_bytes(self._get(f"{place}/{name}"))
                found.append(path)
        return found

    def _get(self, path: str, pairs: Sequence[tuple[str, str]] = (), **query: Any) -> bytes:
        import urllib3

        url = f"{self.url}/api/v1/{quote(path)}?{urlencode([*pairs, *query.items()])}"
        try:
            answer = self._pool.request("GET", url, redirect=False)  # a key goes nowhere else
        except urllib3.exceptions.HTTPError as error:
            raise ServerError(f"{self.url} does not answer: {error}") from error
        if answer.status == 400:
            raise ValueError(_message(answer.data))
        if answer.status != 200:
            raise ServerError(f"{self.url} answers {answer.status}: {_message(answer.data)}")
        return bytes(answer.data)


def _message(body: bytes) -> str:
    try:
        return str(json.loads(body)["error"]["message"])
    except (ValueError, KeyError, TypeError):
        return body[:200].decode(errors="replace")
