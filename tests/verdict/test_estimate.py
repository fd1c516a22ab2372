"""Intervals hold the truth as often as they say: on numbers whose law is known, and on simulated sweeps."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from mutransfer.verdict.estimate import Estimate, central, one_sided, quantile


@pytest.mark.parametrize("level", [0.8, 0.9, 0.95])
@pytest.mark.parametrize("truth", [0.0, 0.5, 1.0, 2.0, 4.0])
def test_the_interval_of_a_square_keeps_its_level_even_at_zero(truth: float, level: float) -> None:
    rng = np.random.default_rng(0)
    base = stats.norm.ppf((np.arange(1000) + 0.5) / 1000)
    hits = []
    for seen in truth + rng.standard_normal(600):
        draws = seen + base
        found = one_sided(seen**2, draws**2, draws**2, draws, level)
        hits.append(found.low <= truth**2 <= found.high)
    assert np.mean(hits) == pytest.approx(level, abs=0.04)


def test_a_central_interval_may_be_open() -> None:
    draws = np.linspace(0, 1, 101)
    found = central(0.5, draws, 0.9, np.where(draws > 0.8, np.inf, draws))
    assert found.low == pytest.approx(0.05) and np.isinf(found.high)


def test_quantiles_between_infinities_are_infinite_not_nan() -> None:
    assert quantile(np.array([-np.inf, -np.inf, 0.0]), 0.25) == -np.inf
    assert quantile(np.array([0.0, np.inf]), 0.5) == np.inf


@pytest.mark.parametrize("value", [-3.0, 0.0, 3.0])
def test_an_interval_holds_its_value(value: float) -> None:
    draws = np.linspace(-1, 1, 101)
    for found in (Estimate(value, -1.0, 1.0), central(value, draws, 0.9)):
        assert found.low <= value <= found.high
    found = one_sided(abs(value), draws**2, draws**2, draws, 0.9)
    assert found.low <= abs(value) <= found.high
