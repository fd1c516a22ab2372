"""How an optimizer treats its surroundings: chance, other tensors, the group's own rate, schedules, vectors, growth over the steps."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

from mutransfer.errors import InputError
from mutransfer.probe.finding import misfit, slope
from mutransfer.probe.gradients import gradients
from mutransfer.probe.measure import SHAPE, late, steps_of, weights
from mutransfer.probe.subject import LR, STEPS, Subject


def chance(subject: Subject) -> float:
    """Worst misfit between runs of the same input under other seeds of the global generators."""
    first = steps_of(subject, SHAPE, "noisy")
    runs = (subject.run(gradients(SHAPE, "noisy", STEPS), weights(SHAPE), seed=seed) for seed in (12345, 6789))
    # what is not finite is told elsewhere
    return max(misfit(again, first) if bool(torch.isfinite(first).all()) else 0.0 for again in runs)


def neighbours(subject: Subject) -> float:
    """How much a tensor's step changes when another tensor, with 100 times larger gradients, is trained beside it."""
    beside = (weights((8, 10), 3), 100.0 * gradients((8, 10), "full", STEPS, seed=40))
    together = subject.run(gradients(SHAPE, "full", STEPS), weights(SHAPE), beside=beside)
    return misfit(together, steps_of(subject, SHAPE, "full"))


def group_rate(subject: Subject) -> float:
    """Misfit of raw steps between two rates given in the param group, when the constructor is told the same third one."""
    one, other = (
        late(subject.run(gradients(SHAPE, "full", STEPS), weights(SHAPE), lr=lr, other_lr=3e-3)) for lr in (LR, LR / 10)
    )
    return misfit(one, other)


def schedule(subject: Subject) -> float:
    """The share of a halving of every group's lr, half way, that has arrived in the steps at the end: 1 at once, 0 never."""
    cut = STEPS // 2
    halved = subject.run(gradients(SHAPE, "full", STEPS), weights(SHAPE), cut=cut)[cut:]
    usual = steps_of(subject, SHAPE, "full")[cut:]
    return 2.0 * (1.0 - float((halved * usual).sum() / usual.square().sum()))


@dataclass(frozen=True)
class Growth:
    """Size of the raw step under a constant gradient: the first step that moves, by what it has grown since, and still grows."""

    first: int
    total: float
    per_step: float
    words: str


def growth(subject: Subject) -> Growth:
    """How the step under one and the same gradient changes over the steps."""
    sizes = steps_of(subject, SHAPE, "full").flatten(1).norm(dim=1)
    if not bool(torch.isfinite(sizes).all()):
        return Growth(0, math.nan, math.nan, "not finite")
    moving = torch.nonzero(sizes > 1e-12 * sizes.max()).flatten().tolist() if float(sizes.max()) > 0 else []
    if not moving:
        return Growth(0, math.nan, math.nan, "does not move")
    first = moving[0]
    total = float(sizes[-4:].mean() / sizes[first])
    per_step = float((sizes[-4:].mean() / sizes[-8:-4].mean()) ** 0.25)
    when = "from the first step on" if first == 0 else f"first moves at step {first + 1}"
    if abs(total - 1) < 0.03:
        words = f"constant {when}" if first == 0 else f"{when}, constant since"
    else:
        still = "" if abs(per_step - 1) < 0.005 else f", still ×{per_step:.3g} a step at the end"
        words = f"×{total:.3g} over {STEPS - first} steps{still}" + ("" if first == 0 else f"; {when}")
    return Growth(first, total, per_step, words)


LONG = 100


def later(subject: Subject) -> tuple[float, float]:
    """(change of the step's direction, degree) after `LONG` steps of one gradient: preconditioners that start late show here."""
    runs = [
        subject.run(t * gradients(SHAPE, "full", LONG), weights(SHAPE), steps=LONG, lr=LR / 10)[-8:].mean(0)
        for t in (1.0, 100.0)
    ]
    before = late(steps_of(subject, SHAPE, "full"))
    turned = misfit(runs[0] / runs[0].norm(), before / before.norm())
    return turned, slope(float(runs[0].norm()), float(runs[1].norm()), 100.0)


@dataclass(frozen=True)
class Vectors:
    """1-D tensors: whether they are taken; degree, power of the length in RMS(A), RMS(A) beside a matrix's; or what it said."""

    taken: bool
    degree: float = math.nan
    length_power: float = math.nan
    beside_matrix: float = math.nan
    said: str = ""


def vectors(subject: Subject) -> Vectors:
    """The same questions for a 1-D tensor."""
    try:
        runs = {(n, t): subject.run(t * gradients((n,), "full", STEPS), weights((n,))) for n, t in ((24, 1.0), (24, 100.0), (96, 1.0))}  # fmt: skip
    except InputError as error:
        return Vectors(False, said=str(error))
    rms = {key: float(late(run).square().mean().sqrt()) for key, run in runs.items()}
    matrix = float(late(steps_of(subject, SHAPE, "one")).square().mean().sqrt())
    return Vectors(
        True,
        slope(rms[24, 1.0], rms[24, 100.0], 100.0),
        slope(rms[24, 1.0], rms[96, 1.0], 4.0),
        rms[24, 1.0] / matrix if matrix > 0 else math.nan,
    )
