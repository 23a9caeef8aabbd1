"""What stability rules found, training scripts alerted to and alert rules fired on, in many runs at once."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

from torchtrack.api.run import Run
from torchtrack.errors import RunNotFoundError
from torchtrack.server import overview
from torchtrack.server.answers import jsonable
from torchtrack.server.reading import Reader
from torchtrack.stability import Finding

MOST_FIRINGS: Final = 500
_SEVERITY_OF: Final = {"error": "critical", "warning": "warning"}
"""Of the levels of `Run.alert`; all others are "info"."""


def alarms(reader: Reader, project: str, runs: int) -> dict[str, Any]:
    """Findings and alerts of the newest runs of a project that may be read, and what alert rules fired on in any run.

    The newest come first. A finding is of the time at which it was recorded first; one that only the replay of the
    rows has, of the time at which its run began.

    Args:
        reader: of the runs.
        project: which; `-`: all.
        runs: how many runs are looked at.

    Returns:
        `lines`, `runs`: how many were looked at, and `of`: how many there are.
    """
    one = None if project == "-" else project
    known = overview.names(reader.store, reader.scope(one))
    names = {each.uid: each for each in known}
    lines = [_fired(row, names[row["uid"]]) for row in reader.firings(one, MOST_FIRINGS) if row["uid"] in names]
    for each in known[:runs]:
        try:
            found = reader.findings(each.uid)
            with reader.run(each.uid) as run:
                about = {"uid": run.uid, "run": reader.row(run)["name"], "project": each.project}
                lines += [{**about, **line} for line in (*_found(run, found), *_alerted(run))]
        except RunNotFoundError:  # deleted since the names were read
            continue
    lines.sort(key=lambda line: (line["time"], line["step"] or 0), reverse=True)
    return {"lines": jsonable(lines), "runs": min(runs, len(known)), "of": len(known)}


def _fired(row: Mapping[str, Any], run: overview.Name) -> dict[str, Any]:
    return {
        "uid": run.uid,
        "run": run.name,
        "project": run.project,
        "source": "rule",
        "severity": row["severity"],
        "title": row["name"],
        "text": row["text"],
        "time": row["at"],
        "step": row["step"],
        "ranks": [],
        "names": [],
        "over": row["cleared"],
        "told": row["told"],
    }


def _found(run: Run, found: Sequence[Finding]) -> list[dict[str, Any]]:
    since: dict[str, str] = {}
    for event in run.events("finding"):
        since.setdefault(Finding.from_dict(event.data, event.step).id, event.time.isoformat())
    began = run.created.isoformat()
    return [
        {
            "source": "finding",
            "severity": one.severity,
            "title": one.rule.replace("_", " "),
            "text": one.why,
            "time": since.get(one.id, began),
            "step": one.first_step,
            "ranks": list(one.ranks),
            "names": list(one.names),
        }
        for one in found
    ]


def _alerted(run: Run) -> list[dict[str, Any]]:
    return [
        {
            "source": "alert",
            "severity": _SEVERITY_OF.get(str(event.data.get("level")), "info"),
            "title": str(event.data.get("title") or ""),
            "text": str(event.data.get("text") or ""),
            "time": event.time.isoformat(),
            "step": event.step,
            "ranks": [event.rank],
            "names": [],
        }
        for event in run.events("alert")
    ]
