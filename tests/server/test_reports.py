"""Reports: kept version by version, read and written by roles, made files."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any

import pytest

from tests.server.team import MINE, THEIRS, Team
from tests.server.test_catalog import catalog, postgres, url  # noqa: F401  # the same two databases
from torchtrack.server.catalog import Catalog
from torchtrack.server.page import BUILT
from torchtrack.server.reports import KEPT, ChangedError
from torchtrack.server.rights import OWNER

page_is_built = pytest.mark.skipif(not (BUILT / "file/file.js").is_file(), reason="the page is not built")


def test_every_version_is_kept_and_the_newest_is_the_report(catalog: Catalog) -> None:  # noqa: F811
    made = catalog.reports.create("llm", "First", "one", OWNER)
    saved = catalog.reports.save(made["id"], "Better", "two", 1, OWNER)
    with pytest.raises(ChangedError, match="load it again"):
        catalog.reports.save(made["id"], "Late", "three", 1, OWNER)

    assert (made["version"], saved["version"], saved["newest"], saved["text"]) == (1, 2, 2, "two")
    first = catalog.reports.find(made["id"], 1)
    assert first is not None
    assert (first["title"], first["text"], first["newest"]) == ("First", "one", 2)
    assert [one["title"] for one in catalog.reports.versions(made["id"])] == ["Better", "First"]
    assert [one["title"] for one in catalog.reports.of(["llm"])] == ["Better"]
    assert catalog.reports.of(["vision"]) == []
    assert catalog.reports.find(made["id"], 3) is None


def test_a_removed_report_is_in_no_list_and_comes_back_whole(catalog: Catalog) -> None:  # noqa: F811
    made = catalog.reports.create("llm", "First", "one", OWNER)
    catalog.reports.remove(made["id"], OWNER)
    assert catalog.reports.of(None) == []
    with pytest.raises(ChangedError):
        catalog.reports.save(made["id"], "x", "y", 1, OWNER)
    catalog.reports.remove(made["id"], OWNER, removed=False)

    assert [one["id"] for one in catalog.reports.of(None)] == [made["id"]]


def test_of_very_many_versions_the_oldest_go(catalog: Catalog, monkeypatch: pytest.MonkeyPatch) -> None:  # noqa: F811
    monkeypatch.setattr("torchtrack.server.reports.KEPT", 3)
    made = catalog.reports.create("llm", "r", "0", OWNER)
    for version in range(1, 6):
        catalog.reports.save(made["id"], "r", str(version), version, OWNER)

    assert [one["version"] for one in catalog.reports.versions(made["id"])] == [6, 5, 4]
    assert KEPT > 100


@pytest.fixture
def report(team: Team) -> Iterator[dict[str, Any]]:
    """A report of llm with a panel of its run, and one of a run that its readers may not see."""
    panel = "```panel\nmetric: {}/loss\nruns: {}\n```\n"
    text = "# Hello </script><script>alert(1)</script>\n\n" + panel.format("llm", MINE) + panel.format("secret", THEIRS)
    made = team.json("POST", "/reports", "write", {"project": "llm", "title": "A <b>report</b>", "text": text})
    yield made
    team.ask("DELETE", f"/reports/{made['id']}", "owner")


def test_who_reads_a_project_reads_its_reports_and_editors_write_them(team: Team, report: dict[str, Any]) -> None:
    place = f"/reports/{report['id']}"
    new = {"title": "Mine", "text": "mine"}

    assert [one["id"] for one in team.json("GET", "/reports?project=llm", "read")] == [report["id"]]
    assert [one["id"] for one in team.json("GET", "/reports", "read")] == [report["id"]]
    assert team.json("GET", "/reports", "other") == []
    assert team.json("GET", place, "read")["text"] == report["text"]
    for method, path, body in (
        ("POST", "/reports", {"project": "llm", **new}),
        ("PUT", place, new),
        ("DELETE", place, None),
        ("POST", f"{place}/restore", None),
    ):
        assert team.ask(method, path, "read", body, if_match="1").status == 403, path
        assert team.ask(method, path, "other", body, if_match="1").status == 404, path
    for path in ("", "/versions", "/html"):
        assert team.ask("GET", place + path, "other").status == 404, path
    assert team.ask("GET", "/reports?project=llm", "other").status == 404
    assert team.ask("POST", "/reports", "other", {"project": "llm", **new}).status == 404


def test_a_report_is_saved_in_turn_removed_and_restored_and_the_log_tells(team: Team, report: dict[str, Any]) -> None:
    place = f"/reports/{report['id']}"
    new = {"title": "Better", "text": "two"}
    saved = [team.ask("PUT", place, "ann", new, if_match="1").status for _ in range(2)]
    assert saved == [200, 409]
    assert team.json("GET", f"{place}?version=1", "read")["text"] == report["text"]
    assert [one["by"] for one in team.json("GET", f"{place}/versions", "read")] == ["ann (laptop)", "write"]
    assert team.ask("DELETE", place, "ann").status == 204
    assert team.ask("GET", place, "read").status == 404
    assert team.ask("POST", f"{place}/restore", "write").status == 204
    assert team.json("GET", place, "read")["title"] == "Better"

    told = [line["action"] for line in team.json("GET", "/audit?project=llm&limit=4", "admin")["lines"]]
    assert told == ["report.restore", "report.remove", "report.save", "report.create"]


def contents(page: bytes) -> dict[str, Any]:
    """What a file has in itself."""
    found = re.search(rb'<script type="application/json" id="contents">(.*?)</script>', page)
    assert found
    told: dict[str, Any] = json.loads(found[1])
    return told


@page_is_built
def test_a_report_as_a_file_has_what_its_reader_may_see_and_loads_nothing(team: Team, report: dict[str, Any]) -> None:
    reply = team.ask("GET", f"/reports/{report['id']}/html", "read")
    told = contents(reply.body)
    policy = re.search(rb'Content-Security-Policy" content="([^"]+)"', reply.body)

    assert reply.status == 200
    assert reply.headers["content-disposition"].startswith("attachment")
    assert reply.headers["content-security-policy"] == "sandbox"
    assert b"<title>A &lt;b&gt;report&lt;/b&gt;</title>" in reply.body
    assert reply.body.lower().count(b"</script>") == 2
    assert policy
    assert policy[1].startswith(b"default-src 'none'; script-src 'sha256-")
    assert b"unsafe" not in policy[1]
    assert [line["path"] for line in told["answers"]] == [
        f"reports/{report['id']}",
        "projects/-/runs/query",
        "series",
        "projects/-/runs/query",
    ]
    assert told["answers"][2]["body"]["items"] == [{"run": MINE, "metric": "llm/loss"}]
    mine = team.ask("GET", f"/reports/{report['id']}/html", "owner")
    assert [line["path"] for line in contents(mine.body)["answers"]].count("series") == 2


@page_is_built
def test_a_run_as_a_file_is_for_who_may_read_the_run(team: Team) -> None:
    reply = team.ask("GET", f"/runs/{MINE}/html", "read")

    assert reply.status == 200
    assert contents(reply.body)["place"] == ["p", "llm", "r", MINE, "stability"]
    assert team.ask("GET", f"/runs/{THEIRS}/html", "read").status == 404
    assert team.ask("GET", f"/runs/{'0' * 16}/html", "owner").status == 404


@page_is_built
def test_a_report_of_too_many_panels_makes_no_file(team: Team) -> None:
    text = f"```panel\nmetric: x\nruns: {MINE}\n```\n" * 101
    made = team.json("POST", "/reports", "write", {"project": "llm", "title": "Long", "text": text})
    reply = team.ask("GET", f"/reports/{made['id']}/html", "read")
    team.ask("DELETE", f"/reports/{made['id']}", "write")

    assert reply.status == 422
    assert "at most 100 panels, this one has 101" in reply.json()["error"]["message"]
