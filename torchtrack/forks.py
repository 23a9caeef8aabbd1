"""A fork waits for threads of ours that are inside Arrow, else the child would have locks that nobody ever lets go.

Arrow takes some when it is used first, and imports pandas under them, which takes a while: in a child that was forked
meanwhile, whatever uses Arrow waits for ever, and no row of it is written.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

PATIENCE_S: Final = 5.0
"""How long a fork waits at most, as behind a disk that hangs; and how long a turn waits for a fork."""

_changed = threading.Condition()
_at_work: set[int] = set()
"""Threads that are."""
_forks = 0
"""How many are under way."""


@contextmanager
def at_work() -> Iterator[None]:
    """For a turn of a thread that uses Arrow."""
    me = threading.get_ident()
    with _changed:
        _changed.wait_for(lambda: not _forks, PATIENCE_S)
        _at_work.add(me)
    try:
        yield
    finally:
        with _changed:
            _at_work.discard(me)
            _changed.notify_all()


def before() -> None:
    """Wait until no other thread is at work, and let none begin."""
    global _forks
    with _changed:
        _forks += 1
        _changed.wait_for(lambda: not _at_work - {threading.get_ident()}, PATIENCE_S)


def after_in_parent() -> None:
    """Let the threads go on."""
    global _forks
    with _changed:
        _forks -= 1
        _changed.notify_all()


def after_in_child() -> None:
    """None of those threads is here."""
    global _changed, _forks
    _changed = threading.Condition()
    _at_work.clear()
    _forks = 0
