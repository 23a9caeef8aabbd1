"""Which run a process belongs to: the identity, the rules of `resume`, and the files that find an earlier attempt.

`<dir>/keys/<digest>` holds one JSON line per attempt, appended by rank 0: by job key (a restart of the same launch) and
by project and id (a resume the user asks for). The last line that can be read wins; damage costs a resume, never a run.
"""

from __future__ import annotations

import difflib
import hashlib
import json
import logging
import os
import re
import secrets
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from torchtrack.errors import RunNotFoundError

logger = logging.getLogger("torchtrack")

RESUME: Final = ("auto", "must", "allow", "never")
_UID: Final = re.compile(r"[0-9a-f]{16}")
_TAIL_BYTES: Final = 64 << 10
_LISTED_FILES: Final = 2000


@dataclass(frozen=True)
class Identity:
    """What one rank of one attempt of a run is called."""

    uid: str
    id: str
    project: str
    name: str | None
    attempt: int
    rank: int
    local_rank: int
    node: int
    world_size: int
    provisional: bool
    """True: rank 0 has not answered yet; uid and attempt are this rank's own until it does."""


@dataclass(frozen=True)
class Attempt:
    """One attempt of a run as another process recorded it."""

    uid: str
    attempt: int
    project: str
    id: str
    name: str | None = None

    @classmethod
    def parse(cls, line: str | bytes) -> Attempt | None:
        """The attempt a JSON object tells, or None if it is damaged."""
        try:
            record = json.loads(line)
            uid, attempt = record["uid"], record["attempt"]
            project, run_id, name = record["project"], record["id"], record.get("name")
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
            return None
        texts = isinstance(project, str) and isinstance(run_id, str) and isinstance(name, str | None)
        sound = isinstance(uid, str) and _UID.fullmatch(uid) and type(attempt) is int and attempt >= 1
        return cls(uid, attempt, project, run_id, name) if texts and sound else None


class ResumeError(RunNotFoundError, ValueError):
    """resume="must" was asked for and there is no such run."""


def new_uid() -> str:
    """16 random hex digits, from the system: the user's random state stays as it is."""
    return secrets.token_hex(8)


class Keys:
    """The key files of one runs folder.

    Nothing here raises OSError: without the files there is just no earlier attempt.
    """

    def __init__(self, directory: Path) -> None:
        self._folder = directory / "keys"

    def last(self, kind: str, key: str) -> Attempt | None:
        """The newest attempt recorded under a key."""
        return self._last_of(self._path(kind, key))

    def append(self, kind: str, key: str, attempt: Attempt) -> None:
        """Record an attempt under a key, with one atomic append."""
        record = {"uid": attempt.uid, "attempt": attempt.attempt, "project": attempt.project, "id": attempt.id}
        # The first newline ends a line that an earlier writer could not finish.
        line = "\n" + json.dumps({**record, "time_ns": time.time_ns()}) + "\n"
        try:
            self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
            descriptor = os.open(self._path(kind, key), flags, 0o600)
            try:
                os.write(descriptor, line.encode())
            finally:
                os.close(descriptor)
        except OSError as error:
            logger.debug("torchtrack cannot record the run's keys; a restart will be a run of its own: %s", error)

    def ids(self, project: str) -> list[str]:
        """Ids of runs of this project, for an error message: a sample if there are very many."""
        found = (self._last_of(path) for path in self._files())
        return sorted({attempt.id for attempt in found if attempt is not None and attempt.project == project})

    def _path(self, kind: str, key: str) -> Path:
        digest = hashlib.blake2s(f"{kind}\0{key}".encode("utf-8", "surrogateescape"), digest_size=16)
        return self._folder / digest.hexdigest()

    def _files(self) -> Iterator[Path]:
        try:
            with os.scandir(self._folder) as entries:
                for _, entry in zip(range(_LISTED_FILES), entries, strict=False):
                    yield Path(entry.path)
        except OSError:
            return

    @staticmethod
    def _last_of(path: Path) -> Attempt | None:
        try:
            with path.open("rb") as file:
                size = file.seek(0, os.SEEK_END)
                file.seek(max(0, size - _TAIL_BYTES))
                lines = file.read(_TAIL_BYTES).splitlines()
        except OSError:
            return None
        attempts = (Attempt.parse(line) for line in reversed(lines))
        return next((attempt for attempt in attempts if attempt is not None), None)


@dataclass(frozen=True)
class Request:
    """What the user asked for, and what the launch says."""

    project: str
    id: str | None
    resume: str
    job_key: str | None
    restarted: bool

    def validate(self) -> None:
        """Raise for arguments that are wrong on every rank.

        Raises:
            ValueError: an unknown `resume`, or a project or id that is empty.
        """
        if self.resume not in RESUME:
            raise ValueError(f"resume={self.resume!r} is unknown; it is one of {', '.join(map(repr, RESUME))}")
        for name, value in (("project", self.project), ("id", self.id)):
            if value is not None and not value.strip():
                raise ValueError(f"{name} is empty; leave it out or give it a name")


def find_earlier(keys: Keys, request: Request, *, refuse: bool) -> Attempt | None:
    """The attempt this launch continues, or None for a new run.

    Args:
        keys: the key files.
        request: what was asked for.
        refuse: whether "must" and "never" raise; only for a process that surely is rank 0, since another rank may
            start after rank 0 has recorded this very attempt.

    Raises:
        ResumeError: resume="must" and there is nothing to continue.
        ValueError: resume="never" and the id is taken.
    """
    project, run_id, resume = request.project, request.id, request.resume
    if request.job_key is not None and (request.restarted or resume == "must"):
        # A restart of the same launch is the same run, whatever `resume` says about runs of other launches.
        earlier = keys.last("job", request.job_key)
        if earlier is not None and earlier.project == project and run_id in (None, earlier.id):
            return earlier
    if run_id is None:
        if resume == "must" and refuse:
            raise ResumeError('resume="must" needs id="..." (no earlier attempt of this launch is known)')
        return None
    earlier = keys.last("id", id_key(project, run_id))
    if not refuse:
        return earlier if resume != "never" else None
    if resume == "must" and earlier is None:
        raise ResumeError(f'resume="must": no run {run_id!r} in project {project!r}; {_nearby(keys, project, run_id)}')
    if resume == "never" and earlier is not None:
        raise ValueError(
            f'resume="never": project {project!r} already has a run {run_id!r} (uid {earlier.uid}); '
            'pass another id, or resume="allow" to continue it'
        )
    return earlier


def id_key(project: str, run_id: str) -> str:
    """The key under which a run is found by what its user calls it."""
    return f"{project}\0{run_id}"


def _nearby(keys: Keys, project: str, run_id: str) -> str:
    ids = keys.ids(project)
    if not ids:
        return "the project has no run here"
    close = difflib.get_close_matches(run_id, ids, n=5, cutoff=0.5) or ids[:5]
    return f"it has {', '.join(map(repr, close))}" + (
        f" and {len(ids) - len(close)} more" if len(ids) > len(close) else ""
    )
