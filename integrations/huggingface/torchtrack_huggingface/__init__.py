"""torchtrack for Hugging Face: all ranks of a Trainer, or of an Accelerate script, are one run.

    trainer = Trainer(..., callbacks=[TorchtrackCallback(project="digits")])
    accelerator = Accelerator(log_with=TorchtrackTracker("digits"))

Transformers and Accelerate are imported only when their part is used.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from torchtrack_huggingface.callback import TorchtrackCallback
    from torchtrack_huggingface.tracker import TorchtrackTracker

__all__ = ["TorchtrackCallback", "TorchtrackTracker", "register"]

_PARTS: Final = {"TorchtrackCallback": ("callback", "transformers"), "TorchtrackTracker": ("tracker", "accelerate")}
"""Class -> its module, and the framework it is for."""


def register() -> None:
    """Make "torchtrack" a name that `TrainingArguments(report_to=)` and `Accelerator(log_with=)` know.

    Raises:
        ImportError: neither Transformers nor Accelerate is installed.
    """
    parts = [importlib.import_module(f"{__name__}.{module}") for module, of in _PARTS.values() if _is_installed(of)]
    if not parts:
        raise ImportError(_advice("register()", "Transformers or Accelerate"))
    for part in parts:
        part.register()


def __getattr__(name: str) -> Any:
    if name not in _PARTS:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module, framework = _PARTS[name]
    if not _is_installed(framework):
        raise ImportError(_advice(name, framework.title()))
    return getattr(importlib.import_module(f"{__name__}.{module}"), name)


def _is_installed(framework: str) -> bool:
    try:
        importlib.import_module(framework)
    except ModuleNotFoundError as error:
        if error.name != framework:
            raise  # it is there, and lacks something of its own
        return False
    return True


def _advice(what: str, framework: str) -> str:
    return f"torchtrack_huggingface.{what} needs {framework}: pip install 'torchtrack[huggingface]'"
