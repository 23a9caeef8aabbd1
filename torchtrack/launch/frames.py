"""Tracebacks that tell of the script alone: a pass-through takes its own frame out of an exception on its way."""

from __future__ import annotations


def leave_out(error: BaseException) -> None:
    """Take the frame that has caught an exception out of its traceback; a bare `raise` has to follow.

    Python 3.10 keeps the frame: there `raise` goes on with the traceback that the exception came with.
    """
    trace = error.__traceback__
    error.__traceback__ = trace and trace.tb_next
