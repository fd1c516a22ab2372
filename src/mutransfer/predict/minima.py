"""The minima of several curves of one shape, and how well each is known: what isoFLOP curves are read with.

About its minimum every curve is y = L + c·(d² + κ·d³ + …), d = x − x_opt, with its own L, c, x_opt and a common skew κ. Curves of constant compute of E + A/N^α + B/D^β,

    L − L_min = T·[(e^(−αd) − 1)/α + (e^(βd) − 1)/β],  T = αA/N_opt^α,  x = log N

are of that kind to third order, κ = (β − α)/3. Published exponents differ by 0.15 at most, so that κ = 0 ± 0.05 is known beforehand, and the runs say the rest. The shape fitted is
2(e^(3κd) − 1 − 3κd)/(9κ²), which is convex for all d and the parabola at κ = 0.

An interval is that of the profile over the position (at given κ Fieller's for normal noise, exact for a parabola), noise pooled over all curves, widened by what the minimum moves when κ does.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from mutransfer.predict.intervals import student
from mutransfer.predict.noise import scale

Array = np.ndarray
LEAST = 5  # points of a curve: a parabola takes three
WINDOW = 0.1  # points higher than this share above the lowest of their curve are too far from the minimum for its shape
BEFORE = 0.05  # standard deviation of κ, beforehand
SKEWS = np.linspace(-0.36, 0.36, 37)
WILD, FEW = 4.0, 0.1  # points this many standard deviations from their curve are set aside, if at most this share is
_TRIED, _FEWER = 500, 160  # positions of a minimum; of a first look


@dataclass(frozen=True)
class Minimum:
    """Of one curve: x `at`, its interval, the curve's `height` and `curvature` c there, `own`: standard deviation of `at` by this curve alone, `shift`: by how much `at`
    moves with one standard deviation of κ; `why`: what is wrong with it, empty where nothing is."""

    at: float
    low: float
    high: float
    height: float
    curvature: float
    own: float
    shift: float
    why: str


@dataclass(frozen=True)
class Minima:
    """`found`, one per curve; `skew` κ and its standard deviation; `sigma`: noise of a point, with `dof`; `kept`: per curve, which points count (not too far up, not wild)."""

    found: tuple[Minimum, ...]
    skew: float
    skew_sd: float
    sigma: float
    dof: int
    kept: tuple[Array, ...]


def shape(d: Array, skew: float) -> Array:
    """d² + κd³ + …, convex with its minimum at 0."""
    if abs(skew) < 1e-6:
        return d * d
    s = np.clip(3 * skew * d, -60.0, 60.0)
    return 2 * (np.expm1(s) - s) / (9 * skew * skew)


def find_minima(x: Sequence[Array], y: Sequence[Array], level: float) -> Minima:
    """Minima of curves with positions x (n_i,) and heights y (n_i,) > 0, intervals at `level`."""
    kept = [_window(b) for b in y]
    fitted = _common(_only(x, kept), _only(y, kept))
    wild = [np.abs(r) > WILD * fitted.sigma for r in fitted.residuals]
    share = sum(int(w.sum()) for w in wild) / sum(len(w) for w in wild)
    if 0 < share <= FEW:
        # a point far from every curve would make the noise of all look larger, and move its own curve's minimum
        for keep, out in zip(kept, wild, strict=True):
            if keep.sum() - out.sum() >= LEAST:
                keep[np.flatnonzero(keep)[out]] = False
        fitted = _common(_only(x, kept), _only(y, kept))
    found = tuple(_minimum(a, b, fitted, level) for a, b in zip(_only(x, kept), _only(y, kept), strict=True))
    return Minima(found, fitted.skew, fitted.skew_sd, fitted.sigma, fitted.dof, tuple(kept))


def _only(values: Sequence[Array], kept: Sequence[Array]) -> list[Array]:
    return [v[k] for v, k in zip(values, kept, strict=True)]


def _window(y: Array) -> Array:
    order = np.argsort(y, kind="stable")
    keep = y <= (1 + WINDOW) * y.min()
    keep[order[:LEAST]] = True
    return keep


@dataclass(frozen=True)
class _Common:
    skew: float
    skew_sd: float
    sigma: float
    dof: int
    residuals: list[Array]


def _tried(x: Array, count: int = _TRIED) -> Array:
    return np.linspace(x.min() - np.ptp(x), x.max() + np.ptp(x), count)


def _rss(x: Array, y: Array, tried: Array, skew: float) -> tuple[Array, Array, Array]:
    """(residual sum of squares, curvature, height) (m,) of y = L + c·shape(x − x₀), c ≥ 0, for each x₀ of `tried`."""
    phi = shape(x[None] - tried[:, None], skew)
    middle = phi.mean(1, keepdims=True)
    centred = phi - middle
    ss = np.maximum((centred**2).sum(1), 1e-300)
    c = np.maximum(centred @ (y - y.mean()) / ss, 0.0)
    residual = y[None] - y.mean() - c[:, None] * centred
    return (residual**2).sum(1), c, y.mean() - c * middle[:, 0]


def _common(x: list[Array], y: list[Array]) -> _Common:
    """κ by its profile with what is known beforehand, and the noise."""
    dof = max(sum(len(v) for v in x) - 3 * len(x), 1)
    total = np.zeros(len(SKEWS))
    for a, b in zip(x, y, strict=True):
        tried = _tried(a, _FEWER)
        total += [_lowest(_rss(a, b, tried, k)[0]) for k in SKEWS]
    sigma = max(float(np.sqrt(np.min(total) / dof)), 1e-9)
    skew, sd, residuals = 0.0, BEFORE, []
    for _ in range(3):
        whole = total / sigma**2 + (SKEWS / BEFORE) ** 2
        k = int(np.clip(np.argmin(whole), 1, len(SKEWS) - 2))
        bend = max(float(whole[k - 1] - 2 * whole[k] + whole[k + 1]), 1e-12)
        step = float(SKEWS[1] - SKEWS[0])
        skew = float(SKEWS[k]) + step * float(np.clip(0.5 * (whole[k - 1] - whole[k + 1]) / bend, -1, 1))
        sd = min(step * float(np.sqrt(2 / bend)), BEFORE)
        residuals = [_residuals(a, b, skew) for a, b in zip(x, y, strict=True)]
        sigma = max(scale(np.concatenate(residuals), dof), 1e-9)
    return _Common(skew, sd, sigma, dof, residuals)


def _residuals(x: Array, y: Array, skew: float) -> Array:
    tried = _tried(x)
    rss, c, low = _rss(x, y, tried, skew)
    k = int(np.argmin(rss))
    return y - low[k] - c[k] * shape(x - tried[k], skew)


def _lowest(rss: Array) -> float:
    """The minimum between the points of a grid, by a parabola."""
    k = int(np.argmin(rss))
    if not 0 < k < len(rss) - 1:
        return float(rss[k])
    bend = max(float(rss[k - 1] - 2 * rss[k] + rss[k + 1]), 1e-300)
    return max(float(rss[k] - 0.125 * (rss[k - 1] - rss[k + 1]) ** 2 / bend), 0.0)


def _position(tried: Array, rss: Array) -> tuple[int, float]:
    """(index, place) of the lowest: a parabola through three points of a grid that is finer than any interval that counts."""
    k = int(np.argmin(rss))
    if not 0 < k < len(tried) - 1:
        return k, float(tried[k])
    bend = max(float(rss[k - 1] - 2 * rss[k] + rss[k + 1]), 1e-300)
    move = float(np.clip(0.5 * (rss[k - 1] - rss[k + 1]) / bend, -0.5, 0.5))
    return k, float(tried[k]) + move * float(tried[1] - tried[0])


def _minimum(x: Array, y: Array, fitted: _Common, level: float) -> Minimum:
    tried, t = _tried(x), student(level, fitted.dof)
    rss, c, height = _rss(x, y, tried, fitted.skew)
    k, at = _position(tried, rss)
    over = rss - rss[k] - (t * fitted.sigma) ** 2
    outside = np.flatnonzero(over > 0)
    before, after = outside[outside < k], outside[outside > k]
    low = _cross(tried, over, int(before[-1])) if len(before) else -np.inf
    high = _cross(tried, over, int(after[0]) - 1) if len(after) else np.inf
    moved = [_position(tried, _rss(x, y, tried, fitted.skew + s * fitted.skew_sd)[0])[1] for s in (-1, 1)]
    shift = (moved[1] - moved[0]) / 2
    own = (high - low) / 2 / t
    ends = at - float(np.hypot(at - low, t * shift)), at + float(np.hypot(high - at, t * shift))
    return Minimum(at, *ends, float(height[k]), float(c[k]), float(own), float(shift), _why(x, y, at, ends, float(c[k])))  # fmt: skip


def _why(x: Array, y: Array, at: float, ends: tuple[float, float], c: float) -> str:
    """What is wrong with a minimum."""
    first, last, best = float(x.min()), float(x.max()), float(x[int(np.argmin(y))])
    if c <= 0:
        return "the loss has no minimum over size (it does not bend upwards)"
    if at <= first:
        return "the minimum is at the edge, below the smallest size: make smaller ones"
    if at >= last:
        return "the minimum is at the edge, above the largest size: make larger ones"
    if not (np.isfinite(ends[0]) and np.isfinite(ends[1])):
        return "noise hides the minimum: its interval has no end"
    if best in (first, last) and not first < ends[0] <= ends[1] < last:
        side = "smallest" if best == first else "largest"
        return f"the lowest loss is that of the {side} size, and the minimum's interval goes beyond it"
    return ""


def _cross(x: Array, y: Array, i: int) -> float:
    """Where y crosses 0 between i and i + 1."""
    return float(x[i] + (x[i + 1] - x[i]) * y[i] / (y[i] - y[i + 1]))
