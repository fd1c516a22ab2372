"""One finding: which tensor, which rule it breaks, by how much, and what to do."""

from __future__ import annotations

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

    def words(self, axis: str) -> str:
        """The finding as one sentence."""
        if self.slope == self.expected:
            return f"{self.name}: {self.what}; {self.advice}"
        verb = "grows" if self.slope > 0 else "falls"
        verb = verb if abs(self.slope) > 0.05 else "stays"
        measured = f"{self.what} {verb} like {axis}^{self.slope:+.2f} [{self.low:+.2f}, {self.high:+.2f}]"
        return f"{self.name}: {measured}, expected {axis}^{self.expected:+.2g} (rule: {self.rule}); {self.advice}"

    def to_dict(self) -> dict[str, Any]:
        """Plain data, for JSON."""
        return {**asdict(self), "direction": self.direction}
