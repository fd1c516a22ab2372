"""The bootstrap: replicates of every size's curve, drawn together, and what follows from each: optimum, loss there, loss anywhere.

A replicate redraws the noise of whole seeds (a seed's own level and tilt are redrawn once, not per run) and the curve's departure from a
parabola, so that an interval holds what few seeds do not show and what the fitted shape gets wrong.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.special import chdtrc

from mutransfer.verdict.cells import Cells, Noise, locals_of, scatter, unsteady
from mutransfer.verdict.spline import (
    DRAWN_ALIKE,
    FINE,
    Local,
    Posterior,
    apportion,
    curves,
    lowest,
    posterior,
    vertices,
)

Array = np.ndarray
DRAWS = 1000


@dataclass(frozen=True)
class Draws:
    """The replicates of one size. Arrays are (B,) unless said."""

    cells: Cells
    part: slice
    local: Local
    curve: Array  # (B, FINE)
    mean: Array  # (FINE,)
    x: Array  # the optimum's log2 LR
    loss: Array  # and the loss there, without the seeds' common level
    at_low: Array  # the optimum of the replicate is at the end of what was run
    at_high: Array
    best_x: float  # of the mean curve
    best_loss: float
    low_end: str  # what lies beyond the fitted stretch: "edge", "wall", "stopped" or "inside"
    high_end: str
    wall: Array  # where, between the last finite LR and the first diverged, the wall stands

    def at(self, x: Array) -> tuple[Array, Array]:
        """(B,) least and most that the loss can be at log2 LR `x` (B,), one per replicate: unequal only where nothing was run."""
        spacing = (self.local.high - self.local.low) / (FINE - 1)
        place = np.clip((x - self.local.low) / spacing, 0, FINE - 1 - 1e-9)
        index = place.astype(int)
        rows = np.arange(len(x))
        share = place - index
        value = (1 - share) * self.curve[rows, index] + share * self.curve[rows, index + 1]
        return self._outside(x, value)

    def mean_at(self, x: float) -> tuple[float, float]:
        """The same for the mean curve."""
        value = np.array([np.interp(x, self.local.fine, self.mean)])
        least, most = self._outside(np.array([x]), value, middle=True)
        return float(least[0]), float(most[0])

    def _outside(self, x: Array, value: Array, middle: bool = False) -> tuple[Array, Array]:
        """Beyond the stretch: observed means, joined to the curve's end; then the wall, or nothing known."""
        finite = self.cells.finite
        mean = self.cells.means[0]
        first, last = self._span(finite)
        x_run, y_run = self.cells.x[first : last + 1], mean[first : last + 1]
        inside = np.interp(np.clip(x, self.local.low, self.local.high), x_run, y_run)
        value = value + np.interp(x, x_run, y_run) - inside
        least, most = value.copy(), value.copy()
        for beyond, end, at_end in ((x > x_run[-1], last + 1, x_run[-1]), (x < x_run[0], first - 1, x_run[0])):
            beyond = beyond & (np.abs(x - at_end) > 1e-9)
            if not beyond.any():
                continue
            if not 0 <= end < len(finite) or self.cells.given_up[end]:
                most[beyond] = np.inf
            elif end > last:
                wall = (x_run[-1] + self.cells.x[end]) / 2 if middle else self.wall
                gone = beyond & (x >= wall)
                least[gone] = most[gone] = np.inf
            else:
                most[beyond] = np.inf
        return least, most

    def _span(self, finite: Array) -> tuple[int, int]:
        first, last = self.part.start, self.part.stop - 1
        while first > 0 and finite[first - 1]:
            first -= 1
        while last + 1 < len(finite) and finite[last + 1]:
            last += 1
        return first, last


@dataclass(frozen=True)
class Replicates:
    """All sizes' replicates, drawn together."""

    sizes: tuple[Draws, ...]
    noise: Noise
    found: Posterior
    common: Array  # (B,) the seeds' common level
    levels: Array  # (W, B) each size's own level

    @property
    def sigma(self) -> float:
        """Standard deviation of one run's loss, the seeds' common level taken out."""
        return self.found.noise


def replicate(sizes: Sequence[Cells], draws: int = DRAWS) -> Replicates:
    """Fit all sizes together and draw. Deterministic: the generator is seeded here."""
    sizes, noise, found, parts, locals_ = _fit(sizes)
    rng = np.random.default_rng(20220307)
    chosen = apportion(found, draws)
    tilt, tilt_dof = _tilt(sizes, parts, found.noise)
    tilts = (
        tilt * np.sqrt(tilt_dof / rng.chisquare(tilt_dof, (draws, 1))) if tilt else 0.0
    )  # few seeds: its size is itself uncertain
    first = min(int(one.places[0]) for one in locals_)
    alike = rng.standard_normal((draws, max(int(one.places[-1]) for one in locals_) - first + 1))
    units, departures = [], []
    for cells, one in zip(sizes, locals_, strict=True):
        unit = rng.standard_normal((draws, len(one.x)))
        shift = tilts / np.sqrt(len(cells.seeds)) * rng.standard_normal((draws, 1)) * (one.x - one.x.mean())
        units.append(unit + shift / (found.noise * np.sqrt(one.v)))
        own = rng.standard_normal((draws, len(one.places)))
        departures.append(np.sqrt(DRAWN_ALIKE) * alike[:, one.places - first] + np.sqrt(1 - DRAWN_ALIKE) * own)
    drawn, means = curves(locals_, found, chosen, units, departures)
    made = []
    for i, (cells, part, one) in enumerate(zip(sizes, parts, locals_, strict=True)):
        made.append(_optimum(cells, part, one, drawn[i], means[i], rng.random((draws, 2))))
    common, levels = _levels(sizes, parts, found.noise, draws, rng)
    return Replicates(tuple(made), noise, found, common, levels)


Fit = tuple[Sequence[Cells], Noise, Posterior, list[slice], list[Local]]


def _fit(sizes: Sequence[Cells]) -> Fit:
    def around(sizes: Sequence[Cells], sigma: float, centres: list[float] | None) -> Fit:
        parts = [cells.stretch(sigma) for cells in sizes]
        noise = scatter(sizes, parts)
        locals_ = locals_of(sizes, parts, noise.ratio, centres)
        return sizes, noise, posterior(locals_, noise.dof, noise.ss), parts, locals_

    # the noise decides how far a valley reaches, and is measured inside it; what sizes have in common is seen from their optima
    _, _, found, parts, locals_ = around(sizes, 0.0, None)
    centres = vertices(locals_, found)
    sizes = unsteady(sizes, parts, centres)
    return around(sizes, found.noise, centres)


def _optimum(cells: Cells, part: slice, one: Local, curve: Array, mean: Array, uniform: Array) -> Draws:
    low_end, high_end = _end(cells, part.start - 1), _end(cells, part.stop)
    wall = np.full(len(curve), np.inf)
    last = part.stop - 1
    while last + 1 < len(cells.x) and cells.finite[last + 1]:
        last += 1
    if last + 1 < len(cells.x) and cells.wall[last + 1]:
        wall = cells.x[last] + uniform[:, 0] * (cells.x[last + 1] - cells.x[last])
    x, loss = lowest(one.fine, curve)
    best_x, best_loss = (float(v[0]) for v in lowest(one.fine, mean[None]))
    best_x = float(one.x[0]) if len(one.x) == 1 else best_x  # no curve through one cell has a minimum
    at_low, at_high = x <= one.low + 1e-9, x >= one.high - 1e-9
    if high_end in ("wall", "stopped"):  # the minimum is between the last finite LR and what lies beyond
        reach = np.minimum(wall, cells.x[part.stop]) - one.high
        x = np.where(at_high, one.high + uniform[:, 1] * reach, x)
    if low_end in ("wall", "stopped"):
        x = np.where(at_low, one.low - uniform[:, 1] * (one.low - cells.x[part.start - 1]), x)
    at_low, at_high = at_low & (low_end == "edge"), at_high & (high_end == "edge")
    return Draws(cells, part, one, curve, mean, x, loss, at_low, at_high, best_x, best_loss, low_end, high_end, wall)


def _end(cells: Cells, index: int) -> str:
    if not 0 <= index < len(cells.x):
        return "edge"
    return "inside" if cells.finite[index] else "stopped" if cells.given_up[index] else "wall"


def _tilt(sizes: Sequence[Cells], parts: Sequence[slice], sigma: float) -> tuple[float, int]:
    """Standard deviation of a seed's own slope against log2 LR beyond what independent noise explains, and its degrees of freedom; 0 unless that is clear."""
    squares, dof, spread = 0.0, 0, []
    for cells, part in zip(sizes, parts, strict=True):
        residual = cells.means[3][part]
        if residual.shape[1] < 2 or np.isnan(residual).any() or len(residual) < 4:
            continue
        trust = cells.spread[part] ** -2.0
        centred = cells.x[part] - np.average(cells.x[part], weights=trust)
        slopes = (trust * centred) @ residual / (trust @ centred**2)
        squares += float(slopes @ slopes) * float(trust @ centred**2)
        spread.append(1 / float(trust @ centred**2))
        dof += residual.shape[1] - 1
    if dof == 0 or sigma == 0 or chdtrc(dof, squares / sigma**2) > 0.05:
        return 0.0, dof
    return float(np.sqrt(max(0.0, squares / dof - sigma**2) * np.mean(spread))), dof


def _levels(
    sizes: Sequence[Cells], parts: Sequence[slice], sigma: float, draws: int, rng: np.random.Generator
) -> tuple[Array, Array]:
    """The level of the mean over seeds: common to all sizes, and each size's own, beyond what independent runs explain."""
    normal = rng.standard_normal((len(sizes) + 1, draws))
    chi = rng.standard_normal((64, draws)) ** 2
    shared = set(sizes[0].seeds).intersection(*(set(cells.seeds) for cells in sizes[1:]))
    effects = [dict(zip(cells.seeds, cells.means[2], strict=True)) for cells in sizes]
    most = max(len(cells.seeds) for cells in sizes)
    if most < 2:
        return np.zeros(draws), np.zeros((len(sizes), draws))
    per_cell = sigma**2 / np.mean([max(1.0, float((cells.spread[cells.finite] ** -2.0).sum())) for cells in sizes])
    if len(shared) >= 2:
        table = np.array([[effect[seed] for seed in sorted(shared)] for effect in effects])  # (W, S)
        table = table - table.mean(1, keepdims=True)
        common = table.mean(0)
        dof_common = len(shared) - 1
        square_common = float(common @ common) / dof_common
        dof = dof_common * (len(sizes) - 1)
        rest = table - common
        square = float((rest * rest).sum()) / dof if dof else 0.0
    else:
        values = [np.array(list(effect.values())) for effect in effects]
        dof = sum(len(v) - 1 for v in values)
        square, square_common, dof_common = sum(float(v @ v) for v in values) / max(dof, 1), 0.0, 1
    own = max(0.0, square - per_cell)
    if dof and per_cell > 0 and chdtrc(dof, square * dof / per_cell) > 0.1:
        own = 0.0
    scale = np.sqrt(dof / np.maximum(chi[: min(dof, 32)].sum(0) * max(1, dof / 32), 1e-9)) if dof else 1.0
    scale_common = np.sqrt(dof_common / np.maximum(chi[32 : 32 + min(dof_common, 32)].sum(0), 1e-9))
    counts = np.array([len(cells.seeds) for cells in sizes])
    levels = normal[1:] * np.sqrt(own / counts)[:, None] * scale
    return normal[0] * np.sqrt(square_common / most) * scale_common, levels
