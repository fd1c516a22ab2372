"""Loss over log2 LR near its minimum: a parabola plus a smooth departure of unknown size, drawn from its posterior.

For size w and x = log2 LR, the mean loss of a cell is

    y = f_w(x) + noise,     f_w = a + b·x + c·x² + κ·∭ exp(γ·(x − centre)) dW,     noise ~ N(0, σ²·v)

so the third derivative is white noise of strength κ: κ = 0 is the parabola, a large κ interpolates (Wahba 1978: smoothing splines as
Bayesian regression). γ > 0 lets the curve be rougher toward high LRs, where training becomes unstable. κ, γ and σ are shared by all sizes
and integrated over, not fixed: what a parabola gets wrong widens the interval.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.linalg import block_diag

Array = np.ndarray
FINE, CELLS = 73, 32  # points at which a curve is drawn; cells of white noise in the longest stretch
KAPPAS, SIGMAS = 9, 9
GAMMAS = (0.0, 1.0, 2.0)  # per octave
LONGEST = 4.0  # octaves from the centre beyond which the roughness grows (or shrinks) no more
NONE = 0.6  # prior probability that κ = 0, the parabola; else
ASYMMETRY, ASYMMETRY_SPREAD = 0.6, 1.0  # prior of κ over the curvature: median per octave, deviation of its log
ALIKE = (
    0.5  # share of the departure's variance that sizes have in common, relative to their centres: as the fit assumes,
)
DRAWN_ALIKE = 0.85  # and as its error is drawn: a fit that trusts likeness less errs less where there is less


@dataclass(frozen=True)
class Local:
    """The cells of one size near its best: x (n,) in octaves, mean loss y (n,), noise variance v (n,) in units of σ²."""

    x: Array
    y: Array
    v: Array
    low: float  # the stretch that is drawn
    high: float
    centre: float  # about where the optimum is
    cell: float  # width of a cell of white noise, the same for all sizes

    @property
    def fine(self) -> Array:
        """(FINE,) the points at which curves are drawn."""
        return np.linspace(self.low, self.high, FINE)

    @property
    def places(self) -> Array:
        """(M,) cells of white noise that cover the stretch, counted from the centre."""
        first = np.floor((self.low - self.centre) / self.cell)
        return np.arange(int(first), int(np.ceil((self.high - self.centre) / self.cell)))

    def ramps(self, at: Array, gamma: float) -> Array:
        """(len(at), M): what unit white noise of the third derivative in each cell adds to the curve at `at`."""
        away = (self.places + 0.5) * self.cell
        strength = np.exp(gamma * np.clip(away, -LONGEST, LONGEST)) * np.sqrt(self.cell)
        return np.maximum(at[:, None] - self.centre - away, 0) ** 2 / 2 * strength

    def powers(self, at: Array) -> Array:
        """(len(at), 3): 1, x, x² about the middle; fewer columns where there are fewer than three cells."""
        centred = at - (self.low + self.high) / 2
        return np.stack([np.ones_like(centred), centred, centred**2], 1)[:, : min(3, len(self.x))]


@dataclass(frozen=True)
class Posterior:
    """Weights of (γ, κ, σ) on a grid: weight (G, K, S), kappas (K,), sigmas (S,)."""

    kappas: Array
    sigmas: Array
    weight: Array

    @property
    def noise(self) -> float:
        """Root of the posterior mean of σ²."""
        return float(np.sqrt(self.weight.sum((0, 1)) @ self.sigmas**2))


def _diagonal(*blocks: Array) -> Array:
    return np.asarray(block_diag(*blocks))


def kernel(rows: list[Local], at: list[Array], gamma: float) -> Array:
    """(Σ len(at), Σ n): covariance of the departures at `at` with those at the cells, for κ = 1. Sizes share a part, seen from their centres."""
    first = min(int(one.places[0]) for one in rows)
    span = max(int(one.places[-1]) for one in rows) - first + 1
    left, right = (
        [one.ramps(x, gamma) for one, x in zip(rows, xs, strict=True)] for xs in (at, [one.x for one in rows])
    )

    def common(ramps: list[Array]) -> Array:
        wide = []
        for one, ramp in zip(rows, ramps, strict=True):
            padded = np.zeros((len(ramp), span))
            padded[:, one.places - first] = ramp
            wide.append(padded)
        return np.concatenate(wide)

    own = _diagonal(*(a @ b.T for a, b in zip(left, right, strict=True)))
    return ALIKE * common(left) @ common(right).T + (1 - ALIKE) * own


def _contrasts(rows: list[Local]) -> list[tuple[Array, Array]]:
    """What is left of the cells when each size's parabola is taken out, in independent directions: per γ, (scale (m,), square (m,))."""
    rescale = 1 / np.sqrt(np.concatenate([one.v for one in rows]))
    basis = _diagonal(*(one.powers(one.x) for one in rows)) * rescale[:, None]
    y = np.concatenate([one.y for one in rows]) * rescale
    full, _ = np.linalg.qr(basis, mode="complete")
    rest = full[:, basis.shape[1] :]
    found = []
    for gamma in GAMMAS:
        covariance = kernel(rows, [one.x for one in rows], gamma) * rescale[:, None] * rescale
        values, vectors = np.linalg.eigh(rest.T @ covariance @ rest)
        found.append((np.maximum(values, 0), (vectors.T @ (rest.T @ y)) ** 2))
    return found


def curvature(locals_: list[Local]) -> float:
    """Typical |f''| of parabolas through the cells, the scale of κ; falls back on the range of the losses."""
    found = []
    for one in locals_:
        if len(one.x) >= 3:
            rescale = 1 / np.sqrt(one.v)
            fit = np.linalg.lstsq(one.powers(one.x) * rescale[:, None], one.y * rescale, rcond=None)[0]
            found.append(2 * fit[2])
    spread = max((float(np.ptp(one.y)) for one in locals_), default=0.0)
    reach = max((float(np.ptp(one.x)) for one in locals_), default=1.0) or 1.0
    positive = [c for c in found if c > 0]
    return max(float(np.median(positive)) if positive else 0.0, 0.5 * spread / reach**2, 1e-12)


def posterior(locals_: list[Local], replicate_dof: float, replicate_ss: float) -> Posterior:
    """Weights of (γ, κ, σ) given every size's cells (restricted likelihood, the parabola integrated out) and the seeds' scatter.

    `replicate_ss / replicate_dof` estimates σ² from seeds alone. Prior: γ equal, κ zero with probability NONE
    and else log-normal about the curvature's scale, log σ uniform: smooth data end at the parabola and short intervals, others do not.
    """
    steps = np.linspace(-2.5, 2.5, KAPPAS)
    some = np.exp(-0.5 * steps**2)
    prior = np.log(np.concatenate([[NONE], (1 - NONE) * some / some.sum()]))
    kappas = np.concatenate([[0.0], curvature(locals_) * ASYMMETRY * np.exp(ASYMMETRY_SPREAD * steps)])
    contrasts = _contrasts(locals_)
    size = max(max((float(np.ptp(one.y)) for one in locals_), default=1.0), 1e-12)

    def weigh(sigmas: Array) -> Array:
        score = np.broadcast_to(prior[:, None], (len(GAMMAS), len(kappas), len(sigmas))).copy()
        score += -replicate_dof * np.log(sigmas) - replicate_ss / (2 * sigmas**2)
        for g, (scale, square) in enumerate(contrasts):
            total = kappas[:, None, None] ** 2 * scale + sigmas[None, :, None] ** 2
            score[g] += -0.5 * (np.log(total) + square / total).sum(-1)
        weight = np.exp(score - score.max())
        return weight / weight.sum()

    sigmas = size * np.exp(np.linspace(np.log(1e-4), 0, 26))
    if replicate_dof > 0 and replicate_ss > 0:
        sigmas = np.sqrt(replicate_ss / replicate_dof) * np.exp(np.linspace(-4, 4, 48) / np.sqrt(replicate_dof))
    share = weigh(sigmas).sum((0, 1))
    middle = share @ np.log(sigmas)
    spread = np.sqrt(share @ (np.log(sigmas) - middle) ** 2 + np.diff(np.log(sigmas))[0] ** 2 / 4)
    sigmas = np.exp(middle + spread * np.linspace(-3.2, 3.2, SIGMAS))
    return Posterior(kappas, sigmas, weigh(sigmas))


def apportion(found: Posterior, draws: int) -> Array:
    """(draws,) indices into the flattened grid, in proportion to the weights: systematic, so without a draw's own noise."""
    edges = np.cumsum(found.weight.ravel())
    return np.minimum(np.searchsorted(edges, (np.arange(draws) + 0.5) / draws), found.weight.size - 1)


def maps(rows: list[Local], gamma: float, kappas: Array, sigmas: Array) -> Array:
    """(H, W·FINE, N): the linear maps from all cells to all curves (universal kriging), for H pairs of κ and σ."""
    x, fine = [one.x for one in rows], [one.fine for one in rows]
    basis, there = (_diagonal(*(one.powers(at) for one, at in zip(rows, ats, strict=True))) for ats in (x, fine))
    squared = (kappas**2)[:, None, None]
    covariance = squared * kernel(rows, x, gamma)
    covariance = covariance + (sigmas**2)[:, None, None] * np.diag(np.concatenate([one.v for one in rows]))
    covariance = covariance + 1e-12 * np.trace(covariance, axis1=1, axis2=2)[:, None, None] * np.eye(len(basis))
    inverse = np.linalg.inv(covariance)
    left = inverse @ basis
    beta = np.linalg.solve(basis.T @ left, np.swapaxes(left, 1, 2))
    return there @ beta + (squared * kernel(rows, fine, gamma)) @ (inverse - left @ beta)


def curves(
    rows: list[Local], found: Posterior, chosen: Array, unit: list[Array], departure: list[Array]
) -> tuple[Array, Array]:
    """(W, B, FINE) drawn curves and (W, FINE) their posterior means.

    `chosen` (B,) are ascending grid indices, `unit` per size (B, n) the cells' noise in units of σ√v, `departure` per size (B, M) standard
    normal, correlated between sizes. Matheron's rule: draw curves and noise from the prior, then correct by the map applied to (data − drawn data).
    """
    y, deviation = np.concatenate([one.y for one in rows]), np.sqrt(np.concatenate([one.v for one in rows]))
    drawn, mean = np.empty((len(chosen), len(rows) * FINE)), np.zeros(len(rows) * FINE)
    noise = np.concatenate(unit, axis=1)
    points, place = np.unique(chosen, return_inverse=True)
    g, k, s = np.unravel_index(points, found.weight.shape)
    for index, gamma in enumerate(GAMMAS):
        mine = np.flatnonzero(g == index)
        if not len(mine):
            continue
        linear = maps(rows, gamma, found.kappas[k[mine]], found.sigmas[s[mine]])
        part = slice(*np.searchsorted(place, [mine[0], mine[-1] + 1]))
        fine, cells = (np.concatenate([z[part] @ one.ramps(at, gamma).T for one, z, at in zip(rows, departure, ats, strict=True)], 1)
                       for ats in ([one.fine for one in rows], [one.x for one in rows]))  # fmt: skip
        for point, each in zip(mine, linear, strict=True):
            here = slice(*np.searchsorted(place, [point, point + 1]))
            there = slice(here.start - part.start, here.stop - part.start)
            kappa = found.kappas[k[point]]
            residual = y + found.sigmas[s[point]] * deviation * noise[here] - kappa * cells[there]
            drawn[here] = kappa * fine[there] + residual @ each.T
            mean += (here.stop - here.start) / len(chosen) * (each @ y)
    return np.moveaxis(drawn.reshape(len(chosen), len(rows), FINE), 1, 0), mean.reshape(len(rows), FINE)


def vertices(rows: list[Local], found: Posterior) -> list[float]:
    """Where the curves drawn through all sizes have their minima, at the most likely γ, κ and σ."""
    g, k, s = np.unravel_index(int(np.argmax(found.weight)), found.weight.shape)
    linear = maps(rows, GAMMAS[int(g)], found.kappas[[k]], found.sigmas[[s]])[0]
    mean = (linear @ np.concatenate([one.y for one in rows])).reshape(len(rows), FINE)
    return [float(lowest(one.fine, curve[None])[0][0]) for one, curve in zip(rows, mean, strict=True)]


def lowest(x: Array, curve: Array) -> tuple[Array, Array]:
    """(x (B,), value (B,)) of the minimum of each row, between points by a parabola."""
    index = np.argmin(curve, axis=1)
    rows = np.arange(len(curve))
    inner = np.clip(index, 1, len(x) - 2)
    left, middle, right = (curve[rows, inner + k] for k in (-1, 0, 1))
    bend = left - 2 * middle + right
    shift = np.where(bend > 0, 0.5 * (left - right) / np.where(bend > 0, bend, 1), 0.0)
    shift = np.where(index == inner, np.clip(shift, -0.5, 0.5), 0.0)
    value = np.where(index == inner, middle - 0.25 * (left - right) * shift, curve[rows, index])
    return x[index] + shift * (x[1] - x[0]), value
