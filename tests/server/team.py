"""A whole server with the runs of two projects, and the keys of people who may more and less."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from tests.api.journals import RankJournal
from tests.runs import until
from tests.server.running import Running
from torchtrack import wire
from torchtrack.server.app import Config
from torchtrack.server.budget import Limits
from torchtrack.sidecar.upload.transport import Http, Reply

MINE = "aaaa000011112222"
"""A run of `llm`."""
THEIRS = "bbbb000011112222"
"""A run of `secret`, of which those of `llm` may not know."""


class Team:
    """The server, and what it is asked.

    Attributes:
        keys: by what they may: `owner`, `read`, `write`, `admin` in llm, `other` writes in secret, `ann` an editor of
            llm, `revoked`.
    """

    def __init__(self, folder: Path) -> None:
        limits = Limits(job_requests_per_s=1000, interval_s=0.01, key_requests_per_s=2000)
        self.server = Running(Config(data=folder / "data", limits=limits))
        self.keys = {"owner": self.server.key}
        self.ann = ""
        self._folder = folder

    def come_together(self) -> None:
        """Make the keys, send the runs, wait until they are there."""
        folder = self._folder
        self.streams = {MINE: self._record(folder, MINE, "llm"), THEIRS: self._record(folder, THEIRS, "secret")}
        for scope in ("read", "write", "admin"):
            self.keys[scope] = self.make(name=scope, scope=scope, project="llm")["key"]
        self.keys["other"] = self.make(name="other", scope="write", project="secret")["key"]
        self.ann = self.json("POST", "/users", "owner", {"name": "ann", "roles": {"llm": "editor"}})["id"]
        self.keys["ann"] = self.make(name="laptop", scope="admin", user=self.ann)["key"]
        gone = self.make(name="gone", scope="admin")
        self.keys["revoked"] = gone["key"]
        assert self.ask("DELETE", f"/keys/{gone['id']}", "owner").status == 204
        assert self.send(self.streams[MINE], "write").status == 200
        assert self.send(self.streams[THEIRS], "other").status == 200
        until(lambda: self.ask("GET", "/projects", "owner").body.count(b'"project"') >= 2, 60)

    @staticmethod
    def _record(folder: Path, uid: str, project: str) -> Path:
        with RankJournal(folder / "local", uid, project=project) as rank:
            rank.about(name=f"{project}-run", project=project)
            rank.log(0, {f"{project}/loss": 1.0})
        return next((folder / "local" / uid).glob("*/*.ttj"))

    def make(self, **new: Any) -> dict[str, Any]:
        """A key."""
        made: dict[str, Any] = self.json("POST", "/keys", "owner", new)
        return made

    def send(self, path: Path, key: str) -> Reply:
        """Upload a whole journal."""
        body, _ = wire.pack([wire.Section(int(path.stem[-16:], 16), 0, path.read_bytes())], zstd=False)
        return self.client(key).ask("POST", "/api/v1/frames", body, {"Content-Type": wire.FRAMES_TYPE})

    def client(self, key: str | None) -> Http:
        """Asks with the key of this name, or this key."""
        return self.server.client(self.keys.get(key, key) if key is not None else "")

    def ask(self, method: str, path: str, key: str | None = None, body: Any = None, **headers: str) -> Reply:
        """Anything under /api/v1."""
        data = None if body is None else json.dumps(body).encode()
        head = {"Content-Type": "application/json", **{name.replace("_", "-"): text for name, text in headers.items()}}
        client = self.client(key)
        try:
            return client.ask(method, f"/api/v1{path}", data, head)
        finally:
            client.close()

    def json(self, method: str, path: str, key: str | None, body: Any = None) -> Any:
        """The answer, which is a success."""
        reply = self.ask(method, path, key, body)
        assert reply.status in (200, 201), reply.body
        return json.loads(reply.body)

    def stop(self) -> None:
        """End it."""
        self.server.stop()
