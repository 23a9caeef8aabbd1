"""The one place where any exception is caught, so that nothing of ours ever reaches the user's training loop.

`never_raise` wraps what the training thread calls; `attempt` makes one guarded call. Both report a failure once per
kind through the logger "torchtrack" and count all of them; the count is a metric of the run (`_tt/errors`).
"""

from __future__ import annotations

import functools
import logging
import threading
from collections import Counter
from collections.abc import Callable
from typing import Any, TypeVar

logger = logging.getLogger("torchtrack")
failures: Counter[str] = Counter()
"""How often each kind of internal failure has happened in this process: "where: ExceptionType" -> count."""

_F = TypeVar("_F", bound=Callable[..., Any])
_lock = threading.RLock()  # a signal handler of the user's may call in while this thread holds it


def report(where: str, error: BaseException) -> None:
    """Count an internal failure; log the first of its kind with its traceback."""
    kind = f"{where}: {type(error).__name__}"
    with _lock:
        failures[kind] += 1
        first = failures[kind] == 1
    if first:
        logger.warning("torchtrack %s failed and goes on without it: %s", where, error, exc_info=error)


def never_raise(where: str, default: Any = None) -> Callable[[_F], _F]:
    """Decorate a function the training thread calls: an exception in it is reported and `default` returned.

    KeyboardInterrupt and SystemExit pass: they are the user's.
    """

    def decorate(function: _F) -> _F:
        @functools.wraps(function)
        def guarded(*args: Any, **kwargs: Any) -> Any:
            try:
                return function(*args, **kwargs)
            except Exception as error:
                report(where, error)
                return default

        return guarded  # type: ignore[return-value]  # same signature, by functools.wraps

    return decorate


def outcome(function: Callable[..., Any], *args: Any) -> Any:
    """What a call into code that is not ours gives (a value's `__float__`, a figure's `savefig`).

    An exception it raises is returned, not reported: it tells about the user's value.
    """
    try:
        return function(*args)
    except Exception as error:
        return error


def after_fork_in_child() -> None:
    """Let go of a lock that a thread of the parent may have held."""
    global _lock
    _lock = threading.RLock()


def attempt(where: str, function: Callable[..., Any], *args: Any, **kwargs: Any) -> bool:
    """Call a function whose failure must not stop the caller (a thread's turn, a hook). True if it returned."""
    try:
        function(*args, **kwargs)
    except Exception as error:
        report(where, error)
        return False
    return True
