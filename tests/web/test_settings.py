"""Settings and alerts in a browser: a key from its making to its end, what went wrong in all runs of a project."""

from __future__ import annotations

import shutil
import time

import urllib3
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Page, expect

from tests.api.journals import RankJournal
from tests.web.conftest import Served, go


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


def test_a_rule_is_made_fires_while_one_looks_and_is_removed(page: Page, served: Served) -> None:
    go(page, served, "p/page/alerts")
    page.get_by_text("shown here, sent to nobody").click()
    form = page.get_by_role("form", name="a new rule")
    form.get_by_label("When").select_option("a metric is above")
    form.get_by_label("Metric", exact=True).fill("loss")
    form.get_by_label("Limit").fill("10")
    form.get_by_label("Name").fill("<b>diverged</b>")
    form.get_by_role("button", name="Save").click()
    rule = page.get_by_role("list", name="rules").get_by_role("listitem").filter(has_text="<b>diverged</b>")
    expect(rule).to_contain_text("loss is above 10")
    uid = "eeee000011112222"
    with RankJournal(served.folder, uid, start_us=time.time_ns() // 1000) as rank:
        rank.about(name="running-away", project="page")
        rank.log(3, {"loss": 11.0})
        fired = page.get_by_role("list", name="alerts").get_by_role("listitem").filter(has_text="<b>diverged</b>")
        expect(fired).to_contain_text("running-away · step 3 · an alert rule")
        expect(fired).to_contain_text("loss is above 10: 11")
    assert Axe().run(page, options={"runOnly": ["wcag2a", "wcag2aa"]}).response["violations"] == []
    rule.get_by_role("button", name="remove").click()
    expect(rule).to_have_count(0)
    shutil.rmtree(served.folder / uid)


def test_the_form_asks_for_what_the_condition_needs(page: Page, served: Served) -> None:
    go(page, served, "p/page/alerts")
    page.get_by_text("shown here, sent to nobody").click()
    form = page.get_by_role("form", name="a new rule")
    form.get_by_label("When").select_option("a metric is not logged")
    expect(form.get_by_label("for", exact=True)).to_have_attribute("required", "")
    form.get_by_label("When").select_option("a run fits the filter")
    expect(form.get_by_label("in runs")).to_have_attribute("required", "")
    expect(form.get_by_label("Metric", exact=True)).to_have_count(0)
