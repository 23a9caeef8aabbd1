"""`torchtrack watch-run`: a run while it goes on."""

from __future__ import annotations

from pathlib import Path

from tests.cli.conftest import Cli


def test_a_run_that_has_ended_is_told_in_plain_lines_and_ends_the_command(cli: Cli, runs: Path) -> None:
    result = cli("watch-run", "baseline")
    assert result.exit_code == 0
    first, second = result.stdout.splitlines()
    assert "warning: loss_spike  step 17  rank 0  it rose" in first
    assert "calm-otter-7  ✓ finished  step 20" in second
    assert "\x1b" not in result.stdout


def test_once_does_not_wait_for_a_run_that_goes_on(cli: Cli, runs: Path) -> None:
    result = cli("watch-run", "red-fox-1", "--once")
    assert result.exit_code == 0
    assert "● running  step 0  acc 0.5" in result.stdout
