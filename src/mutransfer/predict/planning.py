"""Which runs to make next: those that narrow the interval at a target most, for a budget.

About the fit, log f(x, u) ≈ log f(x, û) + g(x)·(u − û): the law's error at all places is jointly normal with covariance K = s²·G M⁻¹ Gᵀ, G the gradients there, M the
information of the fitted runs (in units of 1/s²). A run at place j with variance σ² leaves

    K ← K − K_·j K_j· / (K_jj + σ²)

and one more degree of freedom for Student's t: c-optimal design (Elfving 1952; Pukelsheim 2006, ch. 2), where c is the gradient at the target. The half width there is then

    √( t²(dof)·(K_tt + σ²) + t²(3)·misfit²(reach) )

as `LossLaw.predict` counts it: runs nearer to the target also shorten the reach over which the law's own misfit grows. Sets are built greedily in three ways,
improved by exchange of single runs (Fedorov 1972), and the best is taken.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from mutransfer.errors import InputError
from mutransfer.predict.backtest import growth
from mutransfer.predict.costs import Cost, cost_of
from mutransfer.predict.forecast import FOLDS, LossLaw, Prediction
from mutransfer.predict.intervals import student
from mutransfer.predict.noise import cells
from mutransfer.predict.units import from_nats, to_nats

Array = np.ndarray
MOST = 8  # runs where only what they may cost is said
LEAST_GAIN = 0.01  # a run that narrows the interval by less than this share of it is not worth making
SIDES = {1: 80, 2: 22, 3: 9}  # values tried per variable, by how many the law has


@dataclass(frozen=True)
class Run:
    """One run to make: where, what it costs, whether it repeats a fitted place, and the half width (share of the loss) that is expected after it and those before it."""

    at: Mapping[str, float]
    cost: float
    repeats: bool
    half_width: float

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON types."""
        return {"at": dict(self.at), "cost": self.cost, "repeats": self.repeats, "half_width": self.half_width}


@dataclass(frozen=True)
class NextRuns:
    """Runs that narrow the interval at a target, in the order of what they bring. `now`: the present half width as a share of the loss; `floor`: what is left however many
    runs are made, the noise of the target's own run and the misfit of the law there; `target_cost` and `cost`: of a run at the target, and how costs are counted."""

    target: Prediction
    runs: tuple[Run, ...]
    now: float
    floor: float
    cost: Cost
    target_cost: float
    spend: float | None

    @property
    def half_width(self) -> float:
        """Expected after all of them."""
        return self.runs[-1].half_width if self.runs else self.now

    @property
    def total(self) -> float:
        """What they cost together."""
        return float(sum(run.cost for run in self.runs))

    def words(self) -> str:
        """The interval now, a line per run with its cost and the interval expected after it, and what cannot be narrowed."""
        at = _place(self.target.at)
        lines = [
            f"{at}: loss {self.target.loss:.4g} [{self.target.low:.4g}, {self.target.high:.4g}] at {self.target.level:.0%} now, ±{_percent(self.now)}"
        ]
        for run in self.runs:
            again = " (again)" if run.repeats else ""
            lines.append(
                f"  run {_place(run.at)}{again}: {self.cost.shown(run.cost)}, then ±{_percent(run.half_width)} expected"
            )
        if not self.runs:
            lines.append("  no run within the budget narrows it by as much as a hundredth of itself")
        if len(self.runs) > 1:
            lines.append(f"  together {self.cost.shown(self.total)}")
        lines.append(
            f"  ±{_percent(self.floor)} stays whatever is run: the noise of the run there, and the law's misfit"
        )
        if self.spend is not None and self.target_cost <= self.spend:
            lines.append(f"  the budget pays for the target itself ({self.cost.shown(self.target_cost)})")
        lines.append(f"  costs: {self.cost.said}; the target costs {self.cost.shown(self.target_cost)}")
        return "\n".join(lines)

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON types."""
        return {
            "target": self.target.to_dict(), "half_width": self.now, "expected_half_width": self.half_width, "floor": self.floor,
            "runs": [run.to_dict() for run in self.runs], "cost": self.total, "cost_unit": self.cost.unit, "cost_formula": self.cost.said,
            "target_cost": self.target_cost, "spend": self.spend,
        }  # fmt: skip


@dataclass(frozen=True)
class _Design:
    """The law's error at the target (place 0) and at m − 1 candidates: `k` (m, m) its covariance in log loss; `there` (m,): fitted runs at the place; `cost`, `growth` (m,);
    `target`: growth there; `bend`: how much wider the interval is there than the gradients alone make it."""

    law: LossLaw
    level: float
    k: Array
    there: Array
    cost: Array
    growth: Array
    target: float
    bend: float

    def widths(self, chosen: Sequence[int]) -> Array:
        """Expected half width in log loss (m,) when each candidate is run in addition to `chosen`; at place 0, the target, when nothing is."""
        fit = self.law.fit
        k, dof, there = self.k, float(fit.dof), self.there.copy()
        for j in chosen:
            noise, free = self._noise(there[j])
            k = k - np.outer(k[:, j], k[j]) / (k[j, j] + noise)
            dof += float(free)
            there[j] += 1
        noise, free = self._noise(there)
        gain = k[0] ** 2 / (np.diag(k) + noise)
        gain[0] = free[0] = 0.0
        left = np.maximum(k[0, 0] - gain, 0.0)
        degrees, which = np.unique(dof + free, return_inverse=True)
        t = np.array([student(self.level, round(v)) for v in degrees])[which]
        # what the gradients leave out shrinks with what they say
        bent = left * (1 + (self.bend - 1) * left / max(self.k[0, 0], 1e-300))
        own = fit.sigma**2 + fit.repeats.spread**2
        return np.sqrt(t**2 * (bent + own) + self._misfit(chosen) ** 2)

    def _noise(self, there: Array) -> tuple[Array, Array]:
        """(variance with which one more run tells the law at a place with so many, degrees of freedom that it adds)."""
        fit = self.law.fit
        if not any(len(rows) > 1 for rows in fit.rows):
            return np.full(np.shape(there), fit.sigma**2), np.ones(np.shape(there))
        # the sizes' means are fitted: a repetition makes one mean better, by what is within sizes alone
        s2, pure = max(fit.scatter, 1e-9) ** 2, fit.repeats.pure**2
        between = max(fit.sigma**2 - pure, 1e-3 * s2)
        runs = np.maximum(there, 1)
        more = 1 / (between + pure / (runs + 1)) - 1 / (between + pure / runs)
        return np.where(there > 0, 1 / np.maximum(more, 1e-9 / s2), between + pure), np.where(there > 0, 0.0, 1.0)

    def _misfit(self, chosen: Sequence[int]) -> Array:
        test = self.law.backtest
        if test is None or test.misfit == 0:
            return np.zeros(len(self.growth))
        own = growth(self.law.fit, self.law.fit.x)
        extra = self.growth[list(chosen)]
        here = self.growth.copy()
        here[0] = own.max()
        top = np.maximum(max(own.max(), extra.max(initial=-np.inf)), here)
        far = np.maximum(self.target - top, 0.0) / np.maximum(top - own.min(), 1e-9)
        return student(self.level, FOLDS) * test.misfit_at(far)


def next_runs(
    law: LossLaw,
    at: Mapping[str, float],
    *,
    spend: float | None = None,
    runs: int | None = None,
    each: float | None = None,
    exponent: float | None = None,
    tokens: float | None = None,
    level: float = 0.9,
) -> NextRuns:
    """The runs that would narrow the interval at `at` most, such as at={"params": 7e10, "tokens": 1.4e12}.

    spend: what they may cost together (FLOPs; of laws without FLOPs in runs of the largest fitted size); runs: how many at most (8); each: what one may cost,
    by default the whole of `spend`, else as much as the largest fitted run. exponent, tokens: how costs are counted, see `cost_of`. Raises InputError.
    """
    for name, value in (("spend", spend), ("each", each)):
        if value is not None and (isinstance(value, bool) or not isinstance(value, (int, float, np.number)) or not 0 < float(value) < 1e60):  # fmt: skip
            raise InputError(f"{name}={value!r}: write what runs may cost, such as 1e20")
    if runs is not None and (isinstance(runs, bool) or not isinstance(runs, (int, np.integer)) or not 1 <= runs <= 50):
        raise InputError(f"runs={runs!r}: write how many runs may be made, 1 to 50")
    if spend is None and runs is None:
        raise InputError("a budget is missing: write spend=1e20 (what the runs may cost) or runs=3 (how many)")
    target = law.predict(level=level, **at)
    cost = cost_of(law, exponent, tokens)
    target_cost = float(cost.of({k: np.array([v]) for k, v in target.at.items()})[0])
    fitted_cost = cost.of(law.points.variables)
    top = float(each) if each is not None else float(spend) if spend is not None else float(fitted_cost.max())
    top = min(top, float(spend)) if spend is not None else top
    places, repeated = _candidates(law, target, cost, min(top, 0.999 * target_cost))
    if not len(places):
        cheapest = float(fitted_cost.min())
        raise InputError(
            f"no run is within {cost.shown(top)}: the smallest fitted one costs {cost.shown(cheapest)}; write a larger budget"
        )
    design = _designed(law, target, places, repeated, cost, level)
    chosen = _choose(design, float(spend) if spend is not None else np.inf, runs or MOST)
    order = _ordered(design, chosen)
    made = []
    for i in range(len(order)):
        width = _share(law, target, float(design.widths(order[: i + 1])[0]))
        j = order[i] - 1
        where = {name: float(places[j, v]) for v, name in enumerate(law.variables)}
        made.append(Run(where, float(design.cost[order[i]]), bool(repeated[j]), width))
    floor = _floor(design)
    return NextRuns(target, tuple(made), target.half_width, _share(law, target, floor), cost, target_cost, spend)


def _candidates(law: LossLaw, target: Prediction, cost: Cost, top: float) -> tuple[Array, Array]:
    """(places (m, v) in units of one, whether each is a fitted one): the fitted places, and a grid from the smallest fitted values to the largest or the target's, of
    numbers with two digits; tokens per size no further out than runs and target have them."""
    points, names = law.points, law.variables
    x = np.stack([points.variables[name] for name in names], axis=1)
    at = np.array([target.at[name] for name in names])
    first = np.unique(cells(np.log(x.T)), return_index=True)[1]
    own = x[first]
    axes = []
    for v in range(len(names)):
        low, high = min(x[:, v].min(), at[v]), max(x[:, v].max(), at[v])
        axes.append(np.unique([float(f"{value:.2g}") for value in np.geomspace(low, high, SIDES[len(names)])]))
        axes[-1] = axes[-1][(axes[-1] >= 0.99 * low) & (axes[-1] <= 1.01 * high)]
    grid = np.stack([axis.ravel() for axis in np.meshgrid(*axes, indexing="ij")], axis=1)
    keep = np.ones(len(grid), bool)
    both = np.concatenate([x, at[None]])
    if "tokens" in names and names[0] != "tokens":
        i, j = names.index("tokens"), 0
        ratio = both[:, i] / both[:, j]
        keep &= (grid[:, i] >= 0.99 * ratio.min() * grid[:, j]) & (grid[:, i] <= 1.01 * ratio.max() * grid[:, j])
        if "unique_tokens" in names:
            k = names.index("unique_tokens")
            epochs = both[:, i] / both[:, k]
            keep &= (grid[:, k] <= grid[:, i]) & (grid[:, i] <= 1.01 * epochs.max() * grid[:, k])
    every = np.concatenate([own, grid[keep]])
    known = np.arange(len(every)) < len(own)
    price = cost.of({name: every[:, v] for v, name in enumerate(names)})
    # a run below all others would lengthen the span in which reaches are measured, and bring the target no nearer
    place = growth(law.fit, law.fit.normalise(every.T))
    fits = (price <= top * (1 + 1e-9)) & (place >= growth(law.fit, law.fit.x).min() - 1e-6)
    return every[fits], known[fits]


def _designed(law: LossLaw, target: Prediction, places: Array, repeated: Array, cost: Cost, level: float) -> _Design:
    fit = law.fit
    at = np.array([[target.at[name] for name in law.variables]])
    every = np.concatenate([at, places])
    x = fit.normalise(every.T)
    s2 = max(fit.scatter, 1e-9) ** 2
    low, high = fit.problem.bounds(fit.y)
    free = (fit.core > low + 1e-6) & (fit.core < high - 1e-6)
    jacobian = fit.law.derivative(fit.core[None], fit.x)[0][:, free]
    gradients = fit.law.derivative(fit.core[None], x)[0][:, free]
    # a direction that the runs do not tell at all is known only to lie within the bounds
    prior = s2 / ((high - low)[free] / 4) ** 2
    covariance = s2 * np.linalg.inv(jacobian.T @ jacobian + np.diag(prior))
    k = gradients @ covariance @ gradients.T
    own = cells(np.concatenate([fit.x, x[:, 1:][:, repeated]], axis=1))
    runs = np.bincount(own[: len(fit.y)], [len(rows) for rows in fit.rows], minlength=int(own.max()) + 1)
    there = np.zeros(len(every))
    there[np.flatnonzero(repeated) + 1] = runs[own[len(fit.y) :]]
    price = cost.of({name: every[:, v] for v, name in enumerate(law.variables)})
    # bend: how much wider the profile is than the parabola, at the target
    t = student(level, fit.dof)
    test = law.backtest
    misfit = 0.0 if test is None else student(level, FOLDS) * float(test.misfit_at(np.array(target.reach)))
    present = _log_width(law, target)
    shape = (present**2 - misfit**2) / t**2 - fit.sigma**2 - fit.repeats.spread**2
    bend = float(np.clip(shape / max(float(k[0, 0]), 1e-300), 0.3, 30.0)) if np.isfinite(shape) and shape > 0 else 1.0
    return _Design(law, level, k, there, price, growth(fit, x), float(growth(fit, x)[0]), bend)


def _choose(design: _Design, spend: float, most: int) -> list[int]:
    """The best set found: greedy by width, by width per cost, and with runs of equal price; each improved by exchange."""
    sets = [_greedy(design, spend, most, spend, False), _greedy(design, spend, most, spend, True)]
    if np.isfinite(spend):
        sets += [_greedy(design, spend, most, spend / n, False) for n in range(2, most + 1)]
    best = min(
        (_exchange(design, s, spend) for s in _distinct(sets)), key=lambda s: float(design.widths(s)[0]), default=[]
    )
    return best


def _distinct(sets: Sequence[list[int]]) -> list[list[int]]:
    return [list(s) for s in dict.fromkeys(tuple(sorted(s)) for s in sets)]


def _greedy(design: _Design, spend: float, most: int, each: float, per_cost: bool) -> list[int]:
    chosen: list[int] = []
    left = spend
    while len(chosen) < most:
        widths = design.widths(chosen)
        gain = widths[0] - widths
        gain[0] = 0.0
        gain[design.cost > min(left, each) * (1 + 1e-9)] = 0.0
        j = int(np.argmax(gain / design.cost if per_cost else gain))
        if gain[j] <= 1e-3 * widths[0]:
            break
        chosen.append(j)
        left -= float(design.cost[j])
    return chosen


def _exchange(design: _Design, chosen: list[int], spend: float) -> list[int]:
    """Replace one run by another while that narrows the interval; runs that bring nothing are dropped."""
    chosen = list(chosen)
    for _ in range(6):
        changed = False
        for i in range(len(chosen)):
            others = chosen[:i] + chosen[i + 1 :]
            widths = design.widths(others)
            widths[0] = np.inf
            widths[design.cost > (spend - design.cost[others].sum()) * (1 + 1e-9)] = np.inf
            j = int(np.argmin(widths))
            if widths[j] < float(design.widths(chosen)[0]) * (1 - 1e-4):
                chosen[i], changed = j, True
        if not changed:
            break
    return chosen


def _ordered(design: _Design, chosen: list[int]) -> list[int]:
    """In the order of what they bring, those that bring less than a hundredth left out."""
    order: list[int] = []
    left = list(chosen)
    while left:
        widths = design.widths(order)
        best = min(left, key=lambda j: float(widths[j]))
        order.append(best)
        left.remove(best)
    while order and float(design.widths(order)[0]) > (1 - LEAST_GAIN) * float(design.widths(order[:-1])[0]):
        order.pop()
    return order


def _floor(design: _Design) -> float:
    """Half width in log loss with the law known exactly."""
    fit, test = design.law.fit, design.law.backtest
    own = fit.sigma**2 + fit.repeats.spread**2
    misfit = 0.0 if test is None else student(design.level, FOLDS) * test.misfit
    return float(np.sqrt(student(design.level, 10_000) ** 2 * own + misfit**2))


def _log_width(law: LossLaw, target: Prediction) -> float:
    """Root mean square of the interval's two halves, in log loss."""
    low, centre, high = (float(np.log(max(to_nats(v, law.unit), 1e-300))) for v in (target.low, target.loss, target.high))  # fmt: skip
    return float(np.sqrt(((centre - low) ** 2 + (high - centre) ** 2) / 2))


def _share(law: LossLaw, target: Prediction, width: float) -> float:
    """Half of an interval of ± `width` in log loss, as a share of the loss in its own unit."""
    nats = float(to_nats(target.loss, law.unit))
    low, high = (float(from_nats(nats * float(np.exp(v)), law.unit)) for v in (-width, width))
    return (high - low) / 2 / target.loss


def _place(at: Mapping[str, float]) -> str:
    return ", ".join(f"{name} {value:.4g}" for name, value in at.items())


def _percent(share: float) -> str:
    return f"{100 * share:.2g} %"
