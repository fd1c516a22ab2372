"""What the earlier steps say of a curve's law: the posterior of its parameters and of the noise, by adaptive importance sampling.

Given exponents θ, the noise's memory τ and white share w, the law is linear: coefficients by generalised least squares, their errors a Student's t.
(θ, τ, w), a handful of numbers, are integrated over, from the whole prior inwards: no starting point, and a coefficient that two exponents can
explain is as uncertain as it is. Errors are relative: rows are divided by a smooth curve through them, which is log loss to first order (not by
their own loss: its noise would favour a law that is too low).
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import numpy as np

from mutransfer.predict.correlated import Chain, Filtered, whiten
from mutransfer.predict.curve_laws import CurveForm, features, prior_of

Array = np.ndarray
FIRST, ROUND, ROUNDS = 400, 200, 6
ENOUGH = 200.0  # effective draws at which sampling stops
KEPT = 500  # draws that predictions are made of
DECAY = 0.1  # deviation of the prior of K, as a share of the loss: whole decays are worth 4 % (100 M parameters) to 15 % (a tiny model)
_DRAWS = 4.0  # degrees of freedom of proposals


@dataclass(frozen=True)
class Evidence:
    """What is fitted. loss, area (n,): S over its value at the last row; table (nodes…, n): φ; ends: the last row of each run; span, gap: steps
    from the first to the last row, and between neighbours; level (n,): a smooth curve through the losses."""

    law: CurveForm
    loss: Array
    area: Array
    table: Array
    chain: Chain
    ends: tuple[int, ...]
    span: float
    gap: float
    level: Array = field(default_factory=lambda: np.empty(0))

    def __len__(self) -> int:
        return len(self.loss)


@dataclass(frozen=True)
class Posterior:
    """Equally likely draws. z (M, 1 + q): log α and θ; coefficients (M, 3): L0, A at S_ref, K, in nats; tau, w, sigma (M,): the noise, sigma relative;
    state (M, R), variance (M, R): relative error left after the last row of each run. effective: how many independent draws they are worth;
    lag: correlation of neighbouring rows; ends: those last rows."""

    z: Array
    coefficients: Array
    tau: Array
    w: Array
    sigma: Array
    state: Array
    variance: Array
    effective: float
    lag: float
    ends: tuple[int, ...] = ()


def sample(data: Evidence, seed: int = 0, effort: float = 1.0) -> Posterior:
    """The posterior. The same data and seed give the same draws; `effort`: how many, as a share of the usual."""
    rng = np.random.default_rng(seed)
    level, pilot = _level(data)
    data = replace(data, level=level)
    made = _adapt(data, pilot, rng, effort)
    z, log_weight = made
    weight = np.exp(log_weight - log_weight.max())
    weight /= weight.sum()
    effective = float(1 / (weight**2).sum())
    kept = round(KEPT * effort)
    chosen = np.searchsorted(np.cumsum(weight), (np.arange(kept) + rng.random()) / kept)
    return _draw(data, z[np.minimum(chosen, len(z) - 1)], pilot, rng, effective)


def _level(data: Evidence) -> tuple[Array, float]:
    """A smooth curve through the losses (n,), cubic in log S, and what it leaves: a first idea of the noise."""
    x = np.log(data.area)
    design = np.stack([np.ones_like(x), x, x**2, x**3], 1)
    y = np.log(data.loss)
    smooth = design @ np.linalg.lstsq(design, y, rcond=None)[0]
    return np.exp(smooth), max(float(np.sqrt(np.mean((y - smooth) ** 2))), 1e-7)


def _places(data: Evidence, free: Array) -> tuple[Array, Array, Array]:
    """(log α and θ, τ, w) of free coordinates (B, d): standard normal but the last two, logistic, which are τ, uniform, and √w, uniform: noise of long memory, which a
    law can mistake for its own, must not count as unlikely."""
    mean, deviation = prior_of(data.law)
    z = mean + deviation * np.clip(free[:, :-2], -6.0, 6.0)
    share = 1 / (1 + np.exp(-free[:, -2:]))
    low, high = 0.3 * data.gap, 2 * data.span
    return z, low + (high - low) * share[:, 0], np.clip(share[:, 1] ** 2, 1e-6, 1 - 1e-6)


def _log_prior(data: Evidence, free: Array) -> Array:
    """Of free coordinates (B, d); −inf where φ is not tabulated."""
    mean, deviation = prior_of(data.law)
    theta = mean[1:] + deviation[1:] * free[:, 1:-2]
    inside = np.ones(len(free), bool)
    for i, axis in enumerate(data.law.nodes):
        inside &= (theta[:, i] >= axis[0]) & (theta[:, i] <= axis[-1])
    last = np.abs(free[:, -2:])
    log = -0.5 * (free[:, :-2] ** 2).sum(1) - (last + 2 * np.log1p(np.exp(-last))).sum(1)
    return np.where(inside, log, -np.inf)


def _adapt(data: Evidence, pilot: float, rng: np.random.Generator, effort: float) -> tuple[Array, Array]:
    """Population Monte Carlo: draws from the prior, then from ever closer Student's t; all weighted by the mixture they came from."""
    d = 1 + len(data.law.nodes) + 2
    count, one, enough = round(FIRST * effort), round(ROUND * effort), ENOUGH * effort
    first = rng.standard_normal((count, d))
    first[:, -2:] = rng.logistic(size=(count, 2))
    every = [first]
    target = [_posterior(data, first, pilot)]
    proposals: list[tuple[Array, Array, int]] = []
    for turn in range(3 * ROUNDS):
        z, log_target = np.concatenate(every), np.concatenate(target)
        log_weight = log_target - _log_mixture(z, count, proposals)
        if turn >= 2 and _effective(log_weight) >= enough:
            break
        if turn >= ROUNDS and _effective(log_weight) >= 0.3 * enough:
            break
        tempered = _tempered(log_weight, 4.0 * d)
        mean = tempered @ z
        away = z - mean
        cov = (away * tempered[:, None]).T @ away * 1.3 + 1e-6 * np.eye(d)
        root = np.linalg.cholesky(cov)
        drawn = mean + rng.standard_normal((one, d)) @ root.T / np.sqrt(rng.chisquare(_DRAWS, (one, 1)) / _DRAWS)
        proposals.append((mean, root, one))
        every.append(drawn)
        target.append(_posterior(data, drawn, pilot))
    z, log_target = np.concatenate(every), np.concatenate(target)
    return z, log_target - _log_mixture(z, count, proposals)


def _effective(log_weight: Array) -> float:
    weight = np.exp(log_weight - log_weight.max())
    return float(weight.sum() ** 2 / (weight**2).sum())


def _tempered(log_weight: Array, wanted: float) -> Array:
    """Weights to the largest power ≤ 1 at which they are worth `wanted` draws."""
    low, high = 0.0, 1.0
    if _effective(log_weight) < wanted:
        for _ in range(16):
            power = (low + high) / 2
            low, high = (power, high) if _effective(np.where(np.isfinite(log_weight), power * log_weight, -np.inf)) > wanted else (low, power)  # fmt: skip
        log_weight = np.where(np.isfinite(log_weight), low * log_weight, -np.inf)
    weight = np.exp(log_weight - log_weight.max())
    return weight / weight.sum()


def _log_mixture(z: Array, first: int, proposals: list[tuple[Array, Array, int]]) -> Array:
    """log density of all proposals together, the prior among them, at z."""
    d = z.shape[1]
    with np.errstate(divide="ignore"):
        last = np.abs(z[:, -2:])
        log = [
            np.log(first) - 0.5 * (z[:, :-2] ** 2).sum(1) - 0.5 * (d - 2) * np.log(2 * np.pi)
            - (last + 2 * np.log1p(np.exp(-last))).sum(1)
        ]  # fmt: skip
    from scipy.special import gammaln

    constant = gammaln((_DRAWS + d) / 2) - gammaln(_DRAWS / 2) - 0.5 * d * np.log(_DRAWS * np.pi)
    for mean, root, count in proposals:
        away = np.linalg.solve(root, (z - mean).T)
        squares = (away**2).sum(0)
        log.append(
            np.log(count) + constant - np.log(np.diag(root)).sum() - 0.5 * (_DRAWS + d) * np.log1p(squares / _DRAWS)
        )
    return np.logaddexp.reduce(np.array(log), axis=0)


@dataclass(frozen=True)
class _Solved:
    """Given (θ, τ, w): factor (B, 3, 3) of X'X, lower; mean (B, 3); squares (B,): Σ of whitened residuals, the prior of K among them."""

    filtered: Filtered
    factor: Array
    mean: Array
    squares: Array


def _solve(data: Evidence, z: Array, tau: Array, w: Array, pilot: float) -> _Solved:
    x = features(data.law, data.area, data.table, z) / data.level[:, None]
    y = np.broadcast_to((data.loss / data.level)[None, :, None], (*x.shape[:2], 1))
    columns = np.concatenate([x, y], axis=2)
    filtered = whiten(data.chain, columns, tau, w)
    rows = filtered.rows
    gram = np.matmul(rows.transpose(0, 2, 1), rows)
    # K has a half-normal prior: in units of the noise, one row more. The noise is first a guess, then what the row-by-row fit leaves
    first = _eliminate(gram, np.full(len(z), pilot / (DECAY * data.level[-1])))
    noise = np.sqrt(first[2] / (len(data) - 3))
    factor, mean, squares = _eliminate(gram, noise / (DECAY * data.level[-1]))
    return _Solved(filtered, factor, mean, squares)


def _eliminate(gram: Array, prior: Array) -> tuple[Array, Array, Array]:
    """Least squares from the products of columns (B, 4, 4), the data last; prior (B,): one row more for K. Returns factor, mean, squares."""
    inner = gram[:, :3, :3] + 1e-13 * np.einsum("bii->bi", gram[:, :3, :3])[:, :, None] * np.eye(3)
    inner[:, 2, 2] += prior**2
    factor = np.linalg.cholesky(inner)
    half = np.linalg.solve(factor, gram[:, :3, 3:])
    squares = np.maximum(gram[:, 3, 3] - (half[..., 0] ** 2).sum(1), 1e-12 * gram[:, 3, 3])
    return factor, np.linalg.solve(factor.transpose(0, 2, 1), half)[..., 0], squares


def _posterior(data: Evidence, free: Array, pilot: float) -> Array:
    """log posterior density (B,) of free coordinates, coefficients and σ integrated out (flat in L0 and A, 1/σ)."""
    from scipy.special import log_ndtr

    log = _log_prior(data, free)
    use = np.flatnonzero(np.isfinite(log))
    z, tau, w = _places(data, free[use])
    found = _solve(data, z, tau, w, pilot)
    dof = len(data) - 3
    log_det = 2 * np.log(np.einsum("bii->bi", found.factor)).sum(1)
    s = np.sqrt(found.squares / dof)
    inverse = np.linalg.solve(found.factor, np.broadcast_to(np.eye(3), found.factor.shape))
    error = np.sqrt((inverse**2).sum(1)) * s[:, None]
    allowed = log_ndtr(found.mean / error).sum(1)
    log[use] += -0.5 * found.filtered.log_det - 0.5 * log_det - 0.5 * dof * np.log(found.squares) + allowed
    return log


def _draw(data: Evidence, free: Array, pilot: float, rng: np.random.Generator, effective: float) -> Posterior:
    """Coefficients and σ for each draw of the rest: K, L0, A one after the other from normals cut off at zero."""
    z, tau, w = _places(data, free)
    found = _solve(data, z, tau, w, pilot)
    m = len(z)
    sigma = np.sqrt(found.squares / rng.chisquare(len(data) - 3, m))
    inverse = np.linalg.solve(found.factor, np.broadcast_to(np.eye(3), found.factor.shape))
    cov = np.matmul(inverse.transpose(0, 2, 1), inverse) * (sigma**2)[:, None, None]
    order = [2, 0, 1]
    root = np.linalg.cholesky(cov[:, order][:, :, order])
    mean = found.mean[:, order]
    normal = np.zeros((m, 3))
    value = np.zeros((m, 3))
    for i in range(3):
        centre = mean[:, i] + (root[:, i, :i] * normal[:, :i]).sum(1)
        normal[:, i] = _above(-centre / root[:, i, i], rng)
        value[:, i] = centre + root[:, i, i] * normal[:, i]
    coefficients = np.maximum(value[:, [1, 2, 0]], 0.0)
    ends = np.array(data.ends)
    state = found.filtered.state[:, ends]
    left = state[..., 3] - (state[..., :3] * coefficients[:, None, :]).sum(-1)
    lag = float(np.median((1 - w) * np.exp(-data.gap / tau)))
    return Posterior(z, coefficients, tau, w, sigma, left, found.filtered.variance[:, ends], effective, lag, data.ends)


def _above(bound: Array, rng: np.random.Generator) -> Array:
    """Standard normals above `bound` (m,)."""
    from scipy.special import log_ndtr, ndtri_exp

    # in the upper tail: P(X > x) = u·P(X > bound)
    return -ndtri_exp(np.log(rng.random(len(bound))) + log_ndtr(-bound))
