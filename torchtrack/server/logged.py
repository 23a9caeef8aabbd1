"""What runs logged that is no number: texts, and files such as images, by name and step, of several runs at once."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final, Literal, get_args

from torchtrack.server.answers import jsonable
from torchtrack.server.media import Shown
from torchtrack.server.metrics import MetricsStore
from torchtrack.server.placement import Placed, lookup, shown

Source = Literal["media", "texts"]
Kind = Literal["image", "audio", "video", "html", "table", "figure", "file", "text"]
MOST_ROWS: Final = 200
"""Of one name, run and step: eight ranks that log a sheet of images each stay below that."""
_HEADS: Final[Mapping[str, Kind]] = {"image": "image", "audio": "audio", "video": "video"}
_KINDS: Final[Mapping[str, Kind]] = {
    **{mime: _HEADS[head] for mime in get_args(Shown) if (head := mime.partition("/")[0]) in _HEADS},
    "text/html": "html",
    "application/vnd.torchtrack.table+json": "table",
    "application/vnd.plotly+json": "figure",
}
_STEP: Final = "step IS NOT NULL"
_NAMED: Final = "name = {name:String}"
_COLUMNS: Final[Mapping[Source, str]] = {"media": "sha256, mime, size, caption", "texts": "text"}


def kind_of(mime: str | None) -> Kind:
    """How a file is shown, by its type."""
    return _KINDS.get(mime or "", "file")


def names(store: MetricsStore, runs: Mapping[str, Sequence[Placed]]) -> list[dict[str, Any]]:
    """What was logged by the runs, by name: of which kinds, how many rows, at how many steps."""
    found: dict[tuple[str, str], dict[str, Any]] = {}
    if not any(runs.values()):
        return []
    sources: tuple[Source, ...] = ("media", "texts")
    for source in sources:
        seen = shown(store, source, list(runs.values()), f"{_STEP} AND name IS NOT NULL")
        rows = store.query(
            f"SELECT name, groupUniqArray({'mime' if source == 'media' else 'name'}) AS mimes, count() AS rows, "
            f"uniqExact(step) AS steps FROM {source} WHERE {seen.sql} GROUP BY name ORDER BY name",
            **seen.parameters,
        ).to_pylist()
        for row in rows:
            kinds = sorted({kind_of(mime) for mime in row.pop("mimes")}) if source == "media" else ["text"]
            found[source, row["name"]] = {**row, "source": source, "kinds": kinds}
    return [found[key] for key in sorted(found, key=lambda key: (key[1], key[0]))]


def steps(store: MetricsStore, runs: Mapping[str, Sequence[Placed]], source: Source, name: str) -> list[int]:
    """The steps at which one of the runs logged something under a name."""
    if not any(runs.values()):
        return []
    seen = shown(store, source, list(runs.values()), f"{_STEP} AND {_NAMED}", name=name)
    rows = store.query(f"SELECT DISTINCT step FROM {source} WHERE {seen.sql} ORDER BY step", **seen.parameters)
    found: list[int] = rows["step"].to_pylist()
    return found


def at(
    store: MetricsStore, runs: Mapping[str, Sequence[Placed]], source: Source, name: str, step: int | None
) -> list[dict[str, Any]]:
    """What each run has logged last under a name, up to a step; None is the end.

    Returns:
        For each run, in their order: `run`, `step` (None if it has nothing), `n` rows there are at that step, and of
        these the first as `rows`, by rank and then in the order logged.
    """
    found: list[dict[str, Any]] = [{"run": uid, "step": None, "n": 0, "rows": []} for uid in runs]
    if not any(runs.values()):
        return found
    run = lookup("runs")
    seen = shown(store, source, list(runs.values()), f"{_STEP} AND {_NAMED}", name=name)
    where = seen.sql + ("" if step is None else f" AND step <= {int(step)}")
    rows = store.query(
        f"SELECT {run} AS run, {lookup('ranks')} AS rank, step, at AS time, {_COLUMNS[source]}, "
        f"count() OVER (PARTITION BY run) AS n FROM {source} WHERE {where} AND ({run}, step) IN "
        f"(SELECT {run}, max(step) FROM {source} WHERE {where} GROUP BY 1) "
        f"ORDER BY run, rank, stream, seq, row LIMIT {MOST_ROWS} BY run",
        **seen.parameters,
        runs=[number for number, streams in enumerate(runs.values()) for _ in streams],
    ).to_pylist()
    for row in rows:
        here = found[row.pop("run")]
        here["step"], here["n"] = row.pop("step"), row.pop("n")
        here["rows"].append(jsonable(described(row)))
    return found


def described(row: Mapping[str, Any]) -> dict[str, Any]:
    """A row, and how it is shown."""
    return {**row, "kind": "text" if "text" in row else kind_of(row["mime"])}


__all__ = ["Kind", "Source", "at", "described", "names", "steps"]
