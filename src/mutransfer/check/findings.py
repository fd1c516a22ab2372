"""One finding: which tensor, which rule it breaks, by how much, and what to do."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

PRODUCT = "one function of each size, multiplied"
NAMED = 3  # tensors listed by name where no pattern stands for them alone


@dataclass(frozen=True)
class Finding:
    """A tensor's measured exponent against the expected one. `severity`: "fail", "unclear", "warn" or "note".

    On a grid, `axis` is the size that the exponent belongs to and `where` the part of the grid; the rule `PRODUCT` says by how much that
    exponent changes along the other size, or how far one point is off.
    """

    name: str
    rule: str
    what: str
    slope: float
    low: float
    high: float
    expected: float
    advice: str
    severity: str = "fail"
    axis: str = ""
    where: str = ""

    @property
    def direction(self) -> str:
        """Whether the quantity grows or falls faster than it should."""
        return "grows" if self.slope > self.expected else "falls"

    def measured(self, axis: str) -> str:
        """What was found, and what to do."""
        axis, what = self.axis or axis, f"{self.what.rstrip(',')}, {self.where}," if self.where else self.what
        if self.rule == PRODUCT and self.where.startswith("between"):
            words = f"the exponent of {axis} in {self.what} changes by {self.slope:+.2f} [{self.low:+.2f}, {self.high:+.2f}] {self.where}"
            return f"{words}, expected 0 (rule: {self.rule}); {self.advice}"
        if self.rule == PRODUCT:
            more = "more" if self.slope > 0 else "less"
            return f"{self.what} is {more} {self.where} than its neighbours say (rule: {self.rule}); {self.advice}"
        if self.slope == self.expected:
            return f"{what.rstrip(',')}; {self.advice}"
        verb = "grows" if self.slope > 0 else "falls"
        verb = verb if abs(self.slope) > 0.05 else "stays"
        words = f"{what} {verb} like {axis}^{self.slope:+.2f} [{self.low:+.2f}, {self.high:+.2f}]"
        return f"{words}, expected {axis}^{self.expected:+.2g} (rule: {self.rule}); {self.advice}"

    def words(self, axis: str) -> str:
        """The finding as one sentence."""
        return f"{self.name}: {self.measured(axis)}"

    def to_dict(self) -> dict[str, Any]:
        """Plain data, for JSON."""
        return {**asdict(self), "direction": self.direction}


def folded(findings: Sequence[Finding], axis: str, names: Sequence[str]) -> list[str]:
    """One line per tensor, and one for all blocks whose like-named tensors break the same rules by the same exponents.

    `names` are all tensors of the model: a pattern such as `blocks.*.weight` stands for its tensors only where it matches no other.
    """
    per_tensor: dict[str, list[Finding]] = {}
    for finding in findings:
        per_tensor.setdefault(finding.name, []).append(finding)
    lines: dict[tuple[str, ...], list[list[Finding]]] = {}
    for name, own in per_tensor.items():
        rules = (f"{f.rule} {f.what} {f.axis} {f.where} {round(2 * (f.slope - f.expected)) / 2:g}" for f in own)
        lines.setdefault((_pattern(name), *rules), []).append(own)
    matches = Counter(_pattern(name) for name in dict.fromkeys([*names, *per_tensor]))
    found = []
    for (place, *_), members in lines.items():
        meant = [own[0].name for own in members]
        if len(meant) == 1 or matches[place] > len(meant):
            name = ", ".join(meant[:NAMED]) + (f" and {len(meant) - NAMED} more" if len(meant) > NAMED else "")
        else:
            name = f"{place} ×{len(meant)}"
        found.append(f"{name}: " + "; and ".join(f.measured(axis) for f in members[0]))
    return found


def _pattern(name: str) -> str:
    return re.sub(r"(?<=\.)\d+(?=\.)|^\d+(?=\.)", "*", name)
