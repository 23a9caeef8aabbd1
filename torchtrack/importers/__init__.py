"""History from elsewhere: each kind of source is read by a file of its own and becomes normal runs in the journal.

    sources.find -> SourceRun.read -> Chunk (rows, and how far the source was read) -> Target -> journal

`source` is what a kind of source offers, `target` writes it and knows what is there already, `bins` turns foreign
histograms into ours. Sources: `tensorboard`, `wandb`, `mlflow`, `neptune`, `trackio`; the packages of these are used
where they are needed to read a format, and never imported before.
"""

from torchtrack.importers.source import About, Chunk, End, Losses, SourceRun
from torchtrack.importers.sources import KINDS, Found, find
from torchtrack.importers.target import Result, import_run

__all__ = ["About", "Chunk", "End", "Found", "KINDS", "Losses", "Result", "SourceRun", "find", "import_run"]  # noqa: RUF022  # plain order
