"""Clipping that sets every step."""

from __future__ import annotations

import numpy as np
import pytest

from tests.stability import steps


@pytest.mark.parametrize(("coefficient", "severity"), [(0.5, None), (0.05, "info"), (0.001, "warning")])
def test_clipping_that_cuts_all_away_is_said(coefficient: float, severity: str | None) -> None:
    found = steps.run(steps.scalars("watch/clip_coef", coefficient * steps.noise(40)))
    assert [one.severity for one in found] == ([] if severity is None else [severity])


def test_a_median_needs_a_window_and_nearly_all_clipped() -> None:
    assert steps.run(steps.scalars("watch/clip_coef", np.full(31, 0.05))) == []
    often = np.where(np.arange(200) % 10 == 0, 1.0, 0.05)  # 90 % are clipped
    assert steps.run(steps.scalars("watch/clip_coef", often)) == []
