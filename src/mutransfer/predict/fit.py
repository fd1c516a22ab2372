"""One law on one set of points: parameters, restarts, noise, and which points are odd or carry the fit."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np

from mutransfer.errors import InputError
from mutransfer.predict.laws import Law
from mutransfer.predict.noise import WINSOR, Repeats, cells, repeats, scale
from mutransfer.predict.points import Points
from mutransfer.predict.solve import Problem, Solved, refine, solve

Array = np.ndarray
DELTA = 1e-3
"""Huber's threshold in log loss, as Hoffmann et al. (2203.15556) chose it …"""
SHARE = 0.7
"""… but not below this share of the noise, where the fit would become a median and waste a third of the data."""
LACK = 0.1  # pooling noise within sizes with the scatter between them needs a lack-of-fit test above this
ENOUGH, FEW = (
    20,
    0.05,
)  # outliers are set aside where there are this many rows, and if they are at most this share of them
_TINY = 1e-9  # noise below rounding


@dataclass(frozen=True)
class Fit:
    """A fitted law. `x` (v, n): logarithms less `log_scale` (v,); `y` (n,): log losses (seeds' levels taken off) of rows, or of sizes' means.

    `u` (p,): (log c, θ), Huber with `delta`; `core` (p,): the same with the wide threshold of `problem`, about which intervals are drawn. `sigma`: standard deviation of one run about the law, in log loss, with `dof` degrees of freedom;
    `scatter`: that of a fitted row (smaller where rows are means).
    """

    law: Law
    points: Points
    log_scale: Array
    x: Array
    y: Array
    rows: tuple[tuple[int, ...], ...]
    delta: float
    u: Array
    core: Array
    restarts: Solved
    scatter: float
    sigma: float
    dof: int
    repeats: Repeats
    lack_of_fit: float | None
    """p value of the scatter between sizes against that within them; None without repetitions."""
    aside: tuple[tuple[int, ...], ...] = ()
    """Rows of `points` that were set aside as outliers, like `rows`."""

    @property
    def problem(self) -> Problem:
        """What intervals rest on: Huber with a threshold that only wild rows pass, so that a normal law loses nothing."""
        n = len(self.y)
        return Problem(self.law, self.x, np.full(n, max(WINSOR * self.scatter, DELTA)), np.ones(n))

    @cached_property
    def residuals(self) -> Array:
        """log L − log f (n,): above 0 where a run is worse than the law."""
        return self.y - self.law.log_mean(self.u, self.x)

    @cached_property
    def leverage(self) -> Array:
        """How much of its own fitted value each row decides (n,), 0 to 1: the diagonal of J (JᵀJ)⁺ Jᵀ."""
        jacobian = self.law.derivative(self.u[None], self.x)[0]
        q, _, _ = _ranked(jacobian)
        return np.clip((q**2).sum(1), 0.0, 1.0)

    @cached_property
    def studentized(self) -> Array:
        """Residuals in units of their own standard deviation, scatter·√(1 − leverage)."""
        return self.residuals / np.maximum(self.scatter * np.sqrt(np.maximum(1 - self.leverage, 1e-6)), 1e-300)

    @property
    def outliers(self) -> tuple[int, ...]:
        """Rows whose residual a normal law would show in one table of a hundred (Bonferroni); needs three spare rows."""
        from scipy.stats import t

        n = len(self.y)
        if self.dof < 3 or self.scatter <= _TINY:
            return ()
        far = float(t.isf(0.005 / n, self.dof))
        # a row that decides its own fitted value has no residual to speak of
        return tuple(int(i) for i in np.flatnonzero((np.abs(self.studentized) > far) & (self.leverage < 0.99)))

    @property
    def heavy(self) -> tuple[int, ...]:
        """Rows without which the fit would be another: leverage above 0.9, or above thrice the mean in larger tables."""
        n, p = len(self.y), self.law.count
        return tuple(int(i) for i in np.flatnonzero(self.leverage > max(0.5, min(0.9, 3 * p / n))))

    @property
    def agreeing(self) -> int:
        """How many restarts ended at the best objective."""
        best = self.restarts.objective[0]
        return int(np.sum(self.restarts.objective <= best * (1 + 1e-6) + 1e-15))

    def normalise(self, values: Array) -> Array:
        """Logarithms (v, m) in the fit's own units, of values in units of one."""
        return np.log(values) - self.log_scale[:, None]

    def log_loss(self, x: Array, u: Array | None = None) -> Array:
        """log f (..., m) at normalised logarithms x (v, m)."""
        return self.law.log_mean(self.u if u is None else u, x)

    def raw(self, u: Array | None = None) -> dict[str, Array]:
        """The published parameters, for values in units of one. u (..., p)."""
        u = self.u if u is None else u
        k = len(self.law.coefficients)
        return self.law.raw(u[..., :k], u[..., k:], self.log_scale)

    def refit(self, keep: Array, starts: int = 3) -> Array:
        """u (p,) of the same law, Huber with the same `delta`, on the fitted rows where `keep` (n,): from here and from a search of its own."""
        problem = Problem(self.law, self.x[:, keep], np.full(int(keep.sum()), self.delta), np.ones(int(keep.sum())))
        _, every = solve(problem, self.y[keep])
        again = refine(problem, self.y[keep], np.concatenate([self.u[None], every.u[:starts]]), 200)
        return again.u[int(np.argmin(again.objective))]


def _ranked(jacobian: Array) -> tuple[Array, Array, Array]:
    """(orthonormal basis, singular values, right vectors) of the directions that the data tell apart."""
    size = np.maximum(np.sqrt((jacobian**2).sum(0)), 1e-300)
    left, values, right = np.linalg.svd(jacobian / size, full_matrices=False)
    told = values > 1e-7 * values[0] if len(values) else values > 0
    return left[:, told], values[told], right[told]


def log_scales(law: Law, points: Points) -> Array:
    """The logarithm of each variable's geometric mean; distinct tokens share that of tokens, so that their ratio is kept."""
    found = {name: float(np.log(points.variables[name]).mean()) for name in law.variables}
    if "unique_tokens" in found and "tokens" in found:
        found["unique_tokens"] = found["tokens"]
    return np.array([found[name] for name in law.variables])


def require(law: Law, points: Points) -> None:
    """Raise InputError where the points cannot hold the law: a missing or constant variable, too few sizes, variables in proportion."""
    for name in law.variables:
        if name not in points.variables:
            known = ", ".join(points.variables) or "none"
            raise InputError(
                f"law {law.name!r} needs {name}, which the table does not have (it has: {known}); name its column, or take another law"
            )
        values = points.variables[name]
        if values.max() <= values.min() * 1.001:
            raise InputError(
                f"{name} is {values[0]:g} in every row: law {law.name!r} needs it to vary; take a law without it"
            )
    x = np.log(np.stack([points.variables[name] for name in law.variables]))
    places = len(set(cells(x).tolist()))
    if places <= law.count:
        what = "sizes" if len(law.variables) == 1 else f"combinations of {' and '.join(law.variables)}"
        raise InputError(
            f"{places} different {what} for the {law.count} parameters of {law.formula}: at least {law.count + 1} are needed, "
            "since noise is judged by what the law leaves"
        )  # fmt: skip
    if len(x) > 1 and law.name != "data-constrained":
        centred = x - x.mean(1, keepdims=True)
        values = np.linalg.svd(centred, compute_uv=False)
        if values[-1] < 1e-3 * values[0]:
            raise InputError(
                f"{' and '.join(law.variables)} grow in proportion (one follows from the others): their exponents cannot be told apart; "
                "take law='power' over one of them"
            )  # fmt: skip


def fit(law: Law, points: Points, delta: float | None = None) -> Fit:
    """Fit `law` by Huber's loss on log loss. Raises InputError where the points cannot hold it.

    Rows are fitted as they are; where sizes are repeated and scatter about the law by more than their repetitions (lack of
    fit), the means of the sizes are fitted instead, and their scatter is the noise that counts.
    """
    require(law, points)
    log_scale = log_scales(law, points)
    x = np.log(np.stack([points.variables[name] for name in law.variables])) - log_scale[:, None]
    y = np.log(points.loss)
    cell = cells(x)
    found = repeats(y, cell, points.seed)
    if found.levels:
        level = dict(found.levels)
        y = y - np.array([level[s] for s in points.seed])
    data = _Data(law, points, log_scale, x, y, tuple((i,) for i in range(len(y))), found, max(len(found.levels) - 1, 0))
    one = _without_outliers(data, delta)
    places = int(cell.max()) + 1
    if not found.dof:
        return one
    # is what remains between sizes more than the noise within them?
    from scipy.stats import f as f_distribution

    pure = found.pure**2 * found.dof
    total = float(((one.y - one.log_loss(one.x, one.core)) ** 2).sum())
    free = places - law.count
    between = max(total - pure, 0.0) / free
    p = float(f_distribution.sf(between / max(found.pure**2, _TINY**2), free, found.dof))
    if p > LACK:
        return replace(one, lack_of_fit=p, dof=max(free + found.dof, 1))
    count = np.bincount(cell)
    mean_x = np.stack([np.bincount(cell, row) / count for row in x])
    mean_y = np.bincount(cell, y) / count
    members = tuple(tuple(int(i) for i in np.flatnonzero(cell == c)) for c in range(places))
    means = _without_outliers(_Data(law, points, log_scale, mean_x, mean_y, members, found, 0), delta)
    within = found.pure**2 * (1 - float(np.mean(1 / count)))
    return replace(means, lack_of_fit=p, sigma=float(np.sqrt(means.scatter**2 + within)))


@dataclass(frozen=True)
class _Data:
    """What is fitted; `spent`: degrees of freedom that were taken off y before (seeds' levels)."""

    law: Law
    points: Points
    log_scale: Array
    x: Array
    y: Array
    rows: tuple[tuple[int, ...], ...]
    found: Repeats
    spent: int

    def select(self, keep: Array) -> _Data:
        rows = tuple(r for r, k in zip(self.rows, keep, strict=True) if k)
        return replace(self, x=self.x[:, keep], y=self.y[keep], rows=rows)


def _without_outliers(data: _Data, delta: float | None) -> Fit:
    """The fit without its outliers, where they are few of many; Huber alone lets five of 245 move Chinchilla's E by 0.08."""
    n = len(data.y)
    keep = np.ones(n, bool)
    made = _fit(data, delta)
    while n >= ENOUGH and made.outliers and n - keep.sum() + len(made.outliers) <= FEW * n:
        keep[np.flatnonzero(keep)[list(made.outliers)]] = False
        made = _fit(data.select(keep), delta)
    return replace(made, aside=tuple(r for r, k in zip(data.rows, keep, strict=True) if not k))


def _fit(data: _Data, delta: float | None) -> Fit:
    law, x, y = data.law, data.x, data.y
    n = len(y)
    dof = max(n - law.count - data.spent, 1)

    def solved(threshold: float) -> tuple[Solved, Solved]:
        return solve(Problem(law, x, np.full(n, threshold), np.ones(n)), y)

    first, _ = solved(1e3)  # least squares, for the scale
    noise = scale(law.log_mean(first.u[0], x) - y, dof)
    chosen = max(DELTA, SHARE * noise) if delta is None else delta
    best, every = solved(chosen)
    for _ in range(2):  # the scale about the robust fit, not about the one that outliers pulled
        again = min(noise, scale(law.log_mean(best.u[0], x) - y, dof))
        if again > 0.98 * noise or delta is not None:
            break
        noise, chosen = again, max(DELTA, SHARE * again)
        best, every = solved(chosen)
    made = Fit(law, data.points, data.log_scale, x, y, data.rows, float(chosen), best.u[0], best.u[0], every, noise, noise, dof, data.found, None)  # fmt: skip
    core = refine(made.problem, y, np.concatenate([every.u[:3], first.u]), 200)
    return replace(made, core=core.u[int(np.argmin(core.objective))])
