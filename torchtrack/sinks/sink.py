"""What a sink is, and how one is named: `tensorboard`, `wandb`, `mlflow`, or `module:Class`, perhaps with `=WHERE`."""

from __future__ import annotations

import importlib
import json
import re
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from torchtrack.sinks.feed import Forwarded, Medium

SINKS: Final = {
    "tensorboard": "torchtrack.sinks.tensorboard:TensorBoardSink",
    "wandb": "torchtrack.sinks.wandb:WandbSink",
    "mlflow": "torchtrack.sinks.mlflow:MlflowSink",
}


TABLE: Final = "application/vnd.torchtrack.table+json"


@dataclass(frozen=True)
class About:
    """The run that is forwarded, and the folder a sink may keep files in."""

    uid: str
    name: str
    project: str
    folder: Path
    """`sinks` in the folder of runs."""
    group: str | None = None
    job_type: str | None = None
    tags: tuple[str, ...] = ()
    notes: str | None = None
    config: Mapping[str, Any] = field(default_factory=dict)


class Sink(ABC):
    """One run in another tracker. Made, and called, on one thread of a process of its own; it may wait and may raise.

    Args:
        about: the run. Where another process has forwarded a part of it, a sink goes on with that.
        where: what the user wrote behind `=`, such as a folder or an address.
    """

    @abstractmethod
    def __init__(self, about: About, where: str | None) -> None: ...

    @abstractmethod
    def write(self, steps: Sequence[Forwarded]) -> None:
        """Take some steps, in order; when it returns they are handed over."""

    def rewind(self, step: int) -> None:  # noqa: B027  # not every tracker can
        """A new attempt of the run goes on from this step: what was written from it on is void."""

    def close(self, state: str, summary: Mapping[str, Any]) -> None:  # noqa: B027  # not every sink holds something
        """Nothing more will come; `state` is that of the run."""


def split(spec: str) -> tuple[str, str | None]:
    """Name and place of a sink as the user wrote it."""
    name, sign, where = spec.partition("=")
    return name.strip(), where.strip() if sign else None


def open_sink(spec: str, about: About) -> Sink:
    """The sink that is called so.

    Raises:
        ValueError: there is no such sink.
        MissingDependencyError: it needs a package that is not installed.
    """
    name, where = split(spec)
    module, _, attribute = SINKS.get(name, name).partition(":")
    made: type[Sink] = getattr(importlib.import_module(module), attribute)
    return made(about, where)


def table_of(medium: Medium) -> tuple[list[str], list[list[Any]]] | None:
    """Columns and rows of a logged table; None if it is none, or its file is not there."""
    if medium.mime != TABLE:
        return None
    try:
        held = json.loads(medium.path.read_text())
    except (OSError, ValueError):
        return None
    return held["columns"], held["data"]


def file_name(text: str) -> str:
    """A text as the name of a file."""
    return re.sub(r"[^\w.@+-]+", "-", text).strip("-.") or "run"
