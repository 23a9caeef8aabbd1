"""Files go before the rows that name them."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, Final

from torchtrack import wire
from torchtrack.journal import frame
from torchtrack.journal.frame import Kind
from torchtrack.sidecar.upload.tail import Tail
from torchtrack.sidecar.upload.transport import Reply, Transport

_SHA256: Final = re.compile(r"[0-9a-f]{64}")
_MEDIA: Final = 4  # records.Table.MEDIA


class MediaSender:
    """Sends the files that rows in flight name. For one thread.

    Args:
        transport: how the server is asked.
    """

    def __init__(self, transport: Transport) -> None:
        self.available = True
        """Whether the server takes files."""
        self.refusal: Reply | None = None
        """What it answered instead of taking one."""
        self.not_sent: dict[str, str] = {}
        """Files that stay here, and why: not there, changed, or refused for good."""
        self._transport = transport
        self._wanted: dict[str, Path] = {}
        self._checked: set[str] = set()

    def forget(self) -> None:
        """What the server has is not known any more."""
        self._wanted.clear()
        self._checked.clear()

    def wanted(self, tail: Tail, section: wire.Section) -> None:
        """Rows of this section name files: they have to be sent first."""
        if not self.available:
            return
        runs = tail.path.parent.parent.parent
        folders = list(dict.fromkeys([tail.path.parent.parent, runs / tail.uid]))
        for found in frame.scan(bytes(section.frames), section.stream):
            if found.header.kind is Kind.DATA and found.header.table == _MEDIA:
                for name in _names(found.payload()):
                    self._want(name, folders)

    def _want(self, name: str, folders: list[Path]) -> None:
        path = next((folder / "media" / name for folder in folders if (folder / "media" / name).is_file()), None)
        if path is None:
            self.not_sent.setdefault(name, "it is not there")
        elif str(path) not in self._checked:
            self._wanted[str(path)] = path

    def send(self, most: int) -> bool:
        """Send what is wanted. False if something is left: `refusal` says why.

        Raises:
            UnreachableError: there was no answer.
        """
        del most
        self.refusal = None
        while self._wanted:
            key, path = next(iter(self._wanted.items()))
            uid, name = path.parent.parent.name, path.name
            body = frame.dump({"sha256": [name]})
            asked = self._transport.ask(
                "POST", f"{wire.API}/runs/{uid}/media/missing", body, {"Content-Type": "application/json"}
            )
            if asked.status != 200:
                self.refusal = asked
                return False
            if name in asked.json().get("missing", ()) and not self._put(uid, path):
                return False
            del self._wanted[key]
            self._checked.add(key)
        return True

    def _put(self, uid: str, path: Path) -> bool:
        try:
            file = path.open("rb")
            size = path.stat().st_size
        except OSError as error:
            self.not_sent[path.name] = str(error.strerror)
            return True
        headers = {"Content-Type": "application/octet-stream", "Content-Length": str(size)}
        with file:
            reply = self._transport.ask("PUT", f"{wire.API}/runs/{uid}/media/{path.name}", file, headers)
        if reply.status in (400, 413, 422):
            self.not_sent[path.name] = reply.problem()
        elif reply.status not in (200, 201):
            self.refusal = reply
            return False
        return True


def _names(payload: bytes) -> list[str]:
    """The files that rows of the media table name."""
    from torchtrack import records

    try:
        column: list[Any] = records.decode(records.Table.MEDIA, payload).column("sha256").to_pylist()
    except (ValueError, OSError):
        return []
    return [name for name in column if isinstance(name, str) and _SHA256.fullmatch(name)]
