"""`python -m torchtrack.compat script.py`, or `torchrun -m torchtrack.compat script.py`: what it calls wandb is us."""

from __future__ import annotations

import os
import runpy
import sys

from torchtrack.compat import install


def main() -> None:
    """Run the script that the arguments name, with the rest as its arguments; `-m module` runs a module."""
    arguments = sys.argv[1:]
    if not arguments or (arguments[0] == "-m" and len(arguments) == 1):
        raise SystemExit("usage: python -m torchtrack.compat [-m] SCRIPT ...")
    install()
    if arguments[0] == "-m":
        sys.argv = arguments[1:]
        sys.path.insert(0, os.getcwd())  # noqa: PTH109
        runpy.run_module(arguments[1], run_name="__main__", alter_sys=True)
    else:
        sys.argv = arguments
        sys.path.insert(0, os.path.dirname(os.path.abspath(arguments[0])))  # noqa: PTH100, PTH120
        runpy.run_path(arguments[0], run_name="__main__")


if __name__ == "__main__":
    main()
