"""Files and texts that runs logged, side by side at a step."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.api.journals import UID
from tests.server.samples import OTHER, Make
from tests.server.serving import Client, serving
from torchtrack.server import logged
from torchtrack.server.metrics import MetricsStore

PNG = "image/png"


@pytest.fixture
def client(runs: Path, journal: Make, store: MetricsStore) -> Iterator[Client]:
    """Two runs that log pictures: one of two ranks with a second attempt from step 20 on, one of another rhythm."""
    ranks = [journal(rank=rank, world_size=2) for rank in (0, 1)]
    for step in (0, 10, 20, 30):
        for rank in (1, 0):
            ranks[rank].medium(step, "samples", f"{rank} {step}".encode(), PNG, f"of rank {rank} at {step}")
    ranks[0].medium(10, "samples", b"one more", PNG)
    ranks[0].text(10, "said", "hello")
    ranks[0].medium(10, "said", b"<p>", "text/html")
    again = journal(attempt=2, world_size=2)
    again.log(20, {"loss": 1.0})
    again.medium(20, "samples", b"again at 20", PNG)
    again.medium(25, "samples", b"again", PNG)
    other = journal(OTHER)
    other.about(name="other")
    for step in (5, 15):
        other.medium(step, "samples", f"other {step}".encode(), PNG)
    other.text(15, "said", "ciao")
    with serving(store, runs) as client:
        yield client


def ask(client: Client, path: str = "", **body: Any) -> Any:
    return client.json("POST", f"/logged{path}", {"runs": [UID, OTHER], **body})


def test_names_say_what_they_hold_and_texts_are_apart_from_files_of_the_same_name(client: Client) -> None:
    found = [(one["name"], one["source"], one["kinds"], one["rows"], one["steps"]) for one in ask(client, "/names")]

    assert found == [
        ("said", "media", ["html"], 1, 1),
        ("said", "texts", ["text"], 2, 2),
        ("samples", "media", ["image"], 9, 6),
    ]


def test_steps_are_those_of_all_runs_without_what_a_later_attempt_hides(client: Client) -> None:
    assert ask(client, "/steps", name="samples") == [0, 5, 10, 15, 20, 25]
    assert ask(client, "/steps", name="said", source="texts") == [10, 15]
    assert ask(client, "/steps", name="nothing") == []


def test_one_step_that_was_logged_again_is_replaced_and_nothing_else(
    runs: Path, journal: Make, store: MetricsStore
) -> None:
    for rank in (0, 1):
        with journal(rank=rank, world_size=2) as first:
            for step in (0, 10, 20):
                first.medium(step, "samples", f"{rank} {step}".encode(), PNG, f"{rank} at {step}")
                first.text(step, "said", "hello")
    with journal(attempt=2) as second:
        second.medium(10, "samples", b"again", PNG, "again")
    with serving(store, runs) as client:
        body = {"runs": [UID], "name": "samples"}
        assert client.json("POST", "/logged/steps", body) == [0, 10, 20]
        assert [(one["name"], one["rows"]) for one in client.json("POST", "/logged/names", {"runs": [UID]})] == [
            ("said", 6),
            ("samples", 5),
        ]
        (side,) = client.json("POST", "/logged", {**body, "at": 15})
        assert [row["caption"] for row in side["rows"]] == ["again"]


def test_each_run_shows_what_it_had_last_at_a_step(client: Client) -> None:
    def captions(step: int | None) -> list[tuple[int | None, list[tuple[int, str | None]]]]:
        sides = ask(client, name="samples", at=step)
        assert [side["run"] for side in sides] == [UID, OTHER]
        return [(side["step"], [(row["rank"], row["caption"]) for row in side["rows"]]) for side in sides]

    both = [(0, "of rank 0 at 10"), (0, None), (1, "of rank 1 at 10")]
    assert captions(12) == [(10, both), (5, [(0, None)])]
    assert captions(3) == [(0, [(0, "of rank 0 at 0"), (1, "of rank 1 at 0")]), (None, [])]
    assert captions(None) == [(25, [(0, None)]), (15, [(0, None)])]


def test_a_row_says_how_it_is_shown_and_a_text_is_whole(client: Client) -> None:
    (text, _), (page, _) = (ask(client, name="said", source=source) for source in ("texts", "media"))

    assert [(row["kind"], row["text"]) for row in text["rows"]] == [("text", "hello")]
    assert [(row["kind"], row["mime"], row["size"]) for row in page["rows"]] == [("html", "text/html", 3)]


def test_of_many_rows_at_one_step_the_first_come_and_their_number(
    client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logged, "MOST_ROWS", 2)
    side, _ = ask(client, name="samples", at=10)

    assert (side["n"], len(side["rows"])) == (3, 2)


def test_a_file_that_no_browser_shows_is_only_a_file() -> None:
    kinds = {mime: logged.kind_of(mime) for mime in ("image/png", "image/tiff", "video/mp4", "model/obj", None)}

    assert kinds == {
        "image/png": "image",
        "image/tiff": "file",
        "video/mp4": "video",
        "model/obj": "file",
        None: "file",
    }


def test_without_runs_nothing_was_logged(client: Client) -> None:
    assert client.json("POST", "/logged/names", {"runs": []}) == []
    assert client.json("POST", "/logged", {"runs": [], "name": "samples"}) == []


def test_all_files_of_a_run_come_in_pages(client: Client) -> None:
    first = client.json("GET", f"/runs/{UID}/media", limit=6)
    rest = client.json("GET", f"/runs/{UID}/media", after=first["after"])

    assert (first["n"], len(first["rows"]), rest["after"]) == (12, 6, None)
    rows = [*first["rows"], *rest["rows"]]
    assert {(row["name"], row["kind"]) for row in rows} == {("samples", "image"), ("said", "html")}
    assert [row["time"] for row in rows] == sorted(row["time"] for row in rows)
