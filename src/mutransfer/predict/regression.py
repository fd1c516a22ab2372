"""Linear regression of measured optima: known errors, an unknown scatter beyond them, outliers bounded, one-sided measurements kept.

    y_i = x_i·β + u_i + e_i,   u_i ~ N(0, τ²),   e_i ~ N(0, error_i²)

τ and β by Huber's Proposal 2 with the generalised moment of Paule & Mandel (1982): Σ (1 − h_i)·ψ(z_i)² = E ψ(Z)²·Σ (1 − h_i), with
z_i = r_i / √((error_i² + τ²)(1 − h_i)) and ψ clipping at 1.5. Without errors, clipping or one-sided rows it is least squares.
Intervals: Student's t with Σ (1 − h_i) degrees of freedom, the variance rescaled by the residuals (Knapp & Hartung 2003; Huber 1973 for the
bounded ones). A one-sided row (the optimum lies beyond what was run) enters by its likelihood, as in Tobin (1958).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.special import chdtri, log_ndtr, ndtr, stdtrit

Array = np.ndarray
CLIP = 1.5  # deviations beyond which a row's pull stays constant
CLIP_FROM = 4.0  # degrees of freedom: with fewer nothing tells an outlier from the rest
SMALL = 1e-24
STEPS = 200  # of the iteration
SCALE_GRID, SCALE_PASSES = 24, 8


@dataclass(frozen=True)
class Regression:
    """`beta` (p,), `covariance` (p, p), `scatter` τ, `dof`; per row (n,): `z` studentised residual, `leverage`, `weight` ≤ 1 where its pull is bounded."""

    beta: Array
    covariance: Array
    scatter: float
    dof: float
    z: Array
    leverage: Array
    weight: Array

    def quantile(self, level: float) -> float:
        """Half the width of an interval at `level`, in standard errors."""
        return float(stdtrit(self.dof, (1 + level) / 2))

    def interval(self, x: Array, level: float, error: float | None = None) -> tuple[float, float, float]:
        """(value, low, high) of x·β (x (p,)); with `error` of one row measured there: scatter and that error included."""
        value = float(x @ self.beta)
        variance = float(x @ self.covariance @ x)
        if error is not None:
            variance += self.scatter**2 + error**2
        half = self.quantile(level) * float(np.sqrt(max(variance, 0.0)))
        return value, value - half, value + half

    @property
    def outliers(self) -> Array:
        """(n,) whether a row is farther off than chance allows among so many (Bonferroni, 5 %)."""
        if self.dof < CLIP_FROM:
            return np.zeros(len(self.z), bool)
        return np.abs(self.z) > stdtrit(self.dof, 1 - 0.025 / len(self.z))


def regress(x: Array, y: Array, error: Array, side: Array, firm: bool = False) -> Regression:
    """Fit y (n,) on x (n, p). `error` (n,): standard errors, 0 where unknown. `side` (n,): 0 measured, −1 the truth is below y, +1 above.

    `firm`: the errors are known to be at least as large as said, so that residuals smaller than them do not shrink the intervals; else
    they do, down to what chance explains. Needs more measured rows than columns; numpy.linalg.LinAlgError where x has not full rank.
    """
    measured = side == 0
    n, p = x.shape
    clip = CLIP if measured.sum() - p >= CLIP_FROM else np.inf
    beta = np.linalg.lstsq(x[measured], y[measured], rcond=None)[0]
    spread = float(np.mean((y[measured] - x[measured] @ beta) ** 2)) * measured.sum() / (measured.sum() - p)
    scatter = spread
    inverse, leverage, z, weight = np.eye(p), np.zeros(n), np.zeros(n), np.ones(n)
    for _ in range(STEPS):
        v = np.maximum(error**2 + scatter, SMALL)
        base, target = _working(x @ beta, y, v, side)
        inverse = np.linalg.inv((x * base[:, None]).T @ x)
        leverage = np.clip(base * np.einsum("ij,jk,ik->i", x, inverse, x), 0, 1 - 1e-9)
        r = np.where(measured, y - x @ beta, 0.0)
        z = r / np.sqrt(v * (1 - leverage))
        weight = np.minimum(1.0, clip / np.maximum(np.abs(z), 1e-12))
        pull = base * weight
        new = np.linalg.solve((x * pull[:, None]).T @ x, (x * pull[:, None]).T @ target)
        new_scatter = _scatter(r[measured], error[measured], 1 - leverage[measured], clip, scatter or spread)
        change = max(float(np.abs(x @ (new - beta)).max()), abs(np.sqrt(new_scatter) - np.sqrt(scatter)))
        beta, scatter = new, new_scatter
        if change < 1e-6 * np.sqrt(v.max()):
            break
    free_m = 1 - leverage[measured]
    dof = float(free_m.sum())
    kept = max(0.5, float(np.mean(weight[measured] >= 1)))
    inflate = (1 + p / n * (1 - kept) / kept) ** 2 / kept**2
    share = float((free_m * np.clip(z[measured], -clip, clip) ** 2).sum()) / dof
    least = _moment(clip) if firm else _moment(clip) * float(chdtri(dof, 0.95)) / dof
    if error.any():
        share = max(share, least)
    return Regression(beta, inverse * share * inflate, float(np.sqrt(scatter)), dof, z, leverage, weight)


def _working(mean: Array, y: Array, v: Array, side: Array) -> tuple[Array, Array]:
    """(weights, working responses) of one Newton step; for measured rows 1/v and y."""
    s = np.sqrt(v)
    a = np.clip(side * (mean - y) / s, -30, 30)  # Φ(a): the chance that the truth is on its side of y
    ratio = np.exp(-0.5 * a * a - 0.5 * np.log(2 * np.pi) - log_ndtr(a))
    bend = np.clip(ratio * (ratio + a), 1e-9, 1.0)
    weights = np.where(side == 0, 1.0, bend) / v
    return weights, np.where(side == 0, y, mean + side * s * ratio / bend)


def _moment(clip: float) -> float:
    """E ψ(Z)² of a standard normal Z clipped at ±clip."""
    if np.isinf(clip):
        return 1.0
    tail = 1 - float(ndtr(clip))
    density = float(np.exp(-0.5 * clip**2) / np.sqrt(2 * np.pi))
    return 1 - 2 * tail - 2 * clip * density + 2 * clip**2 * tail


def _scatter(r: Array, error: Array, free: Array, clip: float, near: float) -> float:
    """τ² at which the clipped squares have their expected sum; 0 where the errors explain more than the residuals. `near`: a first guess."""
    wanted = _moment(clip) * float(free.sum())

    def excess(t: Array) -> Array:
        z2 = r**2 / (np.maximum(error**2 + t[:, None], SMALL) * free)
        return (free * np.minimum(z2, clip**2)).sum(1) - wanted

    if float(excess(np.zeros(1))[0]) <= 0:
        return 0.0
    low, high = np.log(max(near, SMALL)) + np.array([-0.7, 0.7])
    sign = excess(np.exp([low, high]))
    passes = 4
    if not sign[0] > 0 >= sign[1]:
        low, high, passes = low - 60, high + 8, SCALE_PASSES
    for _ in range(passes):
        grid = np.linspace(low, high, SCALE_GRID)
        above = np.flatnonzero(excess(np.exp(grid)) > 0)
        index = int(above[-1]) if len(above) else 0
        low, high = grid[index], grid[min(index + 1, SCALE_GRID - 1)]
    return float(np.exp(0.5 * (low + high)))
