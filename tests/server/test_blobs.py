"""Media in the folder and in an object store: moto's server on loopback stands in for S3."""

from __future__ import annotations

import hashlib
import random
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import urllib3
from moto.server import ThreadedMotoServer

from tests.cli.test_sync import record
from tests.server.running import Running
from torchtrack import Api
from torchtrack.journal.frame import dump
from torchtrack.journal.reader import find_streams
from torchtrack.server.app import Config
from torchtrack.server.blobs import BlobStore
from torchtrack.server.budget import Limits
from torchtrack.sidecar.upload.engine import Uploader
from torchtrack.sidecar.upload.transport import Reply

UID = "ab" * 8
CONTENT = bytes(range(256)) * 4
LARGE = random.Random(0).randbytes(6 << 20)
"""More than a part of an upload, and than is read at a time."""
LIMITS = Limits(job_requests_per_s=1000, interval_s=0.01, key_requests_per_s=2000)


class Bucket:
    """The bucket of an address on loopback where nobody listens until `open` is called."""

    def __init__(self) -> None:
        self._kept = socket.socket()  # so that nobody else gets its number
        self._kept.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self._kept.bind(("127.0.0.1", 0))
        self.port: int = self._kept.getsockname()[1]
        self.address = f"http://127.0.0.1:{self.port}"
        self.url = f"s3://media-{self.port}/some/where"  # moto's buckets are those of the process
        self._server: ThreadedMotoServer | None = None

    def open(self) -> None:
        self._server = ThreadedMotoServer("127.0.0.1", self.port, verbose=False)
        self._server.start()
        assert self.ask("PUT") is not None

    def ask(self, method: str, of: str = "") -> str:
        answer = urllib3.request(method, f"{self.address}/media-{self.port}{of}", retries=False)
        assert answer.status == 200, answer.data
        return answer.data.decode()

    def close(self) -> None:
        if self._server is not None:
            self._server.stop()
        self._kept.close()


@contextmanager
def bucket() -> Iterator[Bucket]:
    made = Bucket()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AWS_ACCESS_KEY_ID", "nobody")
        patch.setenv("AWS_SECRET_ACCESS_KEY", "nothing")
        patch.setenv("AWS_REGION", "us-east-1")
        patch.setenv("AWS_ENDPOINT", made.address)
        patch.setenv("AWS_ALLOW_HTTP", "true")
        yield made
    made.close()


@pytest.fixture(scope="module")
def s3() -> Iterator[Bucket]:
    with bucket() as made:
        made.open()
        yield made


@pytest.fixture(scope="module", params=["folder", "s3"])
def place(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    """A server whose media lie in its folder, and one whose media lie in an object store."""
    url = request.getfixturevalue("s3").url if request.param == "s3" else None
    running = Running(Config(data=tmp_path_factory.mktemp("blobs"), limits=LIMITS, queries=False, blobs=url))
    yield running
    running.stop()


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def put(server: Running, content: bytes, name: str | None = None) -> Reply:
    return server.client().ask("PUT", f"/api/v1/runs/{UID}/media/{name or sha256(content)}", content)


def get(server: Running, name: str, **headers: str) -> Reply:
    return server.client().ask("GET", f"/api/v1/runs/{UID}/media/{name}", headers=headers)


def missing(server: Running, *names: str) -> Reply:
    body, headers = dump({"sha256": names}), {"Content-Type": "application/json"}
    return server.client().ask("POST", f"/api/v1/runs/{UID}/media/missing", body, headers)


@pytest.mark.parametrize("content", [b"", CONTENT, LARGE], ids=["empty", "small", "large"])
def test_a_file_that_came_in_is_no_longer_missing_and_read_back_whole(place: Running, content: bytes) -> None:
    name = sha256(content)
    before = missing(place, name, "0" * 64).json()
    stored = put(place, content)
    back = get(place, name)

    assert (before, stored.status) == ({"missing": [name, "0" * 64]}, 201)
    assert missing(place, name, "0" * 64).json() == {"missing": ["0" * 64]}
    assert (back.status, back.body == content) == (200, True)
    assert (back.headers["x-content-type-options"], back.headers["content-security-policy"]) == ("nosniff", "sandbox")
    assert back.headers["content-disposition"].startswith("attachment")


def test_a_file_that_came_in_is_among_those_that_the_run_keeps(place: Running) -> None:
    put(place, CONTENT)
    kept = place.client().ask("GET", f"/api/v1/runs/{UID}/kept").json()["files"]
    named = [each for each in kept if each["sha256"] == sha256(CONTENT)]

    assert [(each["path"], each["kind"], each["size"]) for each in named] == [
        (f"media/{sha256(CONTENT)}", "media", len(CONTENT))
    ]


@pytest.mark.parametrize(
    ("asked", "status", "part"),
    [
        ("bytes=0-0", 206, slice(0, 1)),
        ("bytes=5-9", 206, slice(5, 10)),
        ("bytes=1000-", 206, slice(1000, None)),
        ("bytes=1000-99999", 206, slice(1000, None)),
        ("bytes=-3", 206, slice(-3, None)),
        ("bytes=-99999", 206, slice(None)),
        ("bytes=9-5", 200, slice(None)),
        ("bytes=0-1,3-4", 200, slice(None)),
        ("lines=1-2", 200, slice(None)),
        ("bytes=1024-", 416, None),
        ("bytes=-0", 416, None),
    ],
)
def test_a_part_of_a_file_is_what_was_asked_for(place: Running, asked: str, status: int, part: slice | None) -> None:
    put(place, CONTENT)
    back = get(place, sha256(CONTENT), Range=asked)

    assert back.status == status
    if part is not None:
        assert back.body == CONTENT[part]
    if status == 206 and part is not None:
        first, stop, _ = part.indices(len(CONTENT))
        assert back.headers["content-range"] == f"bytes {first}-{stop - 1}/{len(CONTENT)}"


def test_what_was_damaged_on_the_way_is_nowhere(place: Running, s3: Bucket) -> None:
    name = sha256(b"something else")

    assert put(place, LARGE, name).status == 422
    assert missing(place, name).json() == {"missing": [name]}
    assert get(place, name).status == 404
    assert not [path for path in place.config.data.rglob("*") if name in path.name]
    assert (name in s3.ask("GET"), "<Upload>" in s3.ask("GET", "?uploads")) == (False, False)


@pytest.mark.parametrize("name", ["0" * 63, "..", "%2e%2e%2ftoken", "A" * 64, "0" * 64 + "%0a"])
def test_no_other_name_is_taken_or_read(place: Running, name: str) -> None:
    assert put(place, CONTENT, name).status in (400, 404, 405)
    assert get(place, name).status in (400, 404)


def test_in_an_object_store_files_lie_as_in_the_folder_and_nowhere_else(s3: Bucket, tmp_path: Path) -> None:
    server = Running(Config(data=tmp_path, limits=LIMITS, queries=False, blobs=f"{s3.url}/else"))
    try:
        status = put(server, LARGE).status
    finally:
        server.stop()

    assert status == 201
    assert f"<Key>some/where/else/{UID}/media/{sha256(LARGE)}</Key>" in s3.ask("GET")
    assert "<Upload>" not in s3.ask("GET", "?uploads")
    assert [path for path in tmp_path.rglob("*") if sha256(LARGE) in path.name] == []


def test_files_that_lie_in_the_folder_from_before_are_there_too(s3: Bucket, tmp_path: Path) -> None:
    before = Running(Config(data=tmp_path, limits=LIMITS, queries=False))
    put(before, b"from before")
    before.stop()
    (tmp_path / "waiting").mkdir()
    (tmp_path / "waiting" / f".{'0' * 64}.half").write_bytes(b"of a server that was killed")
    server = Running(Config(data=tmp_path, limits=LIMITS, queries=False, blobs=s3.url))
    try:
        left = missing(server, sha256(b"from before")).json()
        back = get(server, sha256(b"from before")).body
    finally:
        server.stop()

    assert (left, back) == ({"missing": []}, b"from before")
    assert list((tmp_path / "waiting").iterdir()) == []


def test_while_the_store_is_away_clients_are_told_to_come_again_and_send_all_when_it_is_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    uid = record(tmp_path / "local")
    (picture,) = (tmp_path / "local" / uid / "media").iterdir()
    now = 0.0
    with bucket() as store:
        server = Running(Config(data=tmp_path / "server", limits=LIMITS, queries=False, blobs=store.url))
        uploader = Uploader(server.client(), clock=lambda: now, rng=random.Random(0))
        try:
            answers = [missing(server, sha256(CONTENT)), put(server, CONTENT), get(server, sha256(CONTENT))]
            for path in find_streams(tmp_path / "local"):
                uploader.follow(path)
            for _ in range(5):  # the handshake, positions, a file, and that again
                now += uploader.step()
            said = str(uploader.problem)
            early = list(server.config.runs.glob(f"{uid}/*/*.ttj"))
            store.open()
            for _ in range(100):
                if uploader.idle:
                    break
                now += uploader.step()
            listed = store.ask("GET")
        finally:
            server.stop()

    assert [(answer.status, answer.headers["retry-after"]) for answer in answers] == [(503, "5")] * 3
    assert "nothing is lost" in said
    assert str(store.port) not in said  # where it is is nobody's business
    assert early == []  # no row before the file that it names
    assert (uploader.idle, uploader.files_left) == (True, {})
    assert f"{uid}/media/{picture.name}</Key>" in listed
    assert Api(server.config.runs).run(uid).media().column("sha256").to_pylist() == [picture.name]


def test_a_store_that_is_slow_does_not_take_all_threads(s3: Bucket, tmp_path: Path) -> None:
    store = BlobStore(tmp_path, tmp_path / "waiting", s3.url)
    taken = 0
    while store._bucket._room.acquire(blocking=False):
        taken += 1

    with pytest.raises(OSError, match="too much to do"):
        store.size(UID, "0" * 64)
    store._bucket._room.release()
    assert [store.size(UID, "0" * 64) for _ in range(2)] == [None, None]
    assert 0 < taken < 40


@pytest.mark.parametrize(
    ("url", "why"),
    [
        ("/some/folder", "no scheme"),
        ("file:///some/folder", "not under file:"),
        ("http://127.0.0.1/bucket", "not under http:"),
        ("s3://key:secret@bucket", "holds a secret"),
        ("az://container?sig=secret", "holds a secret"),
        ("s3://", "cannot be used"),
    ],
)
def test_a_url_that_is_none_or_holds_a_secret_is_refused(tmp_path: Path, url: str, why: str) -> None:
    with pytest.raises(ValueError, match=why) as raised:
        BlobStore(tmp_path, tmp_path / "waiting", url)
    assert "secret@" not in str(raised.value)
