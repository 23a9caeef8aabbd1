"""Artifacts on a server: their versions, and files that are fetched when they are asked for, each content once."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torchtrack import contents
from torchtrack.api.remote import Server
from torchtrack.errors import ServerError


class Away:
    """The files of a version that a server has.

    Args:
        server: which.
        cache: the folder of contents that are here, named by their SHA-256.
        about: what the server says of the version.
    """

    def __init__(self, server: Server, cache: Path, about: Mapping[str, Any]) -> None:
        self.server, self.about = server, about
        self._cache = cache

    @functools.cached_property
    def contents(self) -> contents.Contents:
        """Which files there are.

        Raises:
            ServerError: the server has not got them.
        """
        about, digest = self.about, self.about.get("contents")
        if not contents.is_digest(digest):
            raise ServerError(
                f"{self._called} was logged by a version of torchtrack that kept contents where the run was: "
                "log it again there, or copy its folder"
            )
        return contents.decode(self._fetched(f"runs/{about['run']}/media/{digest}", str(digest)).read_bytes())

    def at(self, path: str) -> Path:
        """A file, once it is here."""
        digest = self.contents.files[path].sha256
        place = f"runs/{self.about['run']}/contents/{self.about['contents']}/{path}"
        return self._fetched(place, digest)

    def _fetched(self, place: str, digest: str) -> Path:
        path = self._cache / digest
        if not path.exists() and not self.server.fetch(place, digest, path):
            raise ServerError(
                f"{self.server.url} has not got all of {self._called} yet: what the run wrote is still on its way, or "
                "some of it could not be sent (torchtrack sync says what)"
            )
        return path

    @property
    def _called(self) -> str:
        return f"{self.about['project']}/{self.about['name']}:{self.about['version']}"


def versions(server: Server, project: str, name: str) -> list[dict[str, Any]]:
    """What a server says of the versions of an artifact, the oldest first.

    Raises:
        ServerError: it does not answer, or lets nobody in with this key.
    """
    return list(server.json("artifacts", project=project, name=name))
