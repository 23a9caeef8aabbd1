"""What was said of a run, so that nothing is said twice: not after a restart, and not by a rule that cannot decide."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Final

from torchtrack.api.findings import WITHDRAWN
from torchtrack.stability import Finding
from torchtrack.stability.finding import SEVERITIES

_AT_ONCE: Final = 8
"""How often a finding may change before it is told of at most once in `_PAUSE_S`."""
_PAUSE_S: Final = 60.0


@dataclass(slots=True)
class _Last:
    text: str
    finding: Finding
    gone: bool
    times: int = 0
    time_s: float = 0.0


class Said:
    """The last that was said of each finding.

    Args:
        earlier: the data of events that an earlier lookout recorded, oldest first.
    """

    def __init__(self, earlier: Iterable[Mapping[str, Any]]) -> None:
        self._last: dict[str, _Last] = {}
        for data in earlier:
            finding = Finding.from_dict(data)
            self._last[finding.id] = _Last(_text(finding), finding, bool(data.get(WITHDRAWN)))

    def news(self, findings: Iterable[Finding], now_s: float, *, all_of_them: bool, last: bool) -> list[dict[str, Any]]:
        """The data of the events to record.

        Args:
            findings: as they are now.
            now_s: a clock that only goes forward.
            all_of_them: there are no others: what was said and is not among them is withdrawn.
            last: nobody asks again, so that all that changed is said.
        """
        fresh = []
        now = {finding.id: finding for finding in findings}
        for key, finding in now.items():
            before = self._last.get(key)
            if before is None or self._is_news(before, finding, now_s, last=last):
                fresh.append(self._note(key, finding, now_s, gone=False))
        for key in [key for key, before in self._last.items() if all_of_them and key not in now and not before.gone]:
            fresh.append(self._note(key, self._last[key].finding, now_s, gone=True))
        return fresh

    def _is_news(self, before: _Last, finding: Finding, now_s: float, *, last: bool) -> bool:
        if not before.gone and before.text == _text(finding):
            return False
        often = before.times >= _AT_ONCE and now_s < before.time_s + _PAUSE_S
        return last or not often or _rank(finding) > _rank(before.finding)

    def _note(self, key: str, finding: Finding, now_s: float, *, gone: bool) -> dict[str, Any]:
        before = self._last.get(key)
        again = before is not None and _rank(finding) <= _rank(before.finding)
        self._last[key] = _Last(_text(finding), finding, gone, before.times + 1 if before else 1, now_s)
        marks = {"again": True} if again else {}
        return {**finding.as_dict(), **marks, **({WITHDRAWN: True} if gone else {})}


def encode(data: Mapping[str, Any]) -> str:
    """JSON of a finding, whose evidence may hold numbers of numpy."""
    return json.dumps(data, default=lambda value: value.item() if hasattr(value, "item") else str(value))


def _text(finding: Finding) -> str:
    return encode(finding.as_dict())


def _rank(finding: Finding) -> int:
    """How grave it is as something to be told: a consequence is told with its cause."""
    return -1 if finding.cause else SEVERITIES.index(finding.severity)
