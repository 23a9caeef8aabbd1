"""What the tests of imports share: importing a folder, and reading the runs back."""

from __future__ import annotations

from pathlib import Path

import torchtrack
from torchtrack.api.run import Run
from torchtrack.importers import Losses, find, import_run


def bring(source: Path, runs: Path, kind: str | None = None) -> tuple[list[int], Losses]:
    """Import a source: how many rows of each run were added, and what was lost."""
    found = find(source, kind)
    losses, rows = found.losses, []
    for run in found.runs:
        result = import_run(runs, run)
        rows.append(result.rows)
        losses.add(result.losses)
    return rows, losses


def recorded(runs: Path) -> dict[str, Run]:
    """The runs by name."""
    return {run.name: run for run in torchtrack.Api(runs).runs()}


def points(run: Run, name: str) -> list[tuple[int, float]]:
    """Step and value of a metric, each as it was logged."""
    rows = run.history(name, raw=True)
    pairs = zip(rows["step"].to_pylist(), rows[name].to_pylist(), strict=True)
    return [(step, value) for step, value in pairs if value is not None]
