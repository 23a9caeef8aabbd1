"""How old versions of artifacts may get: what `artifact.ttl` says, and what `torchtrack gc` removes of that."""

from __future__ import annotations

import enum
import json
from collections.abc import Iterator
from datetime import datetime, timedelta
from pathlib import Path
from typing import Final

from torchtrack.compat import store

NEVER_S: Final = -1.0
"""Of a version that was said to stay, whatever `gc` is told of those that say nothing."""


class ArtifactTTL(enum.Enum):
    """What `artifact.ttl` takes besides a timedelta and None."""

    INHERIT = 0


def seconds(value: object) -> float | None:
    """A ttl in seconds; None for never, and for one that is inherited.

    Raises:
        ValueError: it is not above 0.
    """
    if value is None or value is ArtifactTTL.INHERIT:
        return None
    if not isinstance(value, timedelta) or value <= timedelta(0):
        raise ValueError(f"artifact.ttl takes a timedelta above 0, None or ArtifactTTL.INHERIT; got {value!r}")
    return value.total_seconds()


def over(top: Path, now_s: float, inherited_s: float | None = None) -> Iterator[tuple[Path, str]]:
    """The folders of versions that are older than they may get, and what they are called.

    Args:
        top: the folder of runs.
        now_s: seconds since 1970.
        inherited_s: how old those may get that say nothing; None: as old as they like.
    """
    for manifest in sorted((top / "artifacts").glob("[!.]*/*/v*/manifest.json")):
        try:
            facts = json.loads(manifest.read_text())
            born_s = datetime.fromisoformat(facts["created_at"]).timestamp()
            kept_s = facts.get("terms", {}).get("ttl_s", inherited_s)
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            continue  # what is in doubt stays
        folder = manifest.parent
        old = isinstance(kept_s, (int, float)) and kept_s >= 0 and now_s - born_s > kept_s
        if old and folder.name not in store.aliases(folder.parent).values():
            yield folder, f"{facts['name']}:{folder.name}"
