"""Black boxes and stacks that a process left: whole files, sent once they lie in the folder of their run."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from pathlib import Path

from torchtrack import wire
from torchtrack.journal import frame, ring
from torchtrack.sidecar.upload.transport import Reply, Transport

_State = tuple[int, int]


def left_in(folder: Path) -> list[tuple[str, Path]]:
    """The files that processes left in the folder of a run, each with the stream of its process, 16 hex digits."""
    try:
        found = sorted((folder / "nodes").iterdir())
    except OSError:
        return []
    named = [(ring.LEFT_NAME.fullmatch(path.name), path) for path in found]
    return [(name[1], path) for name, path in named if name is not None]


class LeftSender:
    """Sends such files, each once for every content that it had. For one thread.

    Args:
        transport: how the server is asked.
    """

    def __init__(self, transport: Transport) -> None:
        self.available = True
        """Whether the server takes them; one of an earlier version does not."""
        self.refusal: Reply | None = None
        """What it answered instead of taking one."""
        self.not_sent: dict[str, str] = {}
        """Files that stay here, and why."""
        self.sent = 0
        """How many files the server is known to have."""
        self._transport = transport
        self._wanted: dict[Path, _State] = {}
        self._known: dict[Path, _State] = {}

    @property
    def waiting(self) -> bool:
        """Whether there are files to be sent."""
        return bool(self._wanted) and self.available

    @property
    def left(self) -> dict[str, str]:
        """Files that the server does not have, and why."""
        waiting = "not sent yet" if self.available else "the server is too old to take it"
        return {**{path.name: waiting for path in self._wanted}, **self.not_sent}

    def want(self, paths: Iterable[Path]) -> None:
        """Have these sent; those that were sent and have not changed since are not."""
        for path in paths:
            try:
                status = path.stat()
            except OSError:
                continue
            state = status.st_mtime_ns, status.st_size
            if self._known.get(path) != state:
                self._known[path] = self._wanted[path] = state

    def send(self) -> bool:
        """Send what is wanted. False if something is left: `refusal` says why.

        Raises:
            UnreachableError: there was no answer.
        """
        self.refusal = None
        while self.waiting:
            path = next(iter(self._wanted))
            reply = self._send(path)
            if reply is not None and reply.status in (400, 404, 413, 422):
                self.not_sent[path.name] = reply.problem()
            elif reply is not None and reply.status not in (200, 201):
                self.refusal = reply
                return False
            else:
                self.sent += reply is not None
                self.not_sent.pop(path.name, None)
            del self._wanted[path]
        return True

    def _send(self, path: Path) -> Reply | None:
        """The last answer; None if the file cannot be read any more."""
        try:
            content = path.read_bytes()
        except OSError as error:
            self.not_sent[path.name] = str(error.strerror)
            return None
        place = f"{wire.API}/runs/{path.parent.parent.name}/files"
        digest = hashlib.sha256(content).hexdigest()
        body = frame.dump({"files": {path.name: digest}})
        asked = self._transport.ask("POST", f"{place}/missing", body, {"Content-Type": "application/json"})
        if asked.status != 200 or path.name not in asked.json().get("missing", ()):
            return asked
        headers = {"Content-Type": "application/octet-stream", "Content-Length": str(len(content))}
        return self._transport.ask("PUT", f"{place}/{path.name}?sha256={digest}", content, headers)
