"""History from elsewhere: each kind of source is read by a file of its own and becomes normal runs in the journal.

    sources.find -> SourceRun.read -> Chunk (rows, and how far the source was read) -> Target -> journal

`source` is what a kind of source offers, `target` writes it and knows what is there already. Each of `KINDS` has a file
here; the packages of these are used where they are needed to read a format, and never imported before. What this
package offers is loaded when it is first used, so that a command line can name the kinds at once.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from torchtrack.importers.source import About, Chunk, End, Losses, SourceRun
    from torchtrack.importers.sources import Found, find
    from torchtrack.importers.target import Result, import_run

KINDS: Final = ("tensorboard", "wandb", "mlflow", "neptune", "trackio")
_HOMES: Final = {
    "source": ("About", "Chunk", "End", "Losses", "SourceRun"),
    "sources": ("Found", "find"),
    "target": ("Result", "import_run"),
}
__all__ = ["About", "Chunk", "End", "Found", "KINDS", "Losses", "Result", "SourceRun", "find", "import_run"]  # noqa: RUF022  # plain order


def __getattr__(name: str) -> Any:
    home = next((module for module, names in _HOMES.items() if name in names), None)
    if home is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{home}"), name)
