"""`%%wandb` and `%wandb` in notebooks: a snapshot of a run. IPython is imported when they are registered."""

from __future__ import annotations

import argparse
import functools
import importlib
import shlex
import sys
from html import escape
from typing import Any, Final, NoReturn

from torchtrack import guard
from torchtrack.active import current
from torchtrack.compat.public import Api
from torchtrack.errors import MissingDependencyError, TorchtrackError
from torchtrack.run import Run

HEIGHT: Final = 420
"""In pixels, as there."""


def __getattr__(name: str) -> Any:
    if name != "WandBMagics":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return _magics()


def load_ipython_extension(shell: Any) -> None:
    """Register the magics: `%load_ext torchtrack`, and `install()` in a notebook."""
    shell.register_magics(_magics())


def register() -> None:
    """Register them if this is a shell of IPython."""
    shell = sys.modules["IPython"].get_ipython() if "IPython" in sys.modules else None
    if shell is not None:
        load_ipython_extension(shell)


def html(run: Run, height: int = HEIGHT) -> str:
    """A run of this process as it is recorded by now: the snapshot of `Api`, and its page if it has one.

    Args:
        run: which.
        height: in pixels; what is longer is scrolled.
    """
    run.flush()
    link = f'<p><a href="{escape(run.url)}">{escape(run.url)}</a></p>' if run.url else ""
    seen = guard.outcome(lambda: Api(run.settings.dir).run(run.uid)._repr_html_())
    shown = seen if isinstance(seen, str) else f"<p>{escape(run.name)}: nothing is recorded yet</p>"
    return f'<div style="max-height:{int(height)}px;overflow:auto">{link}{shown}</div>'


def show(run: Run, height: int = HEIGHT) -> bool:
    """Show a run below the cell; False outside of a notebook, where nothing is shown."""
    if "IPython" not in sys.modules or sys.modules["IPython"].get_ipython() is None or run.disabled:
        return False
    _display(html(run, height))
    return True


class Magics:
    """What `wandb` does after one or two percent signs."""

    shell: Any

    def wandb(self, line: str, cell: str | None = None) -> None:
        """Show a run: that of a path, else the active one, else the one that ended last; of a cell, once it has run.

        Args:
            line: a path, `-h` or `--height` with pixels.
            cell: the code.
        """
        asked = _arguments(line)
        if cell is not None:
            self.shell.run_cell(cell)
        if asked.path:
            self._of_path(asked.path, asked.height)
            return
        run = guard.outcome(current, "%wandb")
        if isinstance(run, Run):
            show(run, asked.height)

    def _of_path(self, path: str, height: int) -> None:
        try:
            seen = Api().run(path)
        except TorchtrackError as error:
            _display(f"<p>{escape(str(error))}</p>")
        else:
            _display(f'<div style="max-height:{height}px;overflow:auto">{seen._repr_html_()}</div>')


def _display(text: str) -> None:
    importlib.import_module("IPython.display").display_html(text, raw=True)


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        """A wrong line is an error of the cell, not the end of the process."""
        raise ValueError(f"%wandb [PATH] [-h PIXELS]: {message}")


def _arguments(line: str) -> argparse.Namespace:
    parser = _Parser(prog="%wandb", add_help=False)
    parser.add_argument("path", nargs="?")
    parser.add_argument("-h", "--height", type=int, default=HEIGHT)
    return parser.parse_args(shlex.split(line))


@functools.cache
def _magics() -> Any:
    try:
        magic = importlib.import_module("IPython.core.magic")
    except ImportError:
        raise MissingDependencyError("wandb.jupyter needs IPython: pip install ipython") from None
    called = magic.line_cell_magic(Magics.wandb)
    made = type("WandBMagics", (Magics, magic.Magics), {"__doc__": Magics.__doc__, "wandb": called})
    return magic.magics_class(made)
