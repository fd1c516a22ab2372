"""Which polynomials drive every singular value to 1: a triple (a, b, c) per step, `p(σ) = a·σ + b·σ³ + c·σ⁵`."""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from mutransfer.errors import InputError

Triple = tuple[float, float, float]
Coefficients = str | Sequence[float] | Sequence[Sequence[float]]

JORDAN: Triple = (3.4445, -4.7750, 2.0315)
"""Keller Jordan's, the default of torch.optim.Muon: steep at 0, ends between about 0.7 and 1.2 and never at 1."""

_TAYLOR: Triple = (15 / 8, -10 / 8, 3 / 8)  # what the best quintic on [l, u] becomes as l → u = 1
NAMES = ("jordan", "polar-express")


def schedule(coefficients: Coefficients, ns_steps: int) -> tuple[Triple, ...]:
    """One triple per step: a name, one triple for all steps, or a list of triples whose last one is repeated.

    Raises InputError for anything else, and for a number of steps outside 1…99.
    """
    if isinstance(ns_steps, bool) or not isinstance(ns_steps, int) or not 1 <= ns_steps < 100:
        raise InputError(f"ns_steps={ns_steps!r}: write a whole number from 1 to 99")
    if isinstance(coefficients, str):
        if coefficients not in NAMES:
            raise InputError(f"coefficients={coefficients!r}: write 'jordan', 'polar-express', or triples (a, b, c)")
        return (JORDAN,) * ns_steps if coefficients == "jordan" else polar_express(ns_steps)
    triples = _triples(coefficients)
    return (*triples[:ns_steps], *triples[-1:] * (ns_steps - len(triples)))


def _triples(coefficients: Any) -> list[Triple]:
    given = list(coefficients) if isinstance(coefficients, list | tuple) else []
    rows = [given] if given and not isinstance(given[0], list | tuple) else given
    for row in rows:
        if not isinstance(row, list | tuple) or len(row) != 3 or not all(map(_is_number, row)):
            rows = []
            break
    if not rows:
        raise InputError(
            f"coefficients={coefficients!r}: write a triple such as (3.4445, -4.775, 2.0315), a list of triples, "
            f"'jordan' or 'polar-express'"
        )
    return [(float(a), float(b), float(c)) for a, b, c in rows]


def _is_number(x: Any) -> bool:
    return isinstance(x, int | float) and not isinstance(x, bool) and math.isfinite(x)


@functools.cache
def polar_express(
    steps: int, *, lower: float = 1e-3, cushion: float = 0.02407327424182761, safety: float = 1.01
) -> tuple[Triple, ...]:
    """The Polar Express (2505.16932): per step the odd quintic with the least max |1 − p(σ)| on where the σ can be by then.

    The σ start in [lower, 1] and after each step lie in [p(l), 2 − p(l)]. While l < cushion·u, p is the best on
    [cushion·u, u], rescaled so that its errors at l and u are equal: the very best one would cancel badly. `safety`: every
    step but the last divides σ by it, so that rounding cannot carry a σ out of the interval. The published list is
    `polar_express(8, safety=1)`. Raises InputError for settings outside their ranges.
    """
    if isinstance(steps, bool) or not isinstance(steps, int) or steps < 1:
        raise InputError(f"steps={steps!r}: write a whole number, 1 or more")
    if not 0 < lower <= 1 or not 0 <= cushion <= 1 or not safety >= 1:
        raise InputError(
            f"lower={lower!r}, cushion={cushion!r}, safety={safety!r}: 0 < lower ≤ 1, 0 ≤ cushion ≤ 1, safety ≥ 1"
        )
    low, high, result = lower, 1.0, []
    for step in range(steps):
        a, b, c = best_quintic(max(low, cushion * high), high)
        if low < cushion * high:
            centre = (_value((a, b, c), low) + _value((a, b, c), high)) / 2
            a, b, c = a / centre, b / centre, c / centre
        low = _value((a, b, c), low)
        high = 2 - low
        s = safety if step < steps - 1 else 1.0
        result.append((a / s, b / s**3, c / s**5))
    return tuple(result)


def best_quintic(low: float, high: float) -> Triple:
    """The odd quintic with the least max |1 − p(σ)| on [low, high], 0 < low ≤ high, by Remez exchange.

    The best one errs by +E, −E, +E, −E at low, at its two stationary points inside, and at high (Chebyshev).
    """
    if low / high > 1 - 5e-6:  # beyond double precision: the limit of low → high
        a, b, c = _TAYLOR
        return a / high, b / high**3, c / high**5
    inner = np.array([(3 * low + high) / 4, (low + 3 * high) / 4])
    error, a, b, c = math.inf, *_TAYLOR
    for _ in range(100):
        x = np.array([low, *inner, high])
        a, b, c, found = np.linalg.solve(np.stack([x, x**3, x**5, [1.0, -1.0, 1.0, -1.0]], axis=1), np.ones(4))
        if abs(found - error) <= 1e-15:
            break
        error = found
        root = math.sqrt(9 * b * b - 20 * a * c)
        inner = np.sqrt((-3 * b + np.array([-root, root])) / (10 * c))
    return float(a), float(b), float(c)


def _value(triple: Triple, x: float) -> float:
    a, b, c = triple
    return x * (a + x * x * (b + x * x * c))
