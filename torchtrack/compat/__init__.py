"""wandb's names: scripts written for wandb run, by `import torchtrack as wandb`, or unchanged after `install()`.

names.py       every further name, and where it is found; `torchtrack.__getattr__` asks it
arguments.py   arguments of `init` and `define_metric`
settings.py    `Settings`
session.py     login, setup, attach and other calls about the process
runs.py        what a run has there and not here; files.py, status.py and artifacts.py behind it
artifacts.py   artifacts of a project; artifact.py, entries.py, digests.py, ttl.py, away.py and store.py behind it
media.py       media with their arguments; drawing.py, histograms.py and tables.py behind it
plot.py        tables for charts
frameworks/    callbacks of other frameworks; profiler.py traces of torch's
sweeps.py      sweep, agent, controller
public.py      `Api`
tensorboard.py `sync_tensorboard`
jupyter.py     `%%wandb`
standin.py     `import wandb`
coverage.py    what is honoured, mapped and ignored, name by name
"""

from __future__ import annotations

import importlib

__all__ = ["install", "uninstall"]


def install() -> None:
    """Make `import wandb` give torchtrack in this process, also for what asks for the version that is installed.

    Call it before anything imports wandb. `python -m torchtrack.compat script.py` does so for a script.

    Raises:
        RuntimeError: wandb itself has been imported already.
    """
    importlib.import_module("torchtrack.compat.standin").install()


def uninstall() -> None:
    """Undo `install`: what imports wandb from now on gets wandb itself, or an ImportError."""
    importlib.import_module("torchtrack.compat.standin").uninstall()
