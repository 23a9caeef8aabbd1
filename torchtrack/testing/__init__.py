"""What torchtrack tests itself with, for your tests too.

`ranks` runs a test's body on real processes with the environment torchrun gives; `torchrun` runs a script under the
real torchrun; `leaks` tells what a test left behind.
"""

from torchtrack.testing.ranks import RankError, Ranks, close_pool, ranks, torchrun

__all__ = ["RankError", "Ranks", "close_pool", "ranks", "torchrun"]
