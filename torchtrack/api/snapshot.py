"""A run as a notebook shows it: a static piece of HTML that loads nothing and runs nothing."""

from __future__ import annotations

from html import escape
from typing import TYPE_CHECKING, Any, Final

from torchtrack.api.streams import OWN_PREFIXES

if TYPE_CHECKING:
    from torchtrack.api.run import Run

MOST_VALUES: Final = 6
MOST_POINTS: Final = 200
WIDTH: Final = 320
HEIGHT: Final = 64


def html(run: Run) -> str:
    """Name, state, last values, and the curve of the first metric that has one. Every text of the run is escaped."""
    own = [key for key in run.keys() if not key.startswith((*OWN_PREFIXES, "system/"))]  # noqa: SIM118  # not a dict
    summary = run.summary
    values = "".join(
        f'<tr><td>{escape(key)}</td><td style="text-align:right">{escape(_text(summary[key]))}</td></tr>'
        for key in own[:MOST_VALUES]
        if key in summary
    )
    more = f"<p>and {len(own) - MOST_VALUES} more metrics</p>" if len(own) > MOST_VALUES else ""
    return (
        f"<div><p><strong>{escape(run.name)}</strong> {escape(run.state)}, {escape(run.project)} "
        f"<code>{escape(run.uid)}</code></p>{_curve(run, own)}<table>{values}</table>{more}</div>"
    )


def _curve(run: Run, keys: list[str]) -> str:
    for key in keys[:MOST_VALUES]:
        rows = run.series(key, MOST_POINTS)
        points = [
            (step, value)
            for step, *ends in zip(*(rows[name].to_pylist() for name in ("step", "min", "max")), strict=True)
            for value in ends
            if value is not None
        ]
        if len({step for step, _ in points}) > 1:
            return f"<p>{escape(key)}</p>{_svg(key, points)}"
    return ""


def _svg(key: str, points: list[tuple[int, float]]) -> str:
    steps, values = [step for step, _ in points], [value for _, value in points]
    left, low = min(steps), min(values)
    across, up = max(steps) - left or 1, max(values) - low
    room = HEIGHT - 4
    places = " ".join(
        f"{(step - left) / across * WIDTH:.1f},{2 + room * (1 - ((value - low) / up if up else 0.5)):.1f}"
        for step, value in points
    )
    return (
        f'<svg role="img" aria-label="{escape(key)}" width="{WIDTH}" height="{HEIGHT}" '
        f'viewBox="0 0 {WIDTH} {HEIGHT}"><polyline points="{places}" fill="none" stroke="#4d99d1" '
        f'stroke-width="1.5"/></svg>'
    )


def _text(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)
