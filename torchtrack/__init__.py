"""torchtrack: every rank of a training job, one run.

    run = torchtrack.init(project="llm", config={"lr": 3e-4})
    run.watch(model, log="all", log_freq=100)
    run.log({"loss": loss})

Names are imported when they are first used: `import torchtrack` itself loads neither torch, numpy nor pyarrow.
"""

from __future__ import annotations

import sys
import types
from importlib import import_module
from typing import TYPE_CHECKING, Any

from torchtrack.version import __version__

if TYPE_CHECKING:
    from torchtrack.active import alert, define_metric, finish, init, log, mark, unwatch, watch
    from torchtrack.compat.media import Audio, Image, Table
    from torchtrack.compat.public import Api
    from torchtrack.errors import NonFiniteError, TorchtrackError
    from torchtrack.histogram import Histogram
    from torchtrack.run import Run

    run: Run | None

_HOMES = {
    "active": ("alert", "define_metric", "finish", "init", "log", "mark", "unwatch"),
    "compat.media": ("Audio", "Image", "Table"),
    "compat.public": ("Api",),
    "errors": ("NonFiniteError", "TorchtrackError"),
    "histogram": ("Histogram",),
    "run": ("Run",),
}
__all__ = [  # plain sorted, as the test says
    "Api", "Audio", "Histogram", "Image", "NonFiniteError", "Run", "Table", "TorchtrackError", "__version__", "alert",
    "define_metric", "finish", "init", "log", "mark", "run", "unwatch", "watch",
]  # fmt: skip


def __getattr__(name: str) -> Any:
    home = next((module for module, names in _HOMES.items() if name in names), None)
    if home is not None:
        globals()[name] = value = getattr(import_module(f"torchtrack.{home}"), name)
        return value
    return import_module("torchtrack.compat.names").find(name)  # or AttributeError


class _Package(types.ModuleType):
    """`torchtrack.run` is the active run or None and `torchtrack.watch` a function, whichever modules are imported."""

    run = property(lambda _: a.active() if (a := sys.modules.get("torchtrack.active")) else None, lambda *_: None)
    watch = property(lambda _: import_module("torchtrack.active").watch, lambda *_: None)
    config = property(lambda _: import_module("torchtrack.active").config(), lambda at, new: at.config.update(new))
    summary = property(lambda _: import_module("torchtrack.active").summary())


sys.modules[__name__].__class__ = _Package
