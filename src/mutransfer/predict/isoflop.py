"""isoFLOP curves (Hoffmann et al. 2203.15556, approach 2): the best size of each budget read off its own runs, then N_opt ∝ C^a, D_opt ∝ C^b.

Within a budget the loss is, about its minimum, a parabola in x = log N. Under E + A/N^α + B/D^β at N·D constant all budgets have the same shape,

    L − L_min = T·[(e^(−αd) − 1)/α + (e^(βd) − 1)/β],  d = x − x_opt,  T = αA/N_opt^α = βB/D_opt^β

so that, to third order, L − L_min ∝ d² + κ·d³ with κ = (β − α)/3: a common skew. It is fitted where it is significant (F test at 1 %), with the always convex
shape 2(e^(3κd) − 1 − 3κd)/(9κ²), else the parabola is. Which runs form a budget is told by their compute; what compute still varies by within a budget is taken off with the
slope of the minima themselves.

Each minimum's interval is that of the profile of its position (for a parabola Fieller's, exact for normal noise), with the noise of all budgets pooled. The
line through log N_opt weighs each by its interval and by the scatter between them that intervals do not explain (random effects: Paule & Mandel 1982).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from mutransfer.errors import InputError
from mutransfer.predict.costs import FACTOR
from mutransfer.predict.intervals import student
from mutransfer.predict.noise import cells, scale
from mutransfer.predict.points import Points
from mutransfer.predict.reading import read_points
from mutransfer.predict.units import from_nats
from mutransfer.verdict.estimate import Estimate

Array = np.ndarray
TOLERANCE = 0.15
LEAST = 5  # sizes of a budget; a parabola takes three, the minimum's interval what is left
SPREAD = float(np.log(2.0))  # sizes of a budget cover this factor at least
SKEWS = np.linspace(-0.36, 0.36, 73)
WILD, FEW = 4.0, 0.1  # runs this many standard deviations from their curve are set aside, if at most this share is
_TRIED = 700  # positions of the minimum


@dataclass(frozen=True)
class Budget:
    """The runs of nearly one compute and their best size. `size`, `tokens`, `loss`: of the minimum, in units of one; `rows` of the points; `why`: what is wrong with the minimum, empty
    where nothing is; `curvature`: the loss (nats) at d = 1 above the minimum, by the parabola."""

    compute: float
    rows: tuple[int, ...]
    size: Estimate
    tokens: Estimate
    loss: float
    curvature: float
    why: str = ""

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON types."""
        return {
            "compute": self.compute, "runs": len(self.rows), "size": self.size.to_dict(), "tokens": self.tokens.to_dict(), "loss": self.loss,
            "left_out": self.why or None,
        }  # fmt: skip


@dataclass(frozen=True)
class Line:
    """log y = centre + slope·(log C − at), its covariance (2, 2), degrees of freedom of Student's t, and the scatter between budgets."""

    slope: float
    centre: float
    at: float
    covariance: Array
    dof: int
    scatter: float

    def estimate(self, level: float) -> Estimate:
        """The exponent."""
        half = student(level, self.dof) * float(np.sqrt(self.covariance[1, 1]))
        return Estimate(self.slope, self.slope - half, self.slope + half)

    def value(self, compute: float, level: float) -> Estimate:
        """y at a compute."""
        step = np.array([1.0, np.log(compute) - self.at])
        middle = self.centre + self.slope * step[1]
        half = student(level, self.dof) * float(np.sqrt(step @ self.covariance @ step))
        return Estimate(*(float(np.exp(v)) for v in (middle, middle - half, middle + half)))


@dataclass(frozen=True)
class IsoFlop:
    """`budgets` with their minima, those that count and those left out; `exponents` a and b; `at(compute)`. `skew`: κ, 0 where parabolas fit; `sigma`: noise of a run, nats."""

    points: Points
    variable: str
    budgets: tuple[Budget, ...]
    sizes: Line
    tokens: Line
    skew: float
    sigma: float
    dof: int
    level: float
    unused: int
    aside: int
    slope: Array = field(repr=False)
    """d log-minimum/d log C as (log C, loss) of the minima, by which compute's spread within a budget is taken off."""

    @property
    def used(self) -> tuple[Budget, ...]:
        """The budgets whose minimum counts."""
        return tuple(b for b in self.budgets if not b.why)

    @property
    def exponents(self) -> dict[str, Estimate]:
        """a of N_opt ∝ C^a and b of D_opt ∝ C^b."""
        return {"a": self.sizes.estimate(self.level), "b": self.tokens.estimate(self.level)}

    def at(self, compute: float) -> tuple[Estimate, Estimate]:
        """(N_opt, D_opt) at a compute in FLOPs, by the lines."""
        if (
            isinstance(compute, bool)
            or not isinstance(compute, (int, float, np.number))
            or not 0 < float(compute) < 1e60
        ):
            raise InputError(f"compute={compute!r}: write a budget in FLOPs, such as 1e21")
        return self.sizes.value(float(compute), self.level), self.tokens.value(float(compute), self.level)

    def curve(self, budget: Budget, sizes: Array) -> Array:
        """The fitted loss (m,) of a budget at sizes (m,), in the points' own unit."""
        d = np.log(sizes) - np.log(budget.size.value)
        return np.asarray(from_nats(budget.loss + budget.curvature * _shape(d, self.skew), self.points.loss_unit))

    def levelled(self, budget: Budget) -> tuple[Array, Array]:
        """(sizes, losses) of a budget's runs, with compute's spread taken off, in the points' own unit."""
        rows = list(budget.rows)
        loss = _levelled(self.points, rows, budget.compute, self.slope)
        return self.points.variables[self.variable][rows], np.asarray(from_nats(loss, self.points.loss_unit))

    def words(self) -> str:
        """A line per budget, the exponents, and what was left out."""
        lines = [
            f"isoFLOP: {len(self.used)} budgets, {self.variable} and tokens of the lowest loss ({self.level:.0%} intervals)"
        ]
        for b in self.budgets:
            if b.why:
                lines.append(f"  {b.compute:9.3g} FLOPs, {len(b.rows)} runs: left out, {b.why}")
            else:
                lines.append(
                    f"  {b.compute:9.3g} FLOPs, {len(b.rows)} runs: {self.variable} {_shown(b.size)}, tokens {_shown(b.tokens)}, "
                    f"loss {float(from_nats(b.loss, self.points.loss_unit)):.4g}"
                )
        a, b = (self.exponents[k].shown(3) for k in "ab")
        lines.append(f"  N_opt ∝ C^a, a {a}; D_opt ∝ C^b, b {b}")
        shape = f"a common skew κ {self.skew:+.2f} fits better than parabolas" if self.skew else "parabolas"
        more = (
            f", scatter between budgets beyond that {100 * self.sizes.scatter:.0f} % in size"
            if self.sizes.scatter > 0.005
            else ""
        )
        lines.append(
            f"  {shape}; noise of a run {self.sigma:.2g}{' nats' if self.points.loss_unit == 'nats' else ''}{more}"
        )
        if self.aside:
            lines.append(f"  {self.aside} runs far from every curve were set aside")
        if self.unused:
            lines.append(
                f"  {self.unused} runs belong to no budget (fewer than {LEAST} sizes with nearly their compute)"
            )
        return "\n".join(lines)

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON types."""
        return {
            "size": self.variable, "level": self.level, "exponents": {k: e.to_dict() for k, e in self.exponents.items()},
            "budgets": [b.to_dict() for b in self.budgets], "skew": self.skew, "noise": self.sigma, "dof": self.dof, "unused": self.unused, "set_aside": self.aside,
        }  # fmt: skip


def isoflop(rows: Any, *, size: str | None = None, tolerance: float = TOLERANCE, level: float = 0.9, **reading: Any) -> IsoFlop:  # fmt: skip
    """The minima of isoFLOP curves and the exponents of N_opt ∝ C^a, D_opt ∝ C^b. rows: a table as `read_points` takes it, or `Points`.

    size: the size variable, by default params, non_embedding or flops_per_token, whichever the table has; tolerance: runs whose compute differs from their budget's by at
    most this share belong to it. Raises InputError where there are fewer than two budgets with a minimum inside.
    """
    if isinstance(tolerance, bool) or not isinstance(tolerance, (int, float)) or not 1e-6 <= tolerance <= 0.5:
        raise InputError(f"tolerance={tolerance!r}: write the share by which the compute of one budget's runs may differ, such as 0.1")  # fmt: skip
    if not isinstance(level, (int, float)) or not 0.5 <= level <= 0.99:
        raise InputError(f"level={level!r}: write a level between 0.5 and 0.99, such as 0.9")
    points = rows if isinstance(rows, Points) else read_points(rows, **reading)
    names = [name for name in FACTOR if name in points.variables]
    chosen = size or next(iter(names), None)
    if chosen is None or chosen not in points.variables:
        raise InputError(
            f"isoFLOP curves need a size that varies ({', '.join(FACTOR)}); the table has {', '.join(points.variables) or 'none'}"
        )
    for needed in ("compute", "tokens"):
        if needed not in points.variables:
            raise InputError(
                f"isoFLOP curves need {needed}, which the table does not have: name its column, columns={{{needed!r}: …}}"
            )
    groups, unused = _groups(points, chosen, tolerance)
    if len(groups) < 2:
        raise InputError(
            f"{len(groups) or 'no'} budget{'' if len(groups) == 1 else 's'} with runs of {LEAST} sizes or more and nearly the same compute "
            f"(± {tolerance:.0%}): isoFLOP curves need two or more"
        )
    return _fitted(points, chosen, groups, unused, level)


def _groups(points: Points, size: str, tolerance: float) -> tuple[list[tuple[int, ...]], int]:
    """Rows of each budget, smallest compute first: the densest window of ±tolerance, then the densest of what is left; and how many rows are in none."""
    c = np.log(points.variables["compute"])
    x = np.log(points.variables[size])
    order = np.argsort(c, kind="stable")
    left = np.ones(len(c), bool)
    width = 2 * np.log1p(tolerance)
    found: list[tuple[int, ...]] = []
    centres: list[float] = []
    while True:
        rows = order[left[order]]
        if len(rows) < LEAST:
            break
        values = c[rows]
        ends = np.searchsorted(values, values + width, side="right")
        counts = ends - np.arange(len(rows))
        taken = False
        for start in np.argsort(-counts, kind="stable"):
            group = rows[start : ends[start]]
            if len(group) < LEAST:
                break
            middle = float(c[group].mean())
            # what is left at the flank of a budget is no budget of its own
            if any(abs(middle - other) < width for other in centres):
                continue
            if int(cells(x[group][None]).max()) + 1 >= LEAST and np.ptp(x[group]) >= SPREAD:
                found.append(tuple(int(i) for i in group))
                centres.append(middle)
                left[group] = False
                taken = True
                break
        if not taken:
            break
    found.sort(key=lambda g: float(c[list(g)].mean()))
    return found, len(c) - sum(len(g) for g in found)


def _shape(d: Array, skew: float) -> Array:
    """d² + κd³ + …, convex with its minimum at 0."""
    if abs(skew) < 1e-6:
        return d * d
    s = np.clip(3 * skew * d, -60.0, 60.0)
    return 2 * (np.expm1(s) - s) / (9 * skew * skew)


def _levelled(points: Points, rows: Sequence[int], compute: float, slope: Array) -> Array:
    """Losses of a budget's rows at its own compute."""
    own = points.variables["compute"][list(rows)]
    if slope.shape[1] < 2:
        return points.loss[list(rows)]
    x, y = slope
    fall = np.gradient(y, x)
    return points.loss[list(rows)] - np.interp(np.log(compute), x, fall) * (np.log(own) - np.log(compute))


def _rss(x: Array, y: Array, tried: Array, skew: float) -> tuple[Array, Array, Array]:
    """(residual sum of squares, curvature, minimum) (m,) of y = L + c·shape(x − x₀), c ≥ 0, for each x₀ of `tried`."""
    phi = _shape(x[None] - tried[:, None], skew)
    middle = phi.mean(1, keepdims=True)
    centred = phi - middle
    ss = np.maximum((centred**2).sum(1), 1e-300)
    c = np.maximum(centred @ (y - y.mean()) / ss, 0.0)
    residual = y[None] - y.mean() - c[:, None] * centred
    return (residual**2).sum(1), c, y.mean() - c * middle[:, 0]


def _fitted(points: Points, size: str, groups: list[tuple[int, ...]], unused: int, level: float) -> IsoFlop:
    shape = _common(points, size, groups)
    # a run far from every curve would make the noise of all look larger, and its own budget's minimum another
    wild = np.abs(shape.residuals) > WILD * shape.sigma
    aside = 0
    if 0 < wild.sum() <= FEW * len(wild):
        kept = np.split(~wild, np.cumsum([len(g) for g in groups])[:-1])
        smaller = [tuple(i for i, k in zip(g, keep, strict=True) if k) for g, keep in zip(groups, kept, strict=True)]
        if all(len(g) >= LEAST for g in smaller):
            groups, aside = smaller, int(wild.sum())
            shape = _common(points, size, groups)
    budgets = [_budget(points, g, i, shape, level) for i, g in enumerate(groups)]
    used = [b for b in budgets if not b.why]
    if len(used) < 2:
        reasons = "; ".join(f"{b.compute:.3g} FLOPs: {b.why}" for b in budgets if b.why)
        raise InputError(f"fewer than two budgets have their minimum inside their runs ({reasons})")
    t = student(level, shape.dof)
    lines = [
        _line([b.compute for b in used], [getattr(b, name) for b in used], t, shape.dof) for name in ("size", "tokens")
    ]
    return IsoFlop(
        points, size, tuple(budgets), lines[0], lines[1], shape.skew, shape.sigma, shape.dof, level, unused, aside, shape.slope
    )  # fmt: skip


@dataclass(frozen=True)
class _Common:
    """What all budgets share: skew, noise, slope of the minima; and each one's log sizes `x`, levelled losses `y` and the positions `tried`."""

    x: list[Array]
    y: list[Array]
    tried: list[Array]
    computes: list[float]
    skew: float
    sigma: float
    dof: int
    slope: Array
    residuals: Array


def _common(points: Points, size: str, groups: list[tuple[int, ...]]) -> _Common:
    x = [np.log(points.variables[size][list(g)]) for g in groups]
    computes = [float(np.exp(np.log(points.variables["compute"][list(g)]).mean())) for g in groups]
    tried = [np.linspace(v.min() - np.ptp(v), v.max() + np.ptp(v), _TRIED) for v in x]
    slope, skew, y = np.empty((2, 0)), 0.0, []
    dof = sum(len(g) for g in groups) - 3 * len(groups)
    for _ in range(3):
        y = [_levelled(points, g, c, slope) for g, c in zip(groups, computes, strict=True)]
        total = np.array([sum(_rss(a, b, t, k)[0].min() for a, b, t in zip(x, y, tried, strict=True)) for k in (0.0, *SKEWS)])  # fmt: skip
        best = float(SKEWS[int(np.argmin(total[1:]))])
        skew = best if dof > 3 and _better(total[0], total[1:].min(), dof) else 0.0
        lowest = [_rss(a, b, t, skew) for a, b, t in zip(x, y, tried, strict=True)]
        slope = np.array([np.log(computes), [float(f[2][int(np.argmin(f[0]))]) for f in lowest]])
        at = [t[int(np.argmin(f[0]))] for t, f in zip(tried, lowest, strict=True)]
        slope = slope[:, [bool(v.min() < a < v.max()) for v, a in zip(x, at, strict=True)]]
    residuals = np.concatenate([_residuals(a, b, t, skew) for a, b, t in zip(x, y, tried, strict=True)])
    dof = max(dof - (skew != 0.0), 1)
    return _Common(x, y, tried, computes, skew, max(scale(residuals, dof), 1e-9), dof, slope, residuals)


def _better(plain: float, skewed: float, dof: int) -> bool:
    from scipy.stats import f as f_distribution

    ratio = (plain - skewed) / max(skewed / (dof - 1), 1e-300)
    return float(f_distribution.sf(ratio, 1, dof - 1)) < 0.01


def _residuals(x: Array, y: Array, tried: Array, skew: float) -> Array:
    rss, c, low = _rss(x, y, tried, skew)
    k = int(np.argmin(rss))
    return y - low[k] - c[k] * _shape(x - tried[k], skew)


def _budget(points: Points, rows: tuple[int, ...], i: int, shape: _Common, level: float) -> Budget:
    x, y, tried, skew = shape.x[i], shape.y[i], shape.tried[i], shape.skew
    rss, c, low = _rss(x, y, tried, skew)
    k = int(np.argmin(rss))
    # the grid is finer than any interval that counts; a parabola through three points settles the rest
    at = float(tried[k])
    if 0 < k < len(tried) - 1:
        bend = rss[k - 1] - 2 * rss[k] + rss[k + 1]
        at += float(np.clip(0.5 * (rss[k - 1] - rss[k + 1]) / max(bend, 1e-300), -0.5, 0.5)) * float(
            tried[1] - tried[0]
        )
    limit = (student(level, shape.dof) * shape.sigma) ** 2
    inside = rss - rss[k] <= limit
    first, last = _run(inside, k)
    over = rss - rss[k] - limit
    ends = (
        -np.inf if first == 0 else _cross(tried, over, first - 1),
        np.inf if last == len(tried) - 1 else _cross(tried, over, last),
    )
    why = ""
    best = x[int(np.argmin(y))]
    if c[k] <= 0:
        why = "the loss has no minimum over size (it does not bend upwards)"
    elif not x.min() < at < x.max():
        side = "smallest" if at <= x.min() else "largest"
        why = (
            f"the minimum is at the edge, beyond the {side} size: make {'smaller' if at <= x.min() else 'larger'} ones"
        )
    elif not (np.isfinite(ends[0]) and np.isfinite(ends[1])):
        why = "noise hides the minimum: its interval has no end"
    elif best in (x.min(), x.max()) and not (x.min() < ends[0] and ends[1] < x.max()):
        why = f"the lowest loss is that of the {'smallest' if best == x.min() else 'largest'} size, and the minimum's interval goes beyond it"
    tokens = np.log(points.variables["tokens"][list(rows)])
    a, b = np.polyfit(x - x.mean(), tokens, 1)
    logs = np.array([at, *ends])
    with np.errstate(over="ignore"):
        n = np.exp(logs)
        d = np.exp(b + a * (logs - x.mean()))
    best_size = Estimate(float(n[0]), float(n[1]), float(n[2]))
    best_tokens = Estimate(float(d[0]), float(min(d[1:])), float(max(d[1:])))
    return Budget(shape.computes[i], rows, best_size, best_tokens, float(low[k]), float(c[k]), why)


def _run(inside: Array, k: int) -> tuple[int, int]:
    """The first and last index of the unbroken stretch of true values about k."""
    out = np.flatnonzero(~inside)
    before, after = out[out < k], out[out > k]
    return (int(before[-1]) + 1 if len(before) else 0), (int(after[0]) - 1 if len(after) else len(inside) - 1)


def _cross(x: Array, y: Array, i: int) -> float:
    """Where y crosses 0 between i and i + 1."""
    return float(x[i] + (x[i + 1] - x[i]) * y[i] / (y[i] - y[i + 1]))


def _line(computes: Sequence[float], values: Sequence[Estimate], t: float, dof: int) -> Line:
    """Weighted least squares of log value on log C."""
    c = np.log(np.array(computes))
    y = np.log(np.array([v.value for v in values]))
    own = np.array([(np.log(v.high) - np.log(v.low)) / 2 / t for v in values])
    free = len(c) - 2

    def solved(extra: float) -> tuple[Array, Array, float, float]:
        w = 1 / np.maximum(own**2 + extra, 1e-18)
        at = float((w * c).sum() / w.sum())
        design = np.stack([np.ones(len(c)), c - at], axis=1)
        covariance = np.linalg.inv(design.T @ (design * w[:, None]))
        u = covariance @ (design.T @ (w * y))
        return u, covariance, float((w * (y - design @ u) ** 2).sum()), at

    extra = 0.0
    if free > 0 and solved(0.0)[2] > free:
        low, high = 0.0, float(np.var(y) + own.max() ** 2 + 1e-12)
        for _ in range(60):  # the scatter at which the residuals are as large as they should be
            extra = (low + high) / 2
            low, high = (extra, high) if solved(extra)[2] > free else (low, extra)
    u, covariance, _, at = solved(extra)
    # scatter between budgets is known no better than the few budgets tell it
    share = extra / (extra + float(np.mean(own**2))) if extra > 0 else 0.0
    worth = dof if share == 0.0 else 1 / (share**2 / max(free, 1) + (1 - share) ** 2 / dof)
    return Line(float(u[1]), float(u[0]), at, covariance, max(1, int(worth)), float(np.sqrt(extra)))


def _shown(e: Estimate) -> str:
    return f"{e.value:.3g} [{e.low:.3g}, {e.high:.3g}]"
