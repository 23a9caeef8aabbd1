"""The routes by which journals come in, over a real socket."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest

from tests.server.running import Running
from tests.server.simulated import Journal
from torchtrack import wire
from torchtrack.journal import frame
from torchtrack.server.budget import Budget, BusyError, Limits


def post(server: Running, body: bytes, encoding: str | None = None) -> tuple[int, dict[str, Any]]:
    headers = {"Content-Type": wire.FRAMES_TYPE, **({"Content-Encoding": encoding} if encoding else {})}
    reply = server.client().ask("POST", "/api/v1/frames", body, headers)
    return reply.status, reply.json()


def section(journal: Journal, first: int, last: int) -> wire.Section:
    raw = b"".join(journal.frames[journal.number, seq] for seq in range(first, last + 1))
    return wire.Section(journal.number, first, raw)


def test_an_answer_says_how_far_each_stream_is_and_what_the_node_may_send_next(server: Running, folder: Path) -> None:
    one, two = Journal(folder, 0x11, 0), Journal(folder, 0x12, 1)
    one.append(b"x" * 1000)
    body, encoding = wire.pack([section(one, 0, 1), section(two, 0, 0)])
    status, answer = post(server, body, encoding)
    asked = server.client().ask(
        "POST", "/api/v1/positions", frame.dump({"streams": [f"{0x11:016x}"]}), {"Content-Type": "application/json"}
    )

    assert (status, encoding) == (200, "zstd")
    assert [answer["streams"][f"{number:016x}"]["next"] for number in (0x11, 0x12)] == [2, 1]
    assert answer["next_after_s"] > 0 < answer["max_bytes"]
    assert asked.json()["streams"][f"{0x11:016x}"]["next"] == 2


def test_a_gap_and_a_conflict_are_409_and_the_other_streams_are_taken(server: Running, folder: Path) -> None:
    one, two = Journal(folder, 0x21, 0), Journal(folder, 0x22, 1)
    one.append(b"a")
    one.append(b"b")
    post(server, wire.pack([section(one, 0, 0)])[0])
    status, answer = post(server, wire.pack([section(one, 2, 2), section(two, 0, 0)])[0])
    other = Journal(folder / "other", 0x21, 0)
    other.append(b"else")
    post(server, wire.pack([section(one, 1, 1)])[0])
    conflict, told = post(server, wire.pack([section(other, 1, 1)])[0])

    assert (status, conflict) == (409, 409)
    assert answer["streams"][f"{0x21:016x}"]["problem"]["expected"] == 1
    assert answer["streams"][f"{0x22:016x}"] == {**answer["streams"][f"{0x22:016x}"], "next": 1, "problem": None}
    assert told["streams"][f"{0x21:016x}"]["problem"]["code"] == "conflict"


@pytest.mark.parametrize(
    ("body", "encoding", "status"),
    [
        (b"", None, 400),
        (b"no json\n", None, 400),
        (b"[]\n", None, 400),
        (b'{"streams": 1}\n', None, 400),
        (b'{"streams": [{"stream": "../..", "first": 0, "size": 0}]}\n', None, 400),
        (b'{"streams": [{"stream": "00000000000000aa", "first": -1, "size": 0}]}\n', None, 400),
        (b'{"streams": [{"stream": "00000000000000aa", "first": 0, "size": 9}]}\nxx', None, 400),
        (b'{"streams": []}\nleft over', None, 400),
        (b'{"streams": []}\n', "br", 400),
        (b"not zstd", "zstd", 400),
        (b'{"streams": [{"stream": "00000000000000aa", "first": 0, "size": 2}]}\nxx', None, 422),
        (b"[" * 200_000 + b"\n", None, 400),
        (b"\xff\xfe\n", None, 400),
        (b"x" * (5 << 20), None, 413),
        (frame.zstd(bytes(64 << 20)), "zstd", 413),
    ],
)
def test_a_body_that_is_none_is_refused_with_a_reason(
    server: Running, body: bytes, encoding: str | None, status: int
) -> None:
    got, answer = post(server, body, encoding)

    assert got == status
    assert "error" in answer or "streams" in answer


@pytest.mark.parametrize("about", [{"jobs": 5}, {"jobs": {}}, {"jobs": [None]}, {"client": []}, {"more": "x" * 9000}])
def test_what_a_client_says_of_itself_cannot_break_anything(server: Running, about: dict[str, Any]) -> None:
    assert post(server, wire.pack([], zstd=False, **about)[0])[0] == 200


def test_a_client_that_speaks_no_common_version_is_told_which_side_to_update(server: Running) -> None:
    newer = server.client().ask("GET", "/api/v1/handshake?oldest=2&newest=3")
    both = server.client().ask("GET", "/api/v1/handshake?oldest=1&newest=2")

    assert (newer.status, both.status, both.json()["protocol"]) == (426, 200, 1)
    assert "update the server" in newer.problem()


def test_a_file_is_kept_only_under_its_own_checksum(server: Running) -> None:
    content, uid = b"a picture", "ab" * 8
    name = hashlib.sha256(content).hexdigest()
    client = server.client()

    def put(sha256: str) -> int:
        return client.ask("PUT", f"/api/v1/runs/{uid}/media/{sha256}", content).status

    statuses = [put("0" * 64), put(".." * 32), put(name), put(name)]
    asked = client.ask(
        "POST",
        f"/api/v1/runs/{uid}/media/missing",
        json.dumps({"sha256": [name, "0" * 64]}).encode(),
        {"Content-Type": "application/json"},
    )
    kept = sorted(path.name for path in (server.config.runs / uid / "media").iterdir())

    assert statuses == [422, 400, 201, 201]
    assert (kept, asked.json()["missing"]) == ([name], ["0" * 64])


def test_a_key_that_floods_is_told_to_wait_and_another_is_not() -> None:
    now = [0.0]
    budget = Budget(Limits(key_requests_per_s=2), lambda: now[0])
    for _ in range(10):
        budget.enter("a")
    with pytest.raises(BusyError) as busy:
        budget.enter("a")
    budget.enter("b")
    now[0] += busy.value.retry_after_s
    budget.enter("a")

    assert busy.value.flooding


def test_the_budget_of_a_run_is_shared_among_its_nodes() -> None:
    now = [0.0]
    budget = Budget(Limits(job_requests_per_s=5, job_bytes_per_s=16e6, interval_s=5), lambda: now[0])
    alone = budget.share(["run"], "node", waiting=True)
    for number in range(1250):
        many = budget.share(["run"], f"node{number}", waiting=True)
    calm = budget.share(["another"], "node", waiting=False)
    now[0] += 10_000
    later = budget.share(["run"], "node", waiting=True)

    assert (alone.next_after_s, calm.next_after_s) == (0.2, 5)
    assert 249 < many.next_after_s < 252
    assert later.next_after_s == 0.2


def test_memory_for_bodies_is_bounded() -> None:
    budget = Budget(Limits(pending_bytes=100), lambda: 0.0)
    with budget.hold() as first, budget.hold() as second:
        first.grow(80)
        with pytest.raises(BusyError):
            second.grow(30)
    with budget.hold() as third:
        third.grow(100)
