"""Requests to a server: one connection, verified TLS, no redirects, a bound on time and on what comes back."""

from __future__ import annotations

import json
import urllib.request
from collections.abc import Callable, Iterable, Mapping
from typing import IO, Any, Final, NamedTuple, Protocol
from urllib.parse import urlsplit

from torchtrack.credentials import is_loopback

CONNECT_S: Final = 10.0
READ_S: Final = 30.0
_MOST_BACK: Final = 16 << 20

Body = bytes | IO[bytes] | Iterable[bytes] | None


class UnreachableError(Exception):
    """No answer came: nobody knows whether the request was carried out."""


class Reply(NamedTuple):
    """An answer."""

    status: int
    headers: Mapping[str, str]
    body: bytes

    def json(self) -> dict[str, Any]:
        """Its JSON object; empty if it holds none."""
        try:
            value = json.loads(self.body)
        except (ValueError, RecursionError):
            return {}
        return value if isinstance(value, dict) else {}

    def problem(self) -> str:
        """What the server says is wrong, in words: with the request, or with a stream of it."""
        answer = self.json()
        streams = answer.get("streams")
        parts = [answer, *(streams.values() if isinstance(streams, dict) else ())]
        wrong = [part.get("error") or part.get("problem") for part in parts if isinstance(part, dict)]
        said = next((each["message"] for each in wrong if isinstance(each, dict) and each.get("message")), None)
        return str(said) if said else f"HTTP status {self.status}"


class Transport(Protocol):
    """A way to ask a server."""

    def ask(self, method: str, path: str, body: Body = None, headers: Mapping[str, str] | None = None) -> Reply:
        """Send a request and wait for the answer.

        Raises:
            UnreachableError: there is none.
        """
        ...


class Http:
    """A server over HTTP. For one thread.

    Args:
        url: of the server.
        key: gives the API key, for each request anew: it may be replaced while this runs.
        read_s: how long an answer may take.
    """

    def __init__(self, url: str, key: Callable[[], str | None], *, read_s: float = READ_S) -> None:
        import urllib3

        self._url = url
        self._key = key
        timeout = urllib3.Timeout(connect=min(CONNECT_S, read_s), read=read_s)
        proxy = _proxy(url)
        options: dict[str, Any] = {"num_pools": 1, "maxsize": 1, "block": True, "timeout": timeout, "retries": False}
        self._pool = urllib3.ProxyManager(proxy, **options) if proxy else urllib3.PoolManager(**options)
        self._errors = (urllib3.exceptions.HTTPError, OSError)

    def ask(self, method: str, path: str, body: Body = None, headers: Mapping[str, str] | None = None) -> Reply:
        """Send a request and wait for the answer.

        Raises:
            UnreachableError: there is none.
        """
        key = self._key()
        every = {"User-Agent": "torchtrack", **({"Authorization": f"Bearer {key}"} if key else {}), **(headers or {})}
        try:
            answer = self._pool.request(
                method, self._url + path, body=body, headers=every, redirect=False, preload_content=False
            )
            try:
                data = answer.read(_MOST_BACK)
                answer.drain_conn()
            finally:
                answer.release_conn()
        except self._errors as error:
            raise UnreachableError(_in_words(error)) from error
        return Reply(answer.status, {name.lower(): value for name, value in answer.headers.items()}, data)

    def close(self) -> None:
        """Let go of the connection."""
        self._pool.clear()


def _in_words(error: BaseException) -> str:
    """An error of the network, short: urllib3's own texts hold addresses of objects."""
    reason = getattr(error, "reason", None)
    cause = reason if isinstance(reason, BaseException) else error
    name = type(cause).__name__
    known = {
        "NewConnectionError": "the connection was refused",
        "NameResolutionError": "the name is not known",
        "ConnectTimeoutError": "no connection in time",
        "ReadTimeoutError": "no answer in time",
        "ProtocolError": "the connection was cut",
        "SSLError": f"TLS: {cause}",
    }
    return known.get(name, name)


def _proxy(url: str) -> str | None:
    """The proxy that the environment names for this address."""
    parts = urlsplit(url)
    if not parts.hostname or is_loopback(parts.hostname) or urllib.request.proxy_bypass(parts.hostname):
        return None
    return urllib.request.getproxies().get(parts.scheme)
