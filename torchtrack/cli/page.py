"""The parts of `torchtrack show` about a run as a whole: header, config, curves, findings, what was lost."""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any, Final

import numpy as np
from rich.table import Table
from rich.text import Text

from torchtrack.cli import common, draw
from torchtrack.cli.list import main_metrics

if TYPE_CHECKING:
    from torchtrack.api import Run

_CURVES: Final = 4
_CONFIG_ROWS: Final = 8
_SIGNS: Final = {
    "critical": ("▲", common.CRITICAL),
    "error": ("▲", common.CRITICAL),
    "warning": ("◆", common.WARN),
    "warn": ("◆", common.WARN),
}


def heading(title: str, note: str = "") -> Text:
    """The line above a part, after an empty one."""
    return Text.assemble("\n", (title, "bold"), ("  " + note if note else "", "dim"))


def grid(**columns: Any) -> Table:
    """A table without lines, set in by two."""
    table = Table(box=None, show_header=False, padding=(0, 2, 0, 0), pad_edge=False, **columns)
    return table


def parts(run: Run, width: int) -> Iterator[Any]:
    """Everything above the tensors."""
    yield from _header(run, width)
    yield from _config(run, width)
    yield from _curves(run, width)
    yield from _findings(run)


def _header(run: Run, width: int) -> Iterator[Any]:
    attempts, environment = run.attempts, run.environment
    sign, colour = common.STATES[run.state]
    why = _why(run)
    title = Text.assemble(
        "\n", (run.name, "bold"), "  ", (f"{sign} {run.state}", colour), no_wrap=True, overflow="ellipsis"
    )
    yield title.append(f"  {why}" if why else "", "dim")
    hosts = list(dict.fromkeys(host for attempt in attempts for host in attempt.hosts))
    where = hosts[0] if len(hosts) == 1 else f"{len(hosts)} hosts"
    facts = [
        f"{run.project}/{run.id}" if run.id != run.uid else run.project,
        run.uid,
        f"{common.plural(run.world_size, 'rank')} on {where}",
    ]
    facts += [f"attempt {attempts[-1].number}"] if attempts and attempts[-1].number > 1 else []
    facts += [common.span(run.duration), f"started {common.age(run.created)}"]
    yield _wrapped(facts, width)
    if run.tags:
        yield Text("  " + " ".join(f"#{tag}" for tag in run.tags), common.ACCENT)
    if run.notes:
        yield Text("  " + run.notes.strip())
    argv = environment.get("argv")
    if isinstance(argv, list) and argv:
        yield Text("  $ " + shlex.join(map(str, argv)), "dim", no_wrap=True, overflow="ellipsis")


def _why(run: Run) -> str:
    attempts = run.attempts
    return attempts[-1].why if attempts and run.state not in ("running", "finished") else ""


def _wrapped(facts: list[str], width: int) -> Text:
    """Facts with dots between, on as many lines as they need; a fact is never broken."""
    lines, line = [], ""
    for fact in facts:
        longer = f"{line} · {fact}" if line else fact
        if line and len(longer) + 2 > width:
            lines.append(line)
            longer = fact
        line = longer
    return Text("\n".join(f"  {text}" for text in [*lines, line]), "dim")


def _config(run: Run, width: int) -> Iterator[Any]:
    items = [
        (key, common.short(value) if not isinstance(value, (dict, list)) else _nested(value))
        for key, value in run.config.items()
    ]
    if not items:
        return
    shown = items[: 2 * _CONFIG_ROWS]
    yield heading("Config", f"{len(shown)} of {len(items)}; all with --json" if len(items) > len(shown) else "")
    half = -(-len(shown) // 2) if len(shown) > 3 else len(shown)
    room = (width - 2) // 2 - 4
    table = grid()
    for style, most in (("dim", 20), ("", max(12, room - 20))) * 2:
        table.add_column(style=style, no_wrap=True, overflow="ellipsis", max_width=most)
    for at in range(half):
        cells = [
            Text(cell)
            for pair in (shown[at], shown[at + half] if at + half < len(shown) else ("", ""))
            for cell in pair
        ]
        table.add_row(Text("  ").append_text(cells[0]), *cells[1:])
    yield table


def _nested(value: Any) -> str:
    if isinstance(value, dict):
        return "{" + ", ".join(f"{key}: {_nested(item)}" for key, item in value.items()) + "}"
    return "[" + ", ".join(map(_nested, value)) + "]" if isinstance(value, list) else common.short(value)


def _curves(run: Run, width: int) -> Iterator[Any]:
    summary = run.summary
    own = run.keys("watch/")
    names = [name for name in main_metrics(summary) if run.keys(name)]
    shown = names[:_CURVES] + [name for name in ("watch/grad_norm",) if name in own]
    if not shown:
        return
    last = run.last_step or 0
    more = [name for name in summary if name not in shown and not name.startswith("system/")]
    yield heading(
        "Metrics", f"steps 0 to {last:,}" + (f" · mean of {run.world_size} ranks" if run.world_size > 1 else "")
    )
    left = min(max(map(len, shown)), 22)
    room = max(16, min(80, width - left - 36))
    yield Text(f"  {'':<{left}}  {'':<{room}}" + "".join(f"{name:>10}" for name in ("last", "min", "max")), "dim")
    for name in shown:
        yield _curve(run, name, last, left, room)
    if more:
        yield Text("")
        yield _others(summary, more, width)


def _curve(run: Run, name: str, last: int, left: int, room: int) -> Text:
    """Two lines: name, curve, last, smallest and largest value; the second is the curve's alone."""
    series = run.series(name, max_points=2 * room)
    columns = ("step", "last_step", "min", "mean", "max")
    first, end, low, mean, high = (
        series.column(key).to_numpy(zero_copy_only=False).astype(np.float64) for key in columns
    )
    step, said = (first + end) / 2, run.definition(name)
    along = said.get("step_metric")
    x, drawn = None, (low, mean, high)
    if along and said.get("step_sync") is False:
        x, values = _together(run, along, name)
        drawn = drawn if x is None else (values, values, values)
    elif along:
        x = _along(run, along, step, 2 * room)
    left_edge, right_edge = (0, last) if x is None else (float(x.min()), float(x.max()))
    spikes = draw.with_spikes(*drawn)
    lines = draw.curve(step if x is None else x, *spikes, first=left_edge, last=right_edge, width=room, height=2)
    text = Text(no_wrap=True, overflow="ellipsis")
    text.append(f"  {_cut(name, left):<{left}}  ").append(lines[0], common.CURVE)
    text.append(f"{common.number(run.summary.get(name, float('nan'))):>10}", "bold")
    finite = ~np.isnan(low)
    for value in (low[finite].min(), high[finite].max()) if finite.any() else ():
        text.append(f"{common.number(float(value)):>10}", "dim")
    text.append(f"\n  {'':<{left}}  ").append(lines[1], common.CURVE)
    bad = sum(series.column("nonfinite").to_pylist())
    if x is not None:
        text.append(f"  along {along}, {common.number(left_edge)} to {common.number(right_edge)}", "dim")
    return text.append(f"  {bad:,} not finite" if bad else "", common.CRITICAL)


def _along(run: Run, metric: str, step: draw.Floats, points: int) -> draw.Floats | None:
    """What `define_metric` puts along x, at these steps; None if the run has none of it."""
    if metric not in run.keys() or not len(step):  # noqa: SIM118
        return None
    series = run.series(metric, max_points=points)
    first, end, mean = (
        series.column(key).to_numpy(zero_copy_only=False).astype(np.float64) for key in ("step", "last_step", "mean")
    )
    known = np.isfinite(mean)
    return np.interp(step, ((first + end) / 2)[known], mean[known]) if known.any() else None


def _together(run: Run, along: str, name: str) -> tuple[draw.Floats | None, draw.Floats]:
    """Two metrics at the steps that have both; None for the first if there are no such."""
    if along not in run.keys():  # noqa: SIM118
        return None, np.empty(0)
    rows = run.history([along, name])
    x, y = (rows.column(key).to_numpy(zero_copy_only=False).astype(np.float64) for key in (along, name))
    both = np.isfinite(x) & ~np.isnan(y)
    return (x[both] if both.any() else None), y[both]


def _others(summary: dict[str, Any], names: list[str], width: int) -> Text:
    facts = [f"{name} {common.short(summary[name])}" for name in names[:12]]
    return _wrapped(facts, width)


def _cut(name: str, room: int) -> str:
    """A name that keeps its end, which tells it apart."""
    return name if len(name) <= room else "…" + name[len(name) - room + 1 :]


def _findings(run: Run) -> Iterator[Any]:
    findings: list[tuple[int | None, Mapping[str, Any]]]
    findings = [(finding.first_step, finding.as_dict()) for finding in run.findings()]
    findings += [(event.step, event.data) for event in run.events("alert")]
    findings += [(event.step, {"severity": "warning", **event.data}) for event in run.events("warning")]
    if not findings:
        return
    yield heading("Findings", f"the newest 8 of {len(findings)}" if len(findings) > 8 else "")
    table = grid()
    for column in ({"no_wrap": True}, {"no_wrap": True, "style": "dim", "justify": "right"}, {"overflow": "fold"}):
        table.add_column(**column)
    for step, data in findings[-8:]:
        sign, colour = _SIGNS.get(str(data.get("severity") or data.get("level") or "").lower(), ("○", ""))
        title = str(data.get("rule") or data.get("title") or data.get("key") or "finding")
        first = data.get("first_step", step)
        why = str(data.get("why") or data.get("text") or data.get("message") or "")
        table.add_row(Text(f"  {sign} {title}", colour), "" if first is None else f"step {first:,}", Text(why))
    yield table


def _boxes(run: Run) -> Iterator[Any]:
    """That there is a black box; one that is still being written to is none yet."""
    files = [file for file in run.blackbox_files() if file.path.suffix == ".ttb" and not file.is_live]
    if files:
        ranks = sorted({file.rank for file in files})
        named = ", ".join(map(str, ranks[:8])) + (f" and {len(ranks) - 8} more" if len(ranks) > 8 else "")
        kept = sorted({file.why for file in files if file.why})
        text = Text.assemble("\nblack box: last steps of ", f"rank{'s' if len(ranks) > 1 else ''} {named}")
        text.append(f", kept at {', '.join(kept)}" if kept else "")
        yield text.append(f"  (torchtrack blackbox {run.uid})", "dim")


def ending(run: Run) -> Iterator[Any]:
    """What is left of ranks that did not end well; what is missing, said also where nothing is."""
    yield from _boxes(run)
    dropped, damages = run.dropped, run.damages
    lost = sum(damage.lost for damage in damages)
    line = Text("\n")
    line.append(f"dropped rows: {dropped:,}", common.WARN if dropped else "dim").append(" · ", "dim")
    if damages:
        line.append(
            f"damaged: {common.plural(len(damages), 'place')}, {common.plural(lost, 'frame')} lost", common.WARN
        )
        line.append("  (torchtrack fsck says where)", "dim")
    else:
        line.append("damaged: none", "dim")
    yield line
