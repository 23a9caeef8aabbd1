"""Which Lightning this is for: `lightning` and `pytorch_lightning` are two packages, each with classes of its own.

The classes of this adapter belong to each of the two that the script has imported before it, or else to the one that is
installed (`lightning` if both are). Where both are installed, import yours first.
"""

from __future__ import annotations

import importlib
import sys
import types
from typing import Any, Final

_PACKAGES: Final = {"lightning": "lightning.pytorch", "pytorch_lightning": "pytorch_lightning"}


def base(module: str, name: str) -> Any:
    """A class of Lightning to derive from; of both packages at once if both are in use.

    Args:
        module: where it is in the package, such as "loggers".
        name: of the class.

    Raises:
        ImportError: neither package is installed.
    """
    found = [getattr(importlib.import_module(f"{package}.{module}"), name) for package in _in_use()]
    return found[0] if len(found) == 1 else types.new_class(name, tuple(found))


def _in_use() -> list[str]:
    imported = [path for package, path in _PACKAGES.items() if sys.modules.get(package) is not None]
    if imported:
        return imported
    for path in _PACKAGES.values():
        try:
            importlib.import_module(path)
        except ModuleNotFoundError as error:
            if error.name not in (path, *_PACKAGES):
                raise  # Lightning is there, and lacks something of its own
        else:
            return [path]
    raise ImportError(
        "torchtrack_lightning needs Lightning: pip install 'torchtrack[lightning]' (or pip install pytorch-lightning)"
    )
