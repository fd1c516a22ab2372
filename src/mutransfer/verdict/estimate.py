"""An estimate with its interval, and how an interval is read off replicates."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
from scipy.special import ndtr

Array = np.ndarray


@dataclass(frozen=True)
class Estimate:
    """A number and its interval at the verdict's level, low ≤ value ≤ high. An infinite end means that the runs do not bound it."""

    value: float
    low: float
    high: float

    def __post_init__(self) -> None:
        """The interval is widened to hold the value: a mean curve's minimum may lie outside the replicates' quantiles."""
        object.__setattr__(self, "low", min(self.low, self.value))
        object.__setattr__(self, "high", max(self.high, self.value))

    def __float__(self) -> float:
        return self.value

    def to_dict(self) -> dict[str, Any]:
        """Plain numbers; None where unbounded or unknown."""
        return {name: _plain(getattr(self, name)) for name in ("value", "low", "high")}

    def shown(self, digits: int = 2, scale: float = 1.0) -> str:
        """`1.2 [0.9, 1.6]`."""
        value, low, high = (scale * v for v in (self.value, self.low, self.high))
        return f"{value:.{digits}f} [{low:.{digits}f}, {high:.{digits}f}]"


def _plain(value: float) -> float | None:
    return float(value) if np.isfinite(value) else None


def central(value: float, draws: Array, level: float, upper: Array | None = None) -> Estimate:
    """The central interval of `draws` (of `draws` below and `upper` above)."""
    tail = (1 - level) / 2
    low = quantile(draws, tail)
    high = quantile(draws if upper is None else upper, 1 - tail)
    return Estimate(value, low, high)


def quantile(draws: Array, share: float) -> float:
    """Quantile that may be infinite, never nan."""
    ordered = np.sort(draws)
    place = share * (len(ordered) - 1)
    below, above = ordered[int(np.floor(place))], ordered[int(np.ceil(place))]
    if below == above or np.isinf(above):
        return float(above)
    return float(below if np.isinf(below) else below + (place % 1) * (above - below))


def one_sided(value: float, lower: Array, upper: Array, away: Array, level: float) -> Estimate:
    """The interval of a number that cannot be negative and is about the square of a difference of sign unknown.

    `away`: the difference itself. Plain quantiles would never hold a true zero, nor keep their level near
    it. So the quantiles are those which, were the difference normal, give the exact interval of its absolute value in the order of
    likelihood ratios (Feldman & Cousins 1998, for |x| of a normal x).
    """
    below, middle, above = np.quantile(away, [0.1587, 0.5, 0.8413])
    z = float(abs(middle) / max((above - below) / 2, 1e-12))
    grid, lows, highs = _folded(round(level, 6))
    if z >= grid[-1]:
        p_low, p_high = (1 - level) / 2, (1 + level) / 2
    else:
        low, high = float(np.interp(z, grid, lows)), float(np.interp(z, grid, highs))
        p_low, p_high = (float(ndtr(v - z) - ndtr(-v - z)) for v in (low, high))
    low = 0.0 if p_low < 1e-3 else quantile(lower, p_low)
    return Estimate(value, low, quantile(upper, p_high))


@lru_cache(maxsize=8)
def _folded(level: float) -> tuple[Array, Array, Array]:
    """For t = |x|, x ~ N(μ, 1): grid of t, and the interval's ends for |μ|."""
    seen, true = np.arange(0, 8, 0.01) + 0.005, np.arange(0, 6, 0.01)
    grid = np.arange(0, 3.2, 0.02)

    def density(mu: Array) -> Array:
        return (np.exp(-0.5 * (seen - mu) ** 2) + np.exp(-0.5 * (seen + mu) ** 2)) / np.sqrt(2 * np.pi)

    best = np.max([density(np.full_like(seen, mu)) for mu in np.arange(0, 9, 0.02)], axis=0)
    accepted = np.empty((len(true), len(seen)), bool)
    for i, mu in enumerate(true):
        dense = density(np.full_like(seen, mu))
        order = np.argsort(-dense / best, kind="stable")
        total = np.cumsum(dense[order]) * 0.01
        accepted[i, order] = np.concatenate([[True], total[:-1] < level])
    lows, highs = [], []
    for t in grid:
        inside = true[accepted[:, min(int(t / 0.01), len(seen) - 1)]]
        lows.append(inside.min())
        highs.append(inside.max())
    return grid, np.array(lows), np.array(highs)
