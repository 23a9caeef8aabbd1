"""Who may: keys and sessions, always; and from where: Host and Origin of each request.

The server's own token is made at its first start and lies in a file only its user can read: who has it is the owner,
whatever becomes of the catalog. All other keys, users and sessions are in the catalog (`people`).
"""

from __future__ import annotations

import hmac
import os
import re
import time
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Collection, MutableMapping
from datetime import timedelta
from pathlib import Path
from typing import Any, Final

from fastapi import Request
from fastapi.concurrency import run_in_threadpool
from sqlalchemy.exc import SQLAlchemyError

from torchtrack.server.people import Found, People, digest, new_key
from torchtrack.server.problems import ApiError
from torchtrack.server.rights import ANYONE, EVERYWHERE, OWNER, Scope, Who
from torchtrack.server.tables import now

SESSION_LASTS: Final = timedelta(days=30)
REMEMBERED_S: Final = 5.0
"""How long a key that was revoked through another server on the same catalog may still let in."""
MAX_QUESTION: Final = 4 << 20
"""Bytes of the body of a request that is no upload."""
_TOO_LARGE: Final = ApiError(413, "too_large", f"a request has at most {MAX_QUESTION} bytes")
_UPLOADS: Final = re.compile(r"/api/v1/(frames|positions|runs/[^/]*/(media|files)/.*)")
_REMEMBERED: Final = 10_000
_SAFE: Final = frozenset({"GET", "HEAD", "OPTIONS"})

ASGI = Callable[..., Awaitable[None]]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]


class Keys:
    """What lets people and programs in. **Threads:** any.

    Args:
        folder: of the server's own files; the token's is made there if it is not yet.
        people: the keys and users of the catalog.
        required: False lets everyone in: only for a server that nobody else can reach.
    """

    def __init__(self, folder: Path, people: People, *, required: bool = True) -> None:
        folder.mkdir(0o700, parents=True, exist_ok=True)
        self.token_file = folder / "token"
        self.required = required
        self.token = _token(self.token_file)
        self._own = digest(self.token)
        self.cookie = f"torchtrack-{digest('cookie' + self.token)[:8]}"
        """Its own for each server: cookies are shared by all ports of a host."""
        self.people = people
        self._found: OrderedDict[str, tuple[float, Found]] = OrderedDict()

    def find(self, given: str) -> Who | None:
        """Whose key this is. A wrong one takes as long as a right one: both are one look-up by their hash."""
        return self._by_hash(digest(given))

    def remembered(self, given: str) -> Who | None:
        """Whose key this is, if that is known without asking the catalog."""
        return self._remembered(digest(given)) if self.required else ANYONE

    def find_session(self, given: str) -> Who | None:
        """Whose session this is; it ends with the key it was traded for."""
        key, found = self.people.by_session(digest(given))
        return self._by_hash(key) if key is not None else found and found.who

    def begin_session(self, *, key: str | None = None, user: str | None = None) -> str:
        """What a browser is given in place of a key, which it does not tell, or once a user has logged in."""
        return self.people.begin_session(SESSION_LASTS, key=None if key is None else digest(key), user=user)

    def forget(self) -> None:
        """Look everybody up anew: something about keys, users or roles has changed."""
        self._found = OrderedDict()

    def _by_hash(self, sha256: str) -> Who | None:
        who = self._remembered(sha256)
        if who is not None:
            return who
        remembered = self._found  # what is looked up while a key is revoked goes into the one that is let go
        remembered.pop(sha256, None)
        found = self.people.by_key(sha256)
        if found is None:
            return None
        remembered[sha256] = time.monotonic(), found
        while len(remembered) > _REMEMBERED:
            remembered.popitem(last=False)
        return found.who

    def _remembered(self, sha256: str) -> Who | None:
        if hmac.compare_digest(sha256, self._own):
            return OWNER
        at, found = self._found.get(sha256, (0.0, None))
        if found is None or time.monotonic() - at > REMEMBERED_S:
            return None
        return None if found.expires is not None and found.expires <= now() else found.who


def key_of(request: Request) -> Who:
    """Who makes a request that was let in."""
    who: Who = request.state.key
    return who


class Requires:
    """A dependency of routes: lets in who may do this in some project, and answers 401 or 403 else.

    Without a scope everybody is let in whom the server knows, whatever they may. Which project it is about is for the
    route to find out: `need`.
    """

    def __init__(self, scope: Scope | None) -> None:
        self.scope = scope

    async def __call__(self, request: Request) -> None:
        """Find out who asks; in a thread only where the catalog has to be asked."""
        given = given_key(request)
        who = request.app.state.keys.remembered(given) or await run_in_threadpool(who_asks, request)
        if who is None:
            needed = "an API key is needed: torchtrack login, or TORCHTRACK_API_KEY"
            message = "a wrong API key" if given else needed
            raise ApiError(401, "no_key", message)
        request.state.key = who
        if self.scope is not None and not who.may(self.scope):
            raise ApiError(
                403, "not_allowed", f"{who.name!r} may not {self.scope} here; ask an admin for a role or key"
            )


def who_asks(request: Request) -> Who | None:
    """Who makes a request, by its key or its cookie; None: nobody the server knows.

    Raises:
        ApiError: the catalog cannot be asked.
    """
    keys: Keys = request.app.state.keys
    if not keys.required:
        return ANYONE
    given = given_key(request)
    session = request.cookies.get(keys.cookie, "")
    try:
        return keys.find(given) if given else keys.find_session(session) if session else None
    except SQLAlchemyError as error:
        raise ApiError(503, "catalog", "the catalog does not answer; ask again", retry_after_s=5) from error


def requires(scope: Scope | None) -> Requires:
    """A dependency for routes that need this scope, or only somebody whom the server knows."""
    return Requires(scope)


def need(who: Who, scope: Scope, project: str, what: str = "there is no such project") -> None:
    """Refuse who may not do this in a project; to who may not even read there it does not exist.

    Raises:
        ApiError: 403, or 404 with `what`.
    """
    if who.may(scope, project):
        return
    if project == EVERYWHERE or who.may("read", project):
        where = "in all projects" if project == EVERYWHERE else f"in {project!r}"
        raise ApiError(403, "not_allowed", f"{who.name!r} may not {scope} {where}; ask an admin")
    raise ApiError(404, "not_found", what)


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

    async def __call__(self, scope: MutableMapping[str, Any], receive: Receive, send: ASGI) -> None:
        """Serve one connection."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = {name.lower(): value.decode("latin-1") for name, value in scope["headers"]}
        problem = self._problem(scope["method"], headers.get(b"host", ""), headers.get(b"origin"))
        if not _UPLOADS.match(scope["path"]):
            said = headers.get(b"content-length", "")
            problem = _TOO_LARGE if said.isdecimal() and int(said) > MAX_QUESTION else problem
            receive = _limited(receive)
        if problem is not None:
            await problem.response()(scope, receive, send)  # ASGI's own types
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


def _limited(receive: Receive) -> Receive:
    """What comes in, no more than a question is long. Uploads have limits of their own."""
    size = 0

    async def counted() -> MutableMapping[str, Any]:
        nonlocal size
        message = await receive()
        size += len(message.get("body", b""))
        if size > MAX_QUESTION:
            raise _TOO_LARGE
        return message

    return counted


_HEADERS: Final = ((b"x-content-type-options", b"nosniff"), (b"referrer-policy", b"no-referrer"))


def _name(host: str) -> str:
    """A Host header without its port."""
    if host.startswith("["):
        return host.partition("]")[0].strip("[").lower()
    return host.partition(":")[0].lower()


def _token(file: Path) -> str:
    """The server's own token, made if there is none."""
    if file.exists():
        if file.stat().st_mode & 0o077:
            file.chmod(0o600)
        token = file.read_text().strip()
        if token:
            return token
        file.unlink()
    token = new_key()
    _write_private(file, token + "\n")
    return token


def _write_private(file: Path, text: str) -> None:
    fd = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    with os.fdopen(fd, "w") as opened:
        os.fchmod(opened.fileno(), 0o600)
        opened.write(text)
        opened.flush()
        os.fsync(opened.fileno())
