"""What the stability rules concluded of runs, in the store: a server that is started anew need not conclude it again.

A verdict is of some rules and of some rows of a run, and holds for these alone. It goes with the tables that it lies
among when they are made anew, and by itself some months after it was made.
"""

from __future__ import annotations

import functools
import hashlib
import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Final

import pyarrow as pa

from torchtrack import api, stability
from torchtrack.server.metrics import MetricsStore
from torchtrack.stability import Finding
from torchtrack.version import __version__

_SCHEMA: Final = pa.schema(
    [("uid", pa.string()), ("version", pa.uint64()), ("made_of", pa.string()), ("findings", pa.string())]
)


class Verdicts:
    """The last verdict of each run.

    Args:
        store: where they lie.
    """

    def __init__(self, store: MetricsStore) -> None:
        self._store = store

    def of(self, uid: str, rows: tuple[int, int]) -> list[Finding] | None:
        """What was found in these rows of a run by the rules there are; None if that is not known.

        Args:
            uid: of the run.
            rows: what is different once there are others; see `judging.newest`.
        """
        sql = "SELECT made_of, findings FROM verdicts FINAL WHERE uid = {uid:String}"
        for kept in self._store.query(sql, uid=uid).to_pylist():
            if kept["made_of"] == _made_of(rows):
                return _read(kept["findings"])
        return None

    def keep(self, uid: str, rows: tuple[int, int], findings: Sequence[Finding]) -> None:
        """Keep what was found in these rows, instead of what was found before."""
        said = json.dumps([finding.as_dict() for finding in findings])
        row = {"uid": uid, "version": time.time_ns(), "made_of": _made_of(rows), "findings": said}
        self._store.insert("verdicts", pa.Table.from_pylist([row], schema=_SCHEMA))


def _read(said: str) -> list[Finding] | None:
    """The findings; None of what is damaged, so that they are found again."""
    try:
        findings = json.loads(said)
    except ValueError:
        return None
    if not isinstance(findings, list) or not all(isinstance(finding, dict) for finding in findings):
        return None
    return [Finding.from_dict(finding) for finding in findings]


def _made_of(rows: tuple[int, int]) -> str:
    return f"{_rules()} {rows[0]} {rows[1]}"


@functools.cache
def _rules() -> str:
    """What is different once rules conclude something else, or see rows otherwise: by their code."""
    digest = hashlib.sha256(__version__.encode())
    for package in (stability, api):
        for path in sorted(Path(package.__file__ or "").parent.rglob("*.py")):
            digest.update(path.read_bytes())
    return digest.hexdigest()
