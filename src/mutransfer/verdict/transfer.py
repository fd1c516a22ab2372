"""What the replicates say of transfer: optimum and regret of each size, drift, and whether larger is better."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from mutransfer.verdict.bootstrap import Draws, Replicates
from mutransfer.verdict.estimate import Estimate, central, one_sided

Array = np.ndarray
BUMP = 3.0  # a second minimum counts when the rise between is this many standard deviations


@dataclass(frozen=True)
class Optimum:
    """The best LR of one size."""

    size: float
    log2_lr: Estimate
    lr: Estimate
    loss: Estimate
    edge: str | None  # "low" or "high": the best of the grid is its end, the optimum may lie beyond
    walls: tuple[float, ...]  # log2 LRs at which a run diverged
    beside_wall: bool  # nothing finite was run between the optimum and divergence
    bimodal: bool
    seeds: tuple[str, ...]
    points: tuple[tuple[float, float], ...]  # (log2 LR, mean loss), inf at a wall

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON types; infinite losses as None."""
        points = [[x, y if np.isfinite(y) else None] for x, y in self.points]
        return {**asdict(self), "log2_lr": self.log2_lr.to_dict(), "lr": self.lr.to_dict(), "loss": self.loss.to_dict(),
                "walls": list(self.walls), "seeds": list(self.seeds), "points": points}  # fmt: skip


@dataclass(frozen=True)
class Regret:
    """loss(base's optimal LR) − loss(own optimum) at one size; `relative` to the loss; `share` of what the size gains over the base."""

    size: float
    absolute: Estimate
    relative: Estimate
    share: Estimate | None  # None where the gain is not told from zero
    above: float  # chance that `relative` exceeds the tolerance, from the side that accuses
    below: float  # chance that it stays under the tolerance, from the side that acquits
    unknown: bool  # nothing was run where the base's optimum lies

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON types."""
        return {"size": self.size, "absolute": self.absolute.to_dict(), "relative": self.relative.to_dict(),
                "share": None if self.share is None else self.share.to_dict(), "above": self.above, "below": self.below,
                "unknown": self.unknown}  # fmt: skip


@dataclass(frozen=True)
class Gain:
    """loss(optimum of `start`) − loss(optimum of `end`), relative to the first; positive: larger is better."""

    start: float
    end: float
    relative: Estimate
    worse: float  # chance that larger is worse by more than the margin
    better: float  # chance that larger is better at all

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON types."""
        return {"start": self.start, "end": self.end, "relative": self.relative.to_dict(), "worse": self.worse, "better": self.better}  # fmt: skip


def optima(found: Replicates, level: float) -> tuple[Optimum, ...]:
    """One per size, in growing order."""
    made = []
    for one in found.sizes:
        low, high = np.where(one.at_low, -np.inf, one.x), np.where(one.at_high, np.inf, one.x)
        x = central(one.best_x, low, level, high)
        lr = Estimate(*(float(np.exp2(v)) for v in (x.value, x.low, x.high)))
        loss = central(one.best_loss, one.loss + found.common, level)
        at = one.best_x
        ends = ((at <= one.local.low + 1e-9, one.low_end, "low"), (at >= one.local.high - 1e-9, one.high_end, "high"))
        edge = next((name for hit, end, name in ends if hit and end == "edge"), None)
        beside = any(hit and end == "wall" for hit, end, _ in ends)
        mean = one.cells.means[0]
        walls = tuple(float(v) for v in one.cells.x[one.cells.wall])
        points = tuple((float(a), float(b)) for a, b in zip(one.cells.x, mean, strict=True))
        made.append(Optimum(one.cells.size, x, lr, loss, edge, walls, beside, bimodal(one, found.sigma), one.cells.seeds, points))  # fmt: skip
    return tuple(made)


def bimodal(one: Draws, sigma: float) -> bool:
    """Whether a second minimum is separated from the best by a rise larger than the noise on both sides, among runs not far worse."""
    mean, count, _, _ = one.cells.means
    run = np.isfinite(mean)
    y, n = mean[run], count[run]
    if len(y) < 4:
        return False
    best = int(np.argmin(y))
    noise = sigma * one.cells.spread[run] / np.sqrt(np.maximum(n, 1))
    for i in range(len(y)):
        between = y[min(i, best) + 1 : max(i, best)]
        if len(between):
            top = int(np.argmax(between)) + min(i, best) + 1
            if y[top] - y[i] > BUMP * np.hypot(noise[top], noise[i]) and y[top] - y[i] > 1e-3 * abs(y[best]):
                return True
    return False


def drift(found: Replicates, level: float) -> tuple[Estimate, Array, Array]:
    """Slope of the optimum's log2 LR against log2 size, octaves per doubling, least squares; (estimate, least, most) per replicate."""
    sizes = np.log2([one.cells.size for one in found.sizes])
    centred = sizes - sizes.mean()
    slope = centred / (centred @ centred)
    value = float(slope @ [one.best_x for one in found.sizes])
    least = most = np.zeros(len(found.common))
    for weight, one in zip(slope, found.sizes, strict=True):
        if abs(weight) < 1e-12:
            continue
        ends = (np.where(one.at_low, -np.inf, one.x), np.where(one.at_high, np.inf, one.x))
        least = least + weight * ends[0 if weight > 0 else 1]
        most = most + weight * ends[1 if weight > 0 else 0]
    return central(value, least, level, most), least, most


def bent(found: Replicates, level: float) -> bool:
    """Whether the optima depart from a straight line beyond noise."""
    if len(found.sizes) < 3:
        return False
    sizes = np.log2([one.cells.size for one in found.sizes])
    basis = np.stack([np.ones_like(sizes), sizes], 1)
    away = np.eye(len(sizes)) - basis @ np.linalg.pinv(basis)
    residual = away @ np.array([one.x for one in found.sizes])
    centre = away @ np.array([one.best_x for one in found.sizes])
    tail = (1 - level) / 2 / len(sizes)
    low, high = np.quantile(residual, tail, axis=1), np.quantile(residual, 1 - tail, axis=1)
    return bool(np.any(((low > 0) | (high < 0)) & (np.abs(centre) > 0.25)))


def regrets(found: Replicates, level: float, tolerance: float) -> tuple[Regret, ...]:
    """One per size above the base."""
    base = found.sizes[0]
    made = []
    for i, one in enumerate(found.sizes[1:], 1):
        least, most = (np.maximum(v - one.loss, 0) for v in one.at(base.x))
        value_low, value_high = one.mean_at(base.best_x)
        unknown = bool(np.mean(most > least) > (1 - level) / 2) or value_low != value_high
        # beyond the grid's end an optimum may lie anywhere: the regret is at least this, unless the base's is on its way to this one
        beyond = base.at_low | base.at_high | one.at_low | one.at_high
        toward = (base.at_high & (one.x > base.x)) | (base.at_low & (one.x < base.x))
        least, most = np.where(toward, 0.0, least), np.where(beyond, np.inf, most)
        value = max(value_low - one.best_loss, 0.0)
        scale = np.maximum(np.abs(one.loss), 1e-12)
        away = base.x - one.x
        absolute = one_sided(value, least, most, away, level)
        relative = one_sided(value / abs(one.best_loss), least / scale, most / scale, away, level)
        gain = base.loss - one.loss + found.levels[0] - found.levels[i]
        share = None
        if np.quantile(gain, 1 - level) > 0:
            whole = max(base.best_loss - one.best_loss, 1e-12)
            share = one_sided(value / whole, least / np.maximum(gain, 1e-12), most / np.maximum(gain, 1e-12), away, level)  # fmt: skip
        above, below = float(np.mean(least / scale > tolerance)), float(np.mean(most / scale <= tolerance))
        made.append(Regret(one.cells.size, absolute, relative, share, above, below, unknown))
    return tuple(made)


def gains(found: Replicates, level: float, margin: float, pairs: list[tuple[int, int]]) -> tuple[Gain, ...]:
    """What size `end` of each pair gains over `start`, each at its own optimum."""
    made = []
    for start, end in pairs:
        a, b = found.sizes[start], found.sizes[end]
        scale = abs(a.best_loss) or 1.0
        draws = (a.loss - b.loss + found.levels[start] - found.levels[end]) / scale
        value = (a.best_loss - b.best_loss) / scale
        made.append(Gain(a.cells.size, b.cells.size, central(value, draws, level), float(np.mean(draws < -margin)), float(np.mean(draws > 0))))  # fmt: skip
    return tuple(made)
