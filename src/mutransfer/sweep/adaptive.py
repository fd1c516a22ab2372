"""The optimum of every size from few runs: coarse steps of 2, then √2 around the best, where the smaller sizes predict it.

For each size in growing order:

1. Coarse. At the smallest size every power of two in the range, all of them to half of the run; then outwards from the
   best one to the end, until two in a row are worse on either side: what lies beyond is given up. Losses before the end
   of a decayed schedule favour small rates, so they alone never decide. At a larger size the three powers of two around
   the optimum that the smaller sizes predict (linear in log size), and more beyond while the best is at the edge.
2. Fine. The two rates at a distance of √2 from the best.
3. The smallest size's optimum, where it is not among these: what it costs here is the question.
4. Seeds. One seed; another one at three rates around the optimum while its standard error is above `PRECISION`. What is
   small is cheap, and its optimum is what is carried over: the smaller sizes share `SPARE` of the grid's cost for more
   rates and seeds around their optima.

Only the losses decide, never the clock: an interrupted search takes the same decisions again.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from mutransfer.errors import InputError
from mutransfer.sweep.cost import flops_of
from mutransfer.sweep.driver import Ask, Record, Search
from mutransfer.sweep.points import Group
from mutransfer.sweep.wanted import Call, Wanted

AROUND = 3  # rates around the optimum at which another seed is run
SPARE = 0.075  # share of the whole grid's cost that the sizes below the largest may spend, together, on more rates and seeds
PRECISION = 0.12  # octaves: standard error of an optimum with which its search ends
_REACH = 1.25  # octaves around the best point that the local parabola spans
_SPARE_REACH = 2.0  # octaves
_LONG_ENOUGH = 20  # updates from which on half a run says something

GiveUp = Callable[[Wanted, Record, str], object]
Curve = dict[float, dict[Any, float]]
"""log2 LR → seed → loss; inf where the run diverged or was given up."""


@dataclass
class Found:
    """What is known of a group: each size's curve and optimum, and the noise that all fits share."""

    curves: dict[float, Curve] = field(default_factory=dict)
    optima: dict[float, float] = field(default_factory=dict)

    def predict(self, size: float) -> float | None:
        """The optimum expected at a size: linear in log size through the last three smaller ones; None without any."""
        known = sorted(self.optima.items())[-3:]
        if len(known) < 2:
            return known[0][1] if known else None
        x, y = np.log2([s for s, _ in known]), np.array([o for _, o in known])
        slope, offset = np.polyfit(x, y, 1)
        return float(offset + slope * np.log2(size))

    def fit(self, size: float) -> tuple[float, float]:
        """(optimum, its standard error) of a size; the noise is pooled over all sizes searched so far."""
        squares, freedom = 0.0, 0
        for curve in self.curves.values():
            local = parabola(curve)
            if local is not None:
                squares, freedom = squares + local.squares, freedom + local.freedom
        local = parabola(self.curves[size])
        best = lowest(self.curves[size])
        if local is None or best is None or freedom == 0:
            return (math.nan if best is None else best), math.inf
        return local.vertex, local.spread * math.sqrt(squares / freedom)


@dataclass(frozen=True)
class Parabola:
    """A local fit `loss = offset(seed) + b·x + c·x²`. `spread`: standard error of the vertex per unit of noise."""

    vertex: float
    spread: float
    squares: float
    freedom: int


def lowest(curve: Curve) -> float | None:
    """The learning rate with the lowest mean loss among those that have a loss; more seeds break no tie."""
    means = {x: float(np.mean(list(seeds.values()))) for x, seeds in curve.items()}
    finite = {x: mean for x, mean in means.items() if math.isfinite(mean)}
    if not finite:
        return None
    # seeds share their data: the first seed's curve is compared with itself, not with means over other seeds
    first = next(iter(curve[min(finite)]))
    same = {x: curve[x][first] for x in finite if first in curve[x]}
    return min(same or finite, key=(same or finite).__getitem__)


def parabola(curve: Curve) -> Parabola | None:
    """The local fit around the lowest point; None with fewer than three rates there or where it opens downwards."""
    best = lowest(curve)
    if best is None:
        return None
    points = [
        (x - best, seed, loss)
        for x, seeds in curve.items()
        if abs(x - best) <= _REACH
        for seed, loss in seeds.items()
        if math.isfinite(loss)
    ]
    names = list(dict.fromkeys(seed for _, seed, _ in points))
    if len({x for x, _, _ in points}) < 3:
        return None
    x = np.array([p[0] for p in points])
    y = np.array([p[2] for p in points])
    offsets = np.array([[float(seed == name) for name in names] for _, seed, _ in points])
    design = np.column_stack([offsets, x, x**2])
    solution, _, rank, _ = np.linalg.lstsq(design, y, rcond=None)
    b, c = solution[-2:]
    if rank < design.shape[1] or c <= 0:
        return None
    vertex = float(np.clip(-b / (2 * c), x.min(), x.max()))
    gradient = np.zeros(design.shape[1])
    gradient[-2:] = -1 / (2 * c), b / (2 * c * c)
    spread = math.sqrt(gradient @ np.linalg.pinv(design.T @ design) @ gradient)
    residual = y - design @ solution
    return Parabola(best + vertex, spread, float(residual @ residual), len(y) - int(rank))


def adaptive(group: Group, metric: str, give_up: GiveUp) -> Search:
    """The search of one group, for `Driver.run`; it ends a paused run that is hopeless by `give_up` (`Driver.stop`)."""
    low, high = group.log2_lrs[0], group.log2_lrs[-1]
    found = Found()
    first = group.seeds[0]
    for size in group.sizes:
        curve = found.curves[size] = {}
        expected = found.predict(size)
        if expected is None:
            yield from _coarse_everywhere(group, size, metric, give_up, curve)
        else:
            middle = low + round(min(max(expected, low), high) - low)
            near = {min(max(middle + step, low), low + math.floor(high - low)) for step in (-1, 0, 1)}
            yield from _measure(group, size, sorted(near), first, metric, curve)
        while (beyond := _beyond(curve, low, high)) is not None:
            yield from _measure(group, size, [beyond], first, metric, curve)
        best = lowest(curve)
        if best is None:
            continue  # everything diverged: the next size is searched around the last optimum
        fine = [x for x in (best - 0.5, best + 0.5) if low <= x <= high]
        yield from _measure(group, size, fine, first, metric, curve)
        for seed in group.seeds[1:]:
            optimum, error = found.fit(size)
            if error <= PRECISION:
                break
            near = sorted(curve, key=lambda x: abs(x - optimum))[:AROUND]
            yield from _measure(group, size, [x for x in near if math.isfinite(curve[x][first])], seed, metric, curve)
        optimum = found.fit(size)[0]
        spare = [(x, seed) for x in _rates(low, high) for seed in group.seeds if abs(x - optimum) <= _SPARE_REACH]
        spare = sorted((p for p in spare if p[1] not in curve.get(p[0], {})), key=lambda p: abs(p[0] - optimum))
        if size != group.sizes[-1]:
            grid = len(group.log2_lrs) * len(group.seeds) * sum(_work(group, one) for one in group.sizes)
            budget = SPARE * grid / (len(group.sizes) - 1)
            spare = spare[: math.floor(budget / _work(group, size))]
            for seed in group.seeds:
                yield from _measure(group, size, [x for x, own in spare if own == seed], seed, metric, curve)
        found.optima[size] = found.fit(size)[0]
        carried = low + round(2 * (next(iter(found.optima.values())) - low)) / 2
        if all(abs(carried - x) > _REACH / 2 for x in curve):
            # what the smallest size's rate costs here is the question: measure it where the fit does not reach
            yield from _measure(group, size, [carried], first, metric, curve)


def _rates(low: float, high: float) -> list[float]:
    """Every rate of the range in steps of √2."""
    return [low + i / 2 for i in range(math.floor(2 * (high - low) + 1e-9) + 1)]


def _work(group: Group, size: float) -> float:
    """What a run of this size costs: FLOPs; for the user's own function the size, squared where it is a width."""
    run = group.templates[size, group.seeds[0]]
    if not isinstance(run.config, Call):
        return flops_of(run.config)
    return max(size, 1e-9) ** (1 if group.size_name == "depth" else 2)


Steps = Generator[Sequence[Ask], Sequence[Record], None]


def _measure(group: Group, size: float, rates: Sequence[float], seed: Any, metric: str, curve: Curve) -> Steps:
    rates = [x for x in rates if seed not in curve.get(x, {})]
    records = yield [Ask(group.at(size, x, seed)) for x in rates]
    for x, record in zip(rates, records, strict=True):
        curve.setdefault(x, {})[seed] = loss_of(record, metric)


def loss_of(record: Record, metric: str) -> float:
    """The loss of an ended run: inf for one that diverged, was given up or failed. Raises InputError where runs have no such metric."""
    metrics = record.get("metrics", {})
    if record["status"] == "finished" and metric not in metrics:
        raise InputError(f"metric={metric!r}: the runs have no such number; write one of {', '.join(metrics)}")
    value = metrics.get(metric)
    return value if record["status"] == "finished" and value is not None else math.inf


def _beyond(curve: Curve, low: float, high: float) -> float | None:
    """The next coarse rate where the best one is at the edge of what was measured; None inside, and at the range's end."""
    best = lowest(curve)
    if best is None:
        return min(curve) - 1 if min(curve) - 1 >= low else None  # all diverged: lower
    if best == min(curve) and best - 1 >= low:
        return best - 1
    if best == max(curve) and best + 1 <= high:
        return best + 1
    return None


def _coarse_everywhere(group: Group, size: float, metric: str, give_up: GiveUp, curve: Curve) -> Steps:
    """Every power of two of the range, but only the promising ones to the end."""
    seed, low = group.seeds[0], group.log2_lrs[0]
    rates = [low + i for i in range(math.floor(group.log2_lrs[-1] - low) + 1)]
    runs = {x: group.at(size, x, seed) for x in rates}
    config = next(iter(runs.values())).config
    if isinstance(config, Call) or config.steps < _LONG_ENOUGH or len(rates) < 4:
        yield from _measure(group, size, rates, seed, metric, curve)
        return
    half = config.steps // 2
    records = yield [Ask(run, until=half) for run in runs.values()]
    paused = dict(zip(rates, records, strict=True))
    at_half = {x: _half(record) for x, record in paused.items()}
    start = min(at_half, key=at_half.__getitem__)
    i = rates.index(start)
    yield from _measure(group, size, rates[max(0, i - 1) : i + 2], seed, metric, curve)
    while True:
        more = [x for side in (-1, 1) if (x := _next(rates, curve, side)) is not None]
        # a rate that was better half-way than all that were followed to the end is never given up unseen
        more += [x for x in rates if x not in curve and at_half[x] < min(at_half[y] for y in curve)]
        if not more:
            break
        yield from _measure(group, size, more, seed, metric, curve)
    for x in rates:
        if x not in curve:
            record = paused[x]
            if record["status"] == "paused":
                give_up(runs[x], record, "given up half-way: the two learning rates between it and the best are worse")
            curve[x] = {seed: math.inf}


def _half(record: Mapping[str, Any]) -> float:
    value = record.get("metrics", {}).get("half_loss")
    return math.inf if value is None or record["status"] in ("diverged", "failed") else float(value)


def _next(rates: Sequence[float], curve: Curve, side: int) -> float | None:
    """The next rate outwards on one side, unless the last two there are worse than the best, in growing order of distance."""
    best = lowest(curve)
    measured = sorted(curve, key=lambda x: side * x)
    outer = measured[-1]
    i = rates.index(outer) + side
    if not 0 <= i < len(rates):
        return None
    return None if best is not None and side * (outer - best) >= 2 else rates[i]
