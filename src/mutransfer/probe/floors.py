"""What eps is added to: at which size of the gradient the step falls, how that goes with eps, and with the size of the tensor."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal

from torch import Tensor

from mutransfer.optimizers.facts import EpsKind
from mutransfer.probe.finding import misfit
from mutransfer.probe.gradients import gradients
from mutransfer.probe.measure import SHAPE, weights
from mutransfer.probe.subject import Subject

STEPS = 10
_LAST = slice(5, 10)
LARGE_EPS, SMALL_EPS = 1e-4, 1e-5
LARGE_SHAPE = (4 * SHAPE[0], 4 * SHAPE[1])
ALLOWED = 0.15
TURNED = 0.4
"""Allowed error of the powers; relative change of the step that counts as another direction."""
TOP, BOTTOM = 2.0, -14.0
"""log10 of the gradients' RMS between which a fall of the step is looked for."""
REAL = 3e-4
"""RMS above which a real gradient's element rarely lies: a floor up there would rule the training."""

# (power of the floor in eps, power of 1/floor in √elements) → the name
_KINDS: dict[tuple[float, float], EpsKind | None] = {
    (1.0, 0.0): "element",
    (1.0, 1.0): "frobenius",
    (0.5, 1.0): "outer",
    (0.5, 0.0): None,
}


@dataclass(frozen=True)
class Floor:
    """One eps argument: its name, the powers of the floor in eps and in √(in·out), the kind they mean, how far off they are.

    The floor is the RMS of G at which the step has fallen to a half (or has turned, where a norm of its own holds its size).
    `lifted`: by how much eps changes the size of a step far above the floor (log10).
    """

    argument: str
    eps_power: float
    size_power: float
    kind: EpsKind | None
    off: float
    lifted: float


Sign = Literal["size", "direction"]


def fallen(subject: Subject, shape: tuple[int, int], log_scale: float, settings: dict[str, Any], sign: Sign) -> bool:
    """Whether the step under gradients of RMS 10^log_scale is below half its size at the top, or has turned away from it."""

    def step(at: float) -> Tensor:
        # all elements of one size show a fall sharply, but cannot turn
        grads = 10.0**at * gradients(shape, "signs" if sign == "size" else "full", STEPS)
        key = ("floor", sign, shape, at, repr(settings))
        return subject.once(key, lambda: subject.run(grads, weights(shape), steps=STEPS, **settings)[_LAST].mean(0))

    top, here = step(TOP), step(log_scale)
    if sign == "size":
        return not float(here.norm()) > 0.5 * float(top.norm())
    return not misfit(here, top) < TURNED


def fall(subject: Subject, shape: tuple[int, int], settings: dict[str, Any], sign: Sign = "size") -> float | None:
    """log10 of the RMS of G at which the step falls; None where it does not."""
    low, high = BOTTOM, TOP
    if fallen(subject, shape, high, settings, sign) or not fallen(subject, shape, low, settings, sign):
        return None
    while high - low > 0.02:
        middle = (low + high) / 2
        low, high = (middle, high) if fallen(subject, shape, middle, settings, sign) else (low, middle)
    return (low + high) / 2


def eps_arguments(subject: Subject) -> dict[str, Any]:
    """The constructor's numeric arguments that are called eps in some way, with their values."""
    found: dict[str, Any] = {}
    for name, parameter in subject.parameters.items():
        value = subject.settings.get(name, parameter.default)
        if "eps" in name.lower() and (value is None or isinstance(value, float | tuple)):
            found[name] = value
    return found


def floors(subject: Subject) -> tuple[Floor, ...]:
    """One `Floor` per eps argument that acts."""
    found = []
    for name, value in eps_arguments(subject).items():
        for slot in range(len(value)) if isinstance(value, tuple) else [None]:
            if slot is not None and not (value[slot] is None or isinstance(value[slot], float)):
                continue
            tries = [floor for sign in SIGNS if (floor := _floor(subject, name, value, slot, sign)) is not None]
            if tries:
                found.append(min(tries, key=lambda floor: floor.off))
    return tuple(sorted(found, key=lambda floor: floor.off))


SIGNS: tuple[Sign, ...] = ("size", "direction")


def _floor(subject: Subject, name: str, value: Any, slot: int | None, sign: Sign) -> Floor | None:
    def setting(eps: float) -> dict[str, Any]:
        return {name: eps if slot is None else tuple(eps if i == slot else old for i, old in enumerate(value))}

    first, second = (fall(subject, SHAPE, setting(eps), sign) for eps in (LARGE_EPS, SMALL_EPS))
    if first is None or second is None:
        return None
    eps_power = (first - second) / math.log10(LARGE_EPS / SMALL_EPS)
    if abs(eps_power) <= 0.1:  # another floor, which this argument does not move
        return None
    bigger = fall(subject, LARGE_SHAPE, setting(LARGE_EPS), sign)
    size_power = math.inf if bigger is None else (first - bigger) / math.log10(LARGE_SHAPE[0] / SHAPE[0])
    powers = min(_KINDS, key=lambda known: abs(known[0] - eps_power) + abs(known[1] - size_power))
    off = max(abs(powers[0] - eps_power), abs(powers[1] - size_power))
    lifted = abs(math.log10(_top(subject, setting(LARGE_EPS)) / _top(subject, setting(SMALL_EPS))))
    label = name if slot is None else f"{name}[{slot}]"
    return Floor(label, eps_power, size_power, _KINDS[powers] if off < ALLOWED else None, off, lifted)


def _top(subject: Subject, settings: dict[str, Any]) -> float:
    grads = 10.0**TOP * gradients(SHAPE, "full", STEPS)
    return float(subject.run(grads, weights(SHAPE), steps=STEPS, **settings)[_LAST].mean(0).norm())
