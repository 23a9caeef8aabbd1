"""`torchtrack blackbox`: the last steps of every rank."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import click

from torchtrack.cli import common

if TYPE_CHECKING:
    from torchtrack.api import Run
    from torchtrack.api.blackbox import Left

_WORST: Final = 3
_LINES: Final = 24
"""Of the stack of a thread, how many lines are shown."""
_OURS: Final = re.compile(r"\btorchtrack/\S+\", line \d+ in _(?:main|load)$", re.MULTILINE)


@click.command()
@click.argument("run", default="last")
@click.option("--steps", default=16, show_default=True, type=click.IntRange(1), help="How many steps of each rank.")
@click.option("--rank", type=click.IntRange(0), help="Only this rank.")
@click.option("--json", "as_json", is_flag=True, help="JSON instead of tables.")
@common.folder_option
def blackbox(run: str, steps: int, rank: int | None, as_json: bool, folder: Path | None) -> None:
    """Show the last steps of every rank of RUN that did not end well, and where its Python code was.

    Norm and absmax are over all gradients of the rank; beside them the tensors that are not finite, or else those that
    have grown most against their own median.
    """
    with common.friendly():
        found = common.find_run(folder, run)
        files = [file for file in found.blackbox_files() if rank in (None, file.rank)]
        ranks = _ranks(found, rank, steps)
        if as_json:
            click.echo(json.dumps(common.jsonable(_describe(ranks, files)), indent=2))
        elif not ranks and not files:
            click.echo(f"no black box of run {found.name}: its processes ended well, or none was kept")
        else:
            console = common.console()
            for part in (*_tables(ranks), *_files(files)):
                console.print(part)


Step = dict[str, Any]


def _ranks(run: Run, rank: int | None, steps: int) -> dict[tuple[int, int], list[Step]]:
    """By attempt and rank, the last steps: step, time, norm, absmax, nonfinite, skipped, worst."""
    grouped: dict[tuple[int, int], dict[Any, list[dict[str, Any]]]] = {}
    for row in run.blackbox().to_pylist():
        if rank in (None, row["rank"]):
            by_time = grouped.setdefault((row["attempt"], row["rank"]), {})
            by_time.setdefault(row["time"], []).append(row)
    return {
        key: [_step(rows, _medians(by_time.values())) for rows in list(by_time.values())[-steps:]]
        for key, by_time in sorted(grouped.items())
    }


def _medians(every: Any) -> dict[str, float]:
    import statistics

    norms: dict[str, list[float]] = {}
    for rows in every:
        for row in rows:
            if math.isfinite(row["norm"]):
                norms.setdefault(row["name"], []).append(row["norm"])
    return {name: statistics.median(values) for name, values in norms.items()}


def _step(rows: Sequence[dict[str, Any]], medians: dict[str, float]) -> Step:
    bad = [row for row in rows if row["nonfinite"]]

    def growth(row: dict[str, Any]) -> float:
        usual = medians.get(row["name"], 0.0)
        return float(row["norm"] / usual) if usual > 0 else 0.0

    chosen = bad or sorted(rows, key=growth, reverse=True)
    sizes = [row["absmax"] for row in rows]
    return {
        **{key: rows[0][key] for key in ("step", "time", "skipped")},
        "norm": math.sqrt(math.fsum(row["norm"] ** 2 for row in rows)) if not bad else math.nan,
        "absmax": math.nan if any(map(math.isnan, sizes)) else max(sizes),
        "nonfinite": sum(row["nonfinite"] for row in rows),
        "worst": [
            {"name": row["name"], **{k: row[k] for k in ("norm", "absmax", "nonfinite")}, "growth": growth(row)}
            for row in chosen[:_WORST]
        ],
        "more": max(0, len(bad) - _WORST),
    }


def _describe(ranks: dict[tuple[int, int], list[Step]], files: Sequence[Left]) -> dict[str, Any]:
    return {
        "ranks": [{"attempt": attempt, "rank": rank, "steps": steps} for (attempt, rank), steps in ranks.items()],
        "files": [
            {"path": str(file.path), "rank": file.rank, "attempt": file.attempt, "why": file.why or "end"}
            for file in files
        ],
    }


def _tables(ranks: dict[tuple[int, int], list[Step]]) -> Iterator[Any]:
    from rich.table import Table
    from rich.text import Text

    several = len({attempt for attempt, _ in ranks}) > 1
    for (attempt, rank), steps in ranks.items():
        of = f" of attempt {attempt}" if several else ""
        yield Text.assemble("\n", (f"rank {rank}{of}", "bold"), (f"  last step {steps[-1]['step']:,}", "dim"))
        table = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False, header_style="dim", expand=True)
        for name in ("step", "time", "norm", "absmax", "not finite"):
            table.add_column(name, justify="left" if name == "time" else "right", no_wrap=True)
        table.add_column("worst", overflow="ellipsis", no_wrap=True, ratio=1)
        for step in steps:
            bad = f"{step['nonfinite']:,}" if step["nonfinite"] else ""
            table.add_row(
                f"{step['step']:,}",
                f"{step['time']:%H:%M:%S.%f}"[:-3],
                common.number(step["norm"]),
                common.number(step["absmax"]),
                Text(bad, common.CRITICAL),
                Text(_worst(step), common.CRITICAL if bad else "dim"),
            )
        yield table


def _worst(step: Step) -> str:
    if step["nonfinite"]:
        names = ", ".join(f"{one['name']} ({one['nonfinite']:,})" for one in step["worst"])
        more = f" and {step['more']} more" if step["more"] else ""
    else:
        names = ", ".join(f"{one['name']} x{one['growth']:.2g}" for one in step["worst"])
        more = ""
    return names + more + ("; left out by the scaler" if step["skipped"] else "")


def _files(files: Sequence[Left]) -> Iterator[Any]:
    from rich.text import Text

    rings = [file for file in files if file.path.suffix == ".ttb"]
    if rings:
        kept = sorted({file.why for file in rings if file.why})
        yield Text(
            f"\nfrom {common.plural(len(rings), 'file')}" + (f", kept at {', '.join(kept)}" if kept else ""), "dim"
        )
    for file in files:
        if file in rings:
            continue
        why = f"rank {file.rank}" + (f", kept at {file.why}" if file.why else "")
        where = "" if file.is_salvaged else "  (where the process wrote it)"
        yield Text.assemble("\n", (why, "bold"), ("  " + str(file.path) + where, "dim"))
        text = _text(file.path) if file.path.suffix == ".stacks" else ""
        blocks = [block for block in text.split("\n\n") if block.strip()]
        shown = [block for block in blocks if not _OURS.search(block)]
        for block in shown:
            lines = block.strip("\n").splitlines()
            yield Text("\n".join(f"  {line}" for line in lines[:_LINES]), no_wrap=True, overflow="ellipsis")
        if len(blocks) > len(shown):
            yield Text(f"  and {common.plural(len(blocks) - len(shown), 'thread')} of torchtrack's own", "dim")


def _text(path: Path) -> str:
    try:
        return path.read_text(errors="replace")
    except OSError:
        return ""  # it has been salvaged meanwhile
