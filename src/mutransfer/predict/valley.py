"""Where the valley of the loss is lowest: the optimum of one size from its runs, with a standard error, or the side on which it lies.

Along one axis (LR, or batch) the verdict's curves are used: smooth functions through all sizes, replicated. Over LR and batch together the
loss of each size is a cubic surface, its departures from a paraboloid held small by a prior, and cells count the less the higher they lie:

    ln loss(x, b) = paraboloid + cubic terms + noise of variance σ²/runs + (κ·rise)²,   x = log2 LR, b = log2 batch

σ and κ are common to all sizes (restricted likelihood). The standard error is the spread of the minima of surfaces drawn from the fit.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from mutransfer.verdict.bootstrap import Draws, replicate
from mutransfer.verdict.cells import exploded, gather
from mutransfer.verdict.table import Run

Array = np.ndarray
AT_ONCE = 30  # sizes whose curves are fitted together
LEAST_ERROR = 0.02  # octaves
LEAST_CELLS = 8  # of a surface: six coefficients of the paraboloid
BENT = 0.25  # prior deviation of a cubic coefficient, as a share of the quadratic ones per octave
NOISES = np.geomspace(5e-5, 2e-2, 10)
DEPARTURES = (0.1, 0.2, 0.4)  # κ
FLAT, UNSEEN = (
    1e-3,
    0.5,
)  # deviation that makes a paraboloid; share of a cubic's shift of the optimum counted as an error
DEVIATIONS = (0.08, 0.5)  # of single sizes' cubic coefficients from their mean
LIKENESS = 6  # steps of expectation–maximisation
MESH, DRAWS, PASSES = 41, 200, 8
HIGH = 1.5  # times the lowest loss: no part of a valley


class Best(NamedTuple):
    """The optimum's `log2` and its standard `error` in octaves; `side` 0, or −1 (+1) where it is below (above) `log2`; `why`: cannot be used."""

    log2: float
    error: float
    side: int
    why: str = ""


@dataclass(frozen=True)
class Sweep:
    """The runs of one size. (n,) arrays: log2 LR, log2 batch (0 where there is none), loss (+inf: diverged or stopped), which were stopped; seeds."""

    x: Array
    b: Array
    loss: Array
    stopped: Array
    seed: tuple[str, ...]


def unusable(why: str) -> Best:
    """No optimum, and why."""
    return Best(np.nan, np.nan, 0, why)


def along(sweeps: Sequence[Sweep], axis: str = "lr") -> list[Best]:
    """The optimum of each size along one axis, "lr" or "batch"; runs that differ in the other one count as repetitions."""
    found: list[Best | None] = []
    wanted: list[tuple[int, list[Run]]] = []
    for i, one in enumerate(sweeps):
        at = one.x if axis == "lr" else one.b
        finite = np.isfinite(one.loss)
        if not finite.any():
            found.append(unusable("no run finished"))
        elif len(np.unique(at[finite])) < 3:
            found.append(unusable(f"fewer than three {'LRs' if axis == 'lr' else 'batches'} with a loss"))
        else:
            found.append(None)
            status = np.where(finite, "finished", np.where(one.stopped, "stopped", "diverged"))
            runs = [Run(i + 1.0, float(x), s, float(y), str(t)) for x, s, y, t in zip(at, one.seed, one.loss, status, strict=True)]  # fmt: skip
            wanted.append((i, runs))
    for start in range(0, len(wanted), AT_ONCE):
        part = wanted[start : start + AT_ONCE]
        replicates = replicate(gather([run for _, runs in part for run in runs]))
        for (i, _), one in zip(part, replicates.sizes, strict=True):
            found[i] = _of_curve(one)
    return [one for one in found if one is not None]


def _of_curve(one: Draws) -> Best:
    x = one.cells.x[one.cells.finite]
    error = max(float(one.x.std()), LEAST_ERROR)
    for end, at_end, side, bound in (
        (one.low_end, one.at_low, -1, (x[0] + x[1]) / 2),
        (one.high_end, one.at_high, 1, (x[-1] + x[-2]) / 2),
    ):
        # the lowest cell of a valley is the end one exactly if the optimum is beyond the middle between it and the next
        if end == "edge" and ((one.best_x - bound) * side >= 0 or np.mean(at_end) > 0.5):
            return Best(float(bound), error, side)
    beside = (one.high_end == "wall" and one.best_x >= one.local.high - 1e-9) or (one.low_end == "wall" and one.best_x <= one.local.low + 1e-9)  # fmt: skip
    return Best(float(one.x.mean() if beside else one.best_x), error, 0)


class _Cells(NamedTuple):
    x: Array
    b: Array
    y: Array  # ln loss, mean over the runs of a cell
    runs: Array
    walls: Array  # (m, 2) cells with a run that diverged


def over(sweeps: Sequence[Sweep], axis: str = "lr") -> list[Best]:
    """The optimum of each size over LR and batch together: of "lr" or of "batch"."""
    found: list[Best | None] = []
    cells: list[tuple[int, _Cells]] = []
    for i, one in enumerate(sweeps):
        made = _cells(one)
        why = _lacking(made)
        found.append(unusable(why) if why else None)
        if not why:
            cells.append((i, made))
    if cells:
        shape = _common([one for _, one in cells])
        for i, one in cells:
            found[i] = _of_surface(one, shape, axis)
    return [one for one in found if one is not None]


def _cells(one: Sweep) -> _Cells:
    xs, bs = np.unique(one.x), np.unique(one.b)
    sums, counts, bad = (np.zeros((len(bs), len(xs))) for _ in range(3))
    where = np.searchsorted(bs, one.b), np.searchsorted(xs, one.x)
    finite = np.isfinite(one.loss)
    np.add.at(counts, where, 1.0)
    np.add.at(sums, where, np.where(finite, one.loss, 0.0))
    np.add.at(bad, where, np.where(finite, 0.0, np.where(one.stopped, 1.0, 1000.0)))
    mean = np.where(counts > 0, sums / np.maximum(counts, 1), np.nan)
    mean = np.where(bad > 0, np.inf, mean)
    for row in mean:  # a divergence that stayed finite
        known = ~np.isnan(row)
        row[known] = exploded(row[known][:, None])[:, 0]
    walls = np.isinf(mean) & ~((bad > 0) & (bad < 1000))
    low = np.isfinite(mean) & (mean < HIGH * np.min(mean, where=np.isfinite(mean), initial=np.inf))
    at = np.nonzero(low)
    return _Cells(xs[at[1]], bs[at[0]], np.log(mean[at]), counts[at], np.stack([xs[np.nonzero(walls)[1]], bs[np.nonzero(walls)[0]]], 1))  # fmt: skip


def _lacking(cells: _Cells) -> str:
    if not len(cells.y):
        return "no run finished"
    if len(np.unique(cells.b)) < 3 or len(np.unique(cells.x)) < 3:
        return "fewer than three LRs by three batches with a loss"
    design = _design(cells.x - cells.x.mean(), cells.b - cells.b.mean())[:, :6]
    if len(cells.y) < LEAST_CELLS or np.linalg.matrix_rank(design) < 6:
        return "its LRs and batches do not span a surface"
    return ""


def _design(x: Array, b: Array) -> Array:
    """(..., 10): the monomials up to the third degree."""
    return np.stack([np.ones_like(x), x, b, x * x, x * b, b * b, x**3, x * x * b, x * b * b, b**3], -1)


class _Shape(NamedTuple):
    """What the valleys of all sizes have in common: σ, κ, and mean (4,) and deviation of the cubic coefficients in units of the quadratic ones."""

    sigma: float
    kappa: float
    cubic: Array
    deviation: float


class _Surface(NamedTuple):
    beta: Array  # (10,)
    covariance: Array
    centre: tuple[float, float]
    unit: Array  # (4,) of the cubic coefficients
    likelihood: float


def _surface(cells: _Cells, shape: _Shape) -> _Surface:
    """The posterior of one size's surface. Cells count by how high they lie on it, so that it is found in a few passes."""
    rise = cells.y - cells.y.min()
    unit, v, centre = np.zeros(4), np.empty(0), (0.0, 0.0)
    beta = inverse = design = np.empty(0)
    for turn in range(PASSES):
        v = shape.sigma**2 / cells.runs + (shape.kappa * rise) ** 2
        centre = float((cells.x / v).sum() / (1 / v).sum()), float((cells.b / v).sum() / (1 / v).sum())
        design = _design(cells.x - centre[0], cells.b - centre[1])[:, : 6 if turn < 2 else 10]  # the paraboloid first
        root = design / np.sqrt(v)[:, None]
        precision, pull = root.T @ root, root.T @ (cells.y / np.sqrt(v))
        if turn >= 2:
            cx, cb = (max(abs(float(beta[k])), 1e-5) for k in (3, 5))
            unit = np.array([cx, np.sqrt(3 * cx * cb), np.sqrt(3 * cx * cb), cb])
            firm = (shape.deviation * unit) ** -2.0
            precision[6:, 6:] += np.diag(firm)
            pull[6:] += firm * shape.cubic * unit
        inverse = np.linalg.pinv(precision, hermitian=True)
        beta = inverse @ pull
        fitted = design @ beta
        higher = np.maximum(fitted - fitted.min(), 0)
        rise = higher if turn == 0 else 0.5 * (rise + higher)
    residual = (cells.y - design @ beta) ** 2 / v
    off = (beta[6:] / unit - shape.cubic) / shape.deviation
    sign, log_det = np.linalg.slogdet(inverse)
    log_det = log_det if sign > 0 else 0.0
    scale = np.log(v).sum() + 2 * np.log(shape.deviation * unit).sum()
    return _Surface(beta, inverse, centre, unit, 0.5 * float(log_det - scale - residual.sum() - off @ off))


def _common(cells: Sequence[_Cells]) -> _Shape:
    """σ and κ by the likelihood of all sizes on a grid, then the cubic coefficients' common mean and deviation by expectation–maximisation."""
    shapes = [_Shape(s, k, np.zeros(4), BENT) for s in NOISES for k in DEPARTURES]
    score = [sum(_surface(one, shape).likelihood for one in cells) for shape in shapes]
    shape = shapes[int(np.argmax(score))]
    if len(cells) < 3:
        return shape
    for _ in range(LIKENESS):
        fits = [_surface(one, shape) for one in cells]
        cubic = np.array([one.beta[6:] / one.unit for one in fits])
        left = np.array([np.diag(one.covariance)[6:] / one.unit**2 for one in fits])
        mean = cubic.mean(0)
        deviation = float(np.sqrt(np.mean((cubic - mean) ** 2 + left)))
        shape = _Shape(shape.sigma, shape.kappa, mean, float(np.clip(deviation, *DEVIATIONS)))
    return shape


def _of_surface(cells: _Cells, shape: _Shape, axis: str) -> Best:
    fit = _surface(cells, shape)
    x, b = (np.linspace(v.min(), v.max(), MESH) for v in (cells.x, cells.b))
    there = np.stack(np.meshgrid(x, b, indexing="ij"), -1).reshape(-1, 2)
    step_x, step_b = (float(np.median(np.diff(np.unique(v)))) for v in (cells.x, cells.b))
    away = np.maximum(np.abs(there[:, :1] - cells.x) / step_x, np.abs(there[:, 1:] - cells.b) / step_b).min(1)
    there = there[away <= 1]  # only where something finished nearby
    rng = np.random.default_rng(20250304)
    drawn = rng.multivariate_normal(fit.beta, fit.covariance, size=DRAWS, check_valid="ignore")
    values = _design(there[:, 0] - fit.centre[0], there[:, 1] - fit.centre[1]) @ np.concatenate([fit.beta[None], drawn]).T  # fmt: skip
    at = there[np.argmin(values, axis=0)]
    mesh = float(x[1] - x[0]), float(b[1] - b[0])
    place = _polish(fit, at[0], mesh)
    plain = _surface(cells, shape._replace(cubic=np.zeros(4), deviation=FLAT))
    other = there[int(np.argmin(_design(there[:, 0] - plain.centre[0], there[:, 1] - plain.centre[1]) @ plain.beta))]
    # what the third degree shifts, a fourth may shift in part: alike at sizes that lie alike on their grids, and so no noise
    lr_side, lr_bound, walled = _lr_end(cells, place, at[1:, 0])
    b_side, b_bound = _batch_end(cells, float(place[1]), at[1:, 1])
    error = np.hypot(np.maximum(at[1:].std(0), LEAST_ERROR), UNSEEN * np.abs(_polish(plain, other, mesh) - place))
    if axis == "lr":
        if b_side:
            return unusable(
                f"its best batch is at the {'lower' if b_side < 0 else 'upper'} end of those run, and the LR belongs to it"
            )
        if lr_side:
            return Best(lr_bound, float(error[0]), lr_side)
        return Best(float(place[0]), float(np.hypot(error[0], step_x / np.sqrt(12) if walled else 0)), 0)
    if lr_side:
        return unusable(
            f"its best LR is at the {'lower' if lr_side < 0 else 'upper'} end of those run, and the batch belongs to it"
        )
    return Best(b_bound if b_side else float(place[1]), float(error[1]), b_side)


def _polish(fit: _Surface, at: Array, step: tuple[float, float]) -> Array:
    """The minimum between the points of the mesh."""
    fine = np.stack(np.meshgrid(*(a + s * np.linspace(-0.5, 0.5, 21) for a, s in zip(at, step, strict=True)), indexing="ij"), -1).reshape(-1, 2)  # fmt: skip
    return fine[int(np.argmin(_design(fine[:, 0] - fit.centre[0], fine[:, 1] - fit.centre[1]) @ fit.beta))]


def _lr_end(cells: _Cells, place: Array, drawn: Array) -> tuple[int, float, bool]:
    """(side, bound, whether the optimum is beside a wall) of the LR, seen from the batches nearest to the optimum."""
    rows = np.unique(cells.b)
    near = rows[np.argsort(np.abs(rows - place[1]), kind="stable")[:2]]
    x = np.unique(cells.x[np.isin(cells.b, near)])
    wall = cells.walls[np.isin(cells.walls[:, 1], near), 0]
    walled = bool(np.any(wall > x[-1])) or bool(np.any((wall > place[0]) & (wall <= x[-1])))
    if len(x) < 2:
        return (-1 if place[0] <= x[0] else 1), float(x[0]), False
    low, high = float(x[0] + x[1]) / 2, float(x[-1] + x[-2]) / 2
    if place[0] <= low or np.mean(drawn <= x[0]) > 0.5:
        return -1, low, False
    at_top = bool(place[0] >= high or np.mean(drawn >= x[-1]) > 0.5)
    return (1 if at_top and not walled else 0), high, at_top and walled


def _batch_end(cells: _Cells, place: float, drawn: Array) -> tuple[int, float]:
    rows = np.unique(cells.b)
    low, high = float(rows[0] + rows[1]) / 2, float(rows[-1] + rows[-2]) / 2
    if place <= low or np.mean(drawn <= rows[0]) > 0.5:
        return -1, low
    return (1 if place >= high or np.mean(drawn >= rows[-1]) > 0.5 else 0), high
