"""What can be said to a launch, and how it reaches the processes: through the environment."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Final

from torchtrack.launch.startup import VARIABLE

LOGGED: Final = ("gradients", "parameters", "updates", "activations", "optimizer")
"""What `--log` may name, beside "all" and "none"."""
SITE: Final = Path(__file__).resolve().parent / "site"


@dataclass(frozen=True, kw_only=True)
class Options:
    """How the models that are found are watched."""

    log: tuple[str, ...] | str | None = "all"
    """As in `Run.watch`."""
    log_freq: int = 100
    """As in `Run.watch`."""
    budget: float | None = None
    """As in `Run.watch`."""

    @classmethod
    def from_environment(cls) -> Options:
        """As the launch has put them there."""
        given = json.loads(os.environ[VARIABLE])
        log = given.get("log", cls.log)
        return cls(**{**given, "log": tuple(log) if isinstance(log, list) else log})

    def environment(self, environ: Mapping[str, str], *, project: str | None, name: str | None) -> dict[str, str]:
        """The environment of a process that is recorded, and so is every Python process below it."""
        path = [entry for entry in environ.get("PYTHONPATH", "").split(os.pathsep) if entry and entry != str(SITE)]
        added = {VARIABLE: json.dumps(asdict(self)), "PYTHONPATH": os.pathsep.join([str(SITE), *path])}
        named = {"TORCHTRACK_PROJECT": project, "TORCHTRACK_NAME": name}
        return {**environ, **added, **{variable: value for variable, value in named.items() if value}}


def parse_log(text: str) -> tuple[str, ...] | str | None:
    """The value of `--log`.

    Raises:
        ValueError: it names something else.
    """
    if text in ("all", "none"):
        return None if text == "none" else text
    names = tuple(part.strip() for part in text.split(","))
    if not set(names) <= set(LOGGED):
        raise ValueError(f'takes "all", "none" or some of {",".join(LOGGED)}; got {text!r}')
    return names
