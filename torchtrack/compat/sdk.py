"""`wandb.sdk`, `wandb.wandb_run`, `wandb.wandb_sdk`: classes that frameworks import from there."""

from __future__ import annotations

import sys

from torchtrack.active import init
from torchtrack.compat.artifact import Artifact
from torchtrack.compat.session import login, setup
from torchtrack.compat.settings import Settings
from torchtrack.errors import ConfigError
from torchtrack.run import Run

__all__ = ["Artifact", "ConfigError", "Run", "RunDisabled", "Settings", "init", "login", "setup"]


class _Disabled(type):
    def __instancecheck__(cls, instance: object) -> bool:
        return isinstance(instance, Run) and instance.disabled


class RunDisabled(metaclass=_Disabled):
    """What isinstance() takes for a run with mode="disabled"."""


lib = config_util = wandb_run = wandb_settings = wandb_artifacts = sys.modules[__name__]
