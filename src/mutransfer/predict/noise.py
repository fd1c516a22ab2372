"""How much a run scatters about the law: a robust scale, what repetitions say, levels that seeds share."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

Array = np.ndarray
WINSOR = 2.5  # residuals beyond this many standard deviations count as if they were there
SAME = 2e-3  # sizes that differ by less, relatively, are one: digitised tables jitter in their last digits


def huber_constants(k: float) -> tuple[float, float]:
    """(E ψ′, E ψ²) of Huber's ψ with threshold k on a standard normal."""
    from scipy.special import ndtr

    if k > 30:
        return 1.0, 1.0
    inside = 2 * float(ndtr(k)) - 1
    density = float(np.exp(-0.5 * k * k) / np.sqrt(2 * np.pi))
    return inside, inside - 2 * k * density + 2 * k * k * float(ndtr(-k))


def scale(residuals: Array, dof: int) -> float:
    """Standard deviation of residuals (n,) that a few wild ones do not set: Huber's proposal 2, Σ min(r², (2.5 s)²) = dof·E[…]·s²."""
    _, second = huber_constants(WINSOR)
    squares = residuals**2
    s = float(np.sqrt(squares.sum() / dof))
    for _ in range(60):
        new = float(np.sqrt(np.minimum(squares, (WINSOR * s) ** 2).sum() / dof / second)) if s else 0.0
        if abs(new - s) <= 1e-9 * s:
            break
        s = new
    return s


def cells(x: Array) -> Array:
    """Which rows stand at the same place: ids (n,) from logarithms x (v, n), up to `SAME`."""
    keys = np.empty(x.shape, int)
    for v, values in enumerate(x):
        order = np.argsort(values, kind="stable")
        steps = np.concatenate([[False], np.diff(values[order]) > SAME])
        keys[v, order] = np.cumsum(steps)
    return np.unique(keys, axis=1, return_inverse=True)[1].ravel()


@dataclass(frozen=True)
class Repeats:
    """What repetitions of the same size say. `pure`: standard deviation within a size (log loss), NaN without repetitions; `dof`: of it."""

    pure: float
    dof: int
    levels: tuple[tuple[str, float], ...]
    """(seed, level): what a seed adds to the log loss of every size; empty where seeds have no common level."""

    @property
    def spread(self) -> float:
        """Standard deviation of the seeds' levels for a run with another seed: s_level·√(1 + 1/S)."""
        if len(self.levels) < 2:
            return 0.0
        return float(np.std([v for _, v in self.levels], ddof=1) * np.sqrt(1 + 1 / len(self.levels)))


def repeats(y: Array, cell: Array, seed: Sequence[str]) -> Repeats:
    """Two-way analysis of log losses y (n,) by size (cell ids) and seed.

    A seed fixes the data and its order, so the same seed may be lucky at every size: where the seeds' mean levels differ by
    more than chance (F test at 1 %), they are levels, else they are part of the noise.
    """
    from scipy.stats import f as f_distribution

    names = sorted(set(seed))
    count = np.bincount(cell)
    several = count[cell] > 1
    dof = int(several.sum() - len(set(cell[several].tolist())))
    if dof < 1:
        return Repeats(float("nan"), 0, ())

    def centred(values: Array) -> Array:
        return values - (np.bincount(cell, values) / count)[cell]

    within = centred(y)
    pure = float((within**2).sum())
    if len(names) > 1 and "" not in names and dof > len(names) - 1:
        design = np.stack([centred(np.array([s == name for s in seed], float)) for name in names], 1)
        levels = np.linalg.lstsq(design, within, rcond=None)[0]
        levels -= levels.mean()
        rest = float(((within - design @ levels) ** 2).sum())
        rank = int(np.linalg.matrix_rank(design))
        left = dof - rank
        if left > 0 and rank > 0:
            ratio = ((pure - rest) / rank) / max(rest / left, 1e-300)
            if float(f_distribution.sf(ratio, rank, left)) < 0.01:
                found = tuple((name, float(v)) for name, v in zip(names, levels, strict=True))
                return Repeats(float(np.sqrt(rest / left)), left, found)
    return Repeats(float(np.sqrt(pure / dof)), dof, ())
