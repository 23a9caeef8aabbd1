"""The description of the interface is whole, and nothing that fits it breaks the server."""

from __future__ import annotations

from typing import Any

import pytest
import requests
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings

from tests.server.team import Team
from torchtrack import wire

EXAMPLES = settings().max_examples // 33
"""Requests of each route: the same ones each time; more with HYPOTHESIS_PROFILE=search."""


@pytest.fixture(scope="module")
def described(team: Team) -> dict[str, Any]:
    found: dict[str, Any] = team.json("GET", "/openapi.json", "owner")
    return found


def test_every_route_says_what_it_does_and_how_it_fails(described: dict[str, Any]) -> None:
    operations = {
        f"{method} {path}": operation for path, by in described["paths"].items() for method, operation in by.items()
    }
    lacking = {
        name: missing
        for name, operation in operations.items()
        if (missing := {"401", "403", "404", "422", "503"} - set(operation["responses"]))
    }

    assert len(operations) > 40
    assert lacking == {}
    assert [name for name, operation in operations.items() if len(operation.get("description", "")) < 10] == []
    for operation in operations.values():
        shapes = {status: answer.get("content") for status, answer in operation["responses"].items() if status >= "4"}
        assert {str(each["application/json"]["schema"]) for each in shapes.values()} == {
            "{'$ref': '#/components/schemas/Problem'}"
        }


@schemathesis.serializer(wire.FRAMES_TYPE)
def _as_it_is(ctx: Any, value: Any) -> bytes:
    return value if isinstance(value, bytes) else bytes(str(value), "utf-8", "replace")


def try_route(operation: Any, team: Team, session: requests.Session) -> list[str]:
    """Ask in ways that fit the schema; the answers that the description does not know."""
    strange: list[str] = []

    @settings(
        max_examples=EXAMPLES,
        derandomize=True,
        deadline=None,
        database=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(case=operation.as_strategy())
    def ask(case: Any) -> None:
        if case.path.endswith("/live"):
            case.query = {**(case.query or {}), "poll": 0}  # without it the answer has no end
        headers = {"Authorization": f"Bearer {team.server.key}"}
        response = case.call(base_url=team.server.url, headers=headers, session=session, timeout=60)
        if response.status_code >= 500 or str(response.status_code) not in operation.definition.raw["responses"]:
            strange.append(f"{response.status_code} {case.as_curl_command()[:500]}: {response.text[:300]}")

    ask()
    return strange


def test_s18_nothing_that_fits_the_schema_breaks_the_server(team: Team, described: dict[str, Any]) -> None:
    schema = schemathesis.openapi.from_dict(described)
    operations: list[Any] = list(schema.get_all_operations())
    with requests.Session() as session:
        strange = [each for one in operations for each in try_route(one.ok(), team, session)]

    assert len(operations) > 40
    assert strange == []
