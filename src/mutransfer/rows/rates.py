"""Learning rates of a table: as they stand or as logarithms, and which of them are the same."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from mutransfer.errors import InputError
from mutransfer.rows.columns import plain

SAME = 0.04  # octaves: LRs nearer than this are one LR written with few digits


def to_log2_lr(column: str, values: Sequence[float], notes: list[str]) -> Callable[[float], float]:
    """How the LR column becomes log2 LR: it is an LR, or said (or seen) to be a logarithm. Raises InputError where it is neither."""
    name = plain(column)
    if "log10" in name:
        notes.append(f"{column} is taken as log10 of the LR")
        return lambda v: v * math.log2(10)
    if "log2" in name:
        return lambda v: v
    if name.startswith("ln_"):
        notes.append(f"{column} is taken as the natural logarithm of the LR")
        return lambda v: v * math.log2(math.e)
    low, high = min(values), max(values)
    if low > 0 and math.isfinite(high):
        return math.log2
    if high <= 0 and low < -7:
        notes.append(f"{column} goes from {low:g} to {high:g}: taken as log2 of the LR")
        return lambda v: v
    if high < 0:
        raise InputError(
            f"{column} goes from {low:g} to {high:g}: log2 or log10? Rename the column log2_lr or log10_lr"
        )
    wrong = next(v for v in values if not (v > 0 and math.isfinite(v)))
    raise InputError(f"{column}={wrong:g}: a learning rate must be above 0; leave such rows out")


def same_lrs(values: Sequence[float]) -> dict[float, float]:
    """Each log2 LR to the one it stands for: values written with few digits (0.00098 for 2^-10) are the same LR."""
    found: dict[float, float] = {}
    start = None
    for value in sorted(set(values)):
        if start is None or value - start > SAME:
            start = value
        found[value] = start
    return found
