"""Loss over log2 LR near its minimum: a parabola plus a smooth departure of unknown size, drawn from its posterior.

For size w and x = log2 LR, the mean loss of a cell is

    y = f_w(x) + noise,     f_w = a + b·x + c·x² + κ·∬∫ dW,     noise ~ N(0, σ²·v)

so the third derivative is white noise of strength κ: κ = 0 is the parabola, a large κ interpolates (Wahba 1978, smoothing splines as
Bayesian regression). κ and σ are shared by all sizes and integrated over, not fixed: what the parabola gets wrong widens the interval.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

Array = np.ndarray
FINE, CELLS = 129, 64  # points at which a curve is drawn; cells of its white noise
KAPPAS, SIGMAS = 17, 25
ASYMMETRY, ASYMMETRY_SPREAD = (
    0.35,
    1.3,
)  # prior of κ over the curvature: median per octave, standard deviation of its log


@dataclass(frozen=True)
class Local:
    """The cells of one size near its best: x (n,) in octaves, mean loss y (n,), noise variance v (n,) in units of σ²."""

    x: Array
    y: Array
    v: Array
    low: float  # the stretch that is drawn
    high: float

    @property
    def fine(self) -> Array:
        """(FINE,) the points at which curves are drawn."""
        return np.linspace(self.low, self.high, FINE)


@dataclass(frozen=True)
class Posterior:
    """Weights of (κ, σ) on a grid: weight (K, S), kappas (K,), sigmas (S,)."""

    kappas: Array
    sigmas: Array
    weight: Array

    @property
    def noise(self) -> float:
        """Posterior mean of σ."""
        return float(np.sqrt(self.weight.sum(0) @ self.sigmas**2))


def ramps(local: Local, at: Array) -> Array:
    """(len(at), CELLS): what unit white noise of the third derivative in each cell adds to the curve at `at`."""
    edges = np.linspace(local.low, local.high, CELLS + 1)
    middle, width = (edges[1:] + edges[:-1]) / 2, edges[1] - edges[0]
    return np.maximum(at[:, None] - middle, 0) ** 2 / 2 * np.sqrt(width)


def powers(local: Local, at: Array) -> Array:
    """(len(at), 3): 1, x, x² about the middle; fewer columns where there are fewer than three cells."""
    centred = at - (local.low + local.high) / 2
    return np.stack([np.ones_like(centred), centred, centred**2], 1)[:, : min(3, len(local.x))]


def curvature(locals_: list[Local]) -> float:
    """Typical |f''| of parabolas through the cells, the scale of κ; falls back on the range of the losses."""
    found = []
    for one in locals_:
        if len(one.x) >= 3:
            c = np.linalg.lstsq(powers(one, one.x) / np.sqrt(one.v)[:, None], one.y / np.sqrt(one.v), rcond=None)[0]
            found.append(2 * c[2])
    spread = max((float(np.ptp(one.y)) for one in locals_), default=0.0)
    reach = max((float(np.ptp(one.x)) for one in locals_), default=1.0) or 1.0
    positive = [c for c in found if c > 0]
    return max(float(np.median(positive)) if positive else 0.0, 0.5 * spread / reach**2, 1e-12)


def posterior(locals_: list[Local], replicate_dof: float, replicate_ss: float) -> Posterior:
    """Weights of (κ, σ) given every size's cells (restricted likelihood, the parabola integrated out) and the seeds' scatter.

    `replicate_ss / replicate_dof` estimates σ² from seeds alone. Prior: log κ normal about the curvature's scale, log σ uniform.
    """
    scale = curvature(locals_)
    size = max(max((float(np.ptp(one.y)) for one in locals_), default=1.0), 1e-12)
    kappas = scale * ASYMMETRY * np.exp(ASYMMETRY_SPREAD * np.linspace(-2.5, 2.5, KAPPAS))
    if replicate_dof > 0 and replicate_ss > 0:
        middle = np.sqrt(replicate_ss / replicate_dof)
        reach = min(4.0, 4 / np.sqrt(replicate_dof / 2))
        sigmas = middle * np.exp(np.linspace(-reach, reach, SIGMAS))
    else:
        sigmas = size * np.exp(np.linspace(np.log(1e-4), 0, SIGMAS))
    score = -0.5 * np.broadcast_to(np.linspace(-2.5, 2.5, KAPPAS)[:, None] ** 2, (KAPPAS, SIGMAS)).copy()
    score += -replicate_dof * np.log(sigmas) - replicate_ss / (2 * sigmas**2)
    for one in locals_:
        if len(one.x) <= 3:
            continue
        rescale = 1 / np.sqrt(one.v)
        basis = powers(one, one.x) * rescale[:, None]
        full, _ = np.linalg.qr(basis, mode="complete")
        rest = full[:, basis.shape[1] :]
        effect = rest.T @ (ramps(one, one.x) * rescale[:, None])
        values, vectors = np.linalg.eigh(effect @ effect.T)
        squares = (vectors.T @ (rest.T @ (one.y * rescale))) ** 2
        total = kappas[:, None, None] ** 2 * np.maximum(values, 0) + sigmas[None, :, None] ** 2
        score += -0.5 * (np.log(total) + squares / total).sum(-1)
    weight = np.exp(score - score.max())
    return Posterior(kappas, sigmas, weight / weight.sum())


def apportion(found: Posterior, draws: int) -> Array:
    """(draws,) indices into the flattened grid, in proportion to the weights: systematic, so without a draw's own noise."""
    edges = np.cumsum(found.weight.ravel())
    return np.minimum(np.searchsorted(edges, (np.arange(draws) + 0.5) / draws), found.weight.size - 1)


def weights(local: Local, kappa: float, sigma: float) -> Array:
    """(FINE, n): the linear map from cells to the curve (universal kriging)."""
    ours, basis = ramps(local, local.x), powers(local, local.x)
    there = ramps(local, local.fine)
    covariance = kappa**2 * ours @ ours.T + np.diag(sigma**2 * local.v)
    covariance[np.diag_indices_from(covariance)] += 1e-12 * np.trace(covariance)
    solved = np.linalg.solve(covariance, np.concatenate([basis, np.eye(len(local.x))], 1))
    left, inverse = solved[:, : basis.shape[1]], solved[:, basis.shape[1] :]
    beta = np.linalg.solve(basis.T @ left, left.T)
    return powers(local, local.fine) @ beta + kappa**2 * there @ ours.T @ (inverse - left @ beta)


def curves(local: Local, found: Posterior, chosen: Array, unit: Array, departure: Array) -> tuple[Array, Array]:
    """(B, FINE) drawn curves and (FINE,) their posterior mean.

    `chosen` (B,) are grid indices, `unit` (B, n) the cells' noise in units of σ√v, `departure` (B, CELLS) standard normal. Matheron's rule:
    draw curve and noise from the prior, then correct by the map applied to (data − drawn data).
    """
    prior_fine, prior_cells = departure @ ramps(local, local.fine).T, departure @ ramps(local, local.x).T
    drawn, mean = np.empty((len(chosen), FINE)), np.zeros(FINE)
    for index in np.unique(chosen):
        kappa, sigma = found.kappas[index // SIGMAS], found.sigmas[index % SIGMAS]
        rows = np.flatnonzero(chosen == index)
        linear = weights(local, kappa, sigma)
        noise = sigma * np.sqrt(local.v) * unit[rows]
        drawn[rows] = kappa * prior_fine[rows] + (local.y + noise - kappa * prior_cells[rows]) @ linear.T
        mean += len(rows) / len(chosen) * (linear @ local.y)
    return drawn, mean
