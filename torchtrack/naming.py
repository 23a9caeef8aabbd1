"""Names for people: two words and a number that follow from a run's uid."""

from __future__ import annotations

from typing import Final

_QUALITIES: Final = (
    "amber", "ample", "bold", "brave", "bright", "brisk", "calm", "clear", "cosy", "crisp", "deep", "eager", "fair",
    "fine", "fresh", "glad", "grand", "keen", "kind", "light", "lively", "lucid", "mild", "neat", "nimble", "plain",
    "proud", "quick", "quiet", "stable", "sunny", "swift",
)  # fmt: skip
_THINGS: Final = (
    "anchor", "apple", "arrow", "bay", "beacon", "birch", "bridge", "brook", "canyon", "cedar", "cliff", "cloud",
    "comet", "coral", "delta", "ember", "fern", "field", "forest", "glade", "harbor", "heron", "island",
    "lagoon", "lantern", "maple", "meadow", "orchard", "pebble", "river", "summit", "valley",
)  # fmt: skip


def name_of(uid: str) -> str:
    """The name of the run with this uid (hexadecimal digits)."""
    number = int(uid, 16)
    return f"{_QUALITIES[number % 32]}-{_THINGS[number // 32 % 32]}-{number // 1024 % 1000}"
