"""Which kind of source a path is, and the runs it holds."""

from __future__ import annotations

import importlib
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol, cast

from torchtrack.importers import KINDS, sqlite
from torchtrack.importers.source import Losses, SourceRun


@dataclass
class Found:
    """What a path holds."""

    runs: list[SourceRun] = field(default_factory=list)
    losses: Losses = field(default_factory=Losses)
    """What could not be read of the source as a whole."""


class _Kind(Protocol):
    """A kind of source: a module of this package."""

    def recognises(self, path: Path) -> bool:
        """Whether there is something of this kind at or below a path."""

    def find(self, path: Path, project: str | None) -> Found:
        """The runs at or below a path."""


def find(path: Path, kind: str | None = None, project: str | None = None) -> Found:
    """The runs that a path holds, of all kinds or of one.

    Args:
        path: a file or folder, as the other tracker left it.
        kind: one of `KINDS`.
        project: what runs get as project instead of their own.

    Raises:
        FileNotFoundError: there is no such path.
        ValueError: nothing there is of a kind that is known.
        MissingDependencyError: reading it needs a package that is not installed.
    """
    if not path.exists():
        raise FileNotFoundError(f"{path}: no such file or folder")
    chosen = [each for each in ((kind,) if kind else KINDS) if _module(each).recognises(path)]
    if not chosen:
        what = f"nothing of {kind}" if kind else f"no history of {', '.join(KINDS[:-1])} or {KINDS[-1]}"
        raise ValueError("; ".join([f"{path}: there is {what}", *sqlite.damage(path)]))
    return _together(_module(each).find(path, project) for each in chosen)


def _together(parts: Iterable[Found]) -> Found:
    found = Found()
    for part in parts:
        found.runs += part.runs
        found.losses.add(part.losses)
    return found


def _module(kind: str) -> _Kind:
    return cast(_Kind, importlib.import_module(f"torchtrack.importers.{kind}"))
