"""What is accepted and has no effect is said, once a process, by rank 0 alone."""

from __future__ import annotations

import os
import sys
from typing import Any

from torchtrack import guard
from torchtrack.run import say

_said: set[str] = set()


def once(line: str, *, newline: bool = True, prefix: bool = True, again: bool = False) -> None:
    """One line to the person at the terminal, with what `wandb.termlog` may ask for."""
    heard = os.environ.get("RANK", "0") == "0" and not os.environ.get("WANDB_SILENT")
    if heard and (again or line not in _said):
        if newline and prefix:
            say(line)
        else:
            text = f"{'torchtrack: ' if prefix else ''}{line}{chr(10) if newline else ''}"
            guard.attempt("a message", lambda: (sys.stderr.write(text), sys.stderr.flush()))
    _said.add(line)


def ignored(call: str, name: str) -> None:
    """The line of an argument that is ignored."""
    once(f"{call} ignores {name}=")


def no_effect(call: str, **given: Any) -> None:
    """The lines of what is taken and changes nothing here: a line an argument, without any one for the call itself.

    Args:
        call: what was called, without brackets.
        given: arguments, None where nothing was asked for that does not happen.
    """
    from torchtrack.compat.coverage import note_of

    what = [(call, f"{call}({name}=)", name) for name, value in given.items() if value is not None]
    for of, said, name in what if given else [("names", f"{call}()", call)]:
        note = note_of(of, name)
        once(f"{said} has no effect here" + (f": {note}" if note else ""))
