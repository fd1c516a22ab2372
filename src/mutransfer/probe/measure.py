"""Degree in G, power of ‖W‖, linearity in lr, equivariance, shape of the norm: each from runs that differ in one thing only."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from mutransfer.optimizers import SQUARED_NORMS
from mutransfer.probe.finding import misfit, shown, slope
from mutransfer.probe.gradients import Rank, gaussian, gradients, rotation
from mutransfer.probe.subject import EARLY, LATE, LR, STEPS, WEIGHT, Subject

SHAPE = (12, 20)
SHAPES = ((12, 12), (24, 24), (48, 48), (64, 64), (64, 12), (64, 24), (12, 64), (24, 64))
"""(out, in) over which the norm is fitted: square, tall and wide, sizes over a factor of five."""
SCALES = (1.0, 1e2, 1e4)
WEIGHTS = (0.25, 1.0, 4.0, 64.0)
"""Factors of W: RMS 0.0125 to 3.2, so that ‖W‖_F passes what trust ratios are clamped at (10)."""
RANKS: tuple[Rank, ...] = ("one", "full", "noisy")


def weights(shape: tuple[int, ...], seed: int = 0) -> Tensor:
    """Normal weights of RMS exactly `WEIGHT`."""
    drawn = gaussian(shape, 100 + seed)
    return drawn * (WEIGHT / drawn.square().mean().sqrt())


def steps_of(
    subject: Subject, shape: tuple[int, ...], rank: Rank, scale: float = 1.0, weight: float = 1.0, lr: float = LR
) -> Tensor:
    """(STEPS, *shape) raw steps under gradients of this shape, rank and scale; kept, as many findings read the same run."""

    def make() -> Tensor:
        return subject.run(scale * gradients(shape, rank, STEPS), weight * weights(shape), lr=lr)

    return subject.once((shape, rank, scale, weight, lr), make)


def early(steps: Tensor) -> Tensor:
    """The mean raw step at the start."""
    return steps[EARLY].mean(0)


def late(steps: Tensor) -> Tensor:
    """The mean raw step at the end."""
    return steps[LATE].mean(0)


@dataclass(frozen=True)
class Power:
    """A power law A(tX) = t^p A(X): the exponents found, the integer they are near, the misfits of the homogeneity itself."""

    exponents: tuple[float, ...]
    misfits: tuple[float, ...]

    @property
    def nearest(self) -> int | None:
        """The integer nearest to the exponents; None where there are none."""
        finite = [e for e in self.exponents if math.isfinite(e)]
        return round(float(np.median(finite))) if finite else None


def power(runs: dict[float, Tensor]) -> Power:
    """Fit A(t) = t^p A(1) to mean steps keyed by t, between neighbouring t, with the integer nearest to p."""
    keys = sorted(runs)
    exponents = tuple(
        slope(float(runs[low].norm()), float(runs[high].norm()), high / low) for low, high in itertools.pairwise(keys)
    )
    nearest = Power(exponents, ()).nearest or 0
    return Power(exponents, tuple(misfit(runs[t], runs[1.0] * t**nearest) for t in keys if t != 1.0))


def degree(subject: Subject, window: Callable[[Tensor], Tensor], scales: tuple[float, ...] = SCALES) -> list[Power]:
    """p in A(tG) = t^p A(G), one law per rank of G.

    Of a G of rank one the size of A alone is asked: Newton–Schulz in bfloat16 blows up the rounding of the other directions.
    """
    laws = [power({t: window(steps_of(subject, SHAPE, rank, t)) for t in scales}) for rank in RANKS]
    return [Power(laws[0].exponents, ()), *laws[1:]]


def weight_power(subject: Subject, window: Callable[[Tensor], Tensor]) -> Power:
    """q in A(G, tW) = t^q A(G, W)."""
    return power({t: window(steps_of(subject, SHAPE, "full", weight=t)) for t in WEIGHTS})


def weight_floor(subject: Subject) -> float | None:
    """Where q = 1: the RMS of W below which the step no longer follows it; None where there is none above 5e-7."""
    tiny = 1e-5
    usual, small = (float(late(steps_of(subject, SHAPE, "full", weight=t)).norm()) for t in (1.0, tiny))
    return WEIGHT * small / usual if small > 10 * tiny * usual else None


def rate_power(subject: Subject, more: tuple[float, ...] = ()) -> tuple[Power, tuple[float, ...]]:
    """The raw step at lr = 1e-4, 1e-3, 1e-2 and `more`, with these rates: exponent 0 where the step is linear in lr."""
    rates = sorted({LR / 10, LR, 10 * LR, *more})
    return power({lr / LR: late(steps_of(subject, SHAPE, "full", lr=lr)) for lr in rates}), tuple(rates)


EQUIVARIANCES = (
    "rotations",
    "left rotations",
    "right rotations",
    "permuted elements",
    "permuted rows and columns",
    "another W",
)


def equivariances(subject: Subject, window: Callable[[Tensor], Tensor]) -> dict[str, float]:
    """Worst misfit of A(T(G)) = T(A(G)) over ranks, for each group of transformations T; and of A under another W of the same size.

    Matrix functions commute with rotations, element-wise ones with any permutation of the elements, factored ones with
    permutations (and signs) of rows and columns only.
    """
    rows, columns = SHAPE
    left, right = rotation(rows, 1), rotation(columns, 2)
    shuffle = gaussian((rows * columns,), 3).argsort()
    by_row, by_column = gaussian((rows,), 4).argsort(), gaussian((columns,), 5).argsort()
    signs = gaussian((rows, 1), 6).sign() * gaussian((1, columns), 7).sign()
    kinds: dict[str, Callable[[Tensor], Tensor]] = {
        "rotations": lambda g: left @ g @ right,
        "left rotations": lambda g: left @ g,
        "right rotations": lambda g: g @ right,
        "permuted elements": lambda g: g.flatten(-2)[..., shuffle].reshape(g.shape),
        "permuted rows and columns": lambda g: (signs * g)[..., by_row, :][..., by_column],
        "another W": lambda g: g,
    }
    found: dict[str, float] = {}
    for name, change in kinds.items():
        worst = 0.0
        for rank in ("full", "noisy"):
            before = window(steps_of(subject, SHAPE, rank))
            weight = weights(SHAPE, 1) if name == "another W" else change(weights(SHAPE))

            def make(rank: Rank = rank, change: Callable = change, weight: Tensor = weight) -> Tensor:
                return subject.run(change(gradients(SHAPE, rank, STEPS)), weight)

            after = window(subject.once((name, rank), make))
            worst = max(worst, misfit(after, change(before)))
        found[name] = worst
    return found


def superposition(subject: Subject) -> float:
    """Misfit of A(G + H) = A(G) + A(H): zero for SGD, with or without momentum."""
    one, other = (steps_of(subject, SHAPE, rank) for rank in ("full", "noisy"))
    both = subject.once("sum", lambda: subject.run(
        gradients(SHAPE, "full", STEPS) + gradients(SHAPE, "noisy", STEPS), weights(SHAPE)))  # fmt: skip
    return misfit(both, one + other)


@dataclass(frozen=True)
class NormFit:
    """‖A‖ over shapes: the formula that fits best with a free constant, its misfits (log), and the bare exponents.

    `wide` and `tall` are the exponents of (in, out) fitted where in ≥ out and where out ≥ in; they differ for max().
    """

    formula: str
    constant: float
    misfits: tuple[float, ...]
    rivals: dict[str, float]
    wide: tuple[float, float]
    tall: tuple[float, float]

    @property
    def words(self) -> str:
        """The exponents measured."""
        wide, tall = (f"in^{shown(a)}·out^{shown(b)}" for a, b in (self.wide, self.tall))
        return (
            wide
            if max(abs(np.subtract(self.wide, self.tall))) < 0.1
            else f"{wide} where in ≥ out, {tall} where out ≥ in"
        )


def norm_fit(sizes: dict[tuple[int, int], float]) -> NormFit | None:
    """Fit every known formula, and free exponents, to ‖A‖ keyed by (out, in); None where a size is no positive number."""
    if not all(0 < size < math.inf for size in sizes.values()):
        return None
    logs = {shape: math.log(size) for shape, size in sizes.items()}
    fits: dict[str, tuple[float, dict[tuple[int, int], float]]] = {}
    for name, squared in SQUARED_NORMS.items():
        left = {(o, i): log - math.log(squared(Fraction(i), Fraction(o))) / 2 for (o, i), log in logs.items()}
        middle = (max(left.values()) + min(left.values())) / 2
        fits[name] = (middle, {shape: abs(value - middle) for shape, value in left.items()})
    rivals = {name: max(left.values()) for name, (_, left) in fits.items()}
    # formulas that differ by a constant only fit alike: the one whose constant is nearest to 1 names it
    best = min(rivals, key=lambda name: (round(rivals[name], 6), abs(fits[name][0])))
    constant, misfits = fits[best]

    def exponents(keep: Callable[[int, int], bool]) -> tuple[float, float]:
        kept = [(o, i) for o, i in logs if keep(o, i)]
        design = np.array([[1.0, math.log(i), math.log(o)] for o, i in kept])
        solution = np.linalg.lstsq(design, np.array([logs[shape] for shape in kept]), rcond=None)[0]
        return float(solution[1]), float(solution[2])

    return NormFit(
        best, math.exp(constant), tuple(misfits.values()), rivals,
        exponents(lambda o, i: i >= o), exponents(lambda o, i: o >= i),
    )  # fmt: skip


Measure = Literal["operator", "elements"]


def size(a: Tensor, measured: Measure) -> float:
    """‖A‖₂; or what it would be if A had rank one and elements of this mean size: √(in·out)·mean|A|. NaN where not finite."""
    if not bool(torch.isfinite(a).all()):
        return math.nan
    return (
        float(torch.linalg.matrix_norm(a, 2))
        if measured == "operator"
        else float(a.abs().mean()) * math.sqrt(a.numel())
    )


def norms(
    subject: Subject, rank: Rank, window: Callable[[Tensor], Tensor], measured: Measure, *, relative: bool
) -> NormFit | None:
    """The fit of the size of the mean step over `SHAPES`; relative: of its ratio to that of the mean gradient."""
    sizes = {}
    for shape in SHAPES:
        sizes[shape] = size(window(steps_of(subject, shape, rank)), measured)
        if relative:
            sizes[shape] /= size(window(gradients(shape, rank, STEPS)), measured)
    return norm_fit(sizes)
