"""What the uploader makes of a server's answers."""

from __future__ import annotations

import json
import math
import random
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from tests.server.simulated import Journal, Network, Server
from torchtrack import wire
from torchtrack.errors import JournalError
from torchtrack.sidecar.upload.engine import Uploader
from torchtrack.sidecar.upload.transport import Reply, UnreachableError

Answer = Callable[[str, str], Reply | None]


class Scripted(Network):
    """A network on which some requests are answered by the test."""

    def __init__(self, server: Server) -> None:
        super().__init__(server)
        self.answer: Answer = lambda *_: None
        self.asked: list[str] = []
        self.bodies: list[bytes] = []

    def ask(self, method: str, path: str, body: Any = None, headers: Mapping[str, str] | None = None) -> Reply:
        self.asked.append(path.rpartition("/")[2].partition("?")[0])
        self.bodies.append(bytes(body or b""))
        return self.answer(method, path) or super().ask(method, path, body, headers)


class Bench:
    """A server, a client and journals; time passes as the client says."""

    def __init__(self, folder: Path, ranks: int = 2) -> None:
        self.now = 0.0
        self.server = Server(folder / "server")
        self.network = Scripted(self.server)
        self.journals = [Journal(folder / "runs", 0xC0 + rank, rank) for rank in range(ranks)]
        self.uploader = self.client()

    def client(self) -> Uploader:
        uploader = Uploader(self.network, clock=lambda: self.now, rng=random.Random(0))
        for journal in self.journals:
            uploader.follow(journal.path)
        return uploader

    def step(self, times: int = 1) -> None:
        for _ in range(times):
            self.now += self.uploader.step()

    def until_idle(self) -> None:
        for _ in range(300):
            self.step()
            if self.uploader.idle:
                return
        raise AssertionError(f"it is still busy: {self.uploader.state}, {self.uploader.problem}")

    def arrived(self, journal: Journal) -> int:
        return self.server.store.position(journal.number).next


@pytest.fixture(autouse=True)
def plain_bodies(monkeypatch: pytest.MonkeyPatch) -> None:
    """So that tests see what is in them."""
    monkeypatch.setattr(wire, "COMPRESS_FROM", 1 << 40)


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    made = Bench(tmp_path)
    yield made
    made.server.stop()


def refuse(status: int, where: str = "/frames", **headers: str) -> Answer:
    def answer(method: str, path: str) -> Reply | None:
        body = json.dumps({"error": {"code": "no", "message": "the reason"}}).encode()
        return (
            Reply(status, {name.replace("_", "-"): value for name, value in headers.items()}, body)
            if where in path
            else None
        )

    return answer


@pytest.mark.parametrize("status", [408, 429, 500, 502, 503, 504, 507, 404, 405, 301])
def test_whatever_a_server_answers_nothing_is_given_up_and_it_is_asked_again(bench: Bench, status: int) -> None:
    bench.network.answer = refuse(status)
    bench.step(8)
    said = bench.uploader.problem
    bench.network.answer = lambda *_: None
    bench.until_idle()

    assert said == "the reason"
    assert [bench.arrived(journal) for journal in bench.journals] == [1, 1]
    assert bench.uploader.state == "ok"


def test_after_a_wrong_key_it_waits_half_a_minute_and_goes_on_with_the_right_one(bench: Bench) -> None:
    bench.network.answer = refuse(401, "")
    bench.uploader.step()
    waits = bench.uploader.pace.wait_s()
    state = bench.uploader.state
    bench.now += waits
    bench.network.answer = lambda *_: None
    bench.until_idle()

    assert (state, waits >= 30) == ("no_key", True)
    assert bench.arrived(bench.journals[0]) == 1


def test_retry_after_is_obeyed(bench: Bench) -> None:
    bench.network.answer = refuse(429, "", retry_after="77")
    bench.uploader.step()

    assert 77 <= bench.uploader.pace.wait_s() <= 154


def test_a_stream_in_conflict_is_left_and_named_and_the_others_go_on(bench: Bench, tmp_path: Path) -> None:
    one, two = bench.journals
    other = Journal(tmp_path / "other", one.number, 0)
    other.append(b"not what is here")
    bench.server.store.append(one.number, 0, memoryview(b"".join(other.frames.values())))
    bench.server.store.commit()
    one.append(b"here")
    one.append(b"there")
    two.append(b"more")
    bench.until_idle()

    problem = bench.uploader.tails[one.number].problem
    assert problem is not None
    assert "not the original" in problem
    assert bench.arrived(two) == 2
    assert bench.uploader.done is False
    two.seal()
    bench.until_idle()
    assert bench.uploader.done


def test_a_body_too_large_for_a_proxy_is_sent_in_parts(bench: Bench) -> None:
    for number in range(40):
        bench.journals[0].append(bytes([number]) * 2000)
    limit = 10_000

    def proxy(method: str, path: str) -> Reply | None:
        return Reply(413, {}, b"") if len(bench.network.bodies[-1]) > limit else None

    bench.network.answer = proxy
    bench.until_idle()

    assert bench.arrived(bench.journals[0]) == 41


def test_a_request_refused_as_a_whole_costs_only_the_stream_that_is_the_cause(bench: Bench) -> None:
    bad = f"{bench.journals[0].number:016x}".encode()

    def firewall(method: str, path: str) -> Reply | None:
        bad_one = "/frames" in path and bad in bench.network.bodies[-1]
        return Reply(400, {}, b"{}") if bad_one else None

    bench.network.answer = firewall
    bench.until_idle()

    assert bench.uploader.tails[bench.journals[0].number].problem is not None
    assert bench.arrived(bench.journals[1]) == 1


def test_frames_damaged_on_the_way_are_sent_again(bench: Bench) -> None:
    journal = bench.journals[0]
    journal.append(b"x" * 100)
    deliver = bench.server.handle
    flips = iter([True, True, False, False, False])

    def wire_with_a_fault(method: str, path: str, body: Any, headers: Mapping[str, str]) -> Reply:
        if path.endswith("/frames") and next(flips, False):
            damaged = bytearray(body)
            damaged[-1 if not any(damaged[-8:]) else -9] ^= 1
            body = bytes(damaged)
        return deliver(method, path, body, {})

    bench.server.handle = wire_with_a_fault  # type: ignore[method-assign]
    bench.until_idle()

    assert bench.uploader.tails[journal.number].problem is None
    assert bench.arrived(journal) == 2


def test_streams_that_say_how_the_run_is_go_first(tmp_path: Path) -> None:
    bench = Bench(tmp_path, ranks=3)
    for journal in bench.journals:
        journal.append(b"x" * 100)
    bench.uploader = Uploader(bench.network, clock=lambda: bench.now, rng=random.Random(0))
    for journal, priority in zip(bench.journals, (2, 1, 0), strict=True):
        bench.uploader.follow(journal.path, priority)
    bench.until_idle()
    bench.server.stop()
    first = bench.network.bodies[bench.network.asked.index("frames")]
    _, sections = wire.unpack(first, None, 1 << 20)

    assert [section.stream for section in sections] == [bench.journals[rank].number for rank in (2, 1, 0)]


def test_a_server_restarted_from_a_backup_gets_what_it_lacks_though_nothing_new_is_written(bench: Bench) -> None:
    bench.server.back_up()
    bench.journals[0].append(b"a")
    bench.until_idle()
    bench.server.restore()
    bench.journals[1].append(b"b")
    bench.until_idle()
    bench.until_idle()

    assert [bench.arrived(journal) for journal in bench.journals] == [2, 2]


def test_a_journal_that_cannot_be_read_for_a_while_is_sent_later(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    bench.until_idle()
    bench.journals[0].append(b"a")
    with monkeypatch.context() as patch:

        def stale(*args: object, **kwargs: object) -> None:
            raise JournalError("cannot be read: Stale file handle")

        patch.setattr("torchtrack.journal.gathered.opened", stale)
        bench.until_idle()
        trouble = bench.uploader.tails[bench.journals[0].number].trouble
    bench.until_idle()

    assert "Stale file handle" in str(trouble)
    assert bench.arrived(bench.journals[0]) == 2
    assert bench.uploader.tails[bench.journals[0].number].trouble is None


def test_damage_to_what_has_arrived_already_does_not_stop_what_follows(bench: Bench) -> None:
    journal = bench.journals[0]
    bench.until_idle()
    data = bytearray(journal.path.read_bytes())
    data[20] ^= 1  # of the header by which the file is known
    journal.path.write_bytes(data)
    journal.append(b"more")
    journal.seal()
    bench.until_idle()

    assert bench.uploader.tails[journal.number].problem is None
    assert bench.arrived(journal) == 3


def test_an_unreachable_server_costs_no_memory_and_little_work(bench: Bench) -> None:
    def nobody(method: str, path: str) -> Reply | None:
        raise UnreachableError("the connection was refused")

    bench.until_idle()
    bench.network.answer = nobody
    bench.network.asked.clear()
    for _ in range(3000):
        bench.journals[0].append(b"x" * 100)
    while bench.now < 3600:
        bench.step()

    assert 60 < len(bench.network.asked) < 300
    assert sum(len(section.frames) for section in bench.uploader._flight) < 2000  # one request, no more
    assert bench.uploader.problem == "the connection was refused"


def test_256_nodes_do_not_storm_a_server_that_says_429(tmp_path: Path) -> None:
    server = Server(tmp_path / "server")
    journal = Journal(tmp_path / "runs", 0xC0, 0)
    clock = [0.0]
    nodes: list[Uploader] = []
    times: list[float] = []

    class Storm(Network):
        def ask(self, method: str, path: str, body: Any = None, headers: Mapping[str, str] | None = None) -> Reply:
            times.append(clock[0])
            return Reply(429, {"retry-after": "10"}, b"") if clock[0] < 60 else super().ask(method, path, body, headers)

    for number in range(256):
        nodes.append(Uploader(Storm(server), clock=lambda: clock[0], rng=random.Random(number)))
        nodes[-1].follow(journal.path)
    due = [0.0] * 256
    while min(due) < math.inf and clock[0] < 600:
        number = min(range(256), key=due.__getitem__)
        clock[0] = max(clock[0], due[number])
        wait = nodes[number].step()
        due[number] = math.inf if nodes[number].idle else clock[0] + max(0.001, wait)
    server.stop()
    seconds = Counter(int(at) for at in times)
    later = [seconds[second] for second in range(10, 60)]

    assert seconds[0] == 256  # all begin at once, which is as bad as it gets
    assert sum(seconds[second] for second in range(1, 10)) == 0  # never earlier than it was said
    assert max(later) < 60
    assert sum(later) / len(later) < 256 / 10
    assert all(node.idle for node in nodes)
