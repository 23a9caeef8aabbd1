"""How the ranks of a job agree on one run: nonces through the job's own key-value store, in a side thread.

Keys lie under `torchtrack/<ordinal of this init>/`. A joining rank puts a fresh nonce into a queue (`joins`,
`join/<n>`); rank 0 answers every nonce with `ack/<nonce>` for as long as it lives. Since answers go to nonces, whatever
an earlier attempt left in the store is harmless. `run` tells rank 0 of a restart what the attempt before was,
`left/<restart count>` tells late ranks whom they missed.

**Nobody waits**: not for another rank and never inside the store. The thread polls `check()` on its own connection (a
thread that waits on the shared client blocks the training thread's use of it, and a daemon thread inside C++ at
interpreter exit aborts the process), and every failure is silent: what is known stays, and the thread looks again.
"""

from __future__ import annotations

import atexit
import json
import secrets
import socket
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, Final, Protocol

from torchtrack import guard
from torchtrack.job.identity import Attempt
from torchtrack.job.world import World, restart_count, torch_distributed

_LOOK: Final = (0.02, 0.5)
"""First and longest pause, in seconds, while there is no store yet."""
_ANSWER: Final = (0.01, 0.5)
_ASK: Final = (0.005, 1.0)
_EXIT_S: Final = 6.0
_REACH_S: Final = 1.0
_CONNECT: Final = timedelta(seconds=10)
"""torch looks up the peer's name while it connects, and counts that in: 5 seconds where no name server answers."""
_ROUND_TRIP: Final = timedelta(seconds=1)
_GROWTH: Final = 1.5
_MISSED_AFTER_S: Final = 1.0
"""A rank that got no answer for so long looks whether rank 0 has already left."""
_MAX_OPEN: Final = 64
"""Places in the queue whose nonce is still to come (a rank may die between taking a place and filling it)."""


class Link:
    """A store of our own (clone or client) and a second, idle connection that tells quietly when the server is gone.

    The store's client prints a C++ stack trace when its server has gone, so it is only used while the idle one stands.
    """

    def __init__(self, store: Any, watch: socket.socket | None = None) -> None:
        self.store = store
        self._watch: socket.socket | None = watch

    def require(self) -> None:
        """Raise ConnectionError if the server has closed the connection."""
        if self._watch is None:
            return
        try:
            closed = self._watch.recv(1, socket.MSG_PEEK) == b""
        except BlockingIOError:
            return
        if closed:
            raise ConnectionError("the job's store is gone")

    def close(self) -> None:
        """Let both connections go."""
        self.detach()

    def detach(self) -> Any:
        """The store alone."""
        store, self.store = self.store, None
        if self._watch is not None:
            self._watch.close()
        return store


def connect(environ: Mapping[str, str], *, use_agent: bool) -> Link | None:
    """A link of our own to the store all ranks share, or None as long as there is none.

    Raises:
        OSError, RuntimeError, ValueError: the store does not answer (now).
    """
    dist = torch_distributed()
    if dist is None:
        return None
    if use_agent:
        host, port = environ["MASTER_ADDR"], int(environ["MASTER_PORT"])
        return _link(lambda: dist.TCPStore(host, port, is_master=False, timeout=_CONNECT), (host, port))
    if not dist.is_initialized():
        return None
    shared = dist.distributed_c10d._get_default_store()
    server = shared
    while isinstance(server, dist.PrefixStore):
        server = server.underlying_store
    return _link(shared.clone, (server.host, server.port) if isinstance(server, dist.TCPStore) else None)


def has_agent_store(environ: Mapping[str, str]) -> bool:
    """Whether torchrun's agent offers its store to the workers."""
    return (
        environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"
        and bool(environ.get("MASTER_ADDR"))
        and environ.get("MASTER_PORT", "").isdecimal()
    )


def _link(open_store: Callable[[], Any], server: tuple[str, int] | None) -> Link:
    if server is None:
        return Link(open_store())
    watch = socket.create_connection(server, timeout=_REACH_S)
    watch.setblocking(False)  # noqa: FBT003
    link = Link(None, watch)
    try:
        link.store = open_store()
        link.store.set_timeout(_ROUND_TRIP)
    except (RuntimeError, OSError, ValueError):
        link.close()
        raise
    return link


@dataclass(frozen=True)
class Answer:
    """What rank 0 tells a joining rank."""

    attempt: Attempt
    world_size: int

    def encode(self, boot: str) -> str:
        """The JSON text; `boot` names the answering process."""
        told = self.attempt
        return json.dumps(
            {
                "uid": told.uid,
                "id": told.id,
                "name": told.name,
                "project": told.project,
                "attempt": told.attempt,
                "world_size": self.world_size,
                "boot": boot,
            }
        )

    @classmethod
    def parse(cls, text: bytes) -> Answer | None:
        """The answer, or None if it cannot be understood."""
        attempt = Attempt.parse(text)
        size = json.loads(text).get("world_size") if attempt is not None else None
        return cls(attempt, size) if attempt is not None and type(size) is int else None


class Party(Protocol):
    """The one who takes part in a handshake.

    **All methods are called in the handshake's thread.**
    """

    def placed(self, world: World) -> None:
        """The rank is certain now."""

    def lead(self, previous: Attempt | None) -> None:
        """This process is rank 0; `previous` is what the store knows of the attempt before this one."""

    def answer(self) -> Answer:
        """What rank 0 tells the others."""

    def join(self, answer: Answer) -> None:
        """Rank 0 has answered."""


class Handshake:
    """The thread that takes part for one `init` of one process."""

    def __init__(
        self, party: Party, ordinal: int, environ: Mapping[str, str], connect: Callable[[], Link | None]
    ) -> None:
        self._party = party
        self._prefix = f"torchtrack/{ordinal}"
        self._environ = environ
        self._restarts = restart_count(environ)
        self._connect = connect
        self._boot = secrets.token_hex(8)
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="torchtrack-handshake", daemon=True)
        self.losses = 0
        """How often the store could not be used."""

    def start(self) -> None:
        """Begin."""
        # A thread that comes back from the store's C++ while the interpreter ends would abort the process.
        atexit.register(self.close, _EXIT_S)
        self._thread.start()

    def close(self, timeout_s: float) -> bool:
        """Stop; True if the thread has ended. It leaves the store within one round trip."""
        self._stop.set()
        if self._thread is not threading.current_thread():
            self._thread.join(timeout_s)
        ended = not self._thread.is_alive()
        if ended:  # else the exit of the interpreter still has to wait for it
            self.forget()
        return ended

    def forget(self) -> None:
        """In a forked child: there is no thread to stop."""
        atexit.unregister(self.close)

    def _run(self) -> None:
        guard.attempt("the handshake", self._look)

    def _look(self) -> None:
        pause = _LOOK[0]
        while not self._stop.is_set():
            try:
                if self._take_part():
                    return
            except (RuntimeError, OSError, ValueError, KeyError):  # the store's own errors are RuntimeErrors
                self.losses += 1
            self._stop.wait(pause)
            pause = min(pause * _GROWTH, _LOOK[1])

    def _take_part(self) -> bool:
        """True when there is nothing left to do."""
        dist, link = torch_distributed(), self._connect()
        if link is None or dist is None:
            return False
        try:
            world = World.discover(self._environ)
            if not world.known:
                return False
            self._party.placed(world)
            store = dist.PrefixStore(self._prefix, link.store)
            return self._lead(store, link) if world.rank == 0 else self._ask(store, link, world.rank)
        finally:
            link.close()

    def _lead(self, store: Any, link: Link) -> bool:
        """Answer joins until this run is closed."""
        left = f"left/{self._restarts}"
        previous = Attempt.parse(store.get("run")) if self._restarts and store.check(["run"]) else None
        self._party.lead(previous)
        told = self._party.answer().encode(self._boot)
        store.set("run", told)
        store.delete_key(left)
        seen, pause, stopping = 0, _ANSWER[0], False
        open_places: list[int] = []
        while True:
            link.require()
            joins = store.add("joins", 0)
            if joins > seen:
                open_places += range(seen + 1, joins + 1)
                seen, pause = joins, _ANSWER[0]
            # Newest first: the oldest may be what a huge earlier attempt left behind.
            open_places = [place for place in reversed(open_places) if not _reply(store, place, told)]
            open_places = open_places[:_MAX_OPEN][::-1]
            if stopping:
                store.set(left, told)
                return True
            stopping = self._stop.wait(pause)
            pause = min(pause * _GROWTH, _ANSWER[1])

    def _ask(self, store: Any, link: Link, rank: int) -> bool:
        """Ask rank 0, and look for its answer until it comes or this run is closed."""
        nonce = secrets.token_hex(16)
        place = store.add("joins", 1)
        store.set(f"join/{place}", json.dumps({"nonce": nonce, "rank": rank}))
        pause, missed_from = _ASK[0], time.monotonic() + _MISSED_AFTER_S
        left = f"left/{self._restarts}"
        while not self._stop.wait(pause):
            link.require()
            answer = _read(store, f"ack/{nonce}")
            if answer is None and time.monotonic() > missed_from:
                answer = _read(store, left)
            if answer is not None:
                self._party.join(answer)
                return True
            pause = min(pause * _GROWTH, _ASK[1])
        return True


def _reply(store: Any, place: int, told: str) -> bool:
    """Answer the nonce at a place of the queue; False if it is not there yet."""
    key = f"join/{place}"
    if not store.check([key]):
        return False
    try:
        nonce = json.loads(store.get(key))["nonce"]
    except (ValueError, KeyError, TypeError):
        return True  # damaged: its rank stays alone
    store.set(f"ack/{nonce}", told)
    return True


def _read(store: Any, key: str) -> Answer | None:
    return Answer.parse(store.get(key)) if store.check([key]) else None
