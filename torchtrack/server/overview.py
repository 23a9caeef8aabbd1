"""Questions about many runs, answered from the table of runs in SQL: filtered, sorted, grouped, in pages."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal

from torchtrack.server.answers import jsonable
from torchtrack.server.filters import STATE, Condition
from torchtrack.server.ledger import LIVE
from torchtrack.server.metrics import MetricsStore

Aggregate = Literal["mean", "min", "max"]
_AGGREGATES: Final[Mapping[Aggregate, str]] = {"mean": "avg", "min": "min", "max": "max"}


@dataclass(frozen=True)
class Scope:
    """Which runs a question is about: of a project or of all, without those that were deleted."""

    project: str | None = None
    deleted: frozenset[str] = frozenset()
    readable: frozenset[str] | None = None
    """The projects whose runs may be seen; None: all."""

    @property
    def parameters(self) -> dict[str, Any]:
        """What `sql` refers to."""
        return {
            "project": self.project or "",
            "deleted": sorted(self.deleted),
            "readable": sorted(self.readable or ()),
            "now_us": time.time_ns() // 1000,
        }

    @property
    def sql(self) -> str:
        """SQL for their rows."""
        project = "" if self.project is None else " AND texts['project'] = {project:String}"
        readable = "" if self.readable is None else " AND has({readable:Array(String)}, texts['project'])"
        deleted = " AND uid NOT IN {deleted:Array(String)}" if self.deleted else ""
        return f"{LIVE}{project}{readable}{deleted}"


def page(
    store: MetricsStore, scope: Scope, where: Condition, sort: Sequence[str], limit: int, offset: int
) -> tuple[int, list[dict[str, Any]]]:
    """How many runs match, and those of one page."""
    parameters: dict[str, Any] = {**scope.parameters, **where.parameters, "limit": limit, "offset": offset}
    order = _order(sort, parameters)
    found = store.query(
        f"SELECT uid, {STATE} AS state, count() OVER () AS n FROM {scope.sql} AND {where.sql} ORDER BY {order} "
        "LIMIT {limit:UInt64} OFFSET {offset:UInt64}",
        **parameters,
    ).to_pylist()
    number = found[0]["n"] if found else _count(store, scope, where) if offset else 0
    shown = _shown(store, [row["uid"] for row in found])
    return number, [{**shown[row["uid"]], "state": row["state"]} for row in found if row["uid"] in shown]


def _count(store: MetricsStore, scope: Scope, where: Condition) -> int:
    sql = f"SELECT count() AS n FROM {scope.sql} AND {where.sql}"
    return int(store.query(sql, **scope.parameters, **where.parameters)["n"].to_pylist()[0])


def _shown(store: MetricsStore, uids: Sequence[str]) -> dict[str, dict[str, Any]]:
    rows = store.query(f"SELECT uid, shown FROM {LIVE} AND uid IN {{uids:Array(String)}}", uids=list(uids))
    return dict(zip(rows["uid"].to_pylist(), map(json.loads, rows["shown"].to_pylist()), strict=True))


def states(store: MetricsStore, scope: Scope, uids: Sequence[str]) -> dict[str, str]:
    """What became of some runs, by uid."""
    sql = f"SELECT uid, {STATE} AS state FROM {scope.sql} AND uid IN {{uids:Array(String)}}"
    rows = store.query(sql, uids=list(uids), **scope.parameters)
    return dict(zip(rows["uid"].to_pylist(), rows["state"].to_pylist(), strict=True))


@dataclass(frozen=True)
class Name:
    """What a run is called by."""

    uid: str
    id: str
    name: str
    project: str


def names(store: MetricsStore, scope: Scope) -> list[Name]:
    """What the runs are called, newest first."""
    columns = ", ".join(f"texts['{key}'] AS {key}_" for key in ("id", "name", "project"))
    rows = store.query(
        f"SELECT uid, {columns} FROM {scope.sql} ORDER BY texts['created'] DESC, uid DESC", **scope.parameters
    )
    return [Name(*each.values()) for each in rows.to_pylist()]


def _order(sort: Sequence[str], parameters: dict[str, Any]) -> str:
    """SQL to sort by fields, each descending with a minus before: numbers before words, what lacks it at the end."""
    parts = []
    for number, key in enumerate(sort):
        parameters[f"sort_{number}"] = name = key.removeprefix("-")
        field, way = f"{{sort_{number}:String}}", "DESC" if key.startswith("-") else "ASC"
        value = f"if(mapContains(bools, {field}), toFloat64(bools[{field}]), numbers[{field}])"
        text = STATE if name == "state" else f"texts[{field}]"
        is_word = f"NOT (mapContains(numbers, {field}) OR mapContains(bools, {field}))"
        parts.append(f"mapContains(texts, {field}) AND isFinite({value}) DESC, {is_word} {way}, {value} {way}")
        parts.append(f"if({is_word}, {text}, '') {way}")
    return ", ".join([*parts, "texts['created'] DESC", "uid DESC"])


def groups(
    store: MetricsStore,
    scope: Scope,
    where: Condition,
    sort: Sequence[str],
    by: Sequence[str],
    columns: Sequence[str],
    aggregate: Aggregate,
) -> list[dict[str, Any]]:
    """How many runs have the same values in some fields, and what their numbers are together."""
    parameters: dict[str, Any] = {**scope.parameters, **where.parameters, "by": list(by), "columns": list(columns)}
    order = _order(sort, parameters)
    same = "arrayMap(key -> if(key = 'state', now_state, texts[key]), {by:Array(String)})"
    numbers = "arrayMap(key -> if(isFinite(numbers[key]) AND mapContains(numbers, key), numbers[key], NULL), "
    rows = store.query(
        f"SELECT {same} AS same, any(uid) AS one, any(now_state) AS state, count() AS n, min(place) AS first, "
        f"{_AGGREGATES[aggregate]}ForEach(values) AS together FROM (SELECT uid, texts, {STATE} AS now_state, "
        f"{numbers}{{columns:Array(String)}}) AS values, row_number() OVER (ORDER BY {order}) AS place "
        f"FROM {scope.sql} AND {where.sql}) GROUP BY same ORDER BY first",
        **parameters,
    ).to_pylist()
    shown = _shown(store, [row["one"] for row in rows])
    return [
        {
            "values": [value({**shown[row["one"]], "state": row["state"]}, name) for name in by],
            "n": row["n"],
            "columns": {name: v for name, v in zip(columns, row["together"], strict=True) if v is not None},
        }
        for row in rows
    ]


def projects(store: MetricsStore, scope: Scope) -> list[dict[str, Any]]:
    """The projects: runs, those that are running or did not end well, and when the newest began."""
    found: list[dict[str, Any]] = store.query(
        "SELECT texts['project'] AS project, count() AS runs, countIf(now_state = 'running') AS running, "
        "countIf(now_state IN ('failed', 'killed', 'crashed')) AS failed, max(texts['created']) AS newest "
        f"FROM (SELECT texts, {STATE} AS now_state FROM {scope.sql}) GROUP BY project ORDER BY project",
        **scope.parameters,
    ).to_pylist()
    return found


def keys(store: MetricsStore, scope: Scope, part: str) -> dict[str, list[dict[str, Any]]]:
    """What runs have, and how many of them: metrics, settings, kinds and names of tensors, where lines were printed."""
    parameters = {**scope.parameters, "part": part}
    like = "position(key, {part:String}) > 0"
    fields = store.query(
        "SELECT field, substring(field, position(field, '.') + 1) AS key, count() AS runs FROM (SELECT "
        f"arrayJoin(mapKeys(texts)) AS field FROM {scope.sql}) WHERE {like} AND (startsWith(field, 'summary.') OR "
        "startsWith(field, 'config.')) GROUP BY field, key ORDER BY key",
        **parameters,
    ).to_pylist()
    tensors = store.query(
        "SELECT kind, key, count() AS runs FROM (SELECT kind_.1 AS kind, arrayJoin(kind_.2) AS key FROM (SELECT "
        f"arrayJoin(CAST(tensors, 'Array(Tuple(String, Array(String)))')) AS kind_ FROM {scope.sql})) WHERE {like} "
        "GROUP BY kind, key ORDER BY kind, key",
        **parameters,
    ).to_pylist()
    logs = store.query(
        f"SELECT key, count() AS runs FROM (SELECT arrayJoin(sources) AS key FROM {scope.sql}) WHERE {like} "
        "GROUP BY key ORDER BY key",
        **parameters,
    ).to_pylist()

    def of(head: str, *, system: bool | None = None) -> list[dict[str, Any]]:
        mine = [each for each in fields if each["field"].startswith(head)]
        kept = [each for each in mine if system is None or each["key"].startswith("system/") is system]
        return [{"key": each["key"], "runs": each["runs"]} for each in kept]

    kinds: dict[str, int] = {}
    for each in tensors:
        kinds[each["kind"]] = max(kinds.get(each["kind"], 0), each["runs"])
    return {
        "metric": of("summary.", system=False),
        "system": of("summary.", system=True),
        "config": of("config."),
        "kind": [{"key": kind, "runs": runs} for kind, runs in sorted(kinds.items())],
        "tensor": tensors,
        "log": logs,
    }


def lookup(run: Mapping[str, Any], field: str) -> Any:
    """The value of a field of a run; None if it has none."""
    if field in run:
        return run[field]
    head, _, key = field.partition(".")
    inside: Any = run.get(head)
    if not key or not isinstance(inside, Mapping):
        return None
    if key in inside:
        return inside[key]
    for part in key.split("."):
        inside = inside.get(part) if isinstance(inside, Mapping) else None
    return inside


def value(run: Mapping[str, Any], field: str) -> Any:
    """The same for JSON."""
    return jsonable(lookup(run, field))
