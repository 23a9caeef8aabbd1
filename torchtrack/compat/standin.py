"""`import wandb` that gives torchtrack: a module, its submodules, and the distribution that frameworks ask for."""

from __future__ import annotations

import importlib
import importlib.abc
import importlib.machinery
import importlib.metadata
import inspect
import os
import sys
import types
from collections.abc import Iterator
from typing import Any, Final

import torchtrack
from torchtrack import active
from torchtrack.compat import names
from torchtrack.run import Run
from torchtrack.settings import ENVIRONMENT
from torchtrack.version import __version__ as own_version

VERSION: Final = f"0.25.0+torchtrack.{own_version}"
"""The version of wandb whose names are offered."""
ALIASES: Final = {
    "wandb.apis": "torchtrack.compat.public",
    "wandb.apis.public": "torchtrack.compat.public",
    "wandb.data_types": "torchtrack.compat.media",
    "wandb.env": "torchtrack.compat.session",
    "wandb.errors": "torchtrack.errors",
    **{
        f"wandb.{before}{name}": f"torchtrack.compat.frameworks.{name}"
        for name in ("catboost", "gym", "keras", "lightgbm", "sacred", "sklearn", "tensorflow", "xgboost")
        for before in ("", "integration.")
    },
    "wandb.integration": "torchtrack.compat.frameworks",
    "wandb.jupyter": "torchtrack.compat.jupyter",
    "wandb.plot": "torchtrack.compat.plot",
    "wandb.profiler": "torchtrack.compat.profiler",
    "wandb.sdk": "torchtrack.compat.sdk",
    "wandb.sdk.artifacts": "torchtrack.compat.sdk",
    "wandb.sdk.artifacts.artifact": "torchtrack.compat.sdk",
    "wandb.sdk.artifacts.artifact_ttl": "torchtrack.compat.ttl",
    "wandb.sdk.data_types": "torchtrack.compat.media",
    "wandb.sdk.lib": "torchtrack.compat.sdk",
    "wandb.sdk.lib.config_util": "torchtrack.compat.sdk",
    "wandb.sdk.wandb_run": "torchtrack.compat.sdk",
    "wandb.sdk.wandb_settings": "torchtrack.compat.sdk",
    "wandb.tensorboard": "torchtrack.compat.tensorboard",
    "wandb.util": "torchtrack.compat.helpers",
    "wandb.wandb_run": "torchtrack.compat.sdk",
}
"""Submodules that frameworks import, and what they get."""


class _Wandb(types.ModuleType):
    """The module: torchtrack's names, read as wandb reads them."""

    __version__ = VERSION

    @property
    def run(self) -> Run | None:
        """The active run, None without one."""
        return active.active()

    @run.setter
    def run(self, value: Any) -> None:
        """The active run is the one that init() started."""

    @property
    def config(self) -> Any:
        """The active run's config."""
        return active.config()

    @config.setter
    def config(self, value: Any) -> None:
        active.config().update(value)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        if name == "init":
            return init
        if name == "api":
            return importlib.import_module("torchtrack.api")
        if name in ("Api", "Histogram"):
            return _api() if name == "Api" else _histogram()
        if f"wandb.{name}" in ALIASES:
            return importlib.import_module(f"wandb.{name}")
        if name in torchtrack.__all__ or name in ("config", "summary"):
            return getattr(torchtrack, name)
        try:
            return names.find(name)
        except AttributeError:
            raise AttributeError(f"torchtrack in the place of wandb has no {name!r}") from None

    def __dir__(self) -> list[str]:
        return sorted({*torchtrack.__all__, *names.every(), "config", "summary"})


def _api() -> Any:
    from torchtrack.compat.public import SeenApi

    return SeenApi


def _histogram() -> Any:
    from torchtrack.compat import histograms

    return histograms.make


def init(project: str | None = None, **arguments: Any) -> Run:
    """`wandb.init`: every argument is read as wandb reads it.

    `dir` is the folder around the folder of runs; `TORCHTRACK_DIR` wins over it.

    Raises:
        TypeError, ValueError: as `torchtrack.init`.
    """
    from torchtrack.compat.arguments import start

    own = inspect.signature(active.init).parameters
    given = {**dict.fromkeys(own), "project": project, **{k: v for k, v in arguments.items() if k in own}}
    if given["dir"]:
        there = os.path.join(os.fspath(given["dir"]), "torchtrack-runs")  # noqa: PTH118
        given["dir"] = None if os.environ.get(ENVIRONMENT["dir"]) else there
    return start(given, {k: v for k, v in arguments.items() if k not in own})


class _Finder(importlib.metadata.DistributionFinder, importlib.abc.Loader):
    """Finds wandb and its submodules, and its distribution."""

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> importlib.machinery.ModuleSpec | None:
        """A spec that this loads; None for anything else, also for submodules that are not offered."""
        del path, target
        if name == "wandb":
            return importlib.machinery.ModuleSpec(name, self, origin="torchtrack", is_package=True)
        if name in ALIASES:
            return importlib.machinery.ModuleSpec(name, self, is_package=any(k.startswith(f"{name}.") for k in ALIASES))
        return None

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> types.ModuleType:
        """The module of a spec."""
        if spec.name == "wandb":
            return _Wandb("wandb", "torchtrack in the place of wandb.")
        return _Alias(spec.name, ALIASES[spec.name])

    def exec_module(self, module: types.ModuleType) -> None:
        """It is as it was made."""

    def find_distributions(
        self,
        context: importlib.metadata.DistributionFinder.Context = importlib.metadata.DistributionFinder.Context(),  # noqa: B008
    ) -> Iterator[importlib.metadata.Distribution]:
        """Ours, if wandb or everything is asked for."""
        if context.name is None or context.name.lower() == "wandb":
            yield _Distribution()


class _Alias(types.ModuleType):
    """A submodule of wandb whose names are those of a module of ours."""

    def __init__(self, name: str, of: str) -> None:
        super().__init__(name, f"{of} in the place of {name}.")
        self.__dict__["_of"] = of

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        if name == "Api":
            return _api()
        if name in ("Audio", "Image", "Table", "Histogram"):
            return getattr(sys.modules["wandb"], name)
        return getattr(importlib.import_module(self.__dict__["_of"]), name)


class _Distribution(importlib.metadata.Distribution):
    """The metadata of a distribution named wandb, with no files."""

    def read_text(self, filename: str) -> str | None:
        """The name, the version, and what is imported from it."""
        files = {
            "METADATA": f"Metadata-Version: 2.1\nName: wandb\nVersion: {VERSION}\nSummary: torchtrack in its place\n",
            "top_level.txt": "wandb\n",
        }
        return files.get(filename)

    def locate_file(self, path: Any) -> Any:
        """No file of it lies anywhere."""
        return path


_finder = _Finder()


def install() -> None:
    """See `torchtrack.compat.install`."""
    there = sys.modules.get("wandb")
    if there is not None and not isinstance(there, _Wandb):
        raise RuntimeError("compat.install() comes before the first import of wandb, which has been imported already")
    if _finder not in sys.meta_path:
        sys.meta_path.insert(0, _finder)
    importlib.import_module("wandb")
    if "IPython" in sys.modules:
        importlib.import_module("torchtrack.compat.jupyter").register()


def uninstall() -> None:
    """See `torchtrack.compat.uninstall`."""
    if _finder in sys.meta_path:
        sys.meta_path.remove(_finder)
        for name in [name for name in sys.modules if name == "wandb" or name.startswith("wandb.")]:
            del sys.modules[name]
