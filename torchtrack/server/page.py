"""The page: its files, and the cookie that lets a browser in."""

from __future__ import annotations

from pathlib import Path
from typing import Final

from fastapi import APIRouter, Depends, FastAPI, Request, Response
from fastapi.responses import FileResponse, HTMLResponse
from starlette.staticfiles import StaticFiles

from torchtrack.server import auth
from torchtrack.server.people import digest
from torchtrack.server.problems import RESPONSES
from torchtrack.wire import API

BUILT: Final = Path(__file__).parent / "_web"
"""Built from web/ when the package is installed."""
POLICY: Final = (
    "default-src 'self'; style-src 'self'; img-src 'self' data: blob:; object-src 'none'; base-uri 'none'; "
    "form-action 'none'; frame-ancestors 'none'"
)
_MISSING: Final = """<!doctype html><html lang="en"><title>torchtrack</title>
<h1>The page is not built</h1>
<p>This installation was made with TORCHTRACK_SKIP_WEB=1, or from a checkout whose page could not be built.
<code>pip install --force-reinstall --no-deps torchtrack</code> brings it, in a checkout <code>pip install -e .</code>.
Every other command works without.</p></html>"""


def mount(app: FastAPI, built: Path = BUILT, *, issuer: str | None = None) -> None:
    """Serve the page at the root. Its files hold nothing of anybody's: what they ask for needs a key.

    Args:
        app: of the server.
        built: the page's files.
        issuer: the identity provider one can log in by.
    """
    app.include_router(_session(), prefix=API, dependencies=[Depends(auth.requires(None))], responses=RESPONSES)
    headers = {"Cache-Control": "no-cache", "Content-Security-Policy": POLICY}

    @app.get(f"{API}/login", tags=["about"], responses=RESPONSES)
    def login(request: Request) -> dict[str, str | bool | None]:
        """How one gets in, for who has no key yet: the identity provider if there is one, and where that begins.

        `signed_in` says whether that is needed, as an answer and not as an error, so that a page may ask.
        """
        known = auth.who_asks(request) is not None
        return {"issuer": issuer, "url": "oidc/login" if issuer else None, "signed_in": known}

    @app.get("/", include_in_schema=False)
    def index() -> Response:
        if not (built / "index.html").is_file():
            return HTMLResponse(_MISSING, 503, headers)
        return FileResponse(built / "index.html", headers=headers)

    if (built / "assets").is_dir():
        app.mount("/assets", _Forever(directory=built / "assets"))

    @app.get("/icon.svg", include_in_schema=False)
    def icon() -> Response:
        return FileResponse(built / "icon.svg") if (built / "icon.svg").is_file() else Response(status_code=404)


class _Forever(StaticFiles):
    """Files whose names change with their content."""

    def file_response(self, *args: object, **kwargs: object) -> Response:
        response = super().file_response(*args, **kwargs)  # type: ignore[arg-type]
        response.headers["Cache-Control"] = "public, max-age=31536000, immutable"
        return response


def _session() -> APIRouter:
    routes = APIRouter(tags=["about"])

    @routes.post("/session", status_code=204)
    def begin(request: Request) -> Response:
        """Trade a key for a cookie, which scripts of a page cannot read."""
        keys: auth.Keys = request.app.state.keys
        response = Response(status_code=204)
        key = auth.given_key(request)
        if keys.required and key:
            set_session(response, request, keys.begin_session(key=key))
        return response

    @routes.delete("/session", status_code=204)
    def end(request: Request) -> Response:
        """Log out: the session ends and its cookie goes."""
        keys: auth.Keys = request.app.state.keys
        keys.people.end_session(digest(request.cookies.get(keys.cookie, "")))
        response = Response(status_code=204)
        response.delete_cookie(keys.cookie, path="/", httponly=True, samesite="strict")
        return response

    return routes


def set_session(response: Response, request: Request, session: str) -> None:
    """Have a browser show the session from now on, to this server alone, and not when another site sends it here."""
    keys: auth.Keys = request.app.state.keys
    response.set_cookie(
        keys.cookie,
        session,
        max_age=int(auth.SESSION_LASTS.total_seconds()),
        httponly=True,
        samesite="strict",
        secure=request.url.scheme == "https",
        path="/",
    )
