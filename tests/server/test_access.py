"""Who may, and from where. Every route is walked, so that a new one without a key fails here."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import anyio.to_thread
import pytest
from sqlalchemy.exc import OperationalError

from tests.api.journals import RankJournal
from tests.runs import until
from tests.server.running import Running
from tests.server.team import MINE, THEIRS, Team
from torchtrack.server.app import Config, create_app
from torchtrack.server.auth import Keys
from torchtrack.server.catalog import Catalog
from torchtrack.server.front import ROUTES
from torchtrack.server.people import digest
from torchtrack.server.rights import OWNER
from torchtrack.sidecar.upload.transport import Http, Reply

OPEN = {"/", "/icon.svg", "/assets", "/api/v1/login"}
"""Routes that need no key: they hold nothing of anybody's."""
READS = {
    "/api/v1/compare",
    "/api/v1/heatmap",
    "/api/v1/histogram",
    "/api/v1/logged",
    "/api/v1/logged/names",
    "/api/v1/logged/steps",
    "/api/v1/projects/{project}/runs/query",
    "/api/v1/series",
    "/api/v1/series/batch",
    "/api/v1/session",
}
"""Routes that only ask though their method is POST, or that are about one's own session."""
OWN = {"/api/v1/keys", "/api/v1/keys/{id}", "/api/v1/views", "/api/v1/views/{id}"}
"""Routes by which who may only read changes what is their own; tests of their own say what else they may."""
FILLED = {"uid": "0" * 16, "sha256": "0" * 64, "id": "0" * 16, "project": "llm", "rest": "0" * 16, "stream": "0" * 16}


def routes(router: Any) -> set[tuple[str, str]]:
    """Method and path of all routes there are, described or not: FastAPI hides those of routers in one of their own."""
    found: set[tuple[str, str]] = set()
    for each in router.routes:
        inside = each.effective_route_contexts() if hasattr(each, "effective_route_contexts") else [each]
        for route in inside:
            found |= {(method, route.path) for method in getattr(route, "methods", None) or ["GET"]}
    return found


def ask_all(team: Team, key: str | None, chosen: Callable[[str, str], bool]) -> Iterator[tuple[str, Reply]]:
    for method, path in sorted(routes(team.server.app.router)):
        if path not in OPEN and chosen(method, path):
            filled = re.sub(r"\{(\w+)(:path)?\}", lambda found: FILLED.get(found[1], "x"), path)
            yield f"{method} {path}", team.client(key).ask(method, filled, b"{}", {"Content-Type": "application/json"})


def test_the_walk_finds_every_route(team: Team) -> None:
    known = {path.replace(":path}", "}") for _, path in routes(team.server.app.router)}
    passed_on = {f"/api/v1{path}".replace(":path}", "}") for _, path in ROUTES}
    described = set(team.server.app.openapi()["paths"]) | passed_on

    assert described <= known
    assert {path for path in known if not path.startswith("/api/v1/")} < OPEN
    assert len(known) > 30


@pytest.mark.parametrize("key", [None, "tt_wrong", "revoked", "tt_é"])
def test_no_route_answers_without_the_right_key(team: Team, key: str | None) -> None:
    for what, reply in ask_all(team, key, lambda *_: True):
        assert (reply.status, reply.json()["error"]["code"]) == (401, "no_key"), what


@pytest.mark.parametrize("given", ["{}", "Basic {}", "Token {}", "Bearer", "Bearer ", "Bearer {} {}", "Bearer={}"])
def test_a_right_key_in_another_kind_of_authorization_does_not_count(server: Running, given: str) -> None:
    assert ask(server, "GET", "/api/v1/handshake", Authorization=f"bearer {server.key}")[0] == 200
    assert ask(server, "GET", "/api/v1/handshake", Authorization=given.replace("{}", server.key))[0] == 401


def test_who_may_read_changes_nothing(team: Team) -> None:
    walked = list(ask_all(team, "read", lambda method, path: method != "GET" and path not in READS | OWN))

    assert len(walked) > 12
    for what, reply in walked:
        assert (reply.status, reply.json()["error"]["code"]) == (403, "not_allowed"), what


def test_who_may_write_in_one_project_manages_nobody(team: Team) -> None:
    for method, path, body in (
        ("GET", "/users", None),
        ("GET", "/audit", None),
        ("POST", "/users", {"name": "bob"}),
        ("POST", "/users", {"name": "bob", "roles": {"llm": "viewer"}}),
        ("PUT", f"/users/{team.ann}/roles", {"project": "llm", "role": "admin"}),
        ("PATCH", f"/users/{team.ann}", {"disabled": True}),
        ("DELETE", f"/users/{team.ann}", None),
        ("POST", "/keys", {"name": "x", "scope": "read", "project": "llm"}),
        ("POST", "/keys", {"name": "x", "scope": "read", "user": team.ann}),
    ):
        assert team.ask(method, path, "write", body).status in (403, 404), (method, path, body)
    everybody = {user["id"]: user["roles"] for user in team.json("GET", "/users", "owner")}
    assert everybody[team.ann] == {"llm": "editor"}


def ask(server: Running, method: str, path: str, **headers: str) -> tuple[int, dict[str, Any]]:
    reply = Http(server.url, lambda: None).ask(method, path, b"{}", headers)
    return reply.status, reply.json()


def test_a_key_in_the_address_does_not_count(server: Running) -> None:
    status, _ = ask(server, "GET", f"/api/v1/handshake?token={server.key}&authorization=Bearer%20{server.key}")

    assert status == 401


def test_a_key_may_only_what_its_scopes_say_and_a_revoked_one_nothing(server: Running) -> None:
    keys: Keys = server.app.state.keys
    key, about = keys.people.add_key("reader", "read", OWNER)
    head = {"Authorization": f"Bearer {key}"}
    can_read = ask(server, "GET", "/api/v1/openapi.json", **head)[0]
    can_send = ask(server, "GET", "/api/v1/handshake", **head)[0]
    again = Keys(server.config.data, keys.people).find(key)
    assert ask(server, "DELETE", f"/api/v1/keys/{about['id']}", Authorization=f"Bearer {server.key}")[0] == 204
    after = ask(server, "GET", "/api/v1/openapi.json", **head)[0]

    assert (can_read, can_send, after) == (200, 403, 401)
    assert again is not None
    catalogs = list(server.config.data.glob("catalog*"))
    assert [path for path in catalogs if key.encode() in path.read_bytes()] == []
    assert any(digest(key).encode() in path.read_bytes() for path in catalogs)


def test_a_key_that_is_revoked_while_it_is_looked_up_is_not_remembered(
    server: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    keys: Keys = server.app.state.keys
    key, about = keys.people.add_key("just now", "read", OWNER)
    by_key = keys.people.by_key

    def revoked_meanwhile(sha256: str) -> Any:
        found = by_key(sha256)
        assert ask(server, "DELETE", f"/api/v1/keys/{about['id']}", Authorization=f"Bearer {server.key}")[0] == 204
        return found

    with monkeypatch.context() as patch:
        patch.setattr(keys.people, "by_key", revoked_meanwhile)
        keys.find(key)

    assert keys.remembered(key) is None
    assert keys.find(key) is None


def test_who_was_let_in_a_moment_ago_waits_for_no_thread(server: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    key, _ = server.app.state.keys.people.add_key("often", "write", OWNER)
    in_thread, waits = anyio.to_thread.run_sync, list[Any]()

    async def counted(call: Callable[..., Any], *rest: Any, **how: Any) -> Any:
        waits.append(call)
        return await in_thread(call, *rest, **how)

    monkeypatch.setattr(anyio.to_thread, "run_sync", counted)
    statuses = [ask(server, "GET", "/api/v1/handshake", Authorization=f"Bearer {key}")[0] for _ in range(3)]
    server.app.state.keys.forget()

    assert (statuses, len(waits)) == ([200, 200, 200], 1)


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"Host": "evil.example"}, 421),
        ({"Host": "evil.example:80"}, 421),
        ({"Origin": "http://evil.example"}, 403),
        ({"Origin": "null"}, 403),
    ],
)
def test_a_request_in_another_name_or_from_another_site_is_refused(
    server: Running, headers: dict[str, str], status: int
) -> None:
    got, _ = ask(server, "POST", "/api/v1/positions", Authorization=f"Bearer {server.key}", **headers)

    assert got == status


def test_a_page_of_another_site_cannot_post_text(server: Running) -> None:
    head = {"Authorization": f"Bearer {server.key}", "Content-Type": "text/plain"}

    assert ask(server, "POST", "/api/v1/positions", **head)[0] == 415


def test_the_key_is_made_once_and_only_its_user_can_read_it(tmp_path: Path) -> None:
    catalog = Catalog.in_folder(tmp_path)
    first, second = Keys(tmp_path, catalog.people), Keys(tmp_path, catalog.people)
    catalog.close()

    assert first.token == second.token
    assert len(first.token) > 40
    assert first.token_file.stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "10.0.0.1", "example.org"])  # noqa: S104  # that is what is refused
def test_a_server_does_not_stand_open_where_others_can_connect(tmp_path: Path, host: str) -> None:
    with pytest.raises(ValueError, match="without a token everyone"):
        Config(data=tmp_path, host=host, token=False)


def test_one_data_folder_has_one_server(server: Running) -> None:
    with pytest.raises(BlockingIOError, match="another server has"):
        create_app(server.config)


def test_a_key_of_a_user_may_what_the_user_may_and_no_more(team: Team) -> None:
    assert team.json("GET", "/me", "ann")["roles"] == {"llm": "editor"}
    assert team.ask("PATCH", f"/runs/{MINE}", "ann", {"notes": "hers"}).status == 204
    assert team.ask("PATCH", f"/runs/{THEIRS}", "ann", {"notes": "hers"}).status == 404
    own = team.json("POST", "/keys", "ann", {"name": "mine", "scope": "read"})
    assert own["user"] == team.ann
    assert team.ask("PATCH", f"/runs/{MINE}", own["key"], {"notes": "x"}).status == 403
    assert team.ask("POST", "/keys", own["key"], {"name": "more", "scope": "write"}).status == 403
    assert {each["name"] for each in team.json("GET", "/keys", "ann")} == {"laptop", "mine"}
    assert team.ask("PUT", f"/users/{team.ann}/roles", "admin", {"project": "llm", "role": None}).status == 204
    assert team.json("GET", "/me", "ann")["roles"] == {}
    assert team.ask("GET", "/projects", "ann").status == 403
    assert team.ask("PUT", f"/users/{team.ann}/roles", "admin", {"project": "llm", "role": "editor"}).status == 204
    assert team.ask("PATCH", f"/users/{team.ann}", "owner", {"disabled": True}).status == 204
    assert team.ask("GET", "/me", "ann").status == 401
    assert team.ask("PATCH", f"/users/{team.ann}", "owner", {"disabled": False}).status == 204
    assert team.ask("DELETE", f"/keys/{own['id']}", "ann").status == 204
    assert team.ask("GET", "/me", own["key"]).status == 401


def test_an_admin_of_a_project_sees_to_that_project_alone(team: Team) -> None:
    made = team.json("POST", "/keys", "admin", {"name": "cluster", "scope": "write", "project": "llm"})
    assert team.ask("POST", "/keys", "admin", {"name": "x", "scope": "read"}).status == 403
    assert team.ask("POST", "/keys", "admin", {"name": "x", "scope": "read", "project": "secret"}).status == 404
    assert team.ask("PUT", f"/users/{team.ann}/roles", "admin", {"project": "*", "role": "admin"}).status == 403
    assert {each["project"] for each in team.json("GET", "/keys", "admin")} == {"llm"}
    assert {each["project"] for each in team.json("GET", "/audit", "admin")["lines"]} == {"llm"}
    assert team.ask("GET", "/audit?project=secret", "admin").status == 404
    assert {each["project"] for each in team.json("GET", "/audit?project=llm", "owner")["lines"]} == {"llm"}
    newest = team.json("GET", "/audit?limit=1", "owner")
    assert (newest["lines"][0]["action"], newest["lines"][0]["target"]) == ("key.create", "cluster")
    older = team.json("GET", f"/audit?limit=1&before={newest['before']}", "owner")["lines"][0]
    assert older["id"] < newest["lines"][0]["id"]
    for roles, status in (({}, 403), ({"*": "viewer"}, 403), ({"secret": "viewer"}, 404), ({"llm": "viewer"}, 201)):
        assert team.ask("POST", "/users", "admin", {"name": "bob", "roles": roles}).status == status, roles
    (bob,) = (user["id"] for user in team.json("GET", "/users", "owner") if user["name"] == "bob")
    assert team.ask("DELETE", f"/users/{bob}", "admin").status == 403
    assert team.ask("DELETE", f"/users/{bob}", "owner").status == 204
    assert team.ask("DELETE", f"/keys/{made['id']}", "other").status == 404
    assert team.ask("DELETE", f"/keys/{made['id']}", "admin").status == 204


def test_a_key_ends_when_it_was_said_to(team: Team) -> None:
    made = team.make(name="short", scope="read", expires_days=1e-9)

    assert team.ask("GET", "/me", made["key"]).status == 401


def test_a_view_is_its_owners_or_the_projects(team: Team) -> None:
    body = {"project": "llm", "name": "mine", "content": {"panels": []}}
    mine = team.json("POST", "/views", "read", body)
    assert team.ask("POST", "/views", "read", {**body, "shared": True}).status == 403
    shared = team.json("POST", "/views", "ann", {**body, "shared": True})
    assert [each["shared"] for each in team.json("GET", "/views?project=llm", "read")] == [True, False]
    assert [each["id"] for each in team.json("GET", "/views?project=llm", "ann")] == [shared["id"]]
    assert team.ask("DELETE", f"/views/{mine['id']}", "ann").status == 404
    assert team.ask("PUT", f"/views/{shared['id']}", "read", {}, If_Match="1").status == 403
    assert team.ask("GET", "/views?project=llm", "other").status == 404
    for view, key in ((mine, "read"), (shared, "write")):
        assert team.ask("DELETE", f"/views/{view['id']}", key).status == 204


def test_alert_rules_are_of_a_project(team: Team) -> None:
    body = {"project": "llm", "name": "diverged", "filter": "summary.loss > 10", "severity": "critical"}
    rule = team.json("POST", "/alert-rules", "write", body)
    again = team.json("POST", "/alert-rules", "write", {**body, "filter": "summary.loss > 20"})
    assert (again["id"], again["filter"]) == (rule["id"], "summary.loss > 20")
    assert len(team.json("GET", "/alert-rules?project=llm", "ann")) == 1
    (shown,) = team.json("GET", "/alert-rules?project=llm", "read")
    assert (shown["says"], shown["when"]) == ("the run fits the filter", {"kind": "matches"})
    assert team.ask("POST", "/alert-rules", "read", body).status == 403
    assert team.ask("DELETE", f"/alert-rules/{rule['id']}", "read").status == 403
    assert team.ask("GET", "/alert-rules?project=llm", "other").status == 404
    assert team.ask("DELETE", f"/alert-rules/{rule['id']}", "other").status == 404
    assert team.ask("DELETE", f"/alert-rules/{rule['id']}", "write").status == 204


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        ({"filter": "summary.loss >"}, "the filter cannot be read at its end"),
        ({"filter": "lr > 3"}, "no field 'lr' to filter by"),
        ({"filter": " "}, "every run fits an empty filter"),
        ({"when": {"kind": "above", "metric": "loss"}}, "'above' takes `metric`, `value`"),
    ],
)
def test_a_rule_that_could_never_be_judged_is_refused(team: Team, wrong: dict[str, Any], says: str) -> None:
    reply = team.ask("POST", "/alert-rules", "write", {"project": "llm", "name": "wrong", **wrong})

    assert (reply.status, says in reply.json()["error"]["message"]) == (422, True), reply.body


def test_a_key_of_a_project_sends_runs_of_that_project(team: Team, tmp_path: Path) -> None:
    def record(uid: str, project: str | None) -> Path:
        with RankJournal(tmp_path, uid, project=project) as rank:
            rank.about(project="secret")
            rank.log(0, {"loss": 1.0})
        return next((tmp_path / uid).glob("*/*.ttj"))

    def problem(path: Path, key: str) -> str | None:
        reply = team.send(path, key)
        (said,) = reply.json()["streams"].values()
        return None if said["problem"] is None else str(said["problem"]["message"])

    foreign, silent = record("cccc000011112222", "secret"), record("dddd000011112222", None)
    assert "TORCHTRACK_PROJECT=llm" in (problem(foreign, "write") or "")
    assert not (team.server.config.runs / "cccc000011112222").exists()
    assert problem(silent, "write") is None  # it has to be of llm, whatever it says later
    assert "may not write this run" in (problem(silent, "other") or "")
    assert "may not write this run" in (problem(record(THEIRS, "llm"), "write") or "")
    path = f"/runs/{THEIRS}/media/missing"
    assert team.ask("POST", path, "write", {"sha256": []}).status == 403
    assert team.ask("POST", path, "other", {"sha256": []}).status == 200
    until(lambda: "dddd000011112222" in _runs(team, "write"), 60)
    assert "dddd000011112222" not in _runs(team, "other")
    for uid in ("dddd000011112222",):
        assert team.ask("DELETE", f"/runs/{uid}", "write").status == 204


def _runs(team: Team, key: str) -> list[str]:
    found: list[str] = team.json("POST", "/projects/-/runs/query", key, {"columns": ["uid"]})["columns"]["uid"]
    return found


def test_a_session_ends_with_its_key_and_when_one_logs_out(team: Team) -> None:
    made = team.make(name="browser", scope="read", project="llm")
    cookies = [_cookie(team, made["key"]) for _ in range(2)]
    assert [team.ask("GET", "/me", None, Cookie=each).status for each in cookies] == [200, 200]
    assert team.ask("DELETE", "/session", None, Cookie=cookies[0]).status == 204
    assert [team.ask("GET", "/me", None, Cookie=each).status for each in cookies] == [401, 200]
    assert team.ask("DELETE", f"/keys/{made['id']}", "owner").status == 204
    assert team.ask("GET", "/me", None, Cookie=cookies[1]).status == 401


def _cookie(team: Team, key: str) -> str:
    said = team.ask("POST", "/session", key).headers["set-cookie"]
    assert all(each in said for each in ("HttpOnly", "SameSite=strict"))
    return said.partition(";")[0]


def test_a_catalog_that_does_not_answer_leaves_the_owner_in(server: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(sha256: str) -> None:
        raise OperationalError("SELECT", {}, Exception("gone"))

    monkeypatch.setattr(server.app.state.keys.people, "by_key", fails)

    assert ask(server, "GET", "/api/v1/handshake", Authorization=f"Bearer {server.key}")[0] == 200
    assert ask(server, "GET", "/api/v1/handshake", Authorization="Bearer tt_another")[0] == 503
