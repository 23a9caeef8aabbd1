"""Steps as rules see them, made of plain numbers."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import pyarrow as pa

from tests.api.journals import tensor_row
from torchtrack.api.findings import block
from torchtrack.records import TENSORS
from torchtrack.stability import Facts, Finding, Monitor, Rule, Step, Tensors, default_rules


def tensors(values: Mapping[str, Any], stage: str = "step") -> Tensors:
    """The rows of one kind, of these values by name."""
    rows = [tensor_row(0, name, held, stage=stage) for name, held in values.items()]
    return block(pa.Table.from_pylist(rows, schema=TENSORS))


RNG = np.random.default_rng(0)
WEIGHT = RNG.normal(0, 0.1, 400)


def scalars(name: str, values: Iterable[float], start: int = 0) -> list[Step]:
    """A metric, a value a step."""
    return [Step(start + at, {name: value}) for at, value in enumerate(values)]


def run(steps: Iterable[Step], rules: list[Rule] | None = None) -> list[Finding]:
    """What the rules find."""
    monitor = Monitor(default_rules() if rules is None else rules)
    for step in steps:
        monitor.update(step)
    return monitor.findings


def noise(count: int, size: float = 0.1, seed: int = 0) -> Any:
    """Log-normal factors around 1."""
    return np.exp(np.random.default_rng(seed).normal(0, size, count))


def rules_of(found: list[Finding], severity: str = "") -> list[str]:
    return [one.rule for one in found if severity in ("", one.severity)]


def samples(kind: str, values: list[dict[str, Any]], facts: Facts | None = None, **more: Any) -> list[Step]:
    """A sample a step."""
    return [Step(at, tensors={kind: tensors(held, **more)}, facts=facts or Facts()) for at, held in enumerate(values)]


def by_rank(name: str, values: Any) -> list[Step]:
    """Values [steps, ranks] of one metric."""
    return [Step(at, {}, {name: dict(enumerate(own.tolist()))}) for at, own in enumerate(values)]
