"""Run by the interpreter as it starts, in every Python below `torchtrack launch`; then the next one of this name is."""

from __future__ import annotations

import importlib
import os
import sys


def _start() -> None:
    try:
        from torchtrack.launch import startup
    except (ImportError, SyntaxError):  # another interpreter, which has no torchtrack
        return
    startup.begin()


def _make_way() -> None:
    """Leave the path as it would be, and run the sitecustomize that this one hides."""
    here = os.path.dirname(os.path.abspath(__file__))  # noqa: PTH100, PTH120  # pathlib is slow to import
    sys.path[:] = [entry for entry in sys.path if entry != here]
    ours = sys.modules.pop(__name__)
    try:
        importlib.import_module(__name__)
    except ImportError as error:
        if error.name != __name__:
            raise
        sys.modules[__name__] = ours


if __name__ == "sitecustomize":
    _start()
    _make_way()
