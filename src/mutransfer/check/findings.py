"""One finding: which tensor, which rule it breaks, by how much, and what to do."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True)
class Finding:
    """A tensor's measured exponent against the expected one. `severity`: "fail", "unclear", "warn" or "note"."""

    name: str
    rule: str
    what: str
    slope: float
    low: float
    high: float
    expected: float
    advice: str
    severity: str = "fail"

    @property
    def direction(self) -> str:
        """Whether the quantity grows or falls faster than it should."""
        return "grows" if self.slope > self.expected else "falls"

    def measured(self, axis: str) -> str:
        """What was found, and what to do."""
        if self.slope == self.expected:
            return f"{self.what}; {self.advice}"
        verb = "grows" if self.slope > 0 else "falls"
        verb = verb if abs(self.slope) > 0.05 else "stays"
        words = f"{self.what} {verb} like {axis}^{self.slope:+.2f} [{self.low:+.2f}, {self.high:+.2f}]"
        return f"{words}, expected {axis}^{self.expected:+.2g} (rule: {self.rule}); {self.advice}"

    def words(self, axis: str) -> str:
        """The finding as one sentence."""
        return f"{self.name}: {self.measured(axis)}"

    def to_dict(self) -> dict[str, Any]:
        """Plain data, for JSON."""
        return {**asdict(self), "direction": self.direction}


def folded(findings: Sequence[Finding], axis: str) -> list[str]:
    """One line per tensor, and one for all blocks whose like-named tensors break the same rules by the same exponents."""
    per_tensor: dict[str, list[Finding]] = {}
    for finding in findings:
        per_tensor.setdefault(finding.name, []).append(finding)
    lines: dict[tuple[str, ...], list[list[Finding]]] = {}
    for name, own in per_tensor.items():
        place = re.sub(r"(?<=\.)\d+(?=\.)|^\d+(?=\.)", "*", name)
        rules = (f"{f.rule} {f.what} {round(2 * (f.slope - f.expected)) / 2:g}" for f in own)
        lines.setdefault((place, *rules), []).append(own)
    found = []
    for (place, *_), members in lines.items():
        name = members[0][0].name if len(members) == 1 else f"{place} ×{len(members)}"
        found.append(f"{name}: " + "; and ".join(f.measured(axis) for f in members[0]))
    return found
