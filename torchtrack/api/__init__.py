"""Reading runs: `Api("torchtrack-runs").run("llm/baseline").history(["loss"])`."""

import importlib

from torchtrack.api.facts import Attempt, Event
from torchtrack.api.run import Run
from torchtrack.api.source import Api
from torchtrack.stability import Finding

_OF_WANDB = ("api_key", "default_entity", "settings")
"""What scripts written for wandb ask `wandb.api` for."""


def __getattr__(name: str) -> object:
    if name in _OF_WANDB:
        return importlib.import_module("torchtrack.compat.session").api(name)
    raise AttributeError(f"module 'torchtrack.api' has no attribute {name!r}")


__all__ = ["Api", "Attempt", "Event", "Finding", "Run"]
