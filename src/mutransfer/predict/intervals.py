"""Intervals: the profile of the likelihood with the new run among the data, and a bootstrap over runs and seeds.

**Profile.** Let Q(u) = Σρ(r) with Huber's threshold at 2.5 standard deviations, and `core` its minimum. A loss L* at x* is in the interval at level 1 − a when

    min_u [ Q(u) + (log L* − log f(x*, u))²/2·(scatter/σ)² ] − min_u Q(u)  ≤  ½·scatter²·t²(1 − a/2; dof)

For a linear law, normal noise and least squares this is exactly Student's prediction interval, σ estimated and the run-to-run noise
of the new run included; for a curved one it follows the curvature (profile predictive likelihood: Bjørnstad 1990, Statist. Sci. 5).

**Bootstrap.** Leverage-corrected residuals of runs are drawn with replacement about the fit, the law is fitted again, and the error of a new
run against that fit, in units of that fit's own scale, gives the quantiles (Davison & Hinkley 1997, §6.3.3).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from mutransfer.predict.fit import Fit
from mutransfer.predict.solve import Problem, Solved, huber, refine

Array = np.ndarray
DRAWS, FEWER = 1000, 300  # of a plain law; of one whose derivatives are differences
CLOSE = 1e-8  # how closely an objective is minimised, relatively, where only its rise counts


@dataclass(frozen=True)
class Draws:
    """Refits on bootstrap tables: u (B, p), and the scale of each (B,). `noise` (B,): a new run's, in log loss."""

    u: Array
    scale: Array
    noise: Array


def student(level: float, dof: int) -> float:
    """t(1 − a/2; dof) for level 1 − a."""
    from scipy.special import stdtrit

    return float(stdtrit(dof, 0.5 + level / 2))


def bootstrap(fitted: Fit, draws: int | None = None, seed: int = 0, iterations: int = 40) -> Draws:
    """`draws` refits (1,000); runs' residuals are drawn whole (rows of one run together), seeds' levels are drawn anew for the new run."""
    draws = draws or (DRAWS if fitted.law.plain else FEWER)
    rng = np.random.default_rng(seed)
    n = len(fitted.y)
    spread = fitted.residuals / np.sqrt(np.maximum(1 - fitted.leverage, 0.05))
    spread = spread - spread.mean()
    wanted = fitted.scatter
    have = float(np.sqrt(np.mean(spread**2)))
    if have > 0 and n < 30:
        spread = spread * (wanted / have)  # few residuals: their mean square is set by the degrees of freedom
    names = [fitted.points.run[rows[0]] for rows in fitted.rows]
    order = {name: i for i, name in enumerate(dict.fromkeys(names))}
    member = np.array([order[name] for name in names])
    groups = [np.flatnonzero(member == g) for g in range(len(order))]
    if all(len(g) == 1 for g in groups):
        drawn = spread[rng.integers(0, n, (draws, n))]
        if n < 30:  # seven residuals are no distribution: half of the variance from a normal law
            drawn = np.sqrt(0.5) * (drawn + wanted * rng.standard_normal((draws, n)))
    else:
        drawn = np.empty((draws, n))
        for g in groups:
            source = rng.integers(0, len(groups), draws)
            for b in range(draws):
                drawn[b, g] = (
                    spread[rng.choice(groups[source[b]], len(g))]
                    if len(groups[source[b]]) != len(g)
                    else spread[groups[source[b]]]
                )
    tables = fitted.log_loss(fitted.x, fitted.core) + drawn
    starts = _distinct(fitted)
    best = refine(fitted.problem, tables, np.repeat(fitted.core[None], draws, 0), iterations, CLOSE)
    for other in starts[1:]:
        again = refine(fitted.problem, tables, np.repeat(other[None], draws, 0), iterations, CLOSE)
        better = again.objective < best.objective
        best = Solved(np.where(better[:, None], again.u, best.u), np.where(better, again.objective, best.objective))
    residual = tables - fitted.law.log_mean(best.u, fitted.x)
    scales = np.sqrt((np.minimum(np.abs(residual), 4 * wanted + 1e-300) ** 2).sum(1) / fitted.dof)
    new = spread[rng.integers(0, n, draws)] if n >= 30 else wanted * rng.standard_normal(draws)
    if wanted > 0:
        new = new * (fitted.sigma / wanted)
    new = new + fitted.repeats.spread * rng.standard_normal(draws)
    return Draws(best.u, scales, new)


def _distinct(fitted: Fit) -> Array:
    """Restarts that ended elsewhere and not much worse: other valleys, up to two."""
    u, value = fitted.restarts.u, fitted.restarts.objective
    chosen = [fitted.core]
    for one, objective in zip(u, value, strict=True):
        far = all(np.abs(one - known).max() > 0.05 for known in chosen)
        if far and objective < value[0] + 10 * fitted.scatter**2 and len(chosen) < 3:
            chosen.append(one)
    return np.array(chosen)


def bootstrap_interval(fitted: Fit, draws: Draws, x: Array, level: float) -> tuple[Array, Array]:
    """log loss (m,), (m,) between which a new run at x (v, m) lies."""
    centre = fitted.log_loss(x, fitted.core)
    floor = 0.2 * fitted.scatter
    unit = (fitted.scatter / np.maximum(draws.scale, max(floor, 1e-300)))[:, None] if fitted.scatter > 0 else 1.0
    error = (centre + draws.noise[:, None] - fitted.law.log_mean(draws.u, x)) * unit
    tail = (1 - level) / 2
    return centre + np.quantile(error, tail, axis=0), centre + np.quantile(error, 1 - tail, axis=0)


def profile_interval(fitted: Fit, x: Array, level: float, guides: Array | None = None) -> tuple[float, float]:
    """log loss between which a new run at x (v,) lies. `guides` (B, p): fits to start from, such as bootstrap draws."""
    threshold = student(level, fitted.dof)
    s = max(fitted.scatter, 1e-9)
    weight = (s / max(fitted.sigma, 1e-9)) ** 2
    wider = Problem(
        fitted.law, np.concatenate([fitted.x, x[:, None]], axis=1),
        np.append(fitted.problem.delta, 1e3), np.append(np.ones(len(fitted.y)), weight),
    )  # fmt: skip
    base = objective(fitted)
    centre = float(fitted.log_loss(x[:, None], fitted.core)[0])
    guides = _distinct(fitted) if guides is None else np.concatenate([_distinct(fitted), guides])
    at = fitted.law.log_mean(guides, x[:, None])[:, 0]

    def rise(offsets: Array) -> Array:
        """√(2ΔQ)/s at log losses centre + offsets: near |offset| in standard deviations."""
        nearest = np.argsort(np.abs(at - (centre + offsets)[:, None]), axis=1)[:, :2]
        starts = np.concatenate(
            [np.repeat(fitted.core[None], len(offsets), 0), guides[nearest[:, 0]], guides[nearest[:, -1]]]
        )
        tables = np.concatenate([np.tile(fitted.y, (len(offsets), 1)), (centre + offsets)[:, None]], axis=1)
        found = refine(wider, np.tile(tables, (3, 1)), starts, 80, CLOSE)
        best = found.objective.reshape(3, -1).min(0)
        return np.sqrt(np.maximum(2 * (best - base), 0.0)) / s

    first = threshold * s * max(1.0, np.sqrt(1 / weight))
    return centre - _crossing(rise, -first, threshold), centre + _crossing(rise, first, threshold)


def _crossing(rise: Callable[[Array], Array], step: float, threshold: float) -> float:
    """The distance at which `rise` crosses the threshold, in the direction of `step`: bracketed, then interpolated."""
    sign, reach = np.sign(step), abs(step)
    known = {0.0: 0.0}
    for _ in range(6):
        h = reach * np.array([1.0, 1.7, 3.0, 5.0])
        for a, b in zip(h, rise(sign * h), strict=True):
            known[float(a)] = float(b)
        if max(known.values()) >= threshold:
            break
        reach *= 5.0
    else:
        return float("inf")
    for _ in range(3):
        h, v = (np.array(c) for c in zip(*sorted(known.items()), strict=True))
        top = int(np.argmax(v >= threshold))
        low, high = h[top - 1], h[top]
        guess = low + (high - low) * (threshold - v[top - 1]) / max(v[top] - v[top - 1], 1e-300)
        width = high - low
        trial = np.clip(np.array([guess - 0.04 * width, guess, guess + 0.04 * width]), low, high)
        for a, b in zip(trial, rise(sign * trial), strict=True):
            known[float(a)] = float(b)
        if width < 0.02 * high:
            break
    h, v = (np.array(c) for c in zip(*sorted(known.items()), strict=True))
    top = int(np.argmax(v >= threshold))
    return float(h[top - 1] + (h[top] - h[top - 1]) * (threshold - v[top - 1]) / max(v[top] - v[top - 1], 1e-300))


def parameter_interval(fitted: Fit, index: int, level: float) -> tuple[float, float]:
    """Of u[index] (an exponent, or the logarithm of a coefficient), by its profile; the law's bound where nothing in the data bounds it."""
    threshold = student(level, fitted.dof)
    s = max(fitted.scatter, 1e-9)
    base = objective(fitted)
    low, high = (float(b[index]) for b in fitted.problem.bounds(fitted.y))
    centre = float(fitted.core[index])
    ends = []
    for sign, bound in ((-1.0, low), (1.0, high)):
        room = abs(bound - centre)
        known = {0.0: 0.0}
        step, u, out = min(0.02 * max(abs(centre), 0.1), room), fitted.core, 0.0
        for _ in range(40):
            if room <= 0:
                break
            start = u.copy()
            start[index] = centre + sign * min(step, room)
            found = refine(
                fitted.problem, fitted.y, np.stack([start, _moved(fitted.core, index, start[index])]), 80, fixed=index
            )
            best = int(np.argmin(found.objective))
            u = found.u[best]
            known[min(step, room)] = float(np.sqrt(max(2 * (found.objective[best] - base), 0.0)) / s)
            if known[min(step, room)] >= threshold or step >= room:
                break
            step *= 1.6
        h, v = (np.array(c) for c in zip(*sorted(known.items()), strict=True))
        if v.max() < threshold:
            out = room
        else:
            top = int(np.argmax(v >= threshold))
            out = float(
                h[top - 1] + (h[top] - h[top - 1]) * (threshold - v[top - 1]) / max(v[top] - v[top - 1], 1e-300)
            )
        ends.append(centre + sign * out)
    return ends[0], ends[1]


def objective(fitted: Fit) -> float:
    """Q at its minimum."""
    residual = fitted.y - fitted.log_loss(fitted.x, fitted.core)
    return float((fitted.problem.weights * huber(residual, fitted.problem.delta)).sum())


def _moved(u: Array, index: int, value: float) -> Array:
    out = u.copy()
    out[index] = value
    return out
