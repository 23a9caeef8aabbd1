"""The gradient noise scale against gradients whose signal and noise are known."""

from __future__ import annotations

import math

import numpy as np
import pytest

from torchtrack.stability.noise_scale import MIN_STEPS, NoiseScale, noise_scale

DIMENSIONS = 50


def drawn(ranks: int, batch: int, steps: int, signal: float = 3.0, seed: int = 0) -> NoiseScale | None:
    """Of gradients with one signal and, for each sample, noise of variance 1 in each dimension."""
    random = np.random.default_rng(seed)
    true = np.zeros(DIMENSIONS)
    true[0] = signal
    own = true + random.standard_normal((steps, ranks, DIMENSIONS)) / math.sqrt(batch)
    norms, averaged = np.linalg.norm(own, axis=2), np.linalg.norm(own.mean(axis=1), axis=1)
    return noise_scale(norms, averaged, samples=batch)


@pytest.mark.parametrize(("ranks", "batch"), [(2, 4), (2, 64), (4, 4), (8, 16)])
def test_it_finds_signal_and_noise(ranks: int, batch: int) -> None:
    found = drawn(ranks, batch, 4000)

    assert found is not None
    assert found.signal == pytest.approx(9.0, rel=0.1)
    assert found.noise == pytest.approx(DIMENSIONS / batch, rel=0.1)
    assert found.critical_batch_size == pytest.approx(DIMENSIONS / 9.0, rel=0.15)  # whatever ranks and batch


def test_the_band_holds_the_truth_about_as_often_as_it_says() -> None:
    truth = DIMENSIONS / 4 / 9.0
    bands = [found for seed in range(200) if (found := drawn(2, 4, 200, seed=seed)) is not None]

    assert 180 <= sum(band.low <= truth <= band.high for band in bands) <= 199


def test_a_signal_that_noise_hides_has_no_upper_end() -> None:
    found = drawn(2, 1, 10, signal=0.01)

    assert found is not None
    assert found.high == math.inf


def test_steps_that_are_not_finite_do_not_count() -> None:
    own = np.ones((MIN_STEPS, 2)) * 2
    own[0, 1] = math.nan

    assert noise_scale(own, np.ones(MIN_STEPS)) is None
    assert noise_scale(own[1:].repeat(2, axis=0), np.ones(2 * MIN_STEPS - 2)) is not None


def test_one_rank_tells_nothing() -> None:
    assert noise_scale(np.ones((100, 1)), np.ones(100)) is None


def test_shapes_that_do_not_match_are_refused() -> None:
    with pytest.raises(ValueError, match="takes"):
        noise_scale(np.ones((10, 2)), np.ones(9))
