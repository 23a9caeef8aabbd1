"""`%%wandb` and `%wandb`, in a shell of IPython where that is installed; what they show, without."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

import torchtrack
from tests.runs import begin, script
from torchtrack.compat import jupyter

wandb: Any = torchtrack


class Shell:
    """A shell that runs cells of Python, and keeps what is shown."""

    def __init__(self) -> None:
        self.shown: list[str] = []
        self.names: dict[str, Any] = {"begin": begin}

    def run_cell(self, code: str) -> None:
        """Run a cell."""
        exec(code, self.names)  # noqa: S102


@pytest.fixture
def magics(monkeypatch: pytest.MonkeyPatch) -> Any:
    """What is behind the magics, without IPython."""
    shell = Shell()
    display = SimpleNamespace(display_html=lambda text, **_: shell.shown.append(text))
    monkeypatch.setitem(sys.modules, "IPython", SimpleNamespace(get_ipython=lambda: shell, display=display))
    monkeypatch.setitem(sys.modules, "IPython.display", display)
    made = jupyter.Magics()
    made.shell = shell
    return made


def test_a_cell_shows_the_run_that_began_in_it_once_it_has_run(magics: Any) -> None:
    magics.wandb("-h 333", "run = begin(project='cells', name='mine')\nrun.log({'x': 1.0})\nrun.finish(quiet=True)")

    (shown,) = magics.shell.shown
    assert "<strong>mine</strong> finished, cells" in shown
    assert "max-height:333px" in shown


def test_a_line_shows_the_active_run_or_that_of_a_path(magics: Any) -> None:
    first = begin(project="cells", name="first")
    first.finish(quiet=True)
    run = begin(project="cells", name="active")
    run.log({"x": 1.0})
    magics.wandb("")
    magics.wandb(f"team/cells/{first.id}")
    magics.wandb("team/cells/nobody")
    run.finish(quiet=True)

    active, path, nothing = magics.shell.shown
    assert "<strong>active</strong>" in active
    assert "<td>x</td>" in active
    assert "<strong>first</strong> finished" in path
    assert "nobody" in nothing


def test_a_line_without_a_run_shows_nothing(magics: Any) -> None:
    magics.wandb("")

    assert magics.shell.shown == []


def test_a_wrong_line_is_an_error_and_not_the_end_of_the_process(magics: Any) -> None:
    with pytest.raises(ValueError, match="PATH"):
        magics.wandb("--width 3")


def test_a_run_is_displayed_in_a_notebook_and_nowhere_else(magics: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    run: Any = begin(name="shown")
    inside, hidden = run.display(), run.display(hidden=True)
    monkeypatch.setattr(sys.modules["IPython"], "get_ipython", lambda: None)

    assert (inside, hidden, run.display()) == (True, False, False)
    assert len(magics.shell.shown) == 1


def test_magics_without_ipython_name_it(monkeypatch: pytest.MonkeyPatch) -> None:
    jupyter._magics.cache_clear()
    monkeypatch.setitem(sys.modules, "IPython.core.magic", None)
    with pytest.raises(torchtrack.TorchtrackError, match="pip install ipython"):
        wandb.jupyter.WandBMagics  # noqa: B018


SHELL = """
    from IPython.core.interactiveshell import InteractiveShell
    from IPython.utils.capture import capture_output

    shell = InteractiveShell.instance()
    import torchtrack.compat

    {register}
    cell = f"import torchtrack; run = torchtrack.init(name='real', dir={{DIR!r}}, sidecar=False, system_interval=0)"
    with capture_output() as captured:
        shell.run_cell_magic("wandb", "", cell)
    shown = [each.data["text/html"] for each in captured.outputs if "text/html" in each.data]
    assert ["<strong>real</strong>" in text for text in shown] == [True], (shown, captured.stderr)
    assert "wandb" in shell.magics_manager.magics["line"]
"""


@pytest.mark.skipif(importlib.util.find_spec("IPython") is None, reason="IPython is not installed")
@pytest.mark.parametrize("register", ["shell.run_line_magic('load_ext', 'torchtrack')", "torchtrack.compat.install()"])
def test_the_magics_are_those_of_ipython(register: str, tmp_path: Path) -> None:
    environ = {"PYTHONPATH": ":".join(sys.path), "IPYTHONDIR": str(tmp_path), "VIRTUAL_ENV": ""}
    done = script(SHELL.format(register=register), tmp_path, environ=environ)

    assert done.returncode == 0, done.stderr
