"""Which questions the page asks for what it draws, so that a file can have the answers in itself.

A panel of a report is a block of its Markdown, a field a line:

    ```panel
    metric: loss
    runs: 0123456789abcdef, fedcba9876543210
    from: 1000
    to: 2000
    ```

The page parses the same blocks and asks the same questions (web/src/reports/panel.ts, and the panels themselves): what
it asks for and a file has not is said in the panel.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, Final

from torchtrack.server.bodies import HEX16

Question = tuple[str, Any]
"""A path below /api/v1, and the body of a POST; None for a GET."""
Panel = Mapping[str, str]

PIXELS: Final = 1000
"""Buckets of a line in a file: twice as many points are there as they are."""
HEAT_PIXELS: Final = 500
MAX_RUNS: Final = 200
"""Runs of a panel."""
MAX_RANKS: Final = 64
MAX_HEAT_RANKS: Final = 256
RUNS_AT_ONCE: Final = 40
"""As many as fit into a filter."""
STATS: Final = {"median": "norm", "norm": "norm", "absmax": "absmax", "zeros": "zeros"}
KINDS: Final = ("gradient", "parameter", "update", "activation", "optimizer")
AXES: Final = ("relative", "time", "metric")
"""What lies along x if it is not steps."""
STABILITY: Final = r"(^|[/_])loss$|^watch/grad_norm$"
LOCAL_NORM: Final = "watch/local_grad_norm"
_FENCE: Final = re.compile(r"^[ \t>]*(?:[-*+][ \t]+|\d+[.)][ \t]+)*(`{3,}|~{3,})[ \t]*panel[ \t]*$")
_QUOTE: Final = re.compile(r"^[ \t>]*")
_TAUS: Final = [digit * 10**power for power in range(9) for digit in (1, 2, 5)] + [10**9]


def panels(text: str) -> Iterator[Panel]:
    """The panels of a report's Markdown, in order."""
    lines = iter(text.splitlines())
    for line in lines:
        opened = _FENCE.match(line)
        if opened is None:
            continue
        fields: dict[str, str] = {}
        for inner in lines:
            said = _QUOTE.sub("", inner)
            if said.startswith(opened[1]):
                break
            name, colon, value = said.partition(":")
            if colon:
                fields[name.strip()] = value.strip()
        yield fields


def runs_of(panel: Panel) -> list[str]:
    """The uids of the runs a panel is pinned to."""
    given = (each.strip() for each in panel.get("runs", "").split(","))
    return [uid for uid in dict.fromkeys(given) if re.fullmatch(HEX16, uid)][:MAX_RUNS]


def about_runs(panel: Panel) -> list[Question]:
    """What is asked of a panel's runs before anything else."""
    uids = runs_of(panel)
    columns = ["uid", "name", "project", "state", "last_step", "world_size"]
    columns += [panel["group"]] if panel.get("group") else []
    return [
        ("projects/-/runs/query", {"filter": f"uid in {json.dumps(some)}", "columns": columns, "limit": RUNS_AT_ONCE})
        for start in range(0, len(uids), RUNS_AT_ONCE)
        if (some := uids[start : start + RUNS_AT_ONCE])
    ]


def of_panel(panel: Panel, runs: Sequence[Mapping[str, Any]]) -> list[Question]:
    """What a panel asks, once it knows of its runs.

    Args:
        panel: its fields.
        runs: of each that there is: `uid`, `last_step`, `world_size`.
    """
    if not runs:
        return []
    show, first = panel.get("show", "curves"), runs[0]
    span = _steps(panel)
    kind = panel.get("kind", "gradient")
    if show == "layers":
        stat = STATS.get(panel.get("mode", "median"), "norm")
        return [heatmap(first["uid"], kind, stat, span)]
    if show == "ranks":
        return [of_ranks(first, panel.get("of", LOCAL_NORM), span)]
    if show == "distribution":
        return [histogram(first["uid"], kind, panel.get("tensor", "*"), span)]
    return curves(panel, runs)


def curves(panel: Panel, runs: Sequence[Mapping[str, Any]]) -> list[Question]:
    """What a panel of lines asks: one question, or on a logarithmic axis one for each part of it."""
    metric = panel.get("metric", "")
    by_rank = len(runs) == 1 and panel.get("ranks") in ("all", "band")
    items: list[dict[str, Any]] = [{"run": run["uid"], "metric": metric} for run in runs]
    if by_rank:
        items = [{**items[0], "rank": rank} for rank in range(min(runs[0]["world_size"], MAX_RANKS))]
    tau = _number(panel.get("smooth", ""))
    smooth = {"kind": "ema", "tau": nearest_tau(tau)} if tau is not None and tau >= 1 else None
    mode, _, along = panel.get("x", "step").partition(":")
    low, high = _range(panel)
    x: dict[str, Any] = _steps(panel)
    if mode in AXES:
        x = {"mode": mode, **({"metric": along} if mode == "metric" else {}), "from": low, "to": high}
    last = max((run["last_step"] or 0 for run in runs), default=0)
    spans = [(x["from"], x["to"])]
    if panel.get("logx") == "1" and mode != "time" and (mode not in AXES or low is not None):
        spans = list(parts(x["from"] or 0, max(last, 1) + 1 if x["to"] is None else x["to"]))
    return [
        ("series", {"items": items, "x": {**x, "from": start, "to": stop}, "px": PIXELS, "smooth": smooth})
        for start, stop in spans
    ]


def parts(start: float, stop: float) -> Iterator[tuple[float, float]]:
    """Where the parts of a logarithmic axis begin and end, each of which has buckets of its own."""
    cut = 64.0
    while cut < stop:
        if cut > start:
            yield start, cut
            start = cut
        cut *= 8
    yield start, stop


def heatmap(uid: str, kind: str, stat: str, span: Mapping[str, Any]) -> Question:
    """Layers over steps."""
    return "heatmap", {"run": uid, "kind": kind, "stat": stat, "x": span, "px": HEAT_PIXELS}


def histogram(uid: str, kind: str, name: str, span: Mapping[str, Any]) -> Question:
    """The distribution of a tensor over steps, or of all that match."""
    return "histogram", {"run": uid, "kind": kind, "name": name, "x": span, "px": HEAT_PIXELS}


def of_ranks(run: Mapping[str, Any], metric: str, span: Mapping[str, Any]) -> Question:
    """A metric of each rank over steps."""
    ranks = range(min(run["world_size"], MAX_HEAT_RANKS))
    items = [{"run": run["uid"], "metric": metric, "rank": rank} for rank in ranks]
    return "series", {"items": items, "x": span, "px": HEAT_PIXELS}


def of_run(run: Mapping[str, Any], metrics: Iterable[str]) -> Iterator[Question]:
    """What the page of a run asks for its curves and ranks, smoothed as it is until one chooses.

    Along x lie steps, or what `define_metric` said; below the loss and the gradient norm of the Stability view, steps.
    """
    span, tau = {"from": None, "to": None}, default_tau(run["last_step"])
    smooth = None if tau == 0 else {"kind": "ema", "tau": tau}
    for metric in metrics:
        items = [{"run": run["uid"], "metric": metric}]
        along = run["definitions"].get(metric, {}).get("step_metric")
        if along is not None:
            x = {"mode": "metric", "metric": along, **span}
            yield "series", {"items": items, "x": x, "px": HEAT_PIXELS, "smooth": None}
        if along is None or re.search(STABILITY, metric):
            yield "series", {"items": items, "x": span, "px": HEAT_PIXELS, "smooth": smooth}
    if run["world_size"] > 1:
        yield of_ranks(run, LOCAL_NORM, span)


def default_tau(last_step: int | None) -> int:
    """Over how many steps the page smooths unless told: about a hundredth of all; 0 is not at all."""
    return max((tau for tau in _TAUS if tau <= max(last_step or 0, 1) / 100), default=0)


def nearest_tau(wanted: float) -> int:
    """Of the taus that the page offers, the largest that is not above what is wanted; at least 1."""
    return max((tau for tau in _TAUS if tau <= wanted), default=1)


def _range(panel: Panel) -> tuple[float | None, float | None]:
    """What is shown of x; it takes both ends."""
    low, high = _number(panel.get("from", "")), _number(panel.get("to", ""))
    return (None, None) if low is None or high is None or low >= high else (low, high)


def _steps(panel: Panel) -> dict[str, Any]:
    """The steps a panel asks for: half-open, with the whole of the steps at both ends."""
    low, high = _range(panel)
    return {"from": None if low is None else math.floor(low), "to": None if high is None else math.ceil(high) + 1}


def _number(text: str) -> float | None:
    try:
        value = float(text)
    except ValueError:
        return None
    return value if math.isfinite(value) else None
