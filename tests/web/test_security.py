"""S6: whatever runs and people write is shown as text."""

from __future__ import annotations

from pathlib import Path

from playwright.sync_api import Browser, expect

from tests.api.journals import RankJournal
from tests.web.conftest import Served

UID = "5ec0000011112222"
PAYLOADS = (
    "<script>window.__pwned = 1</script>",
    "<img src=x onerror='window.__pwned = 1'>",
    "<svg onload='window.__pwned = 1'>",
    "[x](javascript:window.__pwned=1)",
    "{{constructor.constructor('window.__pwned = 1')()}}",
    "\"><iframe srcdoc='<script>parent.__pwned = 1</script>'>",
    "\x1b[31m\x1b]8;;javascript:window.__pwned=1\x07link",
    "'-window.__pwned-'",
)


def record(folder: Path) -> None:
    with RankJournal(folder, UID) as rank:
        rank.about(project="s6", name=PAYLOADS[0], tags=list(PAYLOADS), notes="\n\n".join(PAYLOADS), group=PAYLOADS[1])
        rank.event("config", {payload: payload for payload in PAYLOADS})
        rank.event("environment", {"argv": list(PAYLOADS)})
        rank.event("finding", {"rule": PAYLOADS[1], "severity": "critical", "why": PAYLOADS[2]}, step=1)
        for step, payload in enumerate(PAYLOADS):
            rank.log(step, {payload: 1.0, "loss": 1.0})
            rank.text(step, "said", payload)
            rank.line("stdout", payload)


def test_s06_text_that_people_and_runs_write_runs_nowhere(served: Served, chromium: Browser) -> None:
    record(served.folder)
    context = chromium.new_context(viewport={"width": 1440, "height": 900})
    page = context.new_page()
    page.set_default_timeout(30_000)
    said: list[str] = []
    page.on("console", lambda message: said.append(message.text))
    page.goto(served.url)
    expect(page.get_by_role("link", name="s6", exact=True)).to_be_visible()
    run = f"p/s6/r/{UID}"
    for place in ("p/s6", "p/s6/runs", run, *(f"{run}/{tab}" for tab in ("overview", "charts", "stability", "logs"))):
        page.goto(f"{served.address}#/{place}")
        page.get_by_role("heading").first.wait_for()
        if place != "p/s6":
            expect(page.locator("body")).to_contain_text(PAYLOADS[0])
        assert page.evaluate("window.__pwned") is None, place
        assert page.evaluate("document.querySelectorAll('iframe, [onerror], [onload]').length") == 0, place
        assert page.evaluate("document.querySelectorAll('a[href^=javascript]').length") == 0, place
        if place.endswith(("overview", "stability", "logs")):
            expect(page.locator("body")).to_contain_text("onerror=")
    context.close()

    assert [line for line in said if "Content Security Policy" in line or "Refused" in line] == []
