"""One thing that was measured: its value, how well the conditions agree on it, and in which words."""

from __future__ import annotations

import math
from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class Finding:
    """What was measured, over how many conditions, and the worst misfit among them beside what is allowed.

    `reason` is why no facts can be given, empty where this finding is no obstacle. `conditions` of which `agreeing` are
    within `allowed`: their share is the confidence.
    """

    name: str
    value: str
    misfit: float
    allowed: float
    agreeing: int
    conditions: int
    evidence: str = ""
    reason: str = ""

    @property
    def confidence(self) -> float:
        """Share of the conditions that agree, 0 to 1."""
        return self.agreeing / self.conditions if self.conditions else 0.0

    @property
    def ok(self) -> bool:
        """Whether this finding stands in the way of facts."""
        return not self.reason


def of(name: str, value: str, misfits: list[float], allowed: float, evidence: str = "", reason: str = "") -> Finding:
    """A finding from the misfit of each condition."""
    agreeing = sum(m <= allowed for m in misfits)
    return Finding(name, value, max(misfits, default=0.0), allowed, agreeing, len(misfits), evidence, reason)


def misfit(found: Tensor, due: Tensor) -> float:
    """‖found − due‖/‖due‖ (Frobenius); infinite where it is no number."""
    size = float(due.norm())
    value = float((found - due).norm()) / size if size > 0 else (0.0 if float(found.norm()) == 0 else math.inf)
    return value if math.isfinite(value) else math.inf


def slope(small: float, large: float, ratio: float) -> float:
    """The exponent e in large = small·ratio^e; NaN where one of them is no positive finite number."""
    if not (0 < small < math.inf and 0 < large < math.inf):
        return math.nan
    return math.log(large / small) / math.log(ratio)


def shown(value: float) -> str:
    """An exponent as people write it: 0, 0.5, −0.33."""
    if not math.isfinite(value):
        return "not finite"
    text = f"{value:.2f}".rstrip("0").rstrip(".")
    return "0" if text == "-0" else text
