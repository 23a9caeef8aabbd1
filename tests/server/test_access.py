"""Who may, and from where. Every route is walked, so that a new one without a key fails here."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from fastapi.routing import APIRoute

from tests.server.running import Running
from torchtrack.server.app import Config, create_app
from torchtrack.server.auth import Keys
from torchtrack.server.catalog import Catalog
from torchtrack.server.rights import OWNER
from torchtrack.sidecar.upload.transport import Http

OPEN: set[str] = set()
"""Routes that need no key."""


def ask(server: Running, method: str, path: str, **headers: str) -> tuple[int, dict[str, Any]]:
    reply = Http(server.url, lambda: None).ask(method, path, b"{}", headers)
    return reply.status, reply.json()


def routes(server: Running) -> list[tuple[str, str]]:
    found = []
    for path, methods in server.app.openapi()["paths"].items():
        found += [(method.upper(), path) for method in methods]
    return [*found, ("GET", "/api/v1/openapi.json")]


def test_the_walk_finds_every_route(server: Running) -> None:
    def under(router: Any) -> set[str]:
        paths = {each.path for each in router.routes if isinstance(each, APIRoute)}
        return paths.union(*(under(each) for each in router.routes if hasattr(each, "routes")))

    known = {path for _, path in routes(server)}
    assert len(known) >= 6
    assert under(server.app.router) <= known


@pytest.mark.parametrize("given", [None, "Bearer tt_wrong", "Bearer ", "Basic dDp0", "tt_wrong"])
def test_no_route_answers_without_the_right_key(server: Running, given: str | None) -> None:
    headers = {} if given is None else {"Authorization": given}
    for method, path in routes(server):
        if path not in OPEN:
            status, answer = ask(server, method, path.format(uid="0" * 16, sha256="0" * 64, id="0" * 16), **headers)
            assert (status, answer["error"]["code"]) == (401, "no_key"), path


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
    assert all(key.encode() not in path.read_bytes() for path in server.config.data.glob("catalog*"))


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
