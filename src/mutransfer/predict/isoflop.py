"""isoFLOP curves (Hoffmann et al. 2203.15556, approach 2): the best size of each budget read off its own runs, then N_opt ∝ C^a, D_opt ∝ C^b.

The minima of all budgets are found together (`minima`): parabolas with a common skew. Which runs form a budget is told by their compute; what compute still varies by within a
budget is taken off with the slope of the minima themselves.

The line through log N_opt weighs each minimum by its interval and by the scatter between them that intervals do not explain (random effects: Paule & Mandel 1982).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from mutransfer.errors import InputError
from mutransfer.predict.costs import FACTOR
from mutransfer.predict.intervals import student
from mutransfer.predict.minima import LEAST, find_minima, shape
from mutransfer.predict.noise import cells
from mutransfer.predict.points import Points
from mutransfer.predict.reading import read_points
from mutransfer.predict.units import from_nats
from mutransfer.verdict.estimate import Estimate

Array = np.ndarray
TOLERANCE = 0.15
SPREAD = float(np.log(2.0))  # sizes of a budget cover this factor at least


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
    """`budgets` with their minima, those that count and those left out; `exponents` a and b; `at(compute)`. `skew`: κ; `sigma`: noise of a run, nats; `unused`, `aside`: runs in no budget, and those too far up or from the curve."""

    points: Points
    variable: str
    budgets: tuple[Budget, ...]
    sizes: Line
    tokens: Line
    skew: float
    skew_sd: float
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
        return np.asarray(from_nats(budget.loss + budget.curvature * shape(d, self.skew), self.points.loss_unit))

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
        bent = f"common skew κ {self.skew:+.3f} ± {self.skew_sd:.3f} (a parabola has 0)"
        more = (
            f", scatter between budgets beyond that {100 * self.sizes.scatter:.0f} % in size"
            if self.sizes.scatter > 0.005
            else ""
        )
        lines.append(
            f"  {bent}; noise of a run {self.sigma:.2g}{' nats' if self.points.loss_unit == 'nats' else ''}{more}"
        )
        if self.aside:
            lines.append(f"  {self.aside} runs far above their budget's minimum, or far from its curve, were set aside")
        if self.unused:
            lines.append(
                f"  {self.unused} runs belong to no budget (fewer than {LEAST} sizes with nearly their compute)"
            )
        return "\n".join(lines)

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON types."""
        return {
            "size": self.variable, "level": self.level, "exponents": {k: e.to_dict() for k, e in self.exponents.items()},
            "budgets": [b.to_dict() for b in self.budgets], "skew": self.skew, "skew_sd": self.skew_sd, "noise": self.sigma, "dof": self.dof, "unused": self.unused, "set_aside": self.aside,
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
    if "unique_tokens" in points.variables:  # a budget that is spent on repeated tokens buys less
        points = points.select(points.variables["unique_tokens"] >= 0.99 * points.variables["tokens"])
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


def _levelled(points: Points, rows: Sequence[int], compute: float, slope: Array) -> Array:
    """Losses of a budget's rows at its own compute."""
    own = points.variables["compute"][list(rows)]
    if slope.shape[1] < 2:
        return points.loss[list(rows)]
    x, y = slope
    fall = np.gradient(y, x)
    return points.loss[list(rows)] - np.interp(np.log(compute), x, fall) * (np.log(own) - np.log(compute))


def _fitted(points: Points, size: str, groups: list[tuple[int, ...]], unused: int, level: float) -> IsoFlop:
    x = [np.log(points.variables[size][list(g)]) for g in groups]
    tokens = [np.log(points.variables["tokens"][list(g)]) for g in groups]
    computes = [float(np.exp(np.log(points.variables["compute"][list(g)]).mean())) for g in groups]
    minima = find_minima(x, [points.loss[list(g)] for g in groups], level)
    slope = np.empty((2, 0))
    for _ in range(2):
        low = [(np.log(c), m.height) for c, m in zip(computes, minima.found, strict=True) if not m.why]
        slope = np.array(low).reshape(-1, 2).T
        minima = find_minima(x, [_levelled(points, g, c, slope) for g, c in zip(groups, computes, strict=True)], level)
    budgets, rates = [], []
    for g, c, n, d, m, kept in zip(groups, computes, x, tokens, minima.found, minima.kept, strict=True):
        rate, level_d = np.polyfit(n - n.mean(), d, 1)  # tokens along the budget's own runs: nearly C/(k·N)
        rates.append(abs(float(rate)))
        size_at = _exp(m.at, m.low, m.high)
        tokens_at = _exp(*(float(level_d + rate * (v - n.mean())) for v in (m.at, m.low, m.high)))
        rows = tuple(i for i, k in zip(g, kept, strict=True) if k)
        budgets.append(Budget(c, rows, size_at, tokens_at, m.height, m.curvature, m.why))
    good = [i for i, b in enumerate(budgets) if not b.why]
    if len(good) < 2:
        reasons = "; ".join(f"{b.compute:.3g} FLOPs: {b.why}" for b in budgets if b.why)
        raise InputError(f"fewer than two budgets have their minimum inside their runs ({reasons})")
    at = np.log(np.array([computes[i] for i in good]))
    lines = []
    for name in ("size", "tokens"):
        y = np.log(np.array([getattr(budgets[i], name).value for i in good]))
        times = np.array([1.0 if name == "size" else rates[i] for i in good])
        own = times * np.array([minima.found[i].own for i in good])
        common = times * np.array([minima.found[i].shift for i in good])
        lines.append(_line(at, y, own, common, minima.dof))
    far = sum(len(g) for g in groups) - sum(len(b.rows) for b in budgets)
    return IsoFlop(
        points, size, tuple(budgets), lines[0], lines[1], minima.skew, minima.skew_sd, minima.sigma, minima.dof, level, unused, far, slope
    )  # fmt: skip


def _exp(value: float, low: float, high: float) -> Estimate:
    with np.errstate(over="ignore"):
        return Estimate(*(float(np.exp(v)) for v in (value, min(low, high), max(low, high))))


def _line(c: Array, y: Array, own: Array, common: Array, dof: int) -> Line:
    """Weighted least squares of y on c = log C. own: standard deviation of each; common: what all move by together, in standard deviations of one cause."""
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
    w = 1 / np.maximum(own**2 + extra, 1e-18)
    moved = covariance @ np.stack([(w * common).sum(), (w * (c - at) * common).sum()])
    covariance = covariance + np.outer(moved, moved)
    # scatter between budgets is known no better than the few budgets tell it
    share = extra / (extra + float(np.mean(own**2))) if extra > 0 else 0.0
    worth = dof if share == 0.0 else 1 / (share**2 / max(free, 1) + (1 - share) ** 2 / dof)
    return Line(float(u[1]), float(u[0]), at, covariance, max(1, int(worth)), float(np.sqrt(extra)))


def _shown(e: Estimate) -> str:
    return f"{e.value:.3g} [{e.low:.3g}, {e.high:.3g}]"
