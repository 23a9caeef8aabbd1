"""Records of journals that readers and servers take in: a damaged one must not stop what is read of all others.

Only what readers rely on is looked at, wherever it stands; records may say more.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from torchtrack.journal.frame import Kind

RECORDS: Final = frozenset({Kind.META, Kind.GAP, Kind.HEARTBEAT, Kind.SEAL})
"""Frames whose payload is a record."""
_PLACES: Final = ("attempt", "rank", "local_rank", "node", "world_size")
_MAX_PLACE: Final = 10_000_000
_TIMES: Final = ("start_time_ns", "start_mono_ns", "time_ns", "since_ns", "until_ns")
_COUNTS: Final = ("pid", "code", "signal", "rows")
_TEXTS: Final = ("type", "uid", "role", "stream", "host", "reason", "parent", "boot_id", "error", "project")
_MISSING: Final = frozenset({*_PLACES, "code", "signal", "parent", "boot_id", "error", "project", "from_step"})
"""What may be null."""
_LIMITS: Final = {
    **dict.fromkeys(_PLACES, (-_MAX_PLACE, _MAX_PLACE)),
    "attempt": (0, _MAX_PLACE),
    "from_step": (-(1 << 63), (1 << 63) - 1),
    **dict.fromkeys(_TIMES, (0, (1 << 63) - 1)),
    **dict.fromkeys(_COUNTS, (-(1 << 31), 1 << 62)),
}


def problem(record: Mapping[str, Any]) -> str | None:
    """Why no rank or node writes such a record, None if one may."""
    for name, value in record.items():
        if value is None and name in _MISSING:
            continue
        limits = _LIMITS.get(name)
        if limits and not (isinstance(value, int) and limits[0] <= value <= limits[1]):
            return f"{name} is a whole number from {limits[0]} to {limits[1]}"
        if name in _TEXTS and not isinstance(value, str):
            return f"{name} is a text"
        if name == "streams" and not (isinstance(value, list) and all(isinstance(each, str) for each in value)):
            return "streams is a list of texts"
    return None
