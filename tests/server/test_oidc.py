"""Logging in by an identity provider: a real server, and `oidc-provider-mock`, an OpenID provider made for tests.

That provider does not check PKCE itself: what stands before it here does.
"""

from __future__ import annotations

import base64
import hashlib
import threading
import warnings
from collections.abc import Callable, Iterable, Iterator
from io import BytesIO
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlencode, urlsplit

import pytest
import urllib3
from werkzeug.serving import make_server

from tests.server.running import Running
from tests.server.test_access import OPEN, routes
from torchtrack.server.app import Config
from torchtrack.server.oidc import Provider

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")  # that provider's, in a thread of this process
with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # it uses what Authlib has deprecated
    import oidc_provider_mock


class Checked:
    """The provider behind a check that each code is redeemed by who asked for it."""

    def __init__(self) -> None:
        self._app: Callable[..., Iterable[bytes]] = oidc_provider_mock.app(require_nonce=True)
        self.challenges: set[str] = set()
        self.redeemed = 0

    def __call__(self, environ: dict[str, Any], start: Callable[..., Any]) -> Iterable[bytes]:
        if environ["PATH_INFO"] == "/oauth2/authorize":
            asked = parse_qs(environ["QUERY_STRING"])
            if asked.get("code_challenge_method") == ["S256"]:
                self.challenges |= set(asked["code_challenge"])
        if environ["PATH_INFO"] == "/oauth2/token":
            body = environ["wsgi.input"].read(int(environ["CONTENT_LENGTH"]))
            environ["wsgi.input"] = BytesIO(body)
            (verifier,) = parse_qs(body.decode()).get("code_verifier", [""])
            digest = base64.urlsafe_b64encode(hashlib.sha256(verifier.encode()).digest()).rstrip(b"=").decode()
            if digest not in self.challenges:
                start("400 Bad Request", [("Content-Type", "application/json")])
                return [b'{"error": "invalid_grant"}']
            self.challenges.discard(digest)
            self.redeemed += 1
        return self._app(environ, start)


@pytest.fixture(scope="module")
def provider() -> Iterator[tuple[str, Checked]]:
    checked = Checked()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        server = make_server("127.0.0.1", 0, checked, threaded=True)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}", checked
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture(scope="module")
def server(provider: tuple[str, Checked], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    by = Provider(issuer=provider[0], client_id="torchtrack", client_secret="secret", role="viewer")  # noqa: S106
    running = Running(Config(data=tmp_path_factory.mktemp("oidc"), provider=by))
    yield running
    running.stop()


class Browser:
    """Keeps cookies, and follows nothing by itself."""

    def __init__(self, server: Running) -> None:
        self.server = server
        self.cookies: dict[str, str] = {}
        self.pool = urllib3.PoolManager(retries=False)

    def get(self, url: str) -> urllib3.BaseHTTPResponse:
        headers = {"Cookie": "; ".join(f"{name}={value}" for name, value in self.cookies.items())}
        answer = self.pool.request("GET", url, headers=headers, redirect=False)
        for line in answer.headers.getlist("set-cookie"):
            name, _, rest = line.partition("=")
            self.cookies[name] = rest.partition(";")[0]
        return answer

    def ask(self, path: str) -> urllib3.BaseHTTPResponse:
        return self.get(f"{self.server.url}/api/v1{path}")

    def begin(self) -> str:
        """The address of the provider."""
        answer = self.ask("/oidc/login")
        assert answer.status == 302
        return str(answer.headers["location"])

    def agree(self, address: str, sub: str) -> str:
        """Be somebody there; where that leads."""
        form = urlencode({"sub": sub})
        head = {"Content-Type": "application/x-www-form-urlencoded"}
        answer = self.pool.request("POST", address, body=form, headers=head, redirect=False)
        assert answer.status in (302, 303), answer.data
        return str(answer.headers["location"])

    def log_in(self, sub: str) -> urllib3.BaseHTTPResponse:
        return self.get(self.agree(self.begin(), sub))


@pytest.fixture
def browser(server: Running) -> Iterator[Browser]:
    made = Browser(server)
    yield made
    made.pool.clear()


def test_the_two_addresses_of_a_login_are_all_that_is_added_without_a_key(browser: Browser, server: Running) -> None:
    added = {"/api/v1/oidc/login", "/api/v1/oidc/callback"}
    for method, path in routes(server.app.router):
        if path not in OPEN | added and "{" not in path:
            head = {"Authorization": "Bearer tt_wrong"}
            assert browser.pool.request(method, f"{server.url}{path}", headers=head).status == 401, path


def test_at_the_first_login_a_user_is_made_who_may_what_the_server_says(
    browser: Browser, provider: tuple[str, Checked]
) -> None:
    assert browser.ask("/me").status == 401
    assert browser.ask("/login").json() == {"issuer": provider[0], "url": "oidc/login", "signed_in": False}
    address = browser.begin()
    asked = parse_qs(urlsplit(address).query)
    assert all(len(asked[name][0]) > 15 for name in ("state", "nonce", "code_challenge"))
    back = browser.get(browser.agree(address, "ann"))
    cookies = back.headers.getlist("set-cookie")
    assert (back.status, back.headers["location"]) == (303, "../../../")
    assert any("samesite=strict" in line.lower() and "httponly" in line.lower() for line in cookies)
    me = browser.ask("/me").json()
    assert (me["kind"], me["name"], me["roles"], me["login"]) == ("user", "ann", {"*": "viewer"}, provider[0])
    assert provider[1].redeemed >= 1
    assert browser.log_in("ann").status == 303
    assert browser.ask("/me").json()["id"] == me["id"]


def test_a_login_that_began_elsewhere_or_is_told_twice_is_none(browser: Browser, server: Running) -> None:
    back = browser.agree(browser.begin(), "bob")
    stranger = Browser(server)
    assert stranger.get(back).status == 403
    stranger.begin()
    assert stranger.get(back).status == 403
    forged = f"{back.partition('?')[0]}?{urlencode({'code': 'x', 'state': 'y'})}"
    assert browser.get(forged).status == 403
    assert browser.get(f"{back.partition('?')[0]}?error=access_denied").status == 403
    stranger.pool.clear()


def test_a_code_of_another_login_is_worth_nothing(browser: Browser, server: Running) -> None:
    theirs = parse_qs(urlsplit(browser.agree(browser.begin(), "mallory")).query)["code"]
    mine = browser.agree(browser.begin(), "ann")
    query = {name: value[0] for name, value in parse_qs(urlsplit(mine).query).items()}
    swapped = f"{mine.partition('?')[0]}?{urlencode({**query, 'code': theirs[0]})}"

    assert browser.get(swapped).status == 403  # whose verifier or nonce does not fit
    assert browser.ask("/me").status == 401


def test_who_was_disabled_does_not_come_in_by_logging_in_anew(browser: Browser, server: Running) -> None:
    assert browser.log_in("carl").status == 303
    me = browser.ask("/me").json()
    head = {"Authorization": f"Bearer {server.key}", "Content-Type": "application/json"}
    url = f"{server.url}/api/v1/users/{me['id']}"
    assert browser.pool.request("PATCH", url, json={"disabled": True}, headers=head).status == 204
    assert browser.ask("/me").status == 401
    refused = browser.log_in("carl")

    assert refused.status == 403
    assert "'carl' was disabled; ask an admin" in refused.json()["error"]["message"]


def test_a_provider_that_is_not_there_is_said_to_be(tmp_path: Path) -> None:
    gone = Running(Config(data=tmp_path, provider=Provider(issuer="http://127.0.0.1:9", client_id="x")))
    try:
        browser = Browser(gone)
        assert browser.ask("/oidc/login").status == 503
        browser.pool.clear()
    finally:
        gone.stop()


@pytest.mark.parametrize("issuer", ["http://idp.example", "idp.example", "https://user:pw@idp.example"])
def test_an_issuer_whose_word_could_be_changed_on_the_way_is_refused(issuer: str) -> None:
    with pytest.raises(ValueError, match=r"not encrypted|server"):
        Provider(issuer=issuer, client_id="x")
