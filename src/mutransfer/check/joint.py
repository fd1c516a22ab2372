"""The joint fit over a grid: exponents of both sizes, and whether their rule is one of the width times one of the depth.

Every rule of the theory is a product of a function of the width N and a function of the depth L, so that of any recorded quantity y

    log y = f(N) + g(L) + γ·x·z + r(N, L),    x = log N, z = log L about their means over the grid

the interaction γ and the rest r are zero, whatever f and g are expected to be. A rule that is right on two edges of the grid and wrong in
its far corner has γ ≠ 0: the exponent of the width changes by γ·log(L_max/L_min) between the shallowest models and the deepest. One that
is wrong at a single point has r ≠ 0 there. The exponents of N and L are those at the middle of the grid.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import numpy as np

from mutransfer.check.depth import DepthJudge, Stacks, gather
from mutransfer.check.expect import TensorInfo
from mutransfer.check.findings import PRODUCT, Finding
from mutransfer.check.points import Grid
from mutransfer.check.record import Records
from mutransfer.check.slopes import Slope, median
from mutransfer.check.verdict import FEW, Judge

OUTPUT = 0.35  # change of an exponent of the output's size that finite sizes do not explain

Place = tuple[int, int]
Departures = dict[
    Place | None, Slope
]  # None: γ as the change of an exponent over the grid; a place: γ·x·z + r there, in exponents


@dataclass(frozen=True)
class Fit:
    """Exponents of one quantity at the middle of the grid, and γ; a slope per seed each. `off` is γ·x·z + r at every point, in logs."""

    first: Slope
    second: Slope
    interaction: Slope
    off: dict[Place, Slope]


@dataclass(frozen=True)
class _Solve:
    """What the points that have a number decide: exponents, γ, and what no f(N) + g(L) explains."""

    exponents: np.ndarray  # (2, points)
    variance: np.ndarray  # (2,) of the exponents, per variance of a point
    product: np.ndarray  # (points,), x·z freed from every f and g
    rest: np.ndarray  # (points, points), takes every f and g out
    freedom: int


class Joint:
    """The flat records of a grid, one row per point, and fits of what is in them. Tensors of a stack of blocks are one (root mean square)."""

    def __init__(self, grid: Grid, flat: Records, places: list[Place], stacks: Stacks) -> None:
        self.grid, self.flat, self.places, self.stacks = grid, flat, places, stacks
        at = [np.array([place[k] for place in places]) for k in (0, 1)]
        logs = [np.log(np.array(grid.values[k], dtype=float))[at[k]] for k in (0, 1)]
        self.x, self.z = (one - one.mean() for one in logs)
        self.each = np.concatenate(
            [np.eye(len(grid.values[k]))[at[k]] for k in (0, 1)], axis=1
        )  # one column per width and per depth
        self.spans = tuple(float(np.log(values[-1] / values[0])) for values in grid.values)
        self._solved: dict[bytes, _Solve | None] = {}
        self._gathered: dict[tuple[str, int], dict[str, np.ndarray]] = {}

    def get(self, kind: str, name: str, step: int = 0) -> np.ndarray | None:
        """(points, seeds) of one quantity of a tensor or module with its blocks folded."""
        if (kind, step) not in self._gathered:
            self._gathered[kind, step] = gather(self.flat, kind, self.stacks, step, "rms")
        return self._gathered[kind, step].get(name)

    def names(self, kind: str) -> list[str]:
        """The folded names that have this kind of record."""
        return list(dict.fromkeys(self.stacks.fold(name) for name in self.flat.names(kind)))

    def steps(self, kind: str, name: str) -> list[int]:
        """The steps at which it was recorded."""
        return sorted({step for k, n, step in self.flat.data if k == kind and self.stacks.fold(n) == name})

    def fit(self, array: np.ndarray | None, variance: np.ndarray | None = None) -> Fit | None:
        """Least squares per seed over the points where every seed has a value; None where these tell no interaction, and for a zero.

        `variance` (points,) is what is known beforehand of the scatter of the logs.
        """
        if array is None or np.any(array == 0):
            return None
        there = np.all(np.isfinite(array), axis=1)
        key = there.tobytes()
        if key not in self._solved:
            self._solved[key] = self._solve(there)
        solve = self._solved[key]
        if solve is None:
            return None
        y = np.log(array[there].astype(float))
        off, square = solve.rest @ y, float(np.sum(solve.product**2))
        gamma = solve.product @ off / square
        rest = off - solve.product[:, None] * gamma
        scatter = float(np.sqrt(np.mean(np.sum(rest**2, axis=0)) / solve.freedom)) if solve.freedom > 0 else 0.0
        exponents = solve.exponents @ y
        first, second = (Slope(exponents[k], scatter * float(np.sqrt(solve.variance[k]))) for k in (0, 1))
        known = np.zeros(len(y)) if variance is None else variance[there]
        sampling = float(np.sqrt(np.sum(solve.product**2 * known)) / square)
        points = {
            place: Slope(row, scatter, float(np.sqrt(np.sum(weights**2 * known))))
            for place, row, weights in zip(itertools.compress(self.places, there), off, solve.rest, strict=True)
        }
        return Fit(first, second, Slope(gamma, scatter / float(np.sqrt(square)), sampling), points)

    def _solve(self, there: np.ndarray) -> _Solve | None:
        if not np.any(there):
            return None
        x, z, each = self.x[there], self.z[there], self.each[there]
        linear = np.stack([np.ones_like(x), x, z, x * z], axis=1)
        rest = np.eye(len(x)) - each @ np.linalg.pinv(each)
        product = rest @ (x * z)
        if np.linalg.matrix_rank(linear, tol=1e-9) < linear.shape[1] or np.sum(product**2) < 1e-9:
            return None
        exponents = np.linalg.pinv(linear)[1:3]
        freedom = len(x) - int(np.linalg.matrix_rank(each)) - 1
        return _Solve(exponents, np.sum(exponents**2, axis=1), product, rest, freedom)

    # what accuses -----------------------------------------------------------------------------------------------------

    def findings(self, judge: Judge, order: dict[str, float]) -> list[Finding]:
        """Tensors whose init, update or contribution is no product; else the model's output, if that is none.

        `judge` grades errors; `order` holds the tensors' places in the order of execution, by folded name.
        """
        found: list[Finding] = []
        for name in self.names("weight"):
            info = next((i for i in judge.infos if self.stacks.fold(i.name) == name), None)
            if info is None or info.name in judge.cancelled:
                continue
            init, update = self._init(info, name), self._update(info, name)
            gradient = self.departures(self.get("gradient", name))
            for place in list(init):
                if self._other_gauge(judge, 1 + info.degree, init, update, gradient, place):
                    del init[place], update[place]
            found += self._finding(judge, info.name, "its initial size", init, "its init std")
            found += self._finding(judge, info.name, "the effect of its own update", update, "its learning rate")
        for name, ends in self._branches(judge):
            added, what = (
                self.departures(self.get("contribution", name)),
                f"what each {name} adds to the stream at the start",
            )
            for end in ends if not any(f.name in ends for f in found) else ():
                found += self._finding(judge, end, what, added, "the multiplier of its branch")
        found = found or self._outputs(judge)
        return sorted(found, key=lambda f: order.get(self.stacks.fold(f.name), np.inf))

    def departures(self, array: np.ndarray | None, variance: np.ndarray | None = None) -> Departures:
        """By how much the exponent of one size changes over the span of the other (where that is most), and how far each point is off."""
        fit = self.fit(array, variance)
        if fit is None:
            return {}
        return {
            None: fit.interaction * max(self.spans),
            **{p: off * (1 / min(self.spans)) for p, off in fit.off.items()},
        }

    def _init(self, info: TensorInfo, name: str) -> Departures:
        """Of its size at the start, with the scatter of the draw; a handful of drawn numbers tells nothing."""
        array = self.get("weight", name)
        if array is None or (array.shape[1] > 1 and np.allclose(array, array[:, :1], rtol=1e-6)):
            return self.departures(array)
        from scipy import special  # here: importing the library must not cost scipy's import

        shapes = [
            [p.numel() for n, p in model.named_parameters() if self.stacks.fold(n) == name]
            for model in self.flat.models
        ]
        numbers = np.array([float(sum(sizes)) for sizes in shapes])
        return {} if np.prod(info.shape) < FEW else self.departures(array, special.polygamma(1, numbers / 2) / 4)

    def _update(self, info: TensorInfo, name: str) -> Departures:
        """Of its step, the median over steps; under an optimizer of degree 1 over the gradient of the first."""
        kind = "update operator norm" if self._has("update operator norm", name) else "update"
        found = []
        for step in self.steps(kind, name):
            moved, gradient = self.get(kind, name, step), self.get("gradient", name, step)
            if info.degree and moved is not None and gradient is not None:
                with np.errstate(divide="ignore", invalid="ignore"):
                    moved = moved / gradient**info.degree
            if departures := self.departures(moved):
                found.append(departures)
        found = found[:1] if info.degree else found
        medians = {place: median([one.get(place) for one in found]) for place in (found[0] if found else ())}
        return {place: slope for place, slope in medians.items() if slope is not None}

    def _has(self, kind: str, name: str) -> bool:
        return any(k == kind and self.stacks.fold(n) == name for k, n, _ in self.flat.data)

    def _other_gauge(
        self, judge: Judge, power: int, init: Departures, update: Departures, gradient: Departures, at: Place | None
    ) -> bool:
        """Whether one forward multiplier explains init and update: −c, −(1+p)c and a gradient of +c (theory §4)."""
        if at not in update or at not in gradient:
            return False
        return judge.within(update[at] - power * init[at]) and judge.within(init[at] + gradient[at])

    def _finding(self, judge: Judge, name: str, what: str, departures: Departures, thing: str) -> list[Finding]:
        """The change of the exponent, if that is wrong; else the point that is farthest off, if one is."""
        level = 1 - (1 - judge.level) / max(1, len(departures) - 1)  # any of the points may be off
        strict = Judge(judge.records, [], judge.tolerance, level)
        grades = {place: (judge if place is None else strict).grade(error) for place, error in departures.items()}
        grades = {
            place: grade for place, grade in grades.items() if grade == "fail" or (place is None and grade != "ok")
        }
        if not grades:
            return []
        at = None if None in grades else max(grades, key=lambda p: (grades[p] == "fail", abs(departures[p].mean)))
        error, (first, second) = departures[at], self.grid.axes
        low, high = error.interval(judge.level)
        along = 0 if self.spans[1] >= self.spans[0] else 1
        if at is None:
            far = self.grid.words((len(self.grid.values[0]) - 1, len(self.grid.values[1]) - 1))
            factor = float(np.exp(error.mean * min(self.spans)))
            advice = f"at {far} it is {factor:.3g} times what the edges of the grid say"
            other, values = self.grid.axes[1 - along], self.grid.values[1 - along]
            where = f"between {other} {values[0]} and {values[-1]}"
        else:
            advice, where = "it has jumps", f"at {self.grid.words(at)}"
        advice = f"write {thing} as a function of {first} times one of {second}: {advice}"
        return [
            Finding(name, PRODUCT, what, error.mean, low, high, 0.0, advice, grades[at], self.grid.axes[along], where)
        ]

    def _branches(self, judge: Judge) -> list[tuple[str, list[str]]]:
        """Every stack's folded block with the last weights of its branches."""
        ends = DepthJudge(judge, self.stacks)
        return [(name, ends.branch_ends(name)) for name in self.names("contribution") if name.endswith(".*")]

    def _outputs(self, judge: Judge) -> list[Finding]:
        """The model's output where every tensor is a product of powers: a factor in the forward is not.

        Changes cross over slowly at small sizes, so that only much counts, at the first step and at the last one.
        """
        sites = [info for info in judge.infos if info.sites]
        for kind, steps in (("size", [0]), ("change", self.steps("change", "(model)"))):
            found = [self.departures(self.get(kind, "(model)", step)).get(None) for step in (*steps[:1], *steps[-1:])]
            changes = [one for one in found if one is not None]
            if (
                not sites
                or len(changes) < 2
                or any(abs(one.mean) < OUTPUT or judge.grade(one) != "fail" for one in changes)
            ):
                continue
            what = "the model's output at the start" if kind == "size" else "the change of the model's output"
            return self._finding(judge, sites[-1].name, what, {None: changes[-1]}, "every factor of the forward")
        return []
