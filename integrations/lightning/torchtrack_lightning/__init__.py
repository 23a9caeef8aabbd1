"""torchtrack for Lightning: all ranks of a Trainer or of Fabric are one run.

    trainer = Trainer(logger=TorchtrackLogger(project="digits"), callbacks=[TorchtrackCallback()])

Works with `lightning` and with `pytorch_lightning`, which are imported only when a class is asked for: see
`torchtrack_lightning.framework`.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from torchtrack_lightning.callback import TorchtrackCallback
    from torchtrack_lightning.logger import TorchtrackLogger

__all__ = ["TorchtrackCallback", "TorchtrackLogger"]

_MODULES: Final = {"TorchtrackCallback": "callback", "TorchtrackLogger": "logger"}


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_MODULES[name]}"), name)
