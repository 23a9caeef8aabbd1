"""What is sent next: one request at a time, from any number of streams, until the server has all of them.

    uploader = Uploader(transport, progress)
    uploader.follow(path)
    while not uploader.done:
        time.sleep(uploader.step())

Nothing is ever given up on an error: a request that failed is sent again later, a stream that the server refuses is
left where it lies and named, and the others go on.
"""

from __future__ import annotations

import random
import secrets
import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, Final

from torchtrack import guard, wire
from torchtrack.errors import FormatVersionError, JournalError
from torchtrack.sidecar.upload.contents import ContentSender
from torchtrack.sidecar.upload.left import LeftSender
from torchtrack.sidecar.upload.media import MediaSender
from torchtrack.sidecar.upload.pace import Pace, retry_after
from torchtrack.sidecar.upload.progress import Progress
from torchtrack.sidecar.upload.tail import DivergedError, Mark, Tail
from torchtrack.sidecar.upload.transport import Reply, Transport, UnreachableError

_FIRST_BYTES: Final = 1 << 20
"""Of the first request, before the server has said how much it takes."""
_MOST_BYTES: Final = 16 << 20
_ASK_AT_ONCE: Final = 1000
_KEY_AGAIN_S: Final = 30.0
_VERSION_AGAIN_S: Final = 300.0
_TRIES: Final = 3
_BACKOFF: Final = frozenset({408, 425, 429, 500, 502, 503, 504, 507})


class Uploader:
    """Copies streams to one server. For one thread; `step` may wait as long as a request takes.

    Args:
        transport: how the server is asked.
        progress: where it is noted what has arrived; None for nowhere.
        clock: monotonic seconds.
        rng: for jitter.
    """

    def __init__(
        self,
        transport: Transport,
        progress: Progress | None = None,
        *,
        clock: Callable[[], float] = time.monotonic,
        rng: random.Random | None = None,
    ) -> None:
        self.tails: dict[int, Tail] = {}
        self.state = "starting"
        """ok, unreachable, busy, no_key, version or refused."""
        self.problem: str | None = None
        """What is in the way, in words."""
        self.on_read: Callable[[int], None] = lambda _: None
        """Told how many bytes of journals have been dealt with."""
        self.pace = Pace(clock, rng or random.Random())  # noqa: S311  # it only spreads requests
        self._transport = transport
        self._progress = progress
        self._client = secrets.token_hex(8)
        self._hello = False
        self._zstd = False
        self._server = ""
        self._most = _FIRST_BYTES
        self._one = False  # the last request was refused as a whole: one stream at a time, to find which
        self._flight: list[wire.Section] = []
        self._held: list[wire.Section] = []
        """Rows that name contents of artifacts which are still to be sent."""
        self._media = MediaSender(transport)
        self.contents = ContentSender(transport, clock)
        """What the artifacts hold that rows name."""
        self.files = LeftSender(transport)
        """Files that no row names: those that processes left."""
        self._waiting = False
        self._idle = False
        self._turn = 0

    def follow(self, path: Path, priority: int = 2) -> Tail:
        """Send this stream too; more than once does nothing.

        Args:
            path: the stream's first file; it need not exist yet.
            priority: 0 for what a node says, 1 for rank 0, 2 for other ranks.
        """
        tail = Tail(path, priority)
        return self.tails.setdefault(tail.number, tail)

    def forget(self, stream: int) -> None:
        """No longer send this stream."""
        self.tails.pop(stream, None)

    def hurry(self, stream: int) -> None:
        """A stream ends: what is left of it is sent at once."""
        tail = self.tails.get(stream)
        if tail is not None and not tail.hurried:
            tail.hurried = True
            self.pace.hurry()

    @property
    def files_left(self) -> dict[str, str]:
        """Files that could not be sent, and why: `media/` and `artifacts/` that rows name, `nodes/` that were left."""
        named = {f"media/{name}": why for name, why in self._media.not_sent.items()}
        named |= {f"artifacts/{name}": why for name, why in self.contents.not_sent.items()}
        return {**named, **{f"nodes/{name}": why for name, why in self.files.left.items()}}

    @property
    def idle(self) -> bool:
        """Whether the last look found nothing to send and nothing is unanswered."""
        return self._idle and not self._flight and not self._held and not self.files.waiting

    @property
    def done(self) -> bool:
        """Whether the server has every stream to its end, but for those it refuses."""
        sent = not self._flight and not self._held and not self.files.waiting
        return sent and all(tail.done or tail.problem for tail in self.tails.values())

    def step(self) -> float:
        """Send at most one request, if one may be sent now. Returns the seconds until it makes sense to call again."""
        wait = self.pace.wait_s()
        if wait > 0:
            return wait
        try:
            self._turn_once()
        except UnreachableError as error:
            self._failed("unreachable", str(error))
        if self._progress is not None:
            guard.attempt("noting what was uploaded", self._progress.write)
        return self.pace.wait_s()

    # -- one turn ---------------------------------------------------------------------------------------------------

    def _turn_once(self) -> None:
        self._idle = False
        if not self._hello:
            self._handshake()
            return
        unknown = [tail for tail in self.tails.values() if tail.want is None and not tail.problem]
        if unknown:
            self._ask_positions(unknown[:_ASK_AT_ONCE])
            return
        if self.files.waiting and not self.files.send():
            if self.files.refusal is not None:
                self._refused(self.files.refusal)
            return
        if self._held and not self._send_contents():
            return
        if not self._flight:
            self._flight = self._gather()
        self._idle = not self._flight and not self._held
        if self._flight:
            self._send()
        else:
            hurried = any(tail.hurried and not tail.done for tail in self.tails.values())
            self.pace.succeeded(0.0 if self._held else 0.2 if hurried else 1.0)

    def _send_contents(self) -> bool:
        """Some of what the rows that are held back name; they go on once all of it is there. False: it was refused."""
        if not self.contents.send():
            if self.contents.refusal is not None:
                self._refused(self.contents.refusal)
            return False
        if not self.contents.waiting:
            self._flight, self._held = [*self._flight, *self._held], []
        self._say("ok", None)
        return True

    def _handshake(self) -> None:
        query = f"oldest={wire.OLDEST_PROTOCOL}&newest={wire.PROTOCOL}"
        reply = self._ask("GET", f"/handshake?{query}")
        if reply.status == 200:
            said = reply.json()
            self._hello = True
            self._zstd = "zstd" in said.get("capabilities", ())
            self.files.available = "files" in said.get("capabilities", ())
            self._media.available = self.contents.available = "media" in said.get("capabilities", ())
            self._take_budget({**said, "max_bytes": min(_FIRST_BYTES, int(said.get("max_bytes", _FIRST_BYTES)))})
            self._succeeded(0.0)
        else:
            self._refused(reply)

    def _ask_positions(self, tails: list[Tail]) -> None:
        names = [f"{tail.number:016x}" for tail in tails]
        reply = self._ask_json("/positions", {"streams": names})
        if reply.status != 200:
            self._refused(reply)
            return
        said = reply.json().get("streams", {})
        for tail, name in zip(tails, names, strict=True):
            self._placed(tail, said.get(name) or {})
        self._succeeded(0.0)

    def _gather(self) -> list[wire.Section]:
        """What the next request carries: streams that say how the run is first, then by turns."""
        sections: list[wire.Section] = []
        room, self._waiting, self._turn = self._most, False, self._turn + 1
        held = {section.stream for section in self._held}
        for tail in sorted(self.tails.values(), key=lambda tail: (tail.priority, tail.turn)):
            if tail.number in held or tail.problem or len(sections) >= wire.MAX_STREAMS or (self._one and sections):
                continue
            if room <= 0:
                self._waiting = True
                break
            for section in self._from(tail, room):
                tail.turn = self._turn
                sections.append(section)
                room -= len(section.frames)
        return sections

    def _from(self, tail: Tail, room: int) -> list[wire.Section]:
        try:
            found = tail.heal(room)
            if found:
                return found
            taken = tail.take(room)
            self.on_read(tail.read_bytes())
        except (DivergedError, FormatVersionError) as error:
            self._give_up(tail, str(error))
            return []
        except JournalError as error:  # a file system that is away for a while
            tail.trouble = str(error)
            return []
        tail.trouble = None
        if taken is None:
            return []
        section, more, names_files = taken
        self._waiting |= more
        if names_files:
            self._media.wanted(tail, section)
            if self.contents.wanted(tail, section):
                self._held.append(section)
                return []
        return [section]

    def _send(self) -> None:
        if not self._media.send(self._most):
            reply = self._media.refusal
            if reply is not None:
                self._refused(reply)
            return
        hurried = any(tail.hurried and not tail.done for tail in self.tails.values())
        jobs = sorted({self.tails[each.stream].uid for each in self._flight if each.stream in self.tails})[:64]
        body, encoding = wire.pack(
            self._flight, zstd=self._zstd, client=self._client, jobs=jobs, more=self._waiting or hurried
        )
        headers = {"Content-Type": wire.FRAMES_TYPE, **({"Content-Encoding": encoding} if encoding else {})}
        self._count(requests=1, bytes=len(body))
        reply = self._ask("POST", "/frames", body, headers)
        said = reply.json()
        self._take_budget(said)
        if reply.status in (200, 409, 422, 503, 507) and isinstance(said.get("streams"), dict):
            self._heard(said["streams"])
        if reply.status in (200, 409, 422):
            self._one = False
            self._succeeded(0.0 if self._held else float(said.get("next_after_s", 1.0)))
        elif reply.status in (400, 413):
            self._whole_refused(reply)
        else:
            self._refused(reply)

    # -- what the server says ---------------------------------------------------------------------------------------

    def _heard(self, said: Mapping[str, Any]) -> None:
        """Each stream's own answer. What was not taken for want of space stays in flight."""
        left = []
        for section in self._flight:
            tail, answer = self.tails.get(section.stream), said.get(f"{section.stream:016x}")
            if tail is None:
                continue
            if not isinstance(answer, dict):
                left.append(section)
                continue
            problem = answer.get("problem") or {}
            code, why = problem.get("code"), str(problem.get("message", ""))
            if code in ("storage", "full"):
                left.append(section)
            elif code == "conflict":
                self._give_up(tail, f"the server has something else under the same numbers: {why}", answer)
            elif code == "refused":
                self._give_up(tail, f"the server refuses it: {why}", answer)
            else:
                if code == "invalid":
                    tail.damaged_on_the_way += 1
                    if tail.damaged_on_the_way >= _TRIES:
                        self._give_up(tail, f"the server refuses it: {why}", answer)
                        continue
                else:
                    tail.damaged_on_the_way = 0
                self._placed(tail, answer)
        self._flight = left

    def _placed(self, tail: Tail, answer: Mapping[str, Any]) -> None:
        mark = Mark(int(answer.get("next", 0)), int(answer.get("frames", 0)), int(answer.get("crc", 0)))
        missing = [(int(low), int(high)) for low, high in answer.get("missing") or ()]
        tail.asked(mark, sealed=bool(answer.get("sealed")), missing=missing)
        if self._progress is not None:
            self._progress.acked(tail.number, mark.next, sealed=tail.sealed_there)

    def _give_up(self, tail: Tail, why: str, answer: Mapping[str, Any] | None = None) -> None:
        """Leave a stream where it lies."""
        tail.problem = why
        if answer is not None:
            tail.acked = int(answer.get("next", 0))
        if self._progress is not None:
            self._progress.acked(tail.number, tail.acked, sealed=False, problem=why)

    def _whole_refused(self, reply: Reply) -> None:
        """A request that is refused as a whole: smaller ones, until it is known which stream is the cause."""
        flight, self._flight = self._flight, []
        large = reply.status == 413
        alone = len(flight) == 1 and (len(flight[0].frames) >= self._most if large else self._one)
        if alone:
            self._give_up(self.tails[flight[0].stream], f"the server refuses it: {reply.problem()}")
        for section in flight:
            self.tails[section.stream].seek(section.first)
        self._most = max(1 << 12, self._most // 2) if large and not alone else self._most
        self._one = not large
        self.pace.failed()

    def _refused(self, reply: Reply) -> None:
        """An answer that is not about single streams."""
        wait = retry_after(reply.headers.get("retry-after"))
        if reply.status in (401, 403):
            self._failed("no_key", reply.problem(), wait, at_least_s=_KEY_AGAIN_S)
        elif reply.status == 426:
            self._failed("version", reply.problem(), wait, at_least_s=_VERSION_AGAIN_S)
        elif reply.status in _BACKOFF:
            self._failed("busy", reply.problem(), wait)
        else:
            self._failed("refused", reply.problem(), wait)

    def _failed(self, state: str, problem: str, wait: float | None = None, at_least_s: float = 0.0) -> None:
        self.pace.failed(wait, at_least_s)
        self._count(resent=bool(self._flight))
        self._say(state, problem)

    def _succeeded(self, next_after_s: float) -> None:
        self.pace.succeeded(next_after_s)
        self._say("ok", None)

    def _say(self, state: str, problem: str | None) -> None:
        self.state, self.problem = state, problem
        if self._progress is not None:
            self._progress.say(state, problem)

    def _take_budget(self, said: Mapping[str, Any]) -> None:
        most = said.get("max_bytes")
        if isinstance(most, int) and most > 0:
            self._most = min(most, _MOST_BYTES)
        server = str(said.get("instance", ""))
        if server and server != self._server:
            if self._server:  # it was started anew, maybe from a backup: what it has may be less than it said
                self._flight, self._held = [], []
                self._media.forget()
                self.contents.forget()
                for tail in self.tails.values():
                    tail.want = None
            self._server = server

    # -- asking -----------------------------------------------------------------------------------------------------

    def _ask(
        self, method: str, path: str, body: bytes | None = None, headers: Mapping[str, str] | None = None
    ) -> Reply:
        return self._transport.ask(method, wire.API + path, body, headers)

    def _ask_json(self, path: str, value: Mapping[str, object]) -> Reply:
        from torchtrack.journal.frame import dump

        return self._ask("POST", path, dump(value), {"Content-Type": "application/json"})

    def _count(self, **more: int) -> None:
        if self._progress is not None:
            self._progress.count(**more)


def unsent(tails: Iterable[Tail]) -> list[Tail]:
    """Those of which the server has not all that is here."""
    return [tail for tail in tails if tail.problem or tail.acked < tail.at.next]
