"""What people change shows in every answer, and survives the index."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import pytest
from fastapi import APIRouter, Depends, Request

from tests.api.journals import UID
from tests.server.samples import Make, write_runs
from tests.server.serving import Client, serving
from torchtrack.server.catalog import Catalog
from torchtrack.server.curation import readers_router, router
from torchtrack.server.metrics import MetricsStore
from torchtrack.server.rights import OWNER

JOINED = "c1c2c3c4c5c6c7c8"


@pytest.fixture
def client(runs: Path, journal: Make, store: MetricsStore, tmp_path: Path) -> Iterator[Client]:
    write_runs(journal)
    with (
        contextlib.closing(Catalog.in_folder(tmp_path / "catalog")) as catalog,
        serving(store, runs, catalog, as_owner(catalog)) as client,
    ):
        yield client


def as_owner(catalog: Catalog) -> APIRouter:
    """The routes for one who may all."""

    def let_in(request: Request) -> None:
        request.state.key = OWNER

    async def where(uids: Sequence[str]) -> Mapping[str, str]:
        raise AssertionError("the owner is not asked")

    routes = APIRouter(dependencies=[Depends(let_in)])
    routes.include_router(router(catalog, where))
    routes.include_router(readers_router(catalog))
    return routes


def table(client: Client, **query: object) -> dict[str, list[object]]:
    columns: dict[str, list[object]] = client.json("POST", "/projects/-/runs/query", query)["columns"]
    return columns


def test_what_people_set_is_found_sorted_by_and_kept_when_the_index_is_built_anew(client: Client) -> None:
    changes = {"name": "the good one", "tags": ["keep"], "archived": True}
    assert client.ask("PATCH", f"/runs/{UID}", changes)[0] == 204
    assert client.ask("POST", "/runs/bulk", {"uids": [UID, JOINED], "changes": {"notes": "seen"}})[0] == 204
    client.indexer.rebuild()

    assert table(client, filter="keep in tags and archived = true")["uid"] == [UID]
    assert table(client, sort=["-name"])["name"] == ["the good one", "late-comer-1"]
    about = client.json("GET", f"/runs/{UID}")
    assert (about["name"], about["notes"]) == ("the good one", "seen")
    assert client.ask("PATCH", f"/runs/{UID}", {"name": None})[0] == 204
    assert client.json("GET", f"/runs/{UID}")["name"] == "two-ranks-2"
    assert client.ask("PATCH", f"/runs/{UID}", {"state": "finished"})[0] == 422


def test_a_deleted_run_is_nowhere_until_it_is_restored(client: Client) -> None:
    assert client.ask("DELETE", f"/runs/{UID}")[0] == 204
    assert table(client)["uid"] == [JOINED]
    assert [each["project"] for each in client.json("GET", "/projects")] == ["vision"]
    assert client.ask("GET", f"/runs/{UID}")[0] == 404
    assert client.ask("POST", "/series", {"items": [{"run": UID, "metric": "loss"}]})[0] == 404
    assert client.ask("POST", f"/runs/{UID}/restore")[0] == 204

    assert sorted(map(str, table(client)["uid"])) == sorted([UID, JOINED])


def test_views_are_saved_changed_in_turn_and_removed(client: Client) -> None:
    body = {"project": "llm", "name": "mine", "content": {"panels": [1]}}
    status, _ = client.ask("POST", "/views", body)
    assert (status, client.ask("POST", "/views", body)[0]) == (201, 409)
    (view,) = client.json("GET", "/views", project="llm")
    url = f"{client.url}/api/v1/views/{view['id']}"
    changed = [
        client.pool.request("PUT", url, json={"panels": [2]}, headers={"If-Match": "1"}).status for _ in range(2)
    ]
    assert changed == [200, 409]
    assert client.json("GET", "/views", project="llm")[0]["content"] == {"panels": [2]}
    assert client.ask("DELETE", f"/views/{view['id']}")[0] == 204

    assert client.json("GET", "/views", project="llm") == []
