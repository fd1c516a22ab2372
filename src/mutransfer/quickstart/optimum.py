"""The best learning rate of each width, and what the small model's best costs at a larger one."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Optimum:
    """The minimum of loss over log2 LR at one width. `edge`: the best of the grid is its end, the optimum may lie beyond."""

    width: int
    log2_lr: float
    loss: float
    best_point: int
    edge: bool
    regret: float | None
    """Relative excess of the loss at the base's best grid point over the best one here; None where that run diverged."""


def vertex(points: Sequence[tuple[float, float]]) -> tuple[float, float]:
    """Vertex (x, y) of the parabola through three points that enclose a minimum."""
    (x0, y0), (x1, y1), (x2, y2) = points
    left, right = (y1 - y0) / (x1 - x0), (y2 - y1) / (x2 - x1)
    curvature = (right - left) / (x2 - x0)
    if curvature <= 0:  # a flat bottom: the middle is as good as any
        return x1, y1
    x = (x0 + x1) / 2 - left / (2 * curvature)
    return x, y1 + (x - x1) * (left + curvature * (x - x0))


def optimum(width: int, losses: Mapping[int, float], base_best: int | None = None) -> Optimum | None:
    """The best log2 LR of `losses` (inf where a run diverged), between grid points by a parabola; None if all diverged."""
    finite = {lr: loss for lr, loss in losses.items() if math.isfinite(loss)}
    if not finite:
        return None
    grid, best = sorted(losses), min(finite, key=finite.__getitem__)
    regret = 0.0 if base_best is None else losses[base_best] / finite[best] - 1
    regret = regret if math.isfinite(regret) else None
    i = grid.index(best)
    if i in (0, len(grid) - 1):
        return Optimum(width, float(best), finite[best], best, True, regret)
    around = [(float(lr), losses[lr]) for lr in grid[i - 1 : i + 2]]
    if not all(math.isfinite(loss) for _, loss in around):
        return Optimum(width, float(best), finite[best], best, False, regret)
    x, y = vertex(around)
    return Optimum(width, x, y, best, False, regret)


def optima(curves: Mapping[int, Mapping[int, float]]) -> list[Optimum]:
    """The optimum of every width in growing order, each with the regret of the smallest one's best point."""
    found: list[Optimum] = []
    for width in sorted(curves):
        best = optimum(width, curves[width], found[0].best_point if found else None)
        if best is None:
            break
        found.append(best)
    return found


TOLERANCE = 0.01  # a relative excess loss that one run per point, so short, cannot tell from none


@dataclass(frozen=True)
class Transfer:
    """Whether the best learning rate of the smallest width serves the largest one."""

    optima: tuple[Optimum, ...]
    widths: tuple[int, ...]

    @property
    def status(self) -> str:
        """HOLDS, DRIFTS or INCONCLUSIVE (an optimum at the edge of the grid where it matters, or a width without one)."""
        if len(self.optima) < len(self.widths):
            return "INCONCLUSIVE"
        first, last = self.optima[0], self.optima[-1]
        if last.regret is None or last.regret > TOLERANCE:
            return "DRIFTS"
        if not self.wider_is_better:
            return "DRIFTS"
        return "INCONCLUSIVE" if first.edge or last.edge else "HOLDS"

    @property
    def wider_is_better(self) -> bool:
        """Whether the largest width's best loss is no worse than the smallest one's."""
        return self.optima[-1].loss <= self.optima[0].loss

    def words(self) -> str:
        """One sentence or two."""
        if len(self.optima) < len(self.widths):
            return f"at width {self.widths[len(self.optima)]} every run diverged: lower the learning rates"
        first, last = self.optima[0], self.optima[-1]
        drift = f"the best learning rate goes from {_power(first)} at width {first.width} to {_power(last)} at width {last.width}"
        if last.regret is None:
            cost = f"and the small model's best rate makes width {last.width} diverge"
        else:
            cost = f"and the small model's best rate costs {100 * last.regret:.1f} % of loss at width {last.width}"
        better = ", ".join(f"{o.loss:.3f}" for o in self.optima)
        return f"{drift}, {cost}; best losses {better}: wider is {'better' if self.wider_is_better else 'not better'}"


def _power(found: Optimum) -> str:
    if found.edge:
        return f"2^{found.log2_lr:g} (the edge of the grid: it may lie beyond)"
    return f"2^{found.log2_lr:.1f}"
