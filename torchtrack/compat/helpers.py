"""`wandb.util`: the few functions of it that scripts call."""

from __future__ import annotations

import re
import secrets
import string
from typing import Any, Final

_UNITS: Final = {"": 0, "K": 1, "M": 2, "G": 3, "T": 4, "P": 5}
_SIZE: Final = re.compile(r"\s*([0-9.]+)\s*([KMGTP]?)(I?)B?\s*", re.IGNORECASE)


def generate_id(length: int = 8) -> str:
    """Random letters and digits, from the system's source: no random state is touched."""
    return "".join(secrets.choice(string.ascii_lowercase + string.digits) for _ in range(length))


def make_artifact_name_safe(name: str) -> str:
    """The text with every character that a name of an artifact cannot have as `_`, cut in the middle at 128."""
    safe = re.sub(r"[^a-zA-Z0-9_\-.]", "_", name)
    return safe if len(safe) <= 128 else f"{safe[:63]}..{safe[-63:]}"


def from_human_size(size: str, units: Any = None) -> int:
    """Bytes of a text such as "2.5GB" (powers of 1000) or "2GiB" (powers of 1024).

    Raises:
        ValueError: it is none.
    """
    del units
    found = _SIZE.fullmatch(size)
    if not found:
        raise ValueError(f"a size is written like 2.5GB or 2GiB, got {size!r}")
    return int(float(found[1]) * (1024 if found[3] else 1000) ** _UNITS[found[2].upper()])


def to_human_size(size: float, units: Any = None) -> str:
    """Bytes as a text such as "2.5GB"."""
    del units
    for unit in ("B", "KB", "MB", "GB", "TB"):
        if size < 1000 or unit == "TB":
            break
        size /= 1000
    return f"{size:.1f}{unit}"
