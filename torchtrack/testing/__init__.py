"""What torchtrack tests itself with, for your tests too.

`ranks` runs a test's body on real processes with the environment torchrun gives; `torchrun` runs a script under the
real torchrun; `leaks` tells what a test left behind; `SyncGuard` tells what would wait for an accelerator, without one.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from torchtrack.testing.ranks import RankError, Ranks, close_pool, ranks, torchrun

if TYPE_CHECKING:
    from torchtrack.testing.syncguard import SyncGuard

__all__ = ["RankError", "Ranks", "SyncGuard", "close_pool", "ranks", "torchrun"]


def __getattr__(name: str) -> Any:
    if name == "SyncGuard":  # it needs torch, which the rest does not
        from torchtrack.testing.syncguard import SyncGuard

        return SyncGuard
    raise AttributeError(f"module 'torchtrack.testing' has no attribute {name!r}")
