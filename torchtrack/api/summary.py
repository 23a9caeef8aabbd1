"""One value a metric: the last of its history, unless `define_metric` says else; what the user set wins."""

from __future__ import annotations

import fnmatch
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Final

import numpy as np

from torchtrack.api.charts import finite
from torchtrack.api.hiding import Hides
from torchtrack.api.history import Part, Window, combined
from torchtrack.api.streams import Floats

_NO_STEPS: Final = np.zeros(0, np.int64)


def definition(name: str, metrics: Sequence[Mapping[str, Any]]) -> Mapping[str, Any]:
    """What `define_metric` said of this very name, else of the last pattern that matches it.

    What it said later of the same name or pattern is added to what it said before, unless it is to `overwrite` that.
    """
    exact = [metric for metric in metrics if metric.get("name") == name]
    globs = [metric for metric in metrics if fnmatch.fnmatchcase(name, str(metric.get("name", "")))]
    found: dict[str, Any] = {}
    for said in exact or [metric for metric in globs if metric.get("name") == globs[-1].get("name")]:
        kept = {} if said.get("overwrite") else found
        found = {**kept, **{key: value for key, value in said.items() if value is not None}}
    return found


def how(defined: Mapping[str, Any]) -> str:
    """last, min, max, mean or none."""
    wanted = str(defined.get("summary") or "last")
    if wanted == "best":
        return "max" if defined.get("goal") == "maximize" else "min"
    return wanted if wanted in ("min", "max", "mean", "none") else "last"


def values(
    parts: Sequence[Part], codes: Mapping[str, int], hides: Hides | None, metrics: Sequence[Mapping[str, Any]]
) -> Iterator[tuple[str, float]]:
    """Name and value of each metric that has one.

    Args:
        parts: the scalars of all ranks and attempts.
        codes: the metrics wanted, by name.
        hides: what later attempts hide of earlier ones.
        metrics: what `define_metric` said, in order.
    """
    for name, code in codes.items():
        kind = how(definition(name, metrics))
        if kind == "none":
            continue
        last = _last_step(parts, code, hides) if kind == "last" else None
        window = Window(last, None if last is None else last + 1, hides)
        column = combined(parts, [(name, code)], window).column(-1).drop_null().to_numpy()
        if last is not None and not len(column):  # parts of that step's value are missing
            column = combined(parts, [(name, code)], Window(hides=hides)).column(-1).drop_null().to_numpy()
        if len(column):
            yield name, _reduced(kind, column)


def _reduced(kind: str, column: Floats) -> float:
    """One of many. min, max and mean look at finite values if there are any."""
    if kind == "last":
        return float(column[-1])
    column = finite(column) if np.isfinite(column).any() else column
    reduce: dict[str, Callable[[Floats], Any]] = {"min": np.min, "max": np.max, "mean": np.mean}
    return float(reduce[kind](column))


def _last_step(parts: Sequence[Part], code: int, hides: Hides | None) -> int | None:
    """The last step at which a metric is visible."""
    window, last = Window(hides=hides), None
    for part in parts:
        points = part.points(code)
        keep = None if points is None else window.clip(part.attempt, points.step, code)
        steps = _NO_STEPS if points is None else points.step if keep is None else points.step[keep]
        if len(steps):
            last = int(steps.max()) if last is None else max(last, int(steps.max()))
    return last
