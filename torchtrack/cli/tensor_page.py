"""The part of `torchtrack show` about tensors: a line each, with its distribution and how its norm went."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import pyarrow.compute as pc
from rich.table import Table
from rich.text import Text

from torchtrack.api import tensors
from torchtrack.cli import common, draw
from torchtrack.cli.page import heading

if TYPE_CHECKING:
    import pyarrow as pa

    from torchtrack.api import Run

_BARS: Final = 24


@dataclass(frozen=True)
class Row:
    """One tensor at its newest sample."""

    name: str
    step: int
    stage: str
    count: int
    norm: float
    rms: float
    absmax: float
    zeros: float
    nonfinite: int
    coverage: float
    octaves: draw.Floats
    norms: draw.Floats
    """The norm at every sample."""

    def describe(self) -> dict[str, Any]:
        """What --json says."""
        names = ("name", "step", "stage", "count", "norm", "rms", "absmax", "zeros", "nonfinite", "coverage")
        return {name: getattr(self, name) for name in names}


@dataclass(frozen=True)
class View:
    """The tensors of one kind."""

    kind: str
    rows: list[Row]
    samples: int


def view(run: Run, kind: str, pattern: str | None) -> View | None:
    """The newest sample of each tensor of a kind; None if there is none."""
    table = tensors.one_stage(run.tensors(kind, pattern), None)
    if not table.num_rows:
        return None
    names = table.column("name").cast("string").to_pylist()
    norms = table.column("norm").to_numpy()
    places: dict[str, list[int]] = {}
    for at, name in enumerate(names):
        places.setdefault(name, []).append(at)
    rows = [_row(table.slice(at[-1], 1), norms[at]) for at in places.values()]
    return View(kind, sorted(rows, key=lambda row: _natural(row.name)), len(pc.unique(table.column("step"))))


def _row(table: pa.Table, norms: draw.Floats) -> Row:
    row, histogram = table.to_pylist()[0], tensors.histogram(table)
    return Row(
        name=row["name"],
        step=row["step"],
        stage=row["stage"] or "",
        count=row["count"],
        norm=row["norm"],
        rms=histogram.rms,
        absmax=histogram.absmax,
        zeros=row["zeros"] / max(row["count"], 1),
        nonfinite=row["nans"] + row["pos_infs"] + row["neg_infs"],
        coverage=row["coverage"],
        octaves=draw.octaves(histogram.counts),
        norms=norms,
    )


def _natural(name: str) -> list[tuple[int, str]]:
    """layers.2 before layers.10."""
    return [(int(part), "") if part.isdigit() else (-1, part) for part in re.split(r"(\d+)", name)]


def parts(shown: View | None, params: int, width: int) -> Iterator[Any]:
    """Heading, table, and how to see the rest."""
    if shown is None or not params:
        return
    # which to show: those that went wrong, then the largest
    chosen = sorted(
        shown.rows, key=lambda row: (row.nonfinite == 0, -row.norm if math.isfinite(row.norm) else -math.inf)
    )[:params]
    rows = [row for row in shown.rows if row in chosen]
    stages = sorted({row.stage for row in rows if row.stage})
    note = [f"step {max(row.step for row in rows):,}", common.plural(shown.samples, "sample"), *stages]
    yield heading(f"{shown.kind.capitalize()}s" if shown.kind.isalpha() else shown.kind, " · ".join(note))
    yield _table(rows, width)
    left = len(shown.rows) - len(rows)
    if left:
        yield Text(
            f"  {left:,} more: --params {len(shown.rows)} shows all, --name 'layers.3.*' those that match", "dim"
        )


def _table(rows: list[Row], width: int) -> Table:
    low, high = draw.window([row.octaves for row in rows], _BARS)
    broken, partial = any(row.nonfinite for row in rows), any(row.coverage < 1 for row in rows)
    trend = 12 if width >= 110 else 8
    columns = [
        ("norm", 8),
        ("trend", trend),
        *([("rms", 8)] if width >= 110 else []),
        *([("absmax", 8)] if width >= 96 else []),
    ]
    columns += [("zeros", 6), *([("non-finite", 10)] if broken else []), *([("cover", 5)] if partial else [])]
    room = width - _BARS - 2 - sum(size + 2 for _, size in columns)
    room = max(12, min(max(len(row.name) for row in rows) + 2, room))
    table = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False, header_style="dim")
    table.add_column("", no_wrap=True, width=room)
    for name, size in columns:
        table.add_column(name, justify="left" if name == "trend" else "right", width=size, no_wrap=True)
    left, right = draw.power(low - 56), draw.power(high - 56)
    table.add_column(left + right.rjust(_BARS - len(left)), width=_BARS, no_wrap=True)
    for row in rows:
        cells = _cells(row, trend)
        bars = Text(draw.bars(row.octaves, low, high, _BARS), common.CURVE)
        name = row.name if len(row.name) <= room - 2 else "…" + row.name[-(room - 3) :]
        table.add_row(Text("  " + name), *(cells[column] for column, _ in columns), bars)
    return table


def _cells(row: Row, trend: int) -> dict[str, Text]:
    return {
        "norm": Text(common.compact(row.norm), "bold"),
        "trend": Text(draw.sparkline(np.asarray(row.norms), trend), "dim"),
        "rms": Text(common.compact(row.rms)),
        "absmax": Text(common.compact(row.absmax)),
        "zeros": Text(f"{100 * row.zeros:.1f}%", common.WARN if row.zeros >= 0.5 else "dim"),
        "non-finite": Text(f"{row.nonfinite:,}", common.CRITICAL if row.nonfinite else "dim"),
        "cover": Text(f"{100 * row.coverage:.0f}%", common.WARN if row.coverage < 1 else "dim"),
    }
