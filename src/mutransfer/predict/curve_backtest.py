"""What a law predicted of steps that are known, and the mixture of which a prediction is made."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from mutransfer.predict.curve_fit import Posterior, sample
from mutransfer.predict.curve_laws import features
from mutransfer.predict.curve_rows import Rows

Array = np.ndarray
SHARES = (0.5, 0.6, 0.7, 0.8)
LEAST_ROWS = 12
EFFORT = 0.4  # of the draws of a fit
BEYOND = 3.0  # mean square error, in units of what the law expects of itself, beyond which the law is taken to be wrong
DOUBT = 0.15  # of what a decay brings: published curves of 100 M parameters are missed by 10 to 17 % of it
_HALVINGS = 50


@dataclass(frozen=True)
class Mixture:
    """A loss at m steps: normals of mean (M, m) and deviation (M, m), one per draw, in nats. `law` (M, m): the law itself; white (m,): variance
    that one logged row has alone."""

    mean: Array
    deviation: Array
    law: Array
    white: Array

    def quantile(self, level: float) -> Array:
        """(m,), by halving."""
        from scipy.special import ndtr

        deviation = np.maximum(self.deviation, 1e-12)
        low, high = (self.mean - 9 * deviation).min(0), (self.mean + 9 * deviation).max(0)
        for _ in range(_HALVINGS):
            middle = (low + high) / 2
            below = ndtr((middle - self.mean) / deviation).mean(0) < level
            low, high = np.where(below, middle, low), np.where(below, high, middle)
        return (low + high) / 2

    @property
    def centre(self) -> Array:
        """(m,): mean."""
        return self.mean.mean(0)

    @property
    def spread(self) -> Array:
        """(m,): standard deviation."""
        return np.sqrt(self.mean.var(0) + (self.deviation**2).mean(0))


@dataclass(frozen=True)
class Target:
    """Where a loss is predicted: m steps of one run. area (m,): S over that of the last fitted row; table (nodes…, m); distance (m,): steps since
    the row after which the run goes on, and `origin`, the number of that row among the ends of the posterior; None for another run."""

    area: Array
    table: Array
    distance: Array
    origin: int | None


def mixture(rows: Rows, post: Posterior, target: Target, white: float, doubt: float = DOUBT) -> Mixture:
    """The loss that would be logged at the target's steps, given the posterior of `rows`. white: least variance of one logged row, relative.

    `doubt`: the laws' decay terms are right to about this share. So of a run that goes on, what the LR's further fall brings is uncertain by it;
    of another run, all that its fall brings, and what it does not bring where the fitted runs had fallen.
    """
    form = rows.form
    made = features(form, target.area, target.table, post.z)
    law = (made * post.coefficients[:, None, :]).sum(-1)
    law = np.maximum(law, 1e-3 * law.max())
    slow = (1 - post.w)[:, None]
    fall, apart = -made[..., 2], np.zeros_like(law)
    if target.origin is None:
        left, variance = np.zeros_like(law), np.broadcast_to(slow, law.shape)
    else:
        # before the row that is known last, the law alone
        a = np.where(target.distance < 0, 0.0, np.exp(-np.abs(target.distance) / post.tau[:, None]))
        left = a * post.state[:, target.origin, None]
        variance = slow * (1 - a * a) + a * a * post.variance[:, target.origin, None]
    if form.nodes:
        seen = form.between(rows.table, post.z[:, 1:])
        if target.origin is None:
            area = rows.area / rows.area.max()
            near = [
                np.abs(fall - _at(area[rows.run == r], seen[:, rows.run == r], target.area))
                for r in np.unique(rows.run)
            ]
            apart = np.maximum(np.min(near, axis=0), fall)
        else:
            apart = np.abs(fall - seen[:, post.ends[target.origin], None])
    sigma = (post.sigma**2)[:, None]
    alone = law**2 * np.maximum(sigma * post.w[:, None], white)
    total = law**2 * sigma * variance + alone + (doubt * post.coefficients[:, 2, None] * apart) ** 2
    return Mixture(law * (1 + left), np.sqrt(total), law, alone.mean(0))


def _at(area: Array, seen: Array, where: Array) -> Array:
    """φ of a fitted run (M, k) at the row whose S is nearest to each of `where` (m,)."""
    place = np.clip(np.searchsorted(area, where), 0, len(area) - 1)
    return seen[:, place]


@dataclass(frozen=True)
class Fold:
    """One backtest: fitted up to step `until`, or without a run (`without`, its name). errors (h,): log L − log of the prediction at the hidden
    rows' steps (h,); expected (h,): its deviation by the law; reach (h,): how far beyond the fitted, in spans of it."""

    until: float
    without: str
    step: Array
    errors: Array
    expected: Array
    reach: Array


@dataclass(frozen=True)
class CurveBacktest:
    """All folds. error, expected: root mean square, relative; reach: mean."""

    folds: tuple[Fold, ...]

    @property
    def error(self) -> float:
        """Root mean square over folds."""
        return float(np.sqrt(np.mean([(f.errors**2).mean() for f in self.folds])))

    @property
    def expected(self) -> float:
        """What the law expects that to be, were it true."""
        return float(np.sqrt(np.mean([(f.expected**2).mean() for f in self.folds])))

    @property
    def ratio(self) -> float:
        """Mean square error in units of what each fold expects: about 1 where the law is true."""
        return float(np.mean([((f.errors / f.expected) ** 2).mean() for f in self.folds]))

    @property
    def missed(self) -> bool:
        """Whether it is more than the law explains."""
        return self.ratio > BEYOND

    @property
    def reach(self) -> float:
        """Mean over the hidden rows, in spans of the fitted ones."""
        return float(np.mean([f.reach.mean() for f in self.folds]))

    @property
    def misfit(self) -> float:
        """√(mean of error² − expected² over the folds that err more than that) where the errors are larger than the law explains, else 0."""
        if not self.missed:
            return 0.0
        return float(np.sqrt(np.mean([max((f.errors**2).mean() - (f.expected**2).mean(), 0.0) for f in self.folds])))

    def misfit_at(self, reach: Array) -> Array:
        """At a distance beyond what is fitted, as in `backtest.Backtest`."""
        return self.misfit * np.sqrt(1 + (reach / max(self.reach, 1e-9)) ** 2)


def curve_backtest(rows: Rows, names: tuple[str, ...], seed: int = 0) -> CurveBacktest | None:
    """Fit the first half, 60, 70, 80 % of the fitted steps and predict the rest; with several runs, also each from the others alone."""
    folds: list[Fold] = []
    first, last = float(rows.step.min()), float(rows.step.max())
    for share in SHARES:
        until = first + share * (last - first)
        folds += _fold(rows, rows.step <= until, until, "", seed)
    parents = set(rows.run[rows.parent[(rows.parent >= 0) & (rows.run[rows.parent] != rows.run)]].tolist())
    every = np.unique(rows.run)
    if len(every) > 1:
        for run in every:
            if run not in parents:
                folds += _fold(rows, rows.run != run, last, names[run], seed)
    return CurveBacktest(tuple(folds)) if folds else None


def _fold(rows: Rows, inside: Array, until: float, without: str, seed: int) -> list[Fold]:
    hidden = np.flatnonzero(~inside)
    if inside.sum() < LEAST_ROWS or len(hidden) < 3:
        return []
    # the row of the fitted part after which each hidden one goes on
    origin = np.full(len(rows), -1)
    for i in range(len(rows)):
        p = rows.parent[i]
        origin[i] = i if inside[i] else -1 if p < 0 else origin[p]
    place = np.cumsum(inside) - 1
    part = rows.take(inside)
    ends = sorted({int(place[origin[i]]) for i in hidden if origin[i] >= 0})
    post = sample(part.evidence(ends or [len(part) - 1]), seed, EFFORT)
    scale, span = part.area.max(), max(float(np.ptp(part.step)), 1.0)
    found = []
    for start in np.unique(origin[hidden]):
        index = hidden[origin[hidden] == start]
        number = None if start < 0 else ends.index(int(place[start]))
        distance = rows.step[index] - (rows.step[start] if start >= 0 else 0.0)
        # hidden rows are means of several logged ones: no more white noise than the fit has seen
        target = Target(rows.area[index] / scale, rows.table[..., index], distance, number)
        seen = mixture(part, post, target, 0.0)
        found.append((index, np.log(rows.loss[index] / seen.centre), seen.spread / seen.centre))
    index = np.concatenate([f[0] for f in found])
    order = np.argsort(index)
    index = index[order]
    errors, expected = (np.concatenate([f[i] for f in found])[order] for i in (1, 2))
    reach = np.maximum(rows.step[index] - part.step.max(), 0.0) / span
    if without:  # another schedule is as far away as half of what was seen
        reach = np.maximum(reach, 0.5)
    return [Fold(until, without, rows.step[index], errors, expected, reach)]
