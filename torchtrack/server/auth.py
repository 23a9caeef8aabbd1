"""Who may: API keys, always; and from where: Host and Origin of each request.

The server's own token is made at its first start and lies in a file only its user can read. Of further keys only the
SHA-256 is kept. This small file is to move into the catalog.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import os
import secrets
from collections.abc import Awaitable, Callable, Collection, MutableMapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal

from fastapi import Request

from torchtrack.server.problems import ApiError

Scope = Literal["ingest", "read", "admin"]
_PREFIX: Final = "tt_"
_SAFE: Final = frozenset({"GET", "HEAD", "OPTIONS"})

ASGI = Callable[..., Awaitable[None]]


@dataclass(frozen=True)
class Key:
    """Who asks. `admin` may all, the other scopes what they say."""

    name: str
    scopes: frozenset[str]

    def may(self, scope: str) -> bool:
        """Whether it may do this."""
        return scope in self.scopes or "admin" in self.scopes


ANYONE: Final = Key("anyone", frozenset({"admin"}))


class Keys:
    """The keys of a server.

    Args:
        folder: of the server's own files; the token's is made there if it is not yet.
        required: False lets everyone in: only for a server that nobody else can reach.
    """

    def __init__(self, folder: Path, *, required: bool = True) -> None:
        folder.mkdir(0o700, parents=True, exist_ok=True)
        self._file = folder / "keys.json"
        self.token_file = folder / "token"
        self.required = required
        self.token = _token(self.token_file)
        self.cookie = f"torchtrack-{_hash('cookie' + self.token)[:8]}"
        """Its own for each server: cookies are shared by all ports of a host."""
        self._hashes: dict[str, Key] = {_hash(self.token): Key("token", frozenset({"admin"}))}
        for entry in json.loads(self._file.read_text()) if self._file.exists() else []:
            self._hashes[entry["sha256"]] = Key(entry["name"], frozenset(entry["scopes"]))

    def add(self, name: str, scopes: Collection[Scope]) -> str:
        """A new key; it is returned once and kept nowhere."""
        key = _PREFIX + secrets.token_urlsafe(32)
        self._hashes[_hash(key)] = Key(name, frozenset(scopes))
        self._save()
        return key

    def revoke(self, name: str) -> bool:
        """No longer let in the keys of this name; False if there is none."""
        gone = [digest for digest, key in self._hashes.items() if key.name == name and name != "token"]
        for digest in gone:
            del self._hashes[digest]
        if gone:
            self._save()
        return bool(gone)

    def find(self, given: str) -> Key | None:
        """Whose key this is. Takes as long for a wrong one as for a right one."""
        digest, found = _hash(given), None
        for known, key in self._hashes.items():
            if hmac.compare_digest(known, digest):
                found = key
        return found

    def session_of(self, given: str) -> str:
        """What a browser is given in place of a key: it ends with the key, and does not tell it."""
        return _session(_hash(given), self.token)

    def find_session(self, given: str) -> Key | None:
        """Whose session this is."""
        found = None
        for digest, key in self._hashes.items():
            if hmac.compare_digest(_session(digest, self.token).encode(), given.encode("utf-8", "surrogateescape")):
                found = key
        return found

    def _save(self) -> None:
        entries = [
            {"sha256": digest, "name": key.name, "scopes": sorted(key.scopes)}
            for digest, key in self._hashes.items()
            if key.name != "token"
        ]
        temporary = self._file.with_name(f"{self._file.name}.{secrets.token_hex(4)}")
        _write_private(temporary, json.dumps(entries))
        temporary.rename(self._file)


def key_of(request: Request) -> Key:
    """Who makes a request that was let in."""
    key: Key = request.state.key
    return key


def requires(scope: Scope) -> Callable[[Request], None]:
    """A dependency for routes: lets in whose key has this scope, and answers 401 or 403 else."""

    def check(request: Request) -> None:
        keys: Keys = request.app.state.keys
        if not keys.required:
            request.state.key = ANYONE
            return
        given = given_key(request)
        key = keys.find(given) if given else keys.find_session(request.cookies.get(keys.cookie, ""))
        if key is None:
            message = (
                "an API key is needed: torchtrack login, or TORCHTRACK_API_KEY" if not given else "a wrong API key"
            )
            raise ApiError(401, "no_key", message)
        if not key.may(scope):
            raise ApiError(403, "not_allowed", f"the key {key.name!r} has not the scope {scope!r}")
        request.state.key = key

    return check


def given_key(request: Request) -> str:
    """The key in a request's header, empty without one."""
    kind, _, given = request.headers.get("authorization", "").partition(" ")
    return given.strip() if kind.lower() == "bearer" else ""


class Doorkeeper:
    """ASGI middleware: refuses requests that name another host, or that another site's page sends.

    Args:
        app: what it guards.
        hosts: names under which the server may be asked, without port; empty allows any.
    """

    def __init__(self, app: ASGI, hosts: Collection[str]) -> None:
        self._app = app
        self._hosts = {host.lower() for host in hosts}

    async def __call__(self, scope: MutableMapping[str, Any], receive: ASGI, send: ASGI) -> None:
        """Serve one connection."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = {name.lower(): value.decode("latin-1") for name, value in scope["headers"]}
        problem = self._problem(scope["method"], headers.get(b"host", ""), headers.get(b"origin"))
        if problem is not None:
            await problem.response()(scope, receive, send)  # type: ignore[arg-type]  # ASGI's own types
            return

        async def guarded(message: MutableMapping[str, Any]) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [*message["headers"], *_HEADERS]
            await send(message)

        await self._app(scope, receive, guarded)

    def _problem(self, method: str, host: str, origin: str | None) -> ApiError | None:
        if self._hosts and _name(host) not in self._hosts:
            return ApiError(421, "wrong_host", "this server is not known under that name; see --allow-host")
        if method not in _SAFE and origin is not None and origin.partition("://")[2].lower() != host.lower():
            return ApiError(403, "wrong_origin", "pages of other sites may not change anything here")
        return None


_HEADERS: Final = ((b"x-content-type-options", b"nosniff"), (b"referrer-policy", b"no-referrer"))


def _name(host: str) -> str:
    """A Host header without its port."""
    if host.startswith("["):
        return host.partition("]")[0].strip("[").lower()
    return host.partition(":")[0].lower()


def _session(digest: str, secret: str) -> str:
    return hmac.new(secret.encode(), f"session {digest}".encode(), hashlib.sha256).hexdigest()


def _hash(key: str) -> str:
    return hashlib.sha256(key.encode("utf-8", "surrogateescape")).hexdigest()


def _token(file: Path) -> str:
    """The server's own token, made if there is none."""
    if file.exists():
        if file.stat().st_mode & 0o077:
            file.chmod(0o600)
        token = file.read_text().strip()
        if token:
            return token
        file.unlink()
    token = _PREFIX + secrets.token_urlsafe(32)
    _write_private(file, token + "\n")
    return token


def _write_private(file: Path, text: str) -> None:
    fd = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    with os.fdopen(fd, "w") as opened:
        os.fchmod(opened.fileno(), 0o600)
        opened.write(text)
        opened.flush()
        os.fsync(opened.fileno())
