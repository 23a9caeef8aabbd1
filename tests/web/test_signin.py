"""Who opens the page without a cookie, or loses it, is asked for a key, and is then where the address says."""

from __future__ import annotations

import threading
import warnings
from collections.abc import Iterator
from pathlib import Path

import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Browser, ConsoleMessage, Page, expect
from werkzeug.serving import make_server

from tests.server.running import Running
from tests.web.conftest import Served, go
from torchtrack.server.app import Config
from torchtrack.server.oidc import Provider
from torchtrack.server.page import BUILT

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # it uses what Authlib has deprecated
    import oidc_provider_mock


@pytest.fixture(params=["light"])
def stranger(request: pytest.FixtureRequest, chromium: Browser) -> Iterator[Page]:
    """A browser that the server does not know."""
    context = chromium.new_context(viewport={"width": 1440, "height": 900}, color_scheme=request.param)
    page = context.new_page()
    page.set_default_timeout(30_000)
    yield page
    context.close()


def listen(page: Page, server: str) -> list[str]:
    """What its console says from now on of what this server gave."""
    said: list[str] = []

    def add(message: ConsoleMessage) -> None:
        if message.type in ("error", "warning") and message.location.get("url", server).startswith(server):
            said.append(message.text)

    page.on("console", add)
    page.on("pageerror", lambda error: said.append(str(error)))
    return said


def sign_in(page: Page, key: str) -> None:
    page.get_by_label("Key").fill(key)
    page.get_by_role("button", name="Sign in", exact=True).click()


@pytest.mark.parametrize("stranger", ["light", "dark"], indirect=True)
def test_without_a_cookie_a_key_leads_to_where_the_address_says(stranger: Page, served: Served) -> None:
    said = listen(stranger, served.address)
    go(stranger, served, "p/page/runs?filter=name+%3D+healthy-one")
    expect(stranger.get_by_role("heading", name="Sign in")).to_be_visible()
    expect(stranger.get_by_label("Key")).to_be_focused()
    expect(stranger.get_by_text("Open the address that it has printed")).to_be_visible()
    assert Axe().run(stranger, options={"runOnly": ["wcag2a", "wcag2aa"]}).response["violations"] == []
    sign_in(stranger, f" {served.url.partition('token=')[2]} ")
    expect(stranger.get_by_role("rowheader", name="healthy-one")).to_be_visible()
    expect(stranger.get_by_role("rowheader", name="sick-one")).to_have_count(0)

    assert stranger.url.endswith("#/p/page/runs?filter=name+%3D+healthy-one")
    assert said == []


def test_a_wrong_key_is_said_to_be_one_and_can_be_typed_anew(stranger: Page, served: Served) -> None:
    stranger.goto(served.address)
    sign_in(stranger, "tt_wrong")
    expect(stranger.get_by_role("alert")).to_contain_text("This key lets nobody in")
    expect(stranger.get_by_label("Key")).to_have_attribute("aria-invalid", "true")
    assert Axe().run(stranger, options={"runOnly": ["wcag2a", "wcag2aa"]}).response["violations"] == []
    sign_in(stranger, served.url.partition("token=")[2])
    expect(stranger.get_by_role("heading", name="Projects")).to_be_visible()


def test_who_one_is_and_the_way_out_stand_at_the_top(page: Page, served: Served) -> None:
    go(page, served, "p/page/runs")
    page.get_by_role("button", name="signed in as owner").click()
    page.get_by_role("menuitem", name="Sign out").click()
    expect(page.get_by_role("heading", name="Sign in")).to_be_visible()
    page.reload()
    expect(page.get_by_role("heading", name="Sign in")).to_be_visible()
    assert page.context.cookies() == []


LOOKED_AT_AGAIN = """() => {
    for (const value of [true, false]) {
        Object.defineProperty(document, "hidden", { value, configurable: true });
        document.dispatchEvent(new Event("visibilitychange"));
    }
}"""


@pytest.mark.parametrize("how", ["a click", "nothing at all"])
def test_a_session_that_ends_leads_to_the_key_and_back_to_the_same_place(
    stranger: Page, served: Served, how: str
) -> None:
    stranger.goto(served.url)
    expect(stranger.get_by_role("heading", name="Projects")).to_be_visible()
    run = f"p/page/r/{served.healthy}/overview"
    go(stranger, served, run)
    expect(stranger.get_by_role("heading", name="healthy-one")).to_be_visible()
    stranger.context.clear_cookies()
    if how == "a click":
        run = f"p/page/r/{served.healthy}/logs"
        stranger.get_by_role("link", name="Logs").click()
    else:  # the tab is left and looked at again: the stream of news is refused
        stranger.evaluate(LOOKED_AT_AGAIN)
    expect(stranger.get_by_role("heading", name="Sign in")).to_be_visible()
    assert stranger.url.endswith(run)
    sign_in(stranger, served.url.partition("token=")[2])

    expect(stranger.get_by_role("heading", name="healthy-one")).to_be_visible()
    assert stranger.url.endswith(run)


@pytest.fixture
def provided(tmp_path: Path) -> Iterator[Running]:
    """A server whose people log in by a provider."""
    if not (BUILT / "index.html").is_file():
        pytest.skip("the page is not built: pip install -e . (TORCHTRACK_SKIP_WEB unset)")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        provider = make_server("127.0.0.1", 0, oidc_provider_mock.app(require_nonce=True), threaded=True)
    thread = threading.Thread(target=provider.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    by = Provider(issuer=f"http://127.0.0.1:{provider.server_port}", client_id="torchtrack", client_secret="secret")  # noqa: S106
    server = Running(Config(data=tmp_path, provider=by))
    yield server
    server.stop()
    provider.shutdown()
    thread.join()
    provider.server_close()


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # that provider's, in a thread of this process
def test_the_provider_leads_back_to_where_one_was(provided: Running, stranger: Page) -> None:
    said = listen(stranger, provided.url)
    stranger.goto(f"{provided.url}/#/settings")
    stranger.get_by_role("link", name="Sign in with 127.0.0.1").click()
    stranger.get_by_placeholder("sub").fill("ann")
    stranger.get_by_role("button", name="Authorize").click()
    expect(stranger.get_by_role("region", name="who I am")).to_contain_text("viewer of all projects")

    assert stranger.url == f"{provided.url}/#/settings"
    expect(stranger.get_by_role("button", name="signed in as ann")).to_be_visible()
    assert said == []


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_who_is_refused_by_the_provider_is_told_so_on_the_page(provided: Running, stranger: Page) -> None:
    stranger.goto(f"{provided.url}/#/settings")
    stranger.get_by_role("link", name="Sign in with 127.0.0.1").click()
    stranger.get_by_role("button", name="Deny").click()
    expect(stranger.get_by_role("alert")).to_contain_text("That login was not accepted")
    expect(stranger.get_by_role("link", name="Sign in with 127.0.0.1")).to_be_visible()
