"""Which samples a rank trained on: a digest of their ids, so that readers see which rank had whose batch."""

from __future__ import annotations

import hashlib
import math
import sys
from collections.abc import Iterable
from typing import Any, Final

import numpy as np
import numpy.typing as npt

DIGEST: Final = "_tt/batch"
"""The metric that holds the digest of a step: 53 bits, which a float64 holds exactly;"""
MIDDLE: Final = "_tt/batch_middle"
"""and the one with the mean of the ids, where they are numbers: it tells whose part of the data a batch is from."""

Words = npt.NDArray[np.uint64]
_BITS: Final = 11
_MASK: Final = (1 << 64) - 1
_GAMMA: Final = np.uint64(0x9E3779B97F4A7C15)
_MIX: Final = ((30, np.uint64(0xBF58476D1CE4E5B9)), (27, np.uint64(0x94D049BB133111EB)))
_LAST_SHIFT: Final = np.uint64(31)


class Batches:
    """The ids of the samples of the step under way. Micro-batches add up; order does not matter.

    **Threads:** the training thread. Neither call waits.
    """

    def __init__(self) -> None:
        self._digest = 0
        self._sum = 0.0
        self._count = 0

    def add(self, ids: Any) -> None:
        """Take in the ids of a batch.

        Args:
            ids: whole numbers or strings: one, a sequence, an array, or a tensor on the CPU; of any shape.

        Raises:
            TypeError: they are neither, or lie on an accelerator, which would have to be waited for.
        """
        words, numbers = _words(ids)
        if len(words):
            self._digest = (self._digest + int(_mixed(words).sum(dtype=np.uint64))) & _MASK
            self._sum += math.nan if numbers is None else float(numbers.sum(dtype=np.float64))
            self._count += len(words)

    def take(self) -> dict[str, float]:
        """Metric name -> value of what was added since the last call; nothing without."""
        if not self._count:
            return {}
        found = {DIGEST: float(self._digest >> _BITS)}
        if math.isfinite(self._sum):
            found[MIDDLE] = self._sum / self._count
        self._digest, self._sum, self._count = 0, 0.0, 0
        return found


def _words(ids: Any) -> tuple[Words, npt.NDArray[Any] | None]:
    """64 bits an id, and the ids as numbers if they are."""
    torch = sys.modules.get("torch")
    if torch is not None and isinstance(ids, torch.Tensor):
        if ids.device.type != "cpu":
            raise TypeError(f"mark(batch=) takes ids on the CPU: reading them from {ids.device} would wait for it")
        ids = ids.detach().numpy()
    if isinstance(ids, (str, bytes)):
        ids = (ids,)
    if isinstance(ids, Iterable) and not isinstance(ids, np.ndarray):
        ids = list(ids)
        if ids and all(isinstance(one, (str, bytes, tuple)) for one in ids):
            return np.array([_hashed(one) for one in ids], np.uint64), None
    numbers = np.asarray(ids)
    if numbers.dtype.kind in "US":
        return np.array([_hashed(one) for one in numbers.reshape(-1).tolist()], np.uint64), None
    if numbers.size and numbers.dtype.kind not in "iub":
        raise TypeError(f"mark(batch=) takes ids as whole numbers or strings, got {type(ids).__name__} {ids!r:.60}")
    numbers = numbers.reshape(-1)
    return numbers.astype(np.int64, copy=False).view(np.uint64), numbers


def _hashed(one: Any) -> int:
    text = one if isinstance(one, bytes) else str(one).encode("utf-8", "surrogatepass")
    return int.from_bytes(hashlib.blake2b(text, digest_size=8).digest(), "little")


def _mixed(words: Words) -> Words:
    """Each word with all its bits spread (splitmix64, Steele, Lea and Flood 2014), so that sums tell sets apart."""
    mixed: Words = words + _GAMMA
    for shift, factor in _MIX:
        mixed = (mixed ^ (mixed >> np.uint64(shift))) * factor
    mixed = mixed ^ (mixed >> _LAST_SHIFT)
    return mixed
