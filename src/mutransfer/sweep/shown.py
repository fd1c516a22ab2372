"""Values of a config in the few characters in which people write them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any


def shown(value: Any) -> str:
    """A field's value: six significant digits for a float."""
    return f"{value:g}" if isinstance(value, float) else str(value)


def shown_lr(lr: Any) -> str:
    """2^-8, or 2^-7.5 for halves of an octave; other numbers to three digits."""
    if not isinstance(lr, int | float) or not lr > 0:
        return str(lr)
    power = math.log2(lr)
    return f"2^{round(2 * power) / 2:g}" if abs(2 * power - round(2 * power)) < 1e-3 else f"{lr:.3g}"


def told_apart(fields: Mapping[str, Any], varying: Sequence[str]) -> list[str]:
    """`width=64`, `lr=2^-8`: the fields by which a run differs from its sweep's others."""
    return [f"{n}={shown_lr(fields[n]) if n == 'lr' else shown(fields[n])}" for n in varying if n in fields]
