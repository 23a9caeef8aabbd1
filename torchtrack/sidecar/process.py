"""The sidecar's loop: watch the registered processes, write how they end and that they live, leave with the last one.

One thread. Requests come over a Unix socket in the abstract name space: binding its name is the election of the one
sidecar of a (user, PID namespace, runs folder), and the kernel frees the name with the process.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import secrets
import select
import signal
import socket
import struct
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from torchtrack import guard
from torchtrack.journal import ring
from torchtrack.journal.frame import Kind
from torchtrack.journal.origin import origin
from torchtrack.journal.writer import Writer
from torchtrack.sidecar import gathering, salvage
from torchtrack.sidecar.helper import Helper

PROTOCOL: Final = 1
MAX_REQUEST: Final = 4096
LINGER_S: Final = 1.0
"""How long the sidecar stays after the last registered process, for the next attempt of a launcher."""
_FIRST_REQUEST_S: Final = 10.0
_REQUEST_S: Final = 0.2
_LOOK_S: Final = 0.05
"""How often a process is looked at where the kernel offers no pidfd; torchrun collects its children every 0.1 s."""
_TERM_GRACE_S: Final = 1.0
_KEEP_AFTER_S: Final = 1.0
_KEEP_AGAIN_S: Final = 30.0
"""How long after it is asked for what ranks have written is kept, and for how long it is not kept again."""
_ANY_RANK: Final = 1
"""Of a stream of which only the number is known: it is looked for under that."""
_HEX: Final = re.compile(r"[0-9a-f]{16}")


def address(directory: Path) -> str:
    """The abstract socket name of the sidecar for a runs folder."""
    namespace = os.stat("/proc/self/ns/pid").st_ino  # noqa: PTH116  # a magic link, not a path
    identity = f"{PROTOCOL}\0{os.getuid()}\0{namespace}\0{directory.resolve()}"
    digest = hashlib.blake2s(identity.encode("utf-8", "surrogateescape"), digest_size=16)
    return f"\0torchtrack-{digest.hexdigest()}"


def peer_is_ours(connection: socket.socket) -> bool:
    """Whether the other end belongs to this user: abstract names have no permissions."""
    credentials = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i"))
    return bool(struct.unpack("3i", credentials)[1] == os.getuid())


@dataclass
class _Watched:
    """A process behind a stream."""

    uid: str
    pid: int
    started: str
    pidfd: int | None
    rank: int = 0
    world_size: int = 1
    why: str = ""
    """For what reason the run has ended in it, as it said itself."""
    live: bool = True
    """False once the run has ended in it: no more heartbeats, but its exit still counts."""


@dataclass(frozen=True)
class _Exit:
    code: int | None
    signal: int | None
    time_ns: int


class Sidecar:
    """The state of the process.

    Args:
        directory: the runs folder.
        listener: the bound socket.
        heartbeat_s: time between heartbeats.
    """

    def __init__(self, directory: Path, listener: socket.socket, heartbeat_s: float) -> None:
        self._directory = directory
        self._listener = listener
        self._heartbeat_s = heartbeat_s
        self._watched: dict[str, _Watched] = {}
        self._writers: dict[str, Writer] = {}
        self._poll = select.poll()
        self._wake, self._wake_in = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        self._upload: Mapping[str, object] | None = None
        """Where runs are sent, if any rank has said so."""
        self._stop_at: float | None = None
        self._leave_at = time.monotonic() + _FIRST_REQUEST_S
        self._beat_at = time.monotonic() + heartbeat_s
        self._gathering = gathering.Gathering(directory, lambda: self._stop_at is not None)
        self._courier = Helper("torchtrack.sidecar.courier", directory)
        self._uploads = Helper("torchtrack.sidecar.upload", directory)
        self._lookout = Helper("torchtrack.lookout", directory)
        self._sinks: dict[str, Helper] = {}
        """By what the user calls them; each is a process, since it may hang."""
        self._keeps: dict[str, tuple[float, str]] = {}
        self._kept: dict[str, float] = {}
        self._swept: dict[str, list[str]] = {}
        """By run, the streams of processes that ended while no sidecar was there."""

    def run(self) -> None:
        """Serve until no registered process is left, or SIGTERM."""
        signal.signal(signal.SIGTERM, self._terminate)
        signal.set_wakeup_fd(self._wake_in, warn_on_full_buffer=False)
        self._poll.register(self._listener, select.POLLIN)
        self._poll.register(self._wake, select.POLLIN)
        guard.attempt("looking for black boxes", self._sweep)
        while (now := time.monotonic()) < self._leave_at:
            ready = {fd for fd, _ in self._poll.poll(max(1, int((self._next_turn() - now) * 1000) + 1))}
            guard.attempt("the sidecar's look at processes", self._collect, ready)
            if self._listener.fileno() in ready:
                guard.attempt("a sidecar request", self._serve)
            if time.monotonic() >= self._beat_at:
                guard.attempt("the heartbeat", self._beat)
            guard.attempt("keeping black boxes", self._keep_due)
        self._listener.close()  # from here on a rank that asks starts the next sidecar
        for uid in list(self._writers):
            self._seal(uid, "left")
        guard.attempt("gathering journals", self._gathering.finish)
        for helper in self._helpers():
            guard.attempt("leaving a helper", helper.close)

    def _helpers(self) -> tuple[Helper, ...]:
        return (self._lookout, self._courier, self._uploads, *self._sinks.values())

    def _terminate(self, *_: object) -> None:
        # The ranks are often terminated in the same moment; their exits are worth a short wait.
        self._leave_at = min(self._leave_at, time.monotonic() + (_TERM_GRACE_S if self._watched else 0.0))
        self._stop_at = self._leave_at

    def _next_turn(self) -> float:
        looks = any(watched.pidfd is None for watched in self._watched.values())
        keeps = [at for at, _ in self._keeps.values()]
        return min(self._leave_at, self._beat_at, *keeps, time.monotonic() + _LOOK_S if looks else self._beat_at)

    def _serve(self) -> None:
        connection, _ = self._listener.accept()
        with connection:
            connection.settimeout(_REQUEST_S)
            if not peer_is_ours(connection):
                return
            try:
                done = self._obey(json.loads(connection.recv(MAX_REQUEST)))
                connection.send(b"ok" if done else b"no")
            except (OSError, ValueError, KeyError, TypeError, AttributeError):
                return  # not one of our clients, or one that has died

    def _obey(self, request: Mapping[str, object]) -> bool:
        stream, uid = request["stream"], request.get("uid", "")
        if not (isinstance(stream, str) and isinstance(uid, str) and _HEX.fullmatch(stream)):
            return False
        what, watched = request["do"], self._watched.get(stream)
        if what == "register" and watched is None:
            pid = request["pid"]
            if not (isinstance(pid, int) and _HEX.fullmatch(uid) and self._register(stream, uid, pid)):
                return False
            watched = self._watched[stream]
            guard.attempt("leaving an earlier run", self._leave_earlier, stream)
        if watched is None:
            return False
        rank, world_size = request.get("rank"), request.get("world_size")
        if what == "register" and isinstance(rank, int) and isinstance(world_size, int):
            watched.rank, watched.world_size = rank, world_size  # a rank may learn late which it is
        if what == "register":
            guard.attempt("having a stream followed", self._have_followed, stream, watched, request)
        if what == "joined" and _HEX.fullmatch(uid) and uid != watched.uid:
            before, watched.uid = watched.uid, uid
            self._seal_if_unused(before)
        elif what == "ended":
            watched.live, watched.why = False, str(request.get("reason", ""))
            guard.attempt("the last findings", self._lookout.ended, stream)
            guard.attempt("the last rows", self._uploads.ending, stream)
        elif what == "keep":
            return self._order_keep(watched.uid, str(request.get("why", "")))
        return True

    def _have_followed(self, stream: str, watched: _Watched, request: Mapping[str, object]) -> None:
        """Start what reads the journals beside the training, for what this rank has asked for."""
        place = {"uid": watched.uid, "rank": watched.rank}
        lookout = request.get("lookout") is True and watched.rank == 0 and watched.live
        if lookout:
            self._lookout.follow(stream, place)
        sinks = request.get("sinks")
        if isinstance(sinks, list) and watched.rank == 0 and watched.live:
            for sink in map(str, sinks):
                if sink not in self._sinks:
                    self._sinks[sink] = Helper("torchtrack.sinks", self._directory, sink)
                self._sinks[sink].follow(stream, place)
        alerts, upload = request.get("alerts"), request.get("upload")
        if isinstance(alerts, dict):
            self._courier.follow(stream, {**place, **alerts, "lookout": lookout})
        if isinstance(upload, dict):
            self._upload = upload
            launch = {"launch": str(request["launch"])} if request.get("launch") else {}
            self._uploads.follow(stream, {**place, **upload, **launch, "lookout": lookout})
            self._send_own(watched.uid)
            for left in self._swept.pop(watched.uid, ()):  # by an earlier attempt, when no sidecar was there
                self._uploads.follow(left, {**place, **upload, "rank": _ANY_RANK})
                self._uploads.ended(left)

    def _send_own(self, uid: str) -> None:
        """The sidecar's own stream of a run is sent too."""
        writer = self._writers.get(uid)
        if writer is not None and self._upload is not None:
            request = {"uid": uid, "rank": -1, **self._upload}
            guard.attempt("following for upload", self._uploads.follow, writer.path.stem, request)

    def _register(self, stream: str, uid: str, pid: int) -> bool:
        stat = _stat(pid)
        if stat is None:
            return False
        pidfd = _pidfd(pid)
        if pidfd is not None:
            self._poll.register(pidfd, select.POLLIN)
        self._watched[stream] = _Watched(uid, pid, stat[_STARTED], pidfd)
        self._leave_at = float("inf") if self._stop_at is None else self._stop_at
        return True

    def _collect(self, ready: set[int]) -> None:
        """Read how processes ended, all of them before anything is written: their parents collect them soon."""
        if self._wake in ready:
            os.read(self._wake, 512)
        ended: list[tuple[str, _Watched, _Exit]] = []
        for stream, watched in self._watched.items():
            if watched.pidfd is None or watched.pidfd in ready:
                end = _exit_of(watched)
                if end is not None:
                    ended.append((stream, watched, end))
        for stream, watched, end in ended:
            self._let_go(stream, watched, end)
        if ended and not self._watched:
            self._leave_at = time.monotonic() + (LINGER_S if self._stop_at is None else 0.0)

    def _let_go(self, stream: str, watched: _Watched, end: _Exit | None) -> None:
        """Nothing more is written to a stream: its process has ended, or (without `end`) has gone on to another run."""
        del self._watched[stream]
        if watched.pidfd is not None:
            self._poll.unregister(watched.pidfd)
            os.close(watched.pidfd)
        if end is not None:
            self._write_exit(stream, watched, end)
        else:
            guard.attempt("removing a black box", ring.discard, stream)
            self._seal_if_unused(watched.uid)
        guard.attempt("the last findings", self._lookout.ended, stream)
        guard.attempt("the last alerts", self._courier.ended, stream)
        for sink in self._sinks.values():
            guard.attempt("the last steps", sink.ended, stream)
        guard.attempt("the last rows", self._uploads.ended, stream)
        for written in _gathered(stream, watched):
            self._gathering.ended(written)

    def _leave_earlier(self, stream: str) -> None:
        """A process that has finished a run and begun another: how it ends is the other run's alone."""
        pid = self._watched[stream].pid
        for other, watched in list(self._watched.items()):
            if other != stream and watched.pid == pid and not watched.live and watched.why == "finish":
                self._let_go(other, watched, None)

    def _write_exit(self, stream: str, watched: _Watched, end: _Exit) -> None:
        status = {"code": end.code, "signal": end.signal, "time_ns": end.time_ns}
        self._writer(watched.uid).meta({"type": "exit", "stream": stream, "pid": watched.pid, **status})
        if end.code == 0:
            if watched.uid in self._keeps:
                _keep([stream], self._directory / watched.uid / "nodes", self._keeps[watched.uid][1])
            guard.attempt("removing a black box", ring.discard, stream)
        else:
            guard.attempt("salvaging a black box", self._salvage, stream, watched.uid)
        self._seal_if_unused(watched.uid)

    def _salvage(self, stream: str, uid: str) -> None:
        files = salvage.salvage(stream, self._directory / uid / "nodes")
        if files:
            self._writer(uid).meta({"type": "blackbox", "stream": stream, "files": files})

    def _sweep(self) -> None:
        """What processes left while no sidecar was there."""
        for uid, stream in salvage.left_in(self._directory):
            if _HEX.fullmatch(uid) and _HEX.fullmatch(stream):
                guard.attempt("salvaging a black box", self._salvage, stream, uid)
                self._swept.setdefault(uid, []).append(stream)
                self._seal_if_unused(uid)

    def _order_keep(self, uid: str, why: str) -> bool:
        """Several ranks see the same; a moment later all have written the step that it is about."""
        now = time.monotonic()
        if not salvage.WHY.fullmatch(why):
            return False
        if uid not in self._keeps and now - self._kept.get(uid, -_KEEP_AGAIN_S) >= _KEEP_AGAIN_S:
            self._keeps[uid] = now + _KEEP_AFTER_S, why
        return True

    def _keep_due(self) -> None:
        now = time.monotonic()
        for uid, (at, why) in list(self._keeps.items()):
            if at <= now:
                del self._keeps[uid]
                self._kept[uid] = now
                streams = [stream for stream, watched in self._watched.items() if watched.uid == uid]
                # Copies wait for the disk; the next process to die must not.
                threading.Thread(target=_keep, args=(streams, self._directory / uid / "nodes", why)).start()

    def _beat(self) -> None:
        self._beat_at = time.monotonic() + self._heartbeat_s
        live: dict[str, list[str]] = {}
        for stream, watched in self._watched.items():
            if watched.live:
                live.setdefault(watched.uid, []).append(stream)
        for uid, streams in live.items():
            record = json.dumps({"time_ns": time.time_ns(), "streams": streams})
            self._writer(uid).append(Kind.HEARTBEAT, record.encode())
        for helper in self._helpers():
            guard.attempt("looking after a helper", helper.look)
        self._gathering.look([each for stream, watched in self._watched.items() for each in _gathered(stream, watched)])

    def _writer(self, uid: str) -> Writer:
        writer = self._writers.get(uid)
        if writer is None:
            stream = secrets.randbits(64)
            folder = self._directory / uid / "nodes"
            writer = self._writers[uid] = Writer(folder, f"{stream:016x}", stream, _opening(uid))
            self._send_own(uid)
        return writer

    def _seal_if_unused(self, uid: str) -> None:
        if all(watched.uid != uid for watched in self._watched.values()):
            self._seal(uid, "no process left")

    def _seal(self, uid: str, reason: str) -> None:
        writer = self._writers.pop(uid, None)
        if writer is not None:
            guard.attempt("the last rows", self._uploads.ended, writer.path.stem)
            # Sealing waits for the disk; the next process to die must not. The interpreter waits for it at the end.
            threading.Thread(target=_end, args=(writer, reason), name="torchtrack-seal").start()


def _end(writer: Writer, reason: str) -> None:
    guard.attempt("sealing", writer.seal, reason)
    guard.attempt("closing", writer.close)


def _keep(streams: list[str], folder: Path, why: str) -> None:
    for stream in streams:
        guard.attempt("keeping a black box", salvage.keep, stream, folder, why)


def _gathered(stream: str, watched: _Watched) -> list[gathering.Written]:
    """The stream, if the run has so many ranks that finished files are gathered."""
    if watched.world_size <= gathering.GATHER_ABOVE:
        return []
    return [gathering.Written(watched.uid, watched.rank, int(stream, 16))]


def _opening(uid: str) -> dict[str, object]:
    nobody = {"attempt": 0, "rank": -1, "local_rank": -1, "node": -1, "world_size": 0}
    return {"role": "node", "uid": uid, **nobody, **origin()}


# Fields of /proc/<pid>/stat behind the command's name: state is field 3, start time 22, exit code 52.
_STATE: Final = 0
_STARTED: Final = 19
_EXIT_CODE: Final = 49


def _stat(pid: int) -> list[str] | None:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except (OSError, UnicodeDecodeError):
        return None


def _pidfd(pid: int) -> int | None:
    """A descriptor that tells when the process ends; None on an old kernel or a Python built for one."""
    open_pidfd = getattr(os, "pidfd_open", None)
    try:
        return None if open_pidfd is None else int(open_pidfd(pid))
    except OSError:
        return None


def _exit_of(watched: _Watched) -> _Exit | None:
    """How the process ended; without code and signal if its parent was faster; None while it lives."""
    stat = _stat(watched.pid)
    if stat is None or stat[_STARTED] != watched.started:
        return _Exit(None, None, time.time_ns())
    if stat[_STATE] not in "ZX":
        return None
    status = int(stat[_EXIT_CODE])
    number = status & 0x7F
    return _Exit(None if number else status >> 8, number or None, time.time_ns())
