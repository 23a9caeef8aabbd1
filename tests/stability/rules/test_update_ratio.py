"""Steps too large or small for the weights."""

from __future__ import annotations

import pytest

from tests.stability import steps
from tests.stability.steps import WEIGHT
from torchtrack.stability import Step


@pytest.mark.parametrize(("ratio", "severity"), [(1e-5, "info"), (1e-3, None), (3e-2, "info"), (0.5, "warning")])
def test_steps_of_the_wrong_size_are_said(ratio: float, severity: str | None) -> None:
    rows = {"update": steps.tensors({"a": WEIGHT * ratio}), "parameter": steps.tensors({"a": WEIGHT})}
    found = steps.run(Step(at, tensors=rows) for at in range(10))
    assert [(one.rule, one.severity) for one in found] == ([] if severity is None else [("update_ratio", severity)])


def test_what_starts_at_zero_has_no_ratio_yet() -> None:
    rows = {"update": steps.tensors({"a": WEIGHT * 1e-4}), "parameter": steps.tensors({"a": WEIGHT * 1e-4})}
    assert steps.run(Step(at, tensors=rows) for at in range(10)) == []


@pytest.mark.parametrize(("elements", "found"), [(255, False), (256, True)])
def test_small_tensors_have_no_ratio(elements: int, found: bool) -> None:
    few = WEIGHT[:elements]
    rows = {"update": steps.tensors({"a": few * 0.5}), "parameter": steps.tensors({"a": few})}
    assert bool(steps.run(Step(at, tensors=rows) for at in range(10))) == found
