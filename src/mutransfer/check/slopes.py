"""Growth exponents: least squares of log size against log width, one slope per seed, with an interval over seeds."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Slope:
    """One exponent d log(value) / d log(size) per seed, and the standard error of a single fit (its residual scatter).

    Sums and multiples of slopes are slopes of products and powers, seed by seed.
    """

    values: np.ndarray  # (seeds,)
    error: float  # standard error of one seed's fit, from its residuals
    sampling: float = 0.0  # standard error of one seed's fit that is known beforehand: the least there can be

    @property
    def mean(self) -> float:
        return float(np.mean(self.values))

    def interval(self, level: float = 0.9) -> tuple[float, float]:
        """Student interval of the mean over seeds; with one seed, or too few sizes for one, over the fit's residuals."""
        from scipy import special  # here: importing the library must not cost scipy's import

        n = len(self.values)
        half = self.error * float(special.ndtri(0.5 + level / 2)) / np.sqrt(n)
        if n > 1:
            spread = float(np.std(self.values, ddof=1)) / np.sqrt(n) * float(special.stdtrit(n - 1, 0.5 + level / 2))
            half = min(half, spread) if self.error > 0 and n == 2 else spread
        half = max(half, self.sampling * float(special.ndtri(0.5 + level / 2)) / np.sqrt(n))
        return self.mean - half, self.mean + half

    def __add__(self, other: Slope | float) -> Slope:
        if isinstance(other, Slope):
            errors = np.hypot(self.error, other.error), np.hypot(self.sampling, other.sampling)
            return Slope(self.values + other.values, *map(float, errors))
        return Slope(self.values + other, self.error, self.sampling)

    def __sub__(self, other: Slope | float) -> Slope:
        return self + (-1.0) * other

    def __mul__(self, factor: float) -> Slope:
        return Slope(self.values * factor, self.error * abs(factor), self.sampling * abs(factor))

    __rmul__ = __mul__


def fit(sizes: Sequence[float], values: np.ndarray | None) -> Slope | None:
    """The slope per seed of log `values` (sizes, seeds) against log `sizes`; None where any value is zero or missing.

    An exact zero has no logarithm: it is a fact of its own, never log(0).
    """
    if values is None or not np.all(np.isfinite(values)) or np.any(values <= 0):
        return None
    x = np.log(np.asarray(sizes, dtype=float))
    x = x - x.mean()
    y = np.log(values.astype(float))
    spread = float(np.sum(x * x))
    slopes = x @ (y - y.mean(axis=0)) / spread
    residual = y - y.mean(axis=0) - x[:, None] * slopes
    freedom = len(x) - 2
    error = float(np.sqrt(np.mean(np.sum(residual**2, axis=0)) / freedom / spread)) if freedom > 0 else 0.0
    return Slope(slopes, error)


def median(slopes: Sequence[Slope | None]) -> Slope | None:
    """The elementwise median of the slopes that exist, such as one per step; None when there is none."""
    known = [slope for slope in slopes if slope is not None]
    if not known:
        return None
    errors = np.median([s.error for s in known]), np.median([s.sampling for s in known])
    return Slope(np.median([s.values for s in known], axis=0), *map(float, errors))


def drawn(sizes: Sequence[float], values: np.ndarray | None, numel: np.ndarray) -> Slope | None:
    """`fit` of root mean squares of `numel` (sizes,) random numbers each, whose own scatter is known.

    Var log RMS = ψ'(n/2)/4 for n normal numbers, which is 1/(2n) for many. Equal values of all seeds were not drawn.
    """
    slope = fit(sizes, values)
    if slope is None or values is None or (values.shape[1] > 1 and np.allclose(values, values[:, :1], rtol=1e-6)):
        return slope
    from scipy import special  # here: importing the library must not cost scipy's import

    x = np.log(np.asarray(sizes, dtype=float))
    x = x - x.mean()
    variance = special.polygamma(1, np.maximum(numel, 1) / 2) / 4
    return Slope(slope.values, slope.error, float(np.sqrt(np.sum(x**2 * variance)) / np.sum(x**2)))
