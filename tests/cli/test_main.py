"""The command as a whole, also as a real process."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from tests.cli.conftest import Cli
from torchtrack.version import __version__


def test_help_names_every_command(cli: Cli) -> None:
    text = cli("--help").stdout
    for command in ("ls", "show", "export", "fsck", "TORCHTRACK_DIR"):
        assert command in text
    assert cli("--version").stdout.strip().endswith(__version__)
    for command in ("ls", "show", "export", "fsck"):
        assert cli(command, "--help").exit_code == 0


def test_a_wrong_option_exits_with_2(cli: Cli) -> None:
    assert cli("ls", "--nonsense").exit_code == 2
    assert cli("nonsense").exit_code == 2


def test_help_imports_nothing_heavy() -> None:
    code = (
        "import sys; from torchtrack.cli import main; main(['--help'], standalone_mode=False);"
        "print(sorted({'torch', 'numpy', 'pyarrow', 'rich'} & set(sys.modules)))"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.splitlines()[-1] == "[]"


def test_show_in_a_real_process_without_a_terminal_and_without_torch(runs: Path) -> None:
    code = "import sys; sys.modules['torch'] = None; from torchtrack.cli import main; main()"
    environ = {**os.environ, "NO_COLOR": "1", "TORCHTRACK_DIR": str(runs), "PYTHONIOENCODING": "utf-8"}
    arguments = [sys.executable, "-c", code, "show", "baseline"]
    result = subprocess.run(arguments, capture_output=True, encoding="utf-8", env=environ, check=False)
    assert (result.returncode, result.stderr) == (0, "")
    assert "calm-otter-7" in result.stdout


def test_the_module_runs_as_a_command(runs: Path) -> None:
    arguments = [sys.executable, "-m", "torchtrack.cli", "show", "typo", "--dir", str(runs)]
    result = subprocess.run(arguments, capture_output=True, text=True, check=False)
    assert result.returncode == 1
    assert "Traceback" not in result.stderr
    assert "no run 'typo'" in result.stderr
