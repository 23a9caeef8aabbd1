"""How an adapter gets its run: the one that the script has begun, or one of its own."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

import torchtrack


class Beginning:
    """A run that begins on each rank when it is first needed.

    Args:
        name: of the class that takes the arguments, for messages.
        init: arguments of `torchtrack.init`. Without any, a run that the script has begun is used.

    Raises:
        TypeError: an argument that `torchtrack.init` does not have.
    """

    def __init__(self, name: str, init: Mapping[str, Any]) -> None:
        try:
            inspect.signature(torchtrack.init).bind(**init)
        except TypeError as error:
            raise TypeError(f"{name}() takes the arguments of torchtrack.init(): {error}") from None
        self._init = dict(init)
        self.is_own = False
        """Whether the run was begun here."""

    def run(self, **defaults: Any) -> torchtrack.Run:
        """The run; arguments given here are used where none of that name was given before."""
        active = torchtrack.run
        if active is not None and (self.is_own or not self._init):
            return active
        self.is_own = True
        return torchtrack.init(**{**defaults, **self._init})
