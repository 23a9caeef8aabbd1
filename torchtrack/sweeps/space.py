"""Hyper-parameters: fixed, one of several, or drawn from a distribution, as the configuration of a sweep names them."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

_BOUNDED: Final = ("min", "max")
_NEEDS: Final[dict[str, tuple[str, ...]]] = {
    "constant": ("value",),
    "categorical": ("values",),
    "categorical_w_probabilities": ("values", "probabilities"),
    "int_uniform": _BOUNDED,
    "uniform": _BOUNDED,
    "log_uniform": _BOUNDED,
    "log_uniform_values": _BOUNDED,
    "inv_log_uniform": _BOUNDED,
    "inv_log_uniform_values": _BOUNDED,
    "normal": (),
    "log_normal": (),
    "beta": (),
    "q_uniform": _BOUNDED,
    "q_log_uniform": _BOUNDED,
    "q_log_uniform_values": _BOUNDED,
    "q_normal": (),
    "q_log_normal": (),
    "q_beta": (),
}
"""What a distribution has to be given."""
_DEFAULTS: Final = {"mu": 0.0, "sigma": 1.0, "a": 1.0, "b": 1.0, "q": 1.0}
_KNOWN: Final = ("distribution", "value", "values", "probabilities", *_BOUNDED, *_DEFAULTS)
_POSITIVE: Final = ("log_uniform_values", "q_log_uniform_values", "inv_log_uniform_values")
MAX_GRID: Final = 1_000_000
"""Values of a parameter that a grid goes through at most."""


@dataclass(frozen=True)
class Parameter:
    """One hyper-parameter.

    Args:
        distribution: one of those in the documentation, such as "uniform".
        given: its numbers: min, max, mu, sigma, a, b, q.
        values: what it may be, if it is one of several.
        weights: how likely each is.
    """

    distribution: str
    given: Mapping[str, float]
    values: tuple[Any, ...] = ()
    weights: tuple[float, ...] | None = None

    @classmethod
    def of(cls, name: str, asked: Any) -> Parameter:
        """A parameter as the configuration has it.

        Raises:
            ValueError: it is none; the message says what is allowed.
        """
        if not isinstance(asked, Mapping):
            asked = {"value": asked}
        unknown = sorted(set(map(str, asked)) - set(_KNOWN))
        if unknown:
            raise ValueError(f"parameter {name!r} has the key {unknown[0]!r}; it takes {', '.join(_KNOWN)}")
        distribution = str(asked.get("distribution") or _guessed(asked))
        if distribution not in _NEEDS:
            raise ValueError(f"parameter {name!r}: distribution takes one of {', '.join(_NEEDS)}; got {distribution!r}")
        missing = [key for key in _NEEDS[distribution] if key not in asked]
        if missing:
            raise ValueError(f"parameter {name!r} is {distribution} and needs {' and '.join(missing)}, like {_EXAMPLE}")
        if distribution == "constant":
            return cls(distribution, {}, (asked["value"],))
        if distribution.startswith("categorical"):
            return cls(distribution, {}, *_choices(name, asked))
        return cls(distribution, _numbers(name, distribution, asked))

    @property
    def is_fixed(self) -> bool:
        """Whether it is always the same."""
        return self.distribution == "constant"

    def draw(self, rng: random.Random) -> Any:
        """A value by chance."""
        if self.values:
            return rng.choices(self.values, self.weights)[0]
        number = _DRAWS[self.distribution.removeprefix("q_")](rng, self.given)
        return self.rounded(number) if self.distribution.startswith("q_") else number

    def rounded(self, number: float) -> float:
        """The multiple of `q` that is nearest; a whole number where `q` is one."""
        q = self.given["q"]
        near = round(number / q) * q
        return int(near) if float(q).is_integer() else near

    def grid(self, name: str) -> Sequence[Any]:
        """All values, in order.

        Raises:
            ValueError: there is no end of them.
        """
        if self.values:
            return self.values
        if self.distribution not in ("int_uniform", "q_uniform"):
            raise ValueError(
                f"method 'grid' goes through values, but parameter {name!r} is {self.distribution}: give values=[...], "
                "or use the method 'random'"
            )
        step = self.given["q"] if self.distribution == "q_uniform" else 1
        low, high = self.given["min"], self.given["max"]
        count = int((high - low) / step + 1e-9) + 1
        if count > MAX_GRID:
            raise ValueError(f"parameter {name!r} has {count:,} values, more than the {MAX_GRID:,} of a grid")
        found = [low + i * step for i in range(count)]
        return [int(each) if float(each).is_integer() and float(step).is_integer() else each for each in found]


_EXAMPLE: Final = '{"distribution": "uniform", "min": 0, "max": 1} or {"values": [1, 2]}'


def _guessed(asked: Mapping[str, Any]) -> str:
    """The distribution of a parameter that does not name one."""
    if "value" in asked:
        return "constant"
    if "values" in asked:
        return "categorical_w_probabilities" if "probabilities" in asked else "categorical"
    ends = [asked.get(key) for key in _BOUNDED]
    if all(isinstance(end, int) and not isinstance(end, bool) for end in ends):
        return "int_uniform"
    return "uniform" if None not in ends else "missing: value, values, or min and max"


def _choices(name: str, asked: Mapping[str, Any]) -> tuple[tuple[Any, ...], tuple[float, ...] | None]:
    values = asked["values"]
    if not isinstance(values, (list, tuple)) or not values:
        raise ValueError(f"parameter {name!r}: values takes a list with something in it, got {values!r}")
    weights = asked.get("probabilities")
    if weights is None:
        return tuple(values), None
    if len(weights) != len(values) or any(weight < 0 for weight in weights) or not math.isclose(sum(weights), 1):
        raise ValueError(f"parameter {name!r}: probabilities takes one a value, together 1; got {weights!r}")
    return tuple(values), tuple(map(float, weights))


def _numbers(name: str, distribution: str, asked: Mapping[str, Any]) -> dict[str, float]:
    given: dict[str, float] = dict(_DEFAULTS)
    for key in (*_BOUNDED, *_DEFAULTS):
        value = asked.get(key, given.get(key, 0.0))
        value = float(value) if isinstance(value, str) and _is_number(value) else value  # YAML reads 1e-5 as text
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
            raise ValueError(f"parameter {name!r}: {key} takes a number, got {value!r}")
        given[key] = value
    if given["min"] > given["max"] or (distribution in _POSITIVE and given["min"] <= 0):
        least = "0 < min <= max" if distribution in _POSITIVE else "min <= max"
        raise ValueError(f"parameter {name!r} is {distribution} and takes {least}, got {given['min']}, {given['max']}")
    if distribution == "int_uniform" and not all(float(given[key]).is_integer() for key in _BOUNDED):
        raise ValueError(f"parameter {name!r} is int_uniform and takes whole numbers as min and max")
    if given["q"] <= 0 or given["sigma"] < 0 or given["a"] <= 0 or given["b"] <= 0:
        raise ValueError(f"parameter {name!r}: q, a and b are above 0, and sigma is not below it")
    return given


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


_DRAWS: Final[dict[str, Callable[[random.Random, Mapping[str, float]], Any]]] = {
    "int_uniform": lambda rng, of: rng.randint(int(of["min"]), int(of["max"])),
    "uniform": lambda rng, of: rng.uniform(of["min"], of["max"]),
    "log_uniform": lambda rng, of: math.exp(rng.uniform(of["min"], of["max"])),
    "log_uniform_values": lambda rng, of: math.exp(rng.uniform(math.log(of["min"]), math.log(of["max"]))),
    "inv_log_uniform": lambda rng, of: math.exp(-rng.uniform(of["min"], of["max"])),
    "inv_log_uniform_values": lambda rng, of: 1 / math.exp(rng.uniform(-math.log(of["max"]), -math.log(of["min"]))),
    "normal": lambda rng, of: rng.gauss(of["mu"], of["sigma"]),
    "log_normal": lambda rng, of: rng.lognormvariate(of["mu"], of["sigma"]),
    "beta": lambda rng, of: rng.betavariate(of["a"], of["b"]),
}
