"""The verdict on a grown model: what was compared, what departs first, and by how much."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from mutransfer.errors import InputError

OUTPUT = "the model's output"
STAGES = {
    "plan": "the plan's own numbers",
    "shared": "memory of its own",
    "weights": "weights and buffers",
    "layers": "outputs of layers",
    "loss": "loss",
    "gradients": "gradients",
    "path": "training",
}


class GrowthError(InputError):
    """The big model is not the small one; the message names what departs first, and by how much."""


@dataclass(frozen=True)
class Check:
    """One thing compared: the largest relative difference over all steps, or at the first step at which it is not allowed."""

    stage: str
    name: str
    step: int
    error: float
    allowed: float
    detail: str = ""

    @property
    def ok(self) -> bool:
        """Whether rounding explains the difference; NaN is not ok."""
        return self.error <= self.allowed


@dataclass(frozen=True)
class Verification:
    """The verdict: what was compared, in the order of cause and effect, and what could not be."""

    checks: tuple[Check, ...]
    steps: int
    notes: tuple[str, ...] = ()

    @property
    def ok(self) -> bool:
        """Whether everything that was compared agrees."""
        return all(check.ok for check in self.checks)

    @property
    def first(self) -> Check | None:
        """What departs first: by stage, then step, then the order of the forward pass (of the backward pass for gradients)."""
        order = list(STAGES)
        wrong = [check for check in self.checks if not check.ok]
        return min(wrong, key=lambda c: (order.index(c.stage), c.step), default=None)

    @property
    def table(self) -> str:
        """A line for every comparison."""
        wide = max([len(c.name) for c in self.checks] + [4])
        lines = [f"{'':5} {'what':10} {'name':{wide}} {'step':>4} {'difference':>10} {'allowed':>8}"]
        for c in self.checks:
            verdict = "ok" if c.ok else "WRONG"
            lines.append(
                f"{verdict:5} {c.stage:10} {c.name:{wide}} {c.step:4} {c.error:10.1e} {c.allowed:8.0e}  {c.detail}".rstrip()
            )
        return "\n".join(lines)

    def __str__(self) -> str:
        notes = "".join(f"\nnote: {note}" for note in self.notes)
        first = self.first
        if first is None:
            counted = {
                stage: sum(c.stage == stage for c in self.checks) for stage in ("weights", "layers", "gradients")
            }
            parts = [f"{number} {STAGES[stage]}" for stage, number in counted.items() if number]
            parts += [f"{self.steps} training steps"] * (self.steps > 0)
            compared = [c.error for c in self.checks if c.name in (OUTPUT, "loss")]
            worst = f" (largest difference of loss and outputs {max(compared):.1e})" if compared else ""
            claim = "is the small one" if compared else "holds the small one's copies"
            return f"PASS: the big model {claim} in {', '.join(parts)}{worst}{notes}"
        return f"FAIL: {self._words(first)}{notes}"

    def _words(self, first: Check) -> str:
        when = f" at step {first.step}" if first.stage == "path" else ""
        detail = f"; {first.detail}" if first.detail else ""
        if first.stage == "shared":
            return f"{first.name} of the big model is the small one's own memory: a change of one changes the other"
        return (
            f"{first.name} is the first to depart{when} ({STAGES[first.stage]}), by {first.error:.1e} where rounding explains "
            f"{first.allowed:.0e}{detail}"
        )

    def raise_if_wrong(self) -> None:
        """Raise GrowthError with the verdict unless everything agrees."""
        if not self.ok:
            words = str(self).partition("\n")[0]
            more = (
                "; a factor of your own code that depends on the size is undone by multipliers={module: number}"
                if "times the copy" in words
                else ""
            )
            raise GrowthError(words + more)

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON types."""
        checks = [{**asdict(c), "ok": c.ok} for c in self.checks]
        first = None if self.first is None else asdict(self.first)
        return {"ok": self.ok, "first": first, "steps": self.steps, "notes": list(self.notes), "checks": checks}
