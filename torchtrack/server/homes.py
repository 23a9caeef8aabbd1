"""Whose runs are whose, where keys are for some projects only: such a key sends runs of these, and nobody else's.

The first frame of a stream says its run, and of which project that is. The run is then at home there: who may not write
there cannot add to it, and it is shown there, whatever is written later. Runs that come with a key of all projects have
no home; their own word counts.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterable, Iterator
from typing import Any, Final

import sqlalchemy as sa
from sqlalchemy.exc import IntegrityError

from torchtrack.journal import frame
from torchtrack.server.rights import Who
from torchtrack.server.tables import homes, now
from torchtrack.wire import Section

_REMEMBERED: Final = 100_000
_LENGTH: Final = struct.Struct("<I")


class RefusedRunError(Exception):
    """A run that this key may not write; the message says what to do."""


class Homes:
    """**Threads:** any."""

    def __init__(self, engine: sa.Engine) -> None:
        self._engine = engine
        self._known: dict[str, str] = {}  # homes that were found: they never change

    def settle(self, who: Who, uid: str, says: str | None, *, there: bool) -> None:
        """Find a run at home where somebody may write, or give it its home.

        Args:
            who: sends it; not somebody who may write everywhere.
            uid: of the run.
            says: the project it says it is of, if that is known.
            there: whether something of it has been received already.

        Raises:
            RefusedRunError: they may not write it.
        """
        mine = who.projects("write") or frozenset()
        known = self._known.get(uid)
        if known is not None and known in mine and says in (None, known):
            return
        try:
            home = self._settle(who, mine, uid, says, there=there)
        except IntegrityError:  # another rank of the run was first
            home = self._settle(who, mine, uid, says, there=there)
        if home is not None:
            if len(self._known) >= _REMEMBERED:
                self._known.clear()
            self._known[uid] = home

    def _settle(self, who: Who, mine: frozenset[str], uid: str, says: str | None, *, there: bool) -> str | None:
        """The home, None if it is not known yet."""
        if says is not None and says not in mine:
            raise RefusedRunError(
                f"the run is of project {says!r}, and this key may write {_listed(mine)}: ask for a key of {says!r}, "
                f"or train with TORCHTRACK_PROJECT={next(iter(sorted(mine)), '...')}"
            )
        with self._engine.begin() as connection:
            row = connection.execute(sa.select(homes).where(homes.c.uid == uid)).mappings().first()
            if row is None and there:
                raise RefusedRunError("the run came with a key of all projects; go on with that one")
            project = says if says is not None else next(iter(mine)) if len(mine) == 1 else None
            if row is None:
                connection.execute(sa.insert(homes).values(uid=uid, project=project, by=who.id, at=now()))
                return project
            if row["project"] is None and row["by"] == who.id:
                if project is not None:
                    connection.execute(sa.update(homes).where(homes.c.uid == uid).values(project=project))
                return project
            if row["project"] not in mine or says not in (None, row["project"]):
                raise RefusedRunError("this key may not write this run")
            return str(row["project"])

    def check(
        self, who: Who, sections: Iterable[Section], run_of: Callable[[int], str | None], known: Callable[[str], bool]
    ) -> dict[int, str]:
        """Which streams of a body somebody may not write, and why.

        Args:
            who: sends it.
            sections: of the body.
            run_of: the uid of the run a stream has been taken for, if it has.
            known: whether a run has been received in part.
        """
        refused: dict[int, str] = {}
        if who.projects("write") is None:
            return refused
        for each in sections:
            runs: list[tuple[str | None, str | None]] = [(run_of(each.stream), None)]
            runs += [(record.get("uid"), record.get("project")) for record in _meta(each)]
            named = [(uid, says) for uid, says in runs if isinstance(uid, str)]
            try:
                if not named:
                    raise RefusedRunError("a key of some projects sends journals from their beginning")
                for uid, says in named:
                    self.settle(who, uid, says if isinstance(says, str) else None, there=known(uid))
            except RefusedRunError as error:
                refused.setdefault(each.stream, str(error))
        return refused


def _meta(section: Section) -> Iterator[dict[str, Any]]:
    """The records of a section that say where a stream belongs. What is no frame ends it: it is refused later."""
    data, at = memoryview(section.frames), 0
    while at + frame.HEADER_SIZE <= len(data):
        (length,) = _LENGTH.unpack_from(data, at + 8)
        size = frame.frame_size(length)
        whole = bytes(data[at : at + size])
        found = frame.read_frame(whole, 0, section.stream) or frame.read_frame(whole, 0, 0)
        if found is None:
            return
        if found.header.kind is frame.Kind.META:
            yield found.record()
        at += size


def _listed(projects: Iterable[str]) -> str:
    return ", ".join(map(repr, sorted(projects))) or "none"
