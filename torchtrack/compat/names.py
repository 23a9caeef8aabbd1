"""Every name that `import torchtrack as wandb` offers besides the core's own, and where it is found."""

from __future__ import annotations

import importlib
import types
from typing import Any, Final

CALLS: Final = (
    *("link_artifact", "link_model", "log_artifact", "log_code", "log_model", "mark_preempting", "pin_config_keys"),
    *("restore", "save", "use_artifact", "use_model"),
)
"""Module-level calls that go to the active run."""
HOMES: Final = {
    "artifact": ("Artifact",),
    "media": (
        "Classes",
        "EvalTable",
        "Graph",
        "Html",
        "JoinedTable",
        "Molecule",
        "Object3D",
        "Plotly",
        "Video",
        "box3d",
    ),
    "plot": ("plot_table", "visualize"),
    "session": (
        *("AlertLevel", "_attach", "attach", "ensure_configured", "join", "login", "require"),
        *("sagemaker_auth", "setup", "teardown"),
        *("termerror", "termlog", "termwarn"),
    ),
    "ttl": ("ArtifactTTL",),
    "settings": ("Config", "Settings"),
    "sweeps": ("agent", "controller", "sweep"),
}
ERRORS: Final = {"CommError": "CommError", "Error": "Error", "UsageError": "UsageError"}
MODULES: Final = {
    "catboost": "frameworks.catboost",
    "data_types": "media",
    "env": "session",
    "gym": "frameworks.gym",
    "jupyter": "jupyter",
    "keras": "frameworks.keras",
    "lightgbm": "frameworks.lightgbm",
    "plot": "plot",
    "plots": "plot",
    "profiler": "profiler",
    "sacred": "frameworks.sacred",
    "sdk": "sdk",
    "sklearn": "frameworks.sklearn",
    "tensorboard": "tensorboard",
    "tensorflow": "frameworks.tensorflow",
    "util": "helpers",
    "wandb_run": "sdk",
    "wandb_sdk": "sdk",
    "xgboost": "frameworks.xgboost",
}
"""Modules of wandb, and those that stand for them."""
OURS: Final = ("api", "errors")
"""Modules of the core with such a name; they know the words of wandb's."""


def find(name: str) -> Any:
    """A name of wandb that the core has not.

    Raises:
        AttributeError: it is not offered.
    """
    if name in CALLS:
        return _call(name)
    if name in ERRORS:
        return getattr(importlib.import_module("torchtrack.errors"), ERRORS[name])
    if name == "load_ipython_extension":
        return importlib.import_module("torchtrack.compat.jupyter").load_ipython_extension
    if name in OURS:
        return importlib.import_module(f"torchtrack.{name}")
    if name in MODULES:
        return importlib.import_module(f"torchtrack.compat.{MODULES[name]}")
    home = next((module for module, names in HOMES.items() if name in names), None)
    if home is None:
        raise AttributeError(f"module 'torchtrack' has no attribute {name!r}")
    return getattr(importlib.import_module(f"torchtrack.compat.{home}"), name)


def every() -> list[str]:
    """All of them, sorted."""
    return sorted({*CALLS, *ERRORS, *MODULES, *(name for names in HOMES.values() for name in names)})


def _call(name: str) -> types.FunctionType:
    def call(*args: Any, **kwargs: Any) -> Any:
        active = importlib.import_module("torchtrack.active")
        return getattr(active.current(f"{name}()"), name)(*args, **kwargs)

    call.__name__ = call.__qualname__ = name
    call.__doc__ = f"`{name}` of the active run."
    return call  # type: ignore[return-value]
