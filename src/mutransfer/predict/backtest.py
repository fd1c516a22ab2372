"""Backtests: fit the small runs, predict the larger ones already there. They judge the law, the size variable, and the law's own misfit."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from mutransfer.predict.fit import Fit
from mutransfer.predict.noise import cells
from mutransfer.predict.solve import Problem, Solved, refine, search

Array = np.ndarray
SHARES = (0.5, 0.6, 0.7, 0.8)
SIMULATED = 120
LIKELY = 0.15  # a backtest this unlikely under the law itself speaks of a misfit; real tables have one nearly always


@dataclass(frozen=True)
class Fold:
    """The law fitted on the smallest places alone. `fitted`, `hidden`: rows; `errors` (h,): log L − log f of the hidden ones; `reach` (h,):
    how far they lie beyond what was fitted, in spans of it; `u` (p,)."""

    fitted: tuple[int, ...]
    hidden: tuple[int, ...]
    errors: Array
    reach: Array
    u: Array


@dataclass(frozen=True)
class Backtest:
    """`error`: root mean square of the folds' errors in log loss; `expected`: what it would be were the law true, by simulation;
    `chance`: how often it would be as large. `misfit`: standard deviation of the law's own error one mean `reach` beyond the data."""

    folds: tuple[Fold, ...]
    error: float
    expected: float
    chance: float
    reach: float

    @property
    def misfit(self) -> float:
        """√(error² − expected²) where the errors are larger than noise explains, else 0."""
        return float(np.sqrt(max(self.error**2 - self.expected**2, 0.0))) if self.chance <= LIKELY else 0.0

    def misfit_at(self, reach: Array) -> Array:
        """Misfit at a distance: √(1 + (reach/mean reach)²) times that of the folds."""
        return self.misfit * np.sqrt(1 + (reach / max(self.reach, 1e-9)) ** 2)


def growth(fitted: Fit, x: Array) -> Array:
    """Where places stand on the way from small to large (m,): the sum of the normalised logarithms of sizes and tokens (log compute)."""
    counted = [i for i, name in enumerate(fitted.law.variables) if name != "unique_tokens"]
    return x[counted].sum(0)


def reach(fitted: Fit, x: Array, rows: Array | None = None) -> Array:
    """How far places x (v, m) lie beyond the fitted rows, in spans of theirs; 0 inside."""
    own = growth(fitted, fitted.x if rows is None else fitted.x[:, rows])
    return np.maximum(growth(fitted, x) - own.max(), 0.0) / max(float(own.max() - own.min()), 1e-9)


def backtest(fitted: Fit, seed: int = 0) -> Backtest | None:
    """None where there are too few places to leave two or more out."""
    parts = _cuts(fitted)
    if not parts:
        return None
    rng = np.random.default_rng(seed)
    tables = fitted.log_loss(fitted.x, fitted.core) + fitted.scatter * rng.standard_normal((SIMULATED, len(fitted.y)))
    whole = refine(fitted.problem, tables, np.repeat(fitted.core[None], SIMULATED, 0), 40, 1e-8)
    left = tables - fitted.law.log_mean(whole.u, fitted.x)
    # in units of each table's own noise, as far as its residuals tell it: with four degrees of freedom they tell little
    units = (left**2).sum(1) / max(fitted.dof, 1) / max(fitted.scatter, 1e-12) ** 2
    folds, null = [], []
    for inside, outside in parts:
        problem = _problem(fitted, inside)
        y = fitted.y[inside]
        starts = np.concatenate([fitted.core[None], search(problem, y, 4)])
        found = refine(problem, y, starts, 200)
        u = found.u[int(np.argmin(found.objective))]
        errors = fitted.y[outside] - fitted.log_loss(fitted.x[:, outside], u)
        folds.append(Fold(tuple(inside), tuple(outside), errors, reach(fitted, fitted.x[:, outside], inside), u))
        again: Solved = refine(problem, tables[:, inside], np.repeat(fitted.core[None], SIMULATED, 0), 40, 1e-8)
        missed = tables[:, outside] - fitted.law.log_mean(again.u, fitted.x[:, outside])
        null.append((missed**2).mean(1))
    mean = np.mean(null, axis=0)
    seen = float(np.mean([(f.errors**2).mean() for f in folds]))
    chance = float((1 + np.sum(mean / np.maximum(units, 1e-6) >= seen)) / (1 + SIMULATED))
    return Backtest(
        tuple(folds), float(np.sqrt(seen)), float(np.sqrt(np.median(mean))), chance,
        float(np.mean(np.concatenate([f.reach for f in folds]))),
    )  # fmt: skip


def _problem(fitted: Fit, rows: Array) -> Problem:
    whole = fitted.problem
    return Problem(fitted.law, fitted.x[:, rows], whole.delta[rows], whole.weights[rows])


def _cuts(fitted: Fit) -> list[tuple[Array, Array]]:
    """(rows fitted, rows hidden): the smallest places, as many as the law needs and one to spare, up to all but one."""
    place = cells(fitted.x)
    count = int(place.max()) + 1
    size = np.array([growth(fitted, fitted.x)[place == c].mean() for c in range(count)])
    order = np.argsort(size, kind="stable")
    least = fitted.law.count + 1
    wanted = sorted({min(max(round(share * count), least), count - 1) for share in SHARES}) if count > least else []
    parts = []
    for m in wanted:
        inside = np.isin(place, order[:m])
        if _holds(fitted, inside):
            parts.append((np.flatnonzero(inside), np.flatnonzero(~inside)))
    return parts


def _holds(fitted: Fit, inside: Array) -> bool:
    """Whether every variable still varies among these rows."""
    x = fitted.x[:, inside]
    return bool(np.all(x.max(1) - x.min(1) > 1e-3))
