"""The runs of one size as a grid of LRs by seeds: means with the seeds' own levels taken out, walls, and the stretch around the best."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np

from mutransfer.verdict.spline import CELLS, Local
from mutransfer.verdict.table import Run

Array = np.ndarray
LEAST = 5  # cells of the fitted stretch, where there are as many
RISE = 2.0  # it goes on while the loss rises less than this multiple of those cells' largest rise
EXPLODED = 1.5  # times the worst loss at any lower LR: worse than hardly trained at all, and so a divergence
LEVELLED = 7  # lowest cells of a size, from which the seeds' own levels are taken
PRIOR_DOF = 8.0  # how firmly a size's own noise is pulled to that of all sizes
GROWTHS = np.linspace(0, 2.5, 26)  # of the noise's deviation per octave above the optimum: e-folds
GROWTH_RATE = 2.0  # prior of the growth: exponential, so that steady noise is the first guess


@dataclass(frozen=True)
class Cells:
    """One size. `x` (L,) log2 LR ascending; `loss` (L, S): nan absent, +inf a wall; `given_up` (L,): a run was stopped as hopeless there.

    `spread` (L,): standard deviation of a run's noise there relative to that at the optimum.
    """

    size: float
    x: Array
    seeds: tuple[str, ...]
    loss: Array
    given_up: Array
    spread: Array

    @property
    def finite(self) -> Array:
        """(L,) whether every run of the cell has a loss."""
        return np.logical_and((~np.isnan(self.loss)).any(1), ~np.isinf(self.loss).any(1))

    @property
    def wall(self) -> Array:
        """(L,) whether a run diverged there: the expected loss is infinite."""
        return ~self.finite & ~self.given_up

    def raw_mean(self) -> Array:
        """(L,) mean over the seeds, +inf at walls."""
        counts = np.maximum((~np.isnan(self.loss)).sum(1), 1)
        return np.where(self.finite, np.nansum(np.where(np.isinf(self.loss), 0, self.loss), 1) / counts, np.inf)

    @cached_property
    def means(self) -> tuple[Array, Array, Array, Array]:
        """(mean (L,), count (L,), effect (S,), residual (L, S)) of the additive model LR + seed over the finite cells.

        Where seeds and LRs are not connected (each LR has seeds of its own) the seeds' levels cannot be told and are left in.
        """
        mean, effect = self.raw_mean(), np.zeros(len(self.seeds))
        known = ~np.isnan(self.loss) & self.finite[:, None]
        residual = np.full(self.loss.shape, np.nan)
        at, who = np.nonzero(known)
        if (len(at) and known.sum(1).max() > 1) or len(set(who.tolist())) > 1:
            rows, present = np.unique(at, return_inverse=True)
            people, seat = np.unique(who, return_inverse=True)
            design = np.zeros((len(at) + 1, len(rows) + len(people)))
            design[np.arange(len(at)), present] = 1
            design[np.arange(len(at)), len(rows) + seat] = 1
            design[-1, len(rows) :] = 1  # the effects sum to zero
            # a run about to diverge says nothing of its seed's level: it counts for its own cell only
            near = np.argsort(np.argsort(mean)) < LEVELLED
            trust = np.append(np.where(near, 1.0, 1e-3)[at] / self.spread[at], 1.0)
            if np.linalg.matrix_rank(design) == design.shape[1]:
                solved = np.linalg.lstsq(
                    design * trust[:, None], np.append(self.loss[at, who], 0.0) * trust, rcond=None
                )[0]
                mean[rows], effect[people] = solved[: len(rows)], solved[len(rows) :]
        residual[at, who] = self.loss[at, who] - mean[at] - effect[who]
        return mean, known.sum(1), effect, residual

    def stretch(self, noise: float) -> slice:
        """The contiguous finite cells around the best that belong to its valley. `noise`: standard deviation of one run."""
        mean, count, _, _ = self.means
        best = int(np.argmin(mean))
        low = high = best
        reach = 0.0
        while True:
            ends = [i for i in (low - 1, high + 1) if 0 <= i < len(mean) and np.isfinite(mean[i])]
            if not ends:
                break
            new = min(ends, key=lambda i: (mean[i], abs(i - best)))
            rise = float(mean[new] - mean[best])
            allowed = max(RISE * reach, 6 * noise / np.sqrt(max(1, int(count[new]))))
            if high - low + 1 >= LEAST and rise > allowed:
                break
            low, high = min(low, new), max(high, new)
            if high - low + 1 <= LEAST:
                reach = max(reach, rise)
        return slice(low, high + 1)


@dataclass(frozen=True)
class Noise:
    """The seeds' scatter: σ² of one run pooled over sizes, its degrees of freedom, and each size's σ² relative to it."""

    dof: float
    ss: float
    ratio: tuple[float, ...]


def gather(runs: Sequence[Run], explodes: bool = True) -> list[Cells]:
    """One `Cells` per size, in growing order. `explodes`: a loss far above those of lower values is a divergence, as of an LR."""
    found = []
    for size in sorted({run.size for run in runs}):
        mine = [run for run in runs if run.size == size]
        x = np.array(sorted({run.log2_lr for run in mine}))
        seeds = tuple(sorted({run.seed for run in mine}, key=_natural))
        loss, given_up = np.full((len(x), len(seeds)), np.nan), np.zeros(len(x), bool)
        diverged = np.zeros(len(x), bool)
        for run in mine:
            i, j = int(np.searchsorted(x, run.log2_lr)), seeds.index(run.seed)
            loss[i, j] = run.loss
            given_up[i] |= run.status == "stopped"
            diverged[i] |= run.status == "diverged"
        found.append(Cells(size, x, seeds, exploded(loss) if explodes else loss, given_up & ~diverged, np.ones(len(x))))
    return found


def exploded(loss: Array) -> Array:
    """(L, S) with +inf for finite losses that are those of a divergence: above the best LR, and worse than every LR below it by far.

    Without a norm a network can blow up to a loss of 1e9 and stay finite. Losses that are not positive are left alone.
    """
    worst = np.where(np.isnan(loss), -np.inf, loss).max(1)
    usual = np.nanmin(np.where(np.isinf(loss), np.nan, loss), axis=1, initial=np.inf)
    best = int(np.argmin(np.where(np.isfinite(worst), worst, np.inf)))
    below = usual[: best + 1][np.isfinite(usual[: best + 1])]
    if not len(below) or best == 0 or below.min() <= 0:
        return loss
    above = np.arange(len(loss)) > best
    return np.where(above[:, None] & (loss > EXPLODED * below.max()), np.inf, loss)


def unsteady(sizes: Sequence[Cells], parts: Sequence[slice], centres: Sequence[float]) -> list[Cells]:
    """The same cells with a noise that grows above the optimum: deviation σ·exp(g·(x − optimum)₊), one g ≥ 0 for all sizes.

    Training is less reproducible toward divergence. g is the most probable one given how the seeds scatter in each cell of
    the stretches; it is 0 where there is one seed, and where the scatter is the same everywhere.
    """
    above, squares, dofs = [], [], []
    for cells, part, centre in zip(sizes, parts, centres, strict=True):
        residual = cells.means[3][part]
        known = ~np.isnan(residual)
        above.append(np.maximum(cells.x[part] - centre, 0))
        squares.append(np.nansum(residual**2, 1))
        dofs.append(np.maximum(known.sum(1) - 1, 0) * max(0.0, 1 - 1 / max(1, len(known))))
    x, square, dof = (np.concatenate(v) for v in (above, squares, dofs))
    if dof.sum() < 2 or square.sum() <= 0:
        return list(sizes)
    variance = np.exp(2 * GROWTHS[:, None] * x)
    pooled = (square / variance).sum(1)
    score = -0.5 * (dof * np.log(variance)).sum(1) - 0.5 * dof.sum() * np.log(pooled) - GROWTH_RATE * GROWTHS
    growth = float(GROWTHS[int(np.argmax(score))])
    return [
        replace(cells, spread=np.exp(growth * np.clip(cells.x - centre, 0, 4)))
        for cells, centre in zip(sizes, centres, strict=True)
    ]


def _natural(seed: str) -> tuple[int, float, str]:
    try:
        return 0, float(seed), seed
    except ValueError:
        return 1, 0.0, seed


def scatter(sizes: Sequence[Cells], stretches: Sequence[slice]) -> Noise:
    """Noise of one run from the seeds, inside the stretches; each size's own share pulled to the common one."""
    sums, dofs = [], []
    for cells, part in zip(sizes, stretches, strict=True):
        residual = cells.means[3]
        inside = residual[part]
        known = ~np.isnan(inside)
        whole = ~np.isnan(residual)
        lost = whole.any(1).sum() + max(0, whole.any(0).sum() - 1)
        total = whole.sum()
        share = max(0.0, (total - lost) / total) if total else 0.0  # degrees of freedom per residual
        sums.append(float(np.nansum((inside / cells.spread[part][:, None]) ** 2)))
        dofs.append(share * known.sum())
    dof, ss = float(np.sum(dofs)), float(np.sum(sums))
    if dof <= 0 or ss <= 0:
        return Noise(0.0, 0.0, (1.0,) * len(sums))
    common = ss / dof
    ratio = tuple((PRIOR_DOF * common + s) / (PRIOR_DOF + d) / common for s, d in zip(sums, dofs, strict=True))
    return Noise(dof, float(sum(s / r for s, r in zip(sums, ratio, strict=True))), ratio)


def locals_of(
    sizes: Sequence[Cells], parts: Sequence[slice], ratio: Sequence[float], centres: Sequence[float] | None = None
) -> list[Local]:
    """The fitted stretch of every size. `centres`: about where the optima are, where that is known better than from three cells."""
    ends = []
    for cells, part in zip(sizes, parts, strict=True):
        low, high = float(cells.x[part][0]), float(cells.x[part][-1])
        ends.append((low, high) if high > low else (low - 0.5, high + 0.5))
    cell = max(high - low for low, high in ends) / CELLS
    made = []
    for i, (cells, part, share, (low, high)) in enumerate(zip(sizes, parts, ratio, ends, strict=True)):
        mean, count, _, _ = cells.means
        x, y = cells.x[part], mean[part]
        centre = _centre(x, y) if centres is None else float(np.clip(centres[i], low, high))
        made.append(Local(x, y, share * cells.spread[part] ** 2 / np.maximum(count[part], 1), low, high, centre, cell))
    return made


def _centre(x: Array, y: Array) -> float:
    """About where the minimum is: the vertex of the parabola through the lowest cell and its neighbours."""
    best = int(np.argmin(y))
    if len(x) < 3:
        return float(x[best])
    i = min(max(best, 1), len(x) - 2)
    bend, slope, _ = np.polyfit(x[i - 1 : i + 2] - x[i], y[i - 1 : i + 2], 2)
    return float(np.clip(x[i] - slope / (2 * bend), x[i - 1], x[i + 1])) if bend > 0 else float(x[best])
