"""What is accepted and has no effect is said, once a process, by rank 0 alone."""

from __future__ import annotations

import os

from torchtrack.run import say

_said: set[str] = set()


def once(line: str) -> None:
    """One line to the person at the terminal."""
    if line not in _said and os.environ.get("RANK", "0") == "0" and not os.environ.get("WANDB_SILENT"):
        say(line)
    _said.add(line)


def ignored(call: str, name: str) -> None:
    """The line of an argument that is ignored."""
    once(f"{call} ignores {name}=")
