"""Which projects a question may be answered from: the front says it in a header, the worker keeps to it.

The header counts on the worker's socket alone, which nobody but the front can open; the front passes on none of a
client's.
"""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable, MutableMapping
from contextvars import ContextVar
from typing import Any, Final

HEADER: Final = "x-torchtrack-projects"
_readable: ContextVar[frozenset[str] | None] = ContextVar("readable", default=None)

ASGI = Callable[..., Awaitable[None]]


def readable() -> frozenset[str] | None:
    """The projects that the question at hand may be answered from; None is all of them."""
    return _readable.get()


def header(projects: frozenset[str] | None) -> dict[str, str]:
    """How the front says it."""
    return {} if projects is None else {HEADER: json.dumps(sorted(projects))}


class Tenancy:
    """ASGI middleware of the worker."""

    def __init__(self, app: ASGI) -> None:
        self._app = app

    async def __call__(self, scope: MutableMapping[str, Any], receive: ASGI, send: ASGI) -> None:
        """Answer one request."""
        named = dict(scope.get("headers", ())).get(HEADER.encode())
        token = _readable.set(None if named is None else frozenset(json.loads(named)))
        try:
            await self._app(scope, receive, send)
        finally:
            _readable.reset(token)
