"""Settings and alerts in a browser: a key from its making to its end, what went wrong in all runs of a project."""

from __future__ import annotations

import urllib3
from playwright.sync_api import Page, expect

from tests.web.conftest import Served
from tests.web.test_table import go


def lets_in(served: Served, key: str) -> bool:
    headers = {"Authorization": f"Bearer {key}"}
    return urllib3.request("GET", f"{served.address}api/v1/keys", headers=headers, retries=False).status == 200


def test_a_key_is_shown_once_copied_and_revoked(page: Page, served: Served) -> None:
    page.context.grant_permissions(["clipboard-read", "clipboard-write"])
    go(page, served, "settings")
    expect(page.get_by_role("region", name="who I am")).to_contain_text("admin of all projects")
    expect(page.get_by_text("No key yet")).to_be_visible()
    form = page.get_by_role("form", name="a new key")
    form.get_by_label("Name").fill("<b>cluster</b>")
    form.get_by_label("Scope").select_option("read")
    form.get_by_role("button").click()
    new = page.get_by_role("status", name="the new key")
    new.get_by_role("button", name="Copy").click()
    expect(page.get_by_text("Copied")).to_be_visible()
    key = page.evaluate("navigator.clipboard.readText()")
    assert key == new.locator("code").inner_text()
    assert lets_in(served, key)
    row = page.get_by_role("row").filter(has_text="<b>cluster</b>")
    expect(row).to_contain_text("read")
    new.get_by_role("button", name="I have it").click()
    page.reload()
    expect(row).to_contain_text(key[:7])
    expect(page.get_by_text(key)).to_have_count(0)
    row.get_by_role("button", name="revoke").click()
    expect(row).to_contain_text("revoked")
    assert not lets_in(served, key)


def test_somebody_is_added_and_let_in_no_more(page: Page, served: Served) -> None:
    go(page, served, "settings")
    users = page.get_by_role("region", name="users")
    expect(users.get_by_text("No user yet")).to_be_visible()
    users.get_by_label("Name").fill("ann")
    users.get_by_label("Role").select_option("editor")
    users.get_by_role("button", name="Add").click()
    expect(users.get_by_role("row").filter(has_text="ann")).to_contain_text("editor of all projects")
    users.get_by_role("button", name="disable ann").click()
    expect(users.get_by_role("button", name="enable ann")).to_be_visible()


def test_alerts_of_all_runs_lead_to_the_step(page: Page, served: Served) -> None:
    go(page, served, "p/page/alerts")
    alerts = page.get_by_role("list", name="alerts").get_by_role("listitem")
    expect(alerts.filter(has_text="<b>reward fell</b>")).to_contain_text("said by the script")
    page.get_by_label("Severity").select_option("critical")
    expect(alerts.filter(has_text="reward fell")).to_have_count(0)
    finding = alerts.filter(has_text="non finite").first
    expect(finding).to_contain_text("sick-one · step 45")
    finding.get_by_role("link").click()
    expect(page.get_by_role("button", name="steps 25 to ").first).to_be_visible()
