"""From a loss to the run that reaches it: the size of a law in one variable, or the compute-optimal size and tokens.

**One variable.** All sizes N are in the interval at which the law, with its parameters free, can pass through the loss L* at N:

    min_u { Q(u) | log f(N, u) = log L* } − min_u Q(u)  ≤  ½·s²·t²(1 − a/2; dof)

the inversion of the profile interval of log f(N). With a misfit seen in the backtest, t² is divided up as `predict` does. **Two.** Every bootstrap draw has its own
frontier, and its own budget at which that reaches L*; a draw whose irreducible loss is above L* never does, and says infinity.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from mutransfer.errors import InputError
from mutransfer.predict.backtest import reach
from mutransfer.predict.costs import FACTOR, cost_of
from mutransfer.predict.forecast import FOLDS, LossLaw
from mutransfer.predict.frontier import Frontier, frontier
from mutransfer.predict.intervals import CLOSE, objective, parameter_interval, student
from mutransfer.predict.solve import Problem, refine
from mutransfer.predict.telling import LONG
from mutransfer.predict.units import from_nats, to_nats
from mutransfer.verdict.estimate import Estimate, central

Array = np.ndarray
FARTHEST = float(np.log(1e15))  # beyond this many times the largest fitted value a law is nothing but its limit
NEAREST = float(np.log(1e3))
WEIGHT = 100.0  # of the loss to be passed through, in runs: an infinite one makes the search stiff
CAP = 3.0  # spans of the fitted runs: farther away the law's own error is unknown, and is not taken to grow on


@dataclass(frozen=True)
class Reaching:
    """What it takes to reach `loss`. `at`: by variable (params, tokens, compute), infinite ends where no size may do; `limit`: the loss that the law approaches, and its name;
    `share`: of the bootstrap draws that reach the loss at some size; `reach`: how far beyond the fitted runs, in spans of them; `given`: what was held fixed."""

    loss: float
    at: Mapping[str, Estimate]
    given: Mapping[str, float]
    limit: Estimate | None
    limit_name: str
    share: float
    reach: float
    level: float
    optimal: bool
    unit: str = "nats"
    misfit: float = 0.0
    """Of the law in its backtest, in log loss; it is part of the intervals."""

    @property
    def status(self) -> str:
        """REACHABLE, UNREACHABLE (no size in the interval), or DOUBTFUL: some of the laws that fit reach it and some never do."""
        first = next(iter(self.at.values()))
        if np.isfinite(first.high):
            return "REACHABLE"
        return "DOUBTFUL" if np.isfinite(first.low) else "UNREACHABLE"

    def words(self) -> str:
        """One or two plain sentences."""
        held = f" with {', '.join(f'{k} {v:.4g}' for k, v in self.given.items())}" if self.given else ""
        sizes = ", ".join(f"{name} {_shown(e)}" for name, e in self.at.items() if np.isfinite(e.value))
        how = "compute-optimal" if self.optimal else "the law's own loss there, without the noise of a run"
        end = f"{self.limit_name} is {self.limit.shown(_digits(self.limit.value))}" if self.limit is not None else ""
        head = f"loss {self.loss:g}{held}: "
        if self.status == "UNREACHABLE":
            return head + f"not reachable at any size{': ' + end if end else ''} ({self.level:.0%})"
        if self.status == "REACHABLE":
            far = (
                f"; a long extrapolation, {self.reach:.1f} spans of the fitted runs beyond them"
                if self.reach > LONG
                else ""
            )
            return head + f"{sizes} ({self.level:.0%}; {how}){far}"
        doubt = f"{100 * (1 - self.share):.0f} % of the bootstrap fits{', with the misfit that the backtest shows,' if self.misfit else ''} never reach it"
        if not sizes:
            low = ", ".join(f"{name} {e.low:.4g}" for name, e in self.at.items() if np.isfinite(e.low))
            return head + f"the fit reaches it at no size, and no size below {low} does: {end or 'the law ends above it'}; {doubt} ({self.level:.0%})"  # fmt: skip
        return (
            head + f"by the fit {sizes}, but perhaps at no size: {end + '; ' if end else ''}{doubt} ({self.level:.0%})"
        )

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON types."""
        return {
            "loss": self.loss, "loss_unit": self.unit, "status": self.status, "at": {name: e.to_dict() for name, e in self.at.items()},
            "given": dict(self.given), "limit": None if self.limit is None else {"name": self.limit_name, **self.limit.to_dict()},
            "share_reaching": self.share, "reach": self.reach, "level": self.level, "compute_optimal": self.optimal, "words": self.words(),
        }  # fmt: skip


def size_for(law: LossLaw, loss: float, *, unique_tokens: float | None = None, level: float = 0.9, **fixed: float) -> Reaching:  # fmt: skip
    """The size at which the law reaches `loss` (in the law's unit); of a law over size and tokens the compute-optimal size and tokens.

    fixed: a variable held, such as tokens=1e12: then the other one is asked for. Raises InputError for a loss that is none, and for one that
    every fitted run is below.
    """
    if isinstance(loss, bool) or not isinstance(loss, (int, float, np.number)) or not 0 < float(loss) < 1e6:
        raise InputError(f"loss={loss!r}: write a loss above 0, in {law.unit}, such as 2.2")
    if law.unit == "perplexity" and loss <= 1:
        raise InputError(f"loss={loss!r}: the law predicts a perplexity, which is above 1")
    if not isinstance(level, (int, float)) or not 0.5 <= level <= 0.99:
        raise InputError(f"level={level!r}: write a level between 0.5 and 0.99, such as 0.9")
    for name, value in fixed.items():
        if name not in law.variables:
            raise InputError(
                f"{name}={value!r}: the law is over {' and '.join(law.variables)}; hold one of them, or none"
            )
        if isinstance(value, bool) or not isinstance(value, (int, float, np.number)) or not 0 < float(value) < 1e60:
            raise InputError(f"{name}={value!r}: write a number above 0, in units of one, such as {name}=1e10")
    log_l = float(np.log(to_nats(float(loss), law.unit)))
    free = [name for name in law.variables if name not in fixed and name != "unique_tokens"]
    if len(free) == 1:
        return _one(law, float(loss), log_l, free[0], {k: float(v) for k, v in fixed.items()}, unique_tokens, level)
    if not free or fixed:
        raise InputError(f"the law is over {' and '.join(law.variables)}: hold all but one of them, or none for the compute-optimal ones")  # fmt: skip
    return _optimal(frontier(law, unique_tokens=unique_tokens, level=level), float(loss), log_l)


def _optimal(front: Frontier, loss: float, log_l: float) -> Reaching:
    law = front.law
    low, high = (float(np.log(c)) for c in front.computes)
    grid = np.linspace(low - NEAREST, high + FARTHEST, 500 if front.closed else 90)

    def solved(u: Array, error: Array) -> dict[str, Array]:
        """log C, log N, log D (B,) at which each draw, its own error (B, m) along the budgets added, reaches the loss; infinite where it never does."""
        n, d, lowest = front.optimal(u, grid)
        falling = np.minimum.accumulate(lowest + error, axis=1)
        c = np.array([np.interp(-log_l, -row, grid, right=np.inf) for row in falling])
        c[falling[:, -1] >= falling[:, 0]] = np.inf
        at = np.where(np.isfinite(c), c, grid[-1])
        values = {"compute": c}
        for name, rows in ((front.size, n), ("tokens", d)):
            found = np.array([np.interp(x, grid, row) for x, row in zip(at, rows, strict=True)])
            values[name] = np.where(np.isfinite(c), found, np.inf)
        return values

    none = np.zeros(len(grid))
    one, core = solved(law.fit.u[None], none), solved(law.fit.core[None], none)
    if one["compute"][0] <= grid[0] + 1e-9:
        raise InputError(f"loss={loss:g}: a thousandth of the smallest fitted run would reach it; write a lower one")
    n, d, _ = (rows[0] for rows in front.optimal(law.fit.u[None], grid))
    away = np.array([float(reach(law.fit, front.place(x, y))[0]) for x, y in zip(n, d, strict=True)])
    drawn = front.drawn
    error = np.zeros((len(drawn), len(grid)))
    if law.backtest is not None and law.backtest.misfit > 0:
        # the law's own error, as uncertain as the few folds make it
        times = np.random.default_rng(law.seed).standard_t(FOLDS, len(drawn))
        error = times[:, None] * law.backtest.misfit_at(np.minimum(away, CAP))
    every = solved(drawn, error)
    far = float(np.interp(min(one["compute"][0], grid[-1]), grid, away))
    names = (front.size, "tokens", "compute")
    estimates = {name: _estimate(one[name][0], core[name][0], every[name], front.units, front.level) for name in names}
    share = float(np.isfinite(every["compute"]).mean())
    limit, title = _limit(law, front.level, None, front)
    return Reaching(loss, estimates, {} if front.unique_tokens is None else {"unique_tokens": front.unique_tokens}, limit, title, share, far, front.level, True, law.unit, _misfit(law))  # fmt: skip


def _estimate(one: float, core: float, every: Array, units: Array, level: float) -> Estimate:
    if np.isfinite(core):
        every = np.where(np.isfinite(every), core + (np.where(np.isfinite(every), every, core) - core) * units, np.inf)
    found = central(one, every, level)
    return Estimate(*(float(np.exp(v)) for v in (found.value, found.low, found.high)))


def _one(law: LossLaw, loss: float, log_l: float, free: str, fixed: dict[str, float], unique: float | None, level: float) -> Reaching:  # fmt: skip
    fit, v = law.fit, law.variables.index(free)
    if "unique_tokens" in law.variables:
        fixed.setdefault("unique_tokens", float(unique or law.points.variables["unique_tokens"].max()))
    own = np.log(law.points.variables[free])

    def place(log_n: Array) -> Array:
        x = np.empty((len(law.variables), len(log_n)))
        for i, name in enumerate(law.variables):
            x[i] = log_n if i == v else np.log(fixed[name])
        return x - fit.log_scale[:, None]

    low, high = float(own.min()) - NEAREST, float(own.max()) + FARTHEST
    grid = np.linspace(low, high, 1200)

    def root(values: Array) -> float:
        """The first log N at which a curve over the grid is at or below the loss."""
        below = np.flatnonzero(values <= log_l)
        if not len(below):
            return float("inf")
        k = int(below[0])
        if k == 0:
            return float(grid[0])
        return float(np.interp(log_l, [values[k], values[k - 1]], [grid[k], grid[k - 1]]))

    centre, core = root(fit.log_loss(place(grid))), root(fit.log_loss(place(grid), fit.core))
    if centre <= grid[0]:
        raise InputError(f"loss={loss:g}: a thousandth of the smallest fitted {free} would reach it; write a lower one")
    draws = law.draws.u[:: max(1, len(law.draws.u) // 200)]
    score = _score(law, log_l, draws, level)
    middle = core if np.isfinite(core) else high

    def crossing(end: float) -> float:
        """Where the score reaches 1 between the middle and `end`."""
        sign = np.sign(end - middle)
        step, inner, outer, above = 0.1, middle, middle, 0.0
        below = 0.0 if np.isfinite(core) else score(place(np.array([middle])))
        while sign * (end - outer) > 1e-9:
            outer = middle + sign * min(step, abs(end - middle))
            above = score(place(np.array([outer])))
            if above >= 1:
                break
            # the score is nearly proportional to the distance
            inner, below, step = outer, above, step * float(np.clip(1.15 / max(above, 1e-9), 1.3, 8.0))
        else:
            return float("inf") * sign
        for i in range(20):  # interpolated and halved by turns: far from the fit the score is anything but a line
            share = 0.5 if i % 2 else float(np.clip((1 - below) / (above - below), 0.03, 0.97))
            at = inner + (outer - inner) * share
            value = score(place(np.array([at])))
            inner, below, outer, above = (at, value, outer, above) if value < 1 else (inner, below, at, value)
            if abs(value - 1) < 0.003 or abs(outer - inner) < 0.01:
                break
        return inner + (outer - inner) * (1 - below) / (above - below)

    if np.isfinite(core):
        ends = (max(crossing(low), low), crossing(high))
    elif score(place(np.array([high]))) >= 1:
        ends = (float("inf"), float("inf"))
    else:
        ends = (crossing(low), float("inf"))
    size = Estimate(*(float(np.exp(e)) for e in (centre, *ends)))
    at = {free: size}
    cost = cost_of(law) if set(fixed) <= set(law.variables) else None
    if (
        cost is not None
        and cost.flops
        and free != "compute"
        and (len(law.variables) == 1 or free in (*FACTOR, "tokens"))
    ):
        numbers = np.array([size.value, size.low, size.high])
        of = cost.of({free: numbers, **{k: np.full(3, x) for k, x in fixed.items()}})
        at["compute"] = Estimate(*(float(x) for x in of))
    share = float(np.mean(fit.law.log_mean(draws, place(grid)).min(1) <= log_l))
    far = float(reach(fit, place(np.array([centre if np.isfinite(centre) else high])))[0])
    limit, title = _limit(law, level, place(np.array([high + 200.0])) if fixed else None, None)
    return Reaching(loss, at, fixed, limit, title, share, far, level, False, law.unit, _misfit(law))


def _score(law: LossLaw, log_l: float, guides: Array, level: float) -> Any:
    """A function of places x (v, 1): 1 at the ends of the law's interval, less inside; of the profile and the misfit together."""
    fit = law.fit
    base, s = objective(fit), max(fit.scatter, 1e-9)
    t = student(level, fit.dof)
    held = np.append(np.ones(len(fit.y)), WEIGHT)
    delta = np.append(fit.problem.delta, 1e3)
    y = np.append(fit.y, log_l)

    def score(x: Array) -> float:
        problem = Problem(fit.law, np.concatenate([fit.x, x], axis=1), delta, held)
        at = fit.law.log_mean(guides, x)[:, 0]
        near = guides[np.argsort(np.abs(at - log_l))[:2]]
        found = refine(problem, y, np.concatenate([fit.core[None], near]), 80, CLOSE)
        z = np.sqrt(max(2 * (float(found.objective.min()) - base), 0.0)) / s
        gap = abs(log_l - float(fit.log_loss(x, fit.core)[0]))
        misfit = 0.0
        if law.backtest is not None:
            misfit = student(level, FOLDS) * float(law.backtest.misfit_at(np.minimum(reach(fit, x), CAP))[0])
        if z <= 1e-6 or gap <= 1e-12:
            return 0.0
        law_own = max(
            (gap / z) ** 2 - s**2 / WEIGHT, 0.0
        )  # variance of the law there, less what the finite weight adds
        return gap / max(float(np.sqrt(t**2 * law_own + misfit**2)), 1e-300)

    return score


def _misfit(law: LossLaw) -> float:
    return 0.0 if law.backtest is None else law.backtest.misfit


def _limit(law: LossLaw, level: float, far: Array | None, front: Frontier | None) -> tuple[Estimate | None, str]:
    """The loss that the law approaches at endless size, where it is above 0, and its name."""
    fit = law.fit
    if far is None and fit.law.outer is None and (front is None or front.unique_tokens is None):
        name = next((n for n, i in fit.law.own.items() if i == 0), "E")
        logs = (float(fit.u[0]), *parameter_interval(fit, 0, level))
        return Estimate(*(float(from_nats(float(np.exp(v)), law.unit)) for v in logs)), name
    if fit.law.outer is not None and far is None:
        return None, ""
    if far is None:
        assert front is not None
        grid = np.array([float(np.log(front.computes[1])) + FARTHEST])
        every = front.optimal(front.drawn, grid)[2][:, 0]
        one = float(front.optimal(fit.u[None], grid)[2][0, 0])
        name = f"the lowest loss with {front.unique_tokens:.3g} distinct tokens"
    else:
        every, one = fit.law.log_mean(law.draws.u, far)[:, 0], float(fit.log_loss(far)[0])
        name = "the law's limit there"
    found = central(one, every, level)
    return Estimate(*(float(from_nats(float(np.exp(v)), law.unit)) for v in (found.value, found.low, found.high))), name


def _shown(e: Estimate) -> str:
    return f"{e.value:.3g} [{e.low:.3g}, {e.high:.3g}]"


def _digits(value: float) -> int:
    return max(0, 3 - int(np.floor(np.log10(max(abs(value), 1e-3)))))
