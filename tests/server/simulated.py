"""A server and clients in one thread: the shipped store, ingest and uploader, a network and a disk that misbehave."""

from __future__ import annotations

import errno
import json
import os
import random
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

from torchtrack import wire
from torchtrack.journal import frame
from torchtrack.journal.frame import Kind
from torchtrack.journal.reader import PADDING, Stream
from torchtrack.server import disk as on_disk
from torchtrack.server.budget import Limits
from torchtrack.server.ingest import Ingest
from torchtrack.server.journals import JournalStore
from torchtrack.server.problems import ApiError
from torchtrack.sidecar.upload.transport import Reply, UnreachableError

Key = tuple[int, int]


class Disk:
    """What of the server's files would survive a power cut: what was synced, and by chance some of the rest."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.fail_sync = 0
        self.fail_write = 0
        self._sizes: dict[str, int] = {}
        self._names: set[str] = set()

    def fdatasync(self, fd: int) -> None:
        if self.fail_sync:
            self.fail_sync -= 1
            raise OSError(errno.EIO, "simulated")
        self._sizes[str(Path(f"/proc/self/fd/{fd}").readlink())] = os.fstat(fd).st_size

    def sync_folder(self, folder: Path) -> None:
        self._names.update(str(path) for path in folder.iterdir())

    def write(self, fd: int, data: memoryview) -> int:
        if self.fail_write:
            self.fail_write -= 1
            os.write(fd, data[: len(data) // 2])
            raise OSError(errno.ENOSPC, "simulated")
        return os.write(fd, data)

    def restored(self) -> None:
        """What is there now was put there durably."""
        files = [path for path in self.folder.rglob("*") if path.is_file()]
        self._sizes = {str(path): path.stat().st_size for path in files}
        self._names = {str(path) for path in files}

    def cut(self, rng: random.Random) -> None:
        for path in [path for path in self.folder.rglob("*") if path.is_file()]:
            if str(path) not in self._names and rng.random() < 0.5:
                path.unlink()
                continue
            synced, size = self._sizes.get(str(path), 0), path.stat().st_size
            if size <= synced:
                continue
            kept = rng.randint(synced, size)
            os.truncate(path, kept)
            if rng.random() < 0.5:  # the size is there, the page is not
                os.truncate(path, size)
            elif rng.random() < 0.3:
                with path.open("ab") as file:
                    file.write(rng.randbytes(rng.randint(1, 60)))


class Server:
    """The store and the ingest, without HTTP."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.disk = Disk(folder / "runs")
        self.dies = False
        """Whether the next request finds its end between writing and syncing."""
        self.start()

    def start(self) -> None:
        self.store = JournalStore(self.folder / "runs")
        self.ingest = Ingest(self.store, Limits(body_bytes=1 << 20))

    def stop(self) -> None:
        """Let go of the files, as the end of a process does: nothing is synced."""
        self.store._syncers.shutdown()
        for log in self.store._logs.values():
            log._die()

    def crash(self) -> None:
        """As by SIGKILL: what was written is there."""
        self.stop()
        self.start()

    def cut_power(self, rng: random.Random) -> None:
        self.stop()
        self.disk.cut(rng)
        self.start()

    def back_up(self) -> None:
        shutil.rmtree(self.folder / "backup", ignore_errors=True)
        shutil.copytree(self.folder / "runs", self.folder / "backup")

    def restore(self) -> None:
        if (self.folder / "backup").exists():
            self.stop()
            shutil.rmtree(self.folder / "runs")
            shutil.copytree(self.folder / "backup", self.folder / "runs")
            self.disk.restored()
            self.start()

    def handle(self, method: str, path: str, body: bytes | None, headers: Mapping[str, str]) -> Reply:
        try:
            status, answer = self._route(method, path, body or b"", headers)
        except ApiError as error:
            status, answer = error.status, {"error": {"code": error.code, "message": str(error)}}
        return Reply(status, {}, json.dumps(answer).encode())

    def _route(self, method: str, path: str, body: bytes, headers: Mapping[str, str]) -> tuple[int, dict[str, Any]]:
        url = urlsplit(path)
        name = url.path.removeprefix(wire.API)
        if (method, name) == ("GET", "/handshake"):
            query = parse_qs(url.query)
            return 200, self.ingest.handshake(int(query["oldest"][0]), int(query["newest"][0]))
        if (method, name) == ("POST", "/positions"):
            streams = json.loads(body)["streams"]
            return 200, {"streams": {each: self.ingest.position(wire.stream_of(each)) for each in streams}}
        assert (method, name) == ("POST", "/frames")
        _, sections = self.ingest.unpack(body, headers.get("Content-Encoding"))
        problems = self.ingest.take(sections)
        if self.dies:
            self.dies = False
            self.crash()
            raise UnreachableError("the server was killed")
        status, answer = self.ingest.answer(sections, problems, self.store.commit())
        return status, {**answer, "next_after_s": 0.1, "max_bytes": 600}

    def frames(self) -> dict[Key, bytes]:
        """Every frame there is, read as every reader reads them."""
        found: dict[Key, bytes] = {}
        for path in self.store.streams().values():
            for (stream, seq), raw in stored(path).items():
                assert (stream, seq) not in found
                found[stream, seq] = raw
        return found


def stored(path: Path, *, strict: bool = False) -> dict[Key, bytes]:
    """The verified frames of a stream's files.

    A power cut leaves anything in the bytes behind a frame that no checksum covers, until the store next looks at the
    stream; unless `strict` they are taken for the zeros that belong there.
    """
    stream = Stream(path, grace_s=float("-inf"), gone=lambda *_: True)
    found: dict[Key, bytes] = {}
    for each in stream.stored():
        assert (stream.stream, each.header.seq) not in found
        padding = len(each.padding)
        found[stream.stream, each.header.seq] = bytes(each.raw[: len(each.raw) - padding]) + bytes(padding)
    leftovers = [damage for damage in stream.damages if not damage.lost and (strict or damage.reason != PADDING)]
    assert not leftovers, f"bytes between whole frames: {leftovers}"
    return found


class Network:
    """A client's way to the server. `mood` says what becomes of a request: deliver, lose, mute, twice, late."""

    def __init__(self, server: Server) -> None:
        self.server = server
        self.mood = "deliver"
        self.late: list[Callable[[], Reply]] = []
        self.told: dict[int, int] = {}
        """By stream: how far the server has said that it is durable, since it last forgot."""

    def ask(self, method: str, path: str, body: Any = None, headers: Mapping[str, str] | None = None) -> Reply:
        def deliver() -> Reply:
            return self.server.handle(method, path, body, headers or {})

        if self.mood == "late":
            self.late.append(deliver)
        if self.mood in ("late", "lose"):
            raise UnreachableError("simulated")
        reply = deliver()
        if self.mood == "twice":
            reply = deliver()
        if self.mood == "mute":
            raise UnreachableError("simulated")
        for stream, answer in reply.json().get("streams", {}).items():
            self.told[int(stream, 16)] = answer["next"]
        return reply

    def deliver_late(self, rng: random.Random) -> None:
        """One that was thought to be lost comes after all."""
        if self.late:
            self.late.pop(rng.randrange(len(self.late)))()


class Journal:
    """A local stream, written frame by frame without the writer's threads."""

    def __init__(self, folder: Path, stream: int, rank: int) -> None:
        self.number = stream
        self.uid = f"{7 + rank // 2:016x}"
        self.path = frame.rank_path(folder, self.uid, rank, stream)
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self.frames: dict[Key, bytes] = {}
        self.sealed = False
        self._rank = rank
        self._segment = -1
        self.next_file()

    def next_file(self) -> None:
        self._segment += 1
        record = {"type": "opening", "format": 1, "stream": f"{self.number:016x}", "segment": self._segment}
        place = {"role": "rank", "uid": self.uid, "rank": self._rank, "attempt": 1, "world_size": 4}
        self._put(Kind.META, frame.dump({**record, **place}), 0)

    def append(self, payload: bytes) -> None:
        if not self.sealed:
            self._put(Kind.DATA, payload, self.number)

    def seal(self) -> None:
        if not self.sealed:
            self._put(Kind.SEAL, b"{}", self.number)
            self.sealed = True

    def damage(self, rng: random.Random) -> None:
        path = frame.segment_path(self.path, rng.randint(0, self._segment))
        data = bytearray(path.read_bytes())
        data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
        path.write_bytes(data)

    def _put(self, kind: Kind, payload: bytes, seed: int) -> None:
        seq = len(self.frames)
        buffers, _ = frame.encode(kind, payload, stream=seed, seq=seq, mono_ns=seq)
        raw = b"".join(bytes(each) for each in buffers)
        self.frames[self.number, seq] = raw
        with frame.segment_path(self.path, self._segment).open("ab") as file:
            file.write(raw)


def simulate_disk(disk: Disk, patch: Callable[[object, str, object], None]) -> None:
    """Have the store's files go through this disk."""
    patch(on_disk, "fdatasync", disk.fdatasync)
    patch(on_disk, "sync_folder", disk.sync_folder)
    patch(on_disk, "write", disk.write)
