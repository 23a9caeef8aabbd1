"""Long work lets questions go first, and ends all the same."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator

import pytest

from torchtrack.server import courtesy
from torchtrack.server.courtesy import Asked, Courtesy


@pytest.fixture(autouse=True)
def at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(courtesy, "QUIET_S", 0.0)
    monkeypatch.setattr(courtesy, "TURN_S", 0.0)
    monkeypatch.setattr(courtesy, "LONGEST_S", 30.0)


def test_work_waits_while_a_question_is_being_answered() -> None:
    waits = threading.Event()

    class Noted(Courtesy):
        def give_way(self, longest_s: float, quiet_s: float = 0.0) -> float:
            if self._asked:
                waits.set()
            return super().give_way(longest_s, quiet_s)

    counts, done = Noted(), list[int]()

    def work() -> Iterator[int]:
        yield 0
        counts.begin()
        yield from (1, 2)

    thread = threading.Thread(target=lambda: done.extend(counts.among(work())))
    thread.start()
    assert waits.wait(10)
    assert 2 not in done
    counts.end()
    thread.join(10)
    assert done == [0, 1, 2]


def test_work_waits_no_longer_than_it_may_in_all_though_questions_never_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(courtesy, "LONGEST_S", 1.0)
    waited = list[float]()

    class Noted(Courtesy):
        def give_way(self, longest_s: float, quiet_s: float = 0.0) -> float:
            waited.append(longest_s + quiet_s)
            return 0.4

    counts = Noted()
    counts.begin()
    assert list(counts.among(range(5))) == [0, 1, 2, 3, 4]
    assert waited == pytest.approx([1.0, 0.6, 0.2])


@pytest.mark.parametrize(
    ("path", "number"), [("/api/v1/series", 1), ("/api/v1/runs/a/findings", 0), ("/api/v1/live", 0)]
)
def test_questions_count_but_for_those_that_take_long_themselves(path: str, number: int) -> None:
    begun = list[str]()

    class Noted(Courtesy):
        def begin(self) -> None:
            begun.append(path)
            super().begin()

    counts = Noted()

    async def fails(*_: object) -> None:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        asyncio.run(Asked(fails, counts)({"type": "http", "path": path}, fails, fails))
    assert len(begun) == number
    counts.give_way(30.0)  # the question that failed has ended
