"""Logging in on the page by an identity provider that speaks OpenID Connect. Needs Authlib: `torchtrack[oidc]`.

The authorization code flow with PKCE, state and nonce, all of it Authlib's; the id token is checked against the
provider's keys. What has to be remembered meanwhile lies in a signed cookie of ten minutes that only these two
addresses get. It is SameSite=Lax, since the way back begins on the provider's site; the session's cookie stays Strict.
"""

from __future__ import annotations

import secrets
import sys
from collections.abc import Awaitable
from dataclasses import dataclass
from typing import Any, Final

from authlib.common.errors import AuthlibBaseError
from authlib.integrations.starlette_client import OAuth
from fastapi import APIRouter, FastAPI, Request, Response
from fastapi.concurrency import run_in_threadpool
from fastapi.responses import RedirectResponse
from joserfc.errors import JoseError
from starlette.middleware.sessions import SessionMiddleware

from torchtrack.credentials import check_url
from torchtrack.server.auth import Keys
from torchtrack.server.page import set_session
from torchtrack.server.people import UnknownError
from torchtrack.server.problems import RESPONSES, ApiError
from torchtrack.server.rights import Role
from torchtrack.wire import API

_UNREACHABLE: Final[tuple[type[Exception], ...]] = tuple(
    module.HTTPError for name in ("httpx", "httpx2") if (module := sys.modules.get(name)) is not None
)
"""Authlib takes either, whichever it finds."""
_LASTS_S: Final = 600
_NAMES: Final = ("preferred_username", "email", "name", "sub")
"""What a user is called at first: the first of these that the provider tells."""


@dataclass(frozen=True, kw_only=True)
class Provider:
    """Who vouches for people.

    Attributes:
        issuer: its address, as in its id tokens.
        client_id: what it knows this server by.
        client_secret: if it wants one besides PKCE.
        role: what somebody may everywhere after the first login; None: nothing until an admin says so.
        public_url: the address people have this server under; None: the one they asked for.
    """

    issuer: str
    client_id: str
    client_secret: str | None = None
    role: Role | None = "viewer"
    public_url: str | None = None

    def __post_init__(self) -> None:
        """Refuse what is no address.

        Raises:
            ValueError: the issuer could be read on the way, or is none.
        """
        check_url(self.issuer)
        if self.public_url is not None:
            check_url(self.public_url)


def mount(app: FastAPI, provider: Provider) -> None:
    """Add the two addresses; nobody needs a key for them."""
    keys: Keys = app.state.keys
    app.add_middleware(
        SessionMiddleware,
        secret_key=secrets.token_hex(32),  # a login that a restart interrupts begins anew
        session_cookie=f"{keys.cookie}-login",
        max_age=_LASTS_S,
        path=f"{API}/oidc",
        same_site="lax",
        https_only=(provider.public_url or "").startswith("https:"),
    )
    app.include_router(_router(provider), prefix=API, responses=RESPONSES)


def _router(provider: Provider) -> APIRouter:
    client = OAuth().register(
        "provider",
        client_id=provider.client_id,
        client_secret=provider.client_secret,
        server_metadata_url=f"{provider.issuer.rstrip('/')}/.well-known/openid-configuration",
        client_kwargs={"scope": "openid profile email", "code_challenge_method": "S256", "timeout": 10.0},
    )
    routes = APIRouter(tags=["access"])

    @routes.get("/oidc/login", status_code=302, response_class=Response)
    async def login(request: Request) -> Response:
        """Go to the identity provider, and from there back to the page."""
        return await _shown(begin(request), request)

    async def begin(request: Request) -> Response:
        base = (provider.public_url or str(request.base_url)).rstrip("/")
        try:
            answer: Response = await client.authorize_redirect(request, f"{base}{API}/oidc/callback")
        except (*_UNREACHABLE, AuthlibBaseError, ValueError, KeyError) as error:
            raise ApiError(503, "provider", f"{provider.issuer} does not answer well", retry_after_s=10) from error
        return answer

    @routes.get("/oidc/callback", status_code=303, response_class=Response)
    async def callback(request: Request) -> Response:
        """Where the provider sends people back to."""
        return await _shown(end(request), request)

    async def end(request: Request) -> Response:
        claims = await _claims(client, provider, request)
        keys: Keys = request.app.state.keys

        def session_of() -> str:
            who = keys.people.known_to(
                provider.issuer, str(claims["sub"]), _name(claims), _text(claims.get("email")), provider.role
            )
            return keys.begin_session(user=who.id)

        try:
            session = await run_in_threadpool(session_of)
        except UnknownError as error:
            raise ApiError(403, "not_allowed", f"{error}; ask an admin") from None
        answer = RedirectResponse("../../../", status_code=303)
        set_session(answer, request, session)
        return answer

    return routes


async def _shown(work: Awaitable[Response], request: Request) -> Response:
    """An answer; a browser that is refused is shown the page, which says so in words, and not a piece of JSON."""
    try:
        return await work
    except ApiError as error:
        if "text/html" not in request.headers.get("accept", ""):
            raise
        return RedirectResponse(f"../../../#/?refused={error.code}", status_code=303)


async def _claims(client: Any, provider: Provider, request: Request) -> dict[str, Any]:
    """What the provider says of who comes back.

    Raises:
        ApiError: they were not sent from here, the provider refuses them, or its word cannot be verified.
    """
    try:
        token = await client.authorize_access_token(request)
        claims: dict[str, Any] = dict(token.get("userinfo") or {})
    except _UNREACHABLE as error:
        raise ApiError(503, "provider", f"{provider.issuer} does not answer", retry_after_s=10) from error
    except (AuthlibBaseError, JoseError, ValueError, KeyError, TypeError) as error:
        raise ApiError(403, "not_allowed", "the login could not be verified; begin again on the page") from error
    issuer, subject = str(claims.get("iss", "")), claims.get("sub")
    if issuer.rstrip("/") != provider.issuer.rstrip("/") or not isinstance(subject, str) or not 0 < len(subject) < 256:
        raise ApiError(403, "not_allowed", "the provider did not say who this is; begin again on the page")
    return claims


def _name(claims: dict[str, Any]) -> str:
    return next((text for each in _NAMES if (text := _text(claims.get(each)))), "somebody")


def _text(claim: object) -> str | None:
    """A claim as a name: printable, not too long."""
    if not isinstance(claim, str):
        return None
    return "".join(each for each in claim if each.isprintable()).strip()[:200] or None
