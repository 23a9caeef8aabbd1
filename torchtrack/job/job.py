"""The holder of a run's identity in one process: definite on rank 0 at once, settled elsewhere when rank 0 answers."""

from __future__ import annotations

import json
import os
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping, MutableMapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

from torchtrack import guard
from torchtrack.job.handshake import Answer, Handshake, Link, connect, has_agent_store
from torchtrack.job.identity import Attempt, Identity, Keys, Request, find_earlier, id_key, new_uid
from torchtrack.job.world import World, is_multiprocessing_child, job_key, launch_context, restart_count

_EXPORT: Final = "_TORCHTRACK_JOB"
"""Rank 0's identity for ranks it starts by running its own script again (Lightning); removed at close."""
_PATIENCE_S: Final = 5.0


_starts: Counter[str] = Counter()
"""How many runs this process has started, by launch context; a forked child goes on counting."""
_started_in: set[int] = set()
"""The process that has started a run; a forked child has not, whatever its parent did."""


class Job:
    """One run, as this process takes part in it. Thread-safe; made by `start`."""

    def __init__(
        self,
        request: Request,
        world: World,
        identity: Identity,
        ordinal: int,
        keys: Keys,
        environ: MutableMapping[str, str],
        connector: Callable[[], Link | None],
    ) -> None:
        self.ordinal = ordinal
        """How many runs this process had started before this one."""
        self._request = request
        self._world = world
        self._opened_by = world.launcher
        self._identity = self._opening = identity
        self._keys = keys
        self._environ = environ
        self._connect = connector
        self._changed = threading.Condition()
        self._aliases: list[str] = []
        self._callbacks: list[Callable[[Identity], None]] = []
        self._patience_s = _PATIENCE_S
        self._recorded = self._closed = False
        self._exported: str | None = None
        self._handshake: Handshake | None = None

    @classmethod
    def start(
        cls,
        *,
        dir: Path,  # noqa: A002  # the word users know from init(dir=)
        project: str,
        id: str | None = None,  # noqa: A002
        resume: str = "auto",
        name: str | None = None,
        environ: MutableMapping[str, str] | None = None,
        ordinal: int | None = None,
        connector: Callable[[], Link | None] | None = None,
    ) -> Job:
        """Take part in a run. Looks into local files only: never waits for a network or another rank.

        Args:
            dir: the folder of all runs.
            project: the run's project.
            id: the user's id of the run; unique in the project.
            resume: "auto" and "allow" continue a run of this id, "must" insists on one, "never" refuses one.
            name: for people; the ranks that join learn it.
            environ: environment variables (default os.environ).
            ordinal: which init of the job this is (default: counted in this process).
            connector: gives the store all ranks share (default: that of torchrun's agent or of torch.distributed).

        Raises:
            ResumeError: resume="must" and there is no such run (a ValueError and a RunNotFoundError).
            ValueError: another argument is wrong, or resume="never" and the id is taken.
        """
        environ = os.environ if environ is None else environ
        launch = launch_context(environ)
        number = _starts[launch] if ordinal is None else ordinal
        world = World.discover(environ)
        spawned = _spawned_from(environ, world)
        inherited = _inherited(environ) if spawned is None else (spawned, number)
        # A helper that a rank starts inherits the rank's variables; it is a run of its own, not a restart of this one.
        nested = inherited is not None and world.rank == 0 and spawned is None
        key = None if nested else job_key(environ, number, sys.argv)
        request = Request(project, id, resume, key, restart_count(environ) > 0)
        request.validate()
        keys = Keys(dir)
        leads = world.known and world.rank == 0
        looks = (leads or not world.known) and spawned is None
        earlier = find_earlier(keys, request, refuse=leads) if looks else None
        if ordinal is None:
            _starts[launch] += 1
            _started_in.add(os.getpid())
        use_agent = has_agent_store(environ) and not nested
        identity = _opening_identity(request, world, earlier, name)
        if looks and leads and earlier is None and request.restarted and id is None and (use_agent or connector):
            identity = replace(identity, provisional=True)  # the store may know the attempt before this one
        parent = inherited if inherited is not None and world.known and inherited[1] == number and not nested else None
        if parent is not None:
            identity = _member(identity, parent[0])
        source = connector or (lambda: connect(environ, use_agent=use_agent))
        job = cls(request, world, identity, number, keys, environ, source)
        job._begin(leads=leads, adopted=parent is not None and not leads)
        return job

    @property
    def identity(self) -> Identity:
        """What is known now."""
        with self._changed:
            return self._identity

    @property
    def world(self) -> World:
        """This process's place in the job as known now."""
        with self._changed:
            return self._world

    @property
    def aliases(self) -> tuple[str, ...]:
        """Provisional uids this process had before; files and links that name them stay valid."""
        with self._changed:
            return tuple(self._aliases)

    def on_joined(self, callback: Callable[[Identity], None]) -> None:
        """Call back at every change of the uid, the attempt or the place; at once if there has been one since `start`.

        **Called in the handshake's thread** (or here, for what has already happened); an exception is reported only.
        """
        with self._changed:
            self._callbacks.append(callback)
            identity = self._identity
            changed = _told(identity) != _told(self._opening)
        if changed:
            guard.attempt("a joined callback", callback, identity)

    def wait(self, timeout_s: float = _PATIENCE_S, *, last: bool = False) -> Identity:
        """The identity, definite if that can be had soon. All calls together wait at most 5 s, but for the last one.

        Args:
            timeout_s: the longest wait of this call.
            last: the run ends: how long was waited before, while rank 0 had yet to begin it, does not count.
        """
        with self._changed:
            begin = time.monotonic()
            within = timeout_s if last else min(timeout_s, self._patience_s)
            self._changed.wait_for(lambda: not self._identity.provisional or self._closed, max(0.0, within))
            self._patience_s -= time.monotonic() - begin
            return self._identity

    def store(self) -> Any | None:
        """A torch.distributed Store of the caller's own, reaching all ranks of this job; None while there is none.

        It may take a network round trip: **for side threads only**.
        """
        if self._closed or self.identity.provisional:
            return None
        try:
            link = self._connect()
        except (RuntimeError, OSError, ValueError, KeyError):
            return None
        return link.detach() if link is not None else None

    def close(self, timeout_s: float = 1.0) -> None:
        """Leave the job; idempotent. Late ranks that ask from now on learn of the run, if the store outlives this."""
        with self._changed:
            if self._closed:
                return
            self._closed = True
            self._changed.notify_all()
        if self._handshake is not None:
            self._handshake.close(timeout_s)
        if self._world.rank == 0 or not self._world.known:
            self._record()
        self._unexport()

    def after_fork_in_child(self) -> None:
        """Let the parent's thread and locks go: a forked child knows the identity and takes no part."""
        self._changed = threading.Condition()
        self._callbacks = []
        if self._handshake is not None:
            self._handshake.forget()
        self._handshake = None
        self._exported = None
        self._closed = True

    # What the handshake's thread calls (handshake.Party).

    def placed(self, world: World) -> None:
        """torch.distributed or the launcher tells the rank for certain."""
        with self._changed:
            if world == self._world:
                return
            self._world = world
            provisional = self._identity.provisional or world.rank > 0
            place = (world.rank, world.local_rank, world.node, world.world_size)
            identity = replace(_at(self._identity, *place), provisional=provisional)
        if world.rank > 0:
            self._unexport()
        self._become(identity)

    def lead(self, previous: Attempt | None) -> None:
        """This process is rank 0."""
        identity, request = self.identity, self._request
        # Once this attempt is recorded, what the store knows (after a lost connection) is this very attempt.
        same = previous is not None and previous.project == request.project and request.id in (None, previous.id)
        if previous is not None and same and not self._recorded and identity.attempt == 1:
            identity = replace(identity, uid=previous.uid, id=previous.id, attempt=previous.attempt + 1)
        self._become(replace(identity, provisional=False))
        self._record()
        self._export()

    def answer(self) -> Answer:
        """What rank 0 tells the others."""
        identity = self.identity
        return Answer(_attempt(identity), identity.world_size)

    def join(self, answer: Answer) -> None:
        """Rank 0 has answered."""
        self._become(_member(self.identity, answer.attempt))

    def _begin(self, *, leads: bool, adopted: bool) -> None:
        if leads:
            if not self._identity.provisional:
                self._record()
            self._export()
        if not adopted:
            self._handshake = Handshake(self, self.ordinal, self._environ, self._connect)
            self._handshake.start()

    def _become(self, identity: Identity) -> None:
        with self._changed:
            before, self._identity = self._identity, identity
            if before.uid != identity.uid:
                self._aliases.append(before.uid)
            callbacks = list(self._callbacks) if _told(before) != _told(identity) else []
            self._changed.notify_all()
        for callback in callbacks:
            guard.attempt("a joined callback", callback, identity)

    def _record(self) -> None:
        """Let a later attempt find this one."""
        if self._recorded:
            return
        self._recorded = True
        attempt = _attempt(self._identity)
        self._keys.append("id", id_key(attempt.project, attempt.id), attempt)
        if self._request.job_key is not None:
            self._keys.append("job", self._request.job_key, attempt)

    def _export(self) -> None:
        identity = self._identity
        record = {"uid": identity.uid, "attempt": identity.attempt, "id": identity.id, "project": identity.project}
        context = {"pid": os.getpid(), "launch": launch_context(self._environ), "ordinal": self.ordinal}
        context["launcher"] = self._opened_by
        self._exported = self._environ[_EXPORT] = json.dumps({**record, "name": identity.name, **context})

    def _unexport(self) -> None:
        exported, self._exported = self._exported, None
        if exported is not None and self._environ.get(_EXPORT) == exported:
            del self._environ[_EXPORT]


def _inherited(environ: Mapping[str, str]) -> tuple[Attempt, int] | None:
    """The run and its ordinal that the process which started this one by itself has exported."""
    text = environ.get(_EXPORT, "")
    attempt = Attempt.parse(text)
    if attempt is None or is_multiprocessing_child():
        return None
    record = json.loads(text)
    ordinal = record.get("ordinal")
    same_launch = record.get("pid") == os.getppid() and record.get("launch") == launch_context(environ)
    return (attempt, ordinal) if same_launch and type(ordinal) is int else None


def _spawned_from(environ: Mapping[str, str], world: World) -> Attempt | None:
    """The run of the process that spawned or forked this one to be one of its ranks (`ddp_spawn` of Lightning).

    The parent has no rank itself, and this process got one before its first run: it is no helper of a rank.
    """
    attempt = Attempt.parse(environ.get(_EXPORT, ""))
    if attempt is None or not is_multiprocessing_child() or os.getpid() in _started_in:
        return None
    record = json.loads(environ[_EXPORT])
    from_parent = record.get("pid") == os.getppid() and record.get("launch") == launch_context(environ)
    became_rank = record.get("launcher") == "python" and world.known and world.launcher in ("env", "lightning")
    return attempt if from_parent and became_rank else None


def _opening_identity(request: Request, world: World, earlier: Attempt | None, name: str | None) -> Identity:
    uid = earlier.uid if earlier is not None else new_uid()
    return Identity(
        uid=uid,
        id=earlier.id if earlier is not None else request.id or uid,
        project=request.project,
        name=name,
        attempt=earlier.attempt + 1 if earlier is not None else 1,
        rank=world.rank,
        local_rank=world.local_rank,
        node=world.node,
        world_size=world.world_size,
        provisional=not world.known or world.rank > 0,
    )


def _member(identity: Identity, told: Attempt) -> Identity:
    """This rank as a member of rank 0's run."""
    return replace(
        identity,
        uid=told.uid,
        id=told.id,
        project=told.project,
        name=told.name,
        attempt=told.attempt,
        provisional=False,
    )


def _at(identity: Identity, rank: int, local_rank: int, node: int, world_size: int) -> Identity:
    return replace(identity, rank=rank, local_rank=local_rank, node=node, world_size=world_size)


def _attempt(identity: Identity) -> Attempt:
    return Attempt(identity.uid, identity.attempt, identity.project, identity.id, identity.name)


def _told(identity: Identity) -> tuple[object, ...]:
    """What a `joined` record of the journal holds."""
    place = (identity.rank, identity.local_rank, identity.node, identity.world_size)
    return (identity.uid, identity.attempt, *place)
