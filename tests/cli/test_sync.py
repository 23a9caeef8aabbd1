"""`torchtrack sync`, `status` and `login` against a server on loopback."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner

import torchtrack
from tests.runs import begin
from tests.server.running import Running
from torchtrack import credentials
from torchtrack.cli import main
from torchtrack.journal.gather import Gatherer
from torchtrack.server.app import Config
from torchtrack.server.budget import Limits


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    limits = Limits(job_requests_per_s=1000, interval_s=0.01)
    running = Running(Config(data=tmp_path_factory.mktemp("server"), limits=limits, queries=False))
    yield running
    running.stop()


@pytest.fixture(autouse=True)
def logged_in(server: Running) -> None:
    credentials.keep(server.url, server.key)


def record(folder: Path, **arguments: Any) -> str:
    run = begin(dir=folder, mode="offline", **arguments)
    for step in range(10):
        run.log({"loss": step})
    run.log({"picture": torchtrack.Image(np.zeros((4, 4, 3), np.uint8))})
    run.finish(quiet=True)
    return run.uid


def call(*arguments: str, text: str | None = None) -> tuple[int, str]:
    done = CliRunner().invoke(main, list(arguments), input=text)
    return done.exit_code, done.output


def test_a_run_recorded_offline_is_sent_with_its_files_and_sending_again_changes_nothing(
    server: Running, tmp_path: Path
) -> None:
    uid = record(tmp_path)
    (journal,) = tmp_path.glob(f"{uid}/000/*.ttj")
    (tmp_path / uid / "nodes").mkdir()
    (tmp_path / uid / "nodes" / f"{journal.stem[-16:]}-0.ttb").write_bytes(b"a black box")
    first = call("sync", "--dir", str(tmp_path))
    files = {path: path.read_bytes() for path in (server.config.runs / uid).rglob("*") if path.is_file()}
    again = call("sync", "--dir", str(tmp_path), uid)
    code, said = call("status", "--dir", str(tmp_path))

    assert (first[0], again[0], code) == (0, 0, 0), first[1] + again[1]
    assert "checksums agree" in first[1]
    assert files == {path: path.read_bytes() for path in (server.config.runs / uid).rglob("*") if path.is_file()}
    assert {path.relative_to(server.config.runs) for path in files} == {
        path.relative_to(tmp_path) for path in (tmp_path / uid).rglob("*") if path.is_file()
    }
    assert uid in said


def test_a_run_that_is_still_written_is_sent_as_far_as_it_is(server: Running, tmp_path: Path) -> None:
    run = begin(dir=tmp_path, mode="offline")
    run.log({"loss": 1.0})
    run.flush()
    code, said = call("sync", "--dir", str(tmp_path))
    there = torchtrack.Api(server.config.runs).run(run.uid)
    before = there.history().num_rows
    run.log({"loss": 2.0})
    run.finish(quiet=True)
    call("sync", "--dir", str(tmp_path))

    assert (code, before) == (0, 1)
    assert "1 journal not ended yet" in said
    assert torchtrack.Api(server.config.runs).run(run.uid).history().num_rows == 2


def test_gathered_journals_are_sent_as_the_journals_they_hold(server: Running, tmp_path: Path) -> None:
    uid = record(tmp_path)
    (path,) = tmp_path.glob(f"{uid}/000/*.ttj")
    whole = path.read_bytes()
    gatherer = Gatherer(tmp_path / uid / "nodes", {"role": "gathered", "uid": uid})
    assert gatherer.take(path, int(path.stem[-16:], 16), ended=True) == 1
    gatherer.close()
    code, said = call("sync", "--dir", str(tmp_path))

    assert code == 0, said
    assert (server.config.runs / path.relative_to(tmp_path)).read_bytes() == whole


def test_only_the_runs_that_are_named_are_sent(server: Running, tmp_path: Path) -> None:
    wanted, other = record(tmp_path), record(tmp_path)
    call("sync", "--dir", str(tmp_path), wanted)

    assert (server.config.runs / wanted).exists()
    assert not (server.config.runs / other).exists()


def test_a_damaged_frame_is_passed_named_and_makes_the_exit_code_1(server: Running, tmp_path: Path) -> None:
    uid = record(tmp_path)
    (path,) = tmp_path.glob(f"{uid}/000/*.ttj")
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    code, said = call("sync", "--dir", str(tmp_path))
    stored = next((server.config.runs / uid).glob("000/*.ttj"))

    assert code == 1
    assert "1 frame damaged here" in said
    assert 0 < stored.stat().st_size < len(data)
    assert b"".join([stored.read_bytes()[:40]]) == bytes(data[:40])


def test_a_file_that_is_gone_is_named_and_its_row_is_sent(server: Running, tmp_path: Path) -> None:
    uid = record(tmp_path)
    (picture,) = tmp_path.glob(f"{uid}/media/*")
    picture.unlink()
    code, said = call("sync", "--dir", str(tmp_path))

    assert code == 1
    assert picture.name in said
    assert torchtrack.Api(server.config.runs).run(uid).media().num_rows == 1


def test_another_journal_under_the_same_numbers_is_never_overwritten(server: Running, tmp_path: Path) -> None:
    uid = record(tmp_path)
    call("sync", "--dir", str(tmp_path))
    stored = next((server.config.runs / uid).glob("000/*.ttj"))
    before = stored.read_bytes()
    (path,) = tmp_path.glob(f"{uid}/000/*.ttj")
    whole = path.read_bytes()
    from torchtrack.journal import frame

    opening = next(frame.scan(whole, int(path.stem[-16:], 16), opening=True))
    buffers, _ = frame.encode(2, b"else", stream=int(path.stem[-16:], 16), seq=1, mono_ns=1)  # type: ignore[arg-type]
    path.write_bytes(bytes(opening.raw) + b"".join(bytes(each) for each in buffers) + whole[opening.end :])
    code, _ = call("sync", "--dir", str(tmp_path))

    assert code == 1
    assert stored.read_bytes() == before


def test_a_wrong_key_ends_at_once_with_what_to_do(server: Running, tmp_path: Path) -> None:
    record(tmp_path)
    credentials.keep(server.url, "tt_wrong")
    code, said = call("sync", "--dir", str(tmp_path))
    report = json.loads(call("sync", "--dir", str(tmp_path), "--json")[1])

    assert code == 1
    assert "a wrong API key" in said
    assert report["synced"] is False


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("sync", "--url", "ftp://x"), "a server is given as"),
        (("sync", "--url", "http://far.example"), "could be read on the way"),
        (("sync", "--dir", "/nowhere"), "no runs: there is no /nowhere"),
        (("status", "--dir", "/nowhere"), "no runs: there is no /nowhere"),
        (("login", "http://far.example"), "could be read on the way"),
        (("server", "--host", "0.0.0.0", "--no-token"), "without a token everyone"),  # noqa: S104
    ],
)
def test_what_is_wrong_is_said_in_a_sentence(arguments: tuple[str, ...], message: str) -> None:
    code, said = call(*arguments)

    assert code == 1
    assert message in " ".join(said.split())


def test_without_a_server_sync_says_where_to_name_one(tmp_path: Path) -> None:
    credentials.credentials_file().unlink()
    code, said = call("sync", "--dir", str(tmp_path))

    assert (code, "torchtrack login" in said) == (1, True)


def test_login_keeps_a_key_only_if_the_server_knows_it(server: Running) -> None:
    credentials.credentials_file().unlink()
    wrong = call("login", server.url, text="tt_wrong\n")
    kept = credentials.key_for(server.url)
    right = call("login", server.url, text=server.key + "\n")

    assert (wrong[0], kept, right[0]) == (1, None, 0)
    assert credentials.key_for(server.url) == server.key
    assert server.key not in right[1]


def test_a_server_out_of_reach_ends_after_the_time_that_was_given(tmp_path: Path) -> None:
    record(tmp_path)
    code, said = call("sync", "--dir", str(tmp_path), "--url", "http://127.0.0.1:9", "--timeout", "0")
    status = call("status", "--dir", str(tmp_path))

    assert (code, status[0]) == (1, 1)
    assert "out of reach" in said
    assert "the connection was refused" in status[1]
