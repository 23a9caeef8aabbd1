"""Which trials are not worth going on with: at some counts of values, all but the best share of those that came there.

Li, Jamieson, DeSalvo, Rostamizadeh, Talwalkar: Hyperband (JMLR 18, 2018); here each bracket is asked on its own, as
trials come to it one by one.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

_KEYS: Final = ("type", "min_iter", "max_iter", "s", "eta", "strict")


@dataclass(frozen=True)
class Hyperband:
    """When a trial is stopped.

    Attributes:
        brackets: counts of logged values at which trials are compared, ascending.
        eta: the best 1 / eta of the trials go on.
        strict: whether a trial is stopped wherever it is found to be too bad, not only when it comes to a bracket.
    """

    brackets: tuple[int, ...]
    eta: float = 3.0
    strict: bool = False

    @classmethod
    def of(cls, asked: Any) -> Hyperband:
        """As the configuration of a sweep has it.

        Raises:
            ValueError: it is another kind, or the numbers make no bracket.
        """
        if not isinstance(asked, Mapping) or asked.get("type") != "hyperband" or set(asked) - set(_KEYS):
            raise ValueError(f"early_terminate takes type: hyperband with {', '.join(_KEYS[1:])}; got {asked!r:.100}")
        eta, least, most = asked.get("eta", 3), asked.get("min_iter"), asked.get("max_iter")
        if not isinstance(eta, (int, float)) or eta <= 1:
            raise ValueError(f"early_terminate: eta takes a number above 1; got {eta!r}")
        given = least if most is None else most
        if (least is None) == (most is None) or not isinstance(given, int) or given <= 0:
            raise ValueError("early_terminate takes min_iter, or max_iter with s, as numbers of values above 0")
        if most is None:
            brackets = [int(given * eta**k) for k in range(64) if given * eta**k < 1e9]
        else:
            count = asked.get("s") or max(1, int(math.log(given, eta)))
            brackets = [max(1, int(given / eta**k)) for k in range(int(count), 0, -1)]
        return cls(tuple(sorted(set(brackets))), float(eta), bool(asked.get("strict", False)))

    def stops(self, mine: Sequence[float], others: Sequence[Sequence[float]], *, smaller_is_better: bool) -> bool:
        """Whether a trial is to be stopped now.

        Args:
            mine: the values of the metric that it has logged, in order.
            others: those of the other trials of the sweep, ended or not.
            smaller_is_better: the goal.
        """
        sign = 1.0 if smaller_is_better else -1.0
        reached = [count for count in self.brackets if count <= len(mine)]
        for count in reached if self.strict else reached[-1:]:
            best = sorted(_best(values, count, sign) for values in others if len(values) >= count)
            allowed = max(1, int((len(best) + 1) / self.eta))
            if len(best) >= allowed and _best(mine, count, sign) > best[allowed - 1]:
                return True
        return False


def _best(values: Sequence[float], count: int, sign: float) -> float:
    """The best of the first `count` values; what is no number is worse than any."""
    return min((sign * value for value in values[:count] if not math.isnan(value)), default=math.inf)
