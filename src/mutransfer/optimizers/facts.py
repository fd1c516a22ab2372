"""What an optimizer must declare: a few facts about its raw update `A = opt(G)`, where a step is `W ← W − lr·A`.

| fact       | meaning                                                                     |
|------------|-----------------------------------------------------------------------------|
| `degree`   | p in `A(tG) = tᵖ A(G)`: 1 for SGD, 0 for anything that normalises            |
| `norm`     | size ‖A‖₂ of a raw step as a formula of the tensor's fans                    |
| `eps_kind` | what eps is added to: an element of G, its Frobenius norm, or G·Gᵀ ("outer") |
| `weight`   | q in `A(G, tW) = t^q A(G, W)`: 0 for most, 1 where the step follows RMS(W)  |

Every ratio in `rules.py` follows from these (Yang–Simon–Bernstein 2310.17813 §; width and depth: 2603.00541).
Names of Muon's scalings clash between libraries, so here the formula is the name.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from fractions import Fraction
from typing import Any, Literal, get_args

from mutransfer.errors import InputError

Kind = Literal["sgd", "element", "matrix"]
EpsKind = Literal["element", "frobenius", "outer"]
Decay = Literal["decoupled", "coupled"]

GRADIENT = "‖G‖₂"
"""The raw step is as large as the gradient: SGD."""

SQUARED_NORMS: dict[str, Callable[[Fraction, Fraction], Fraction]] = {
    "√(in·out)": lambda n_in, n_out: n_in * n_out,
    "1": lambda n_in, n_out: Fraction(1),
    "√max(1,out/in)": lambda n_in, n_out: max(Fraction(1), n_out / n_in),
    "√(out/in)": lambda n_in, n_out: n_out / n_in,
    "0.2√max(in,out)": lambda n_in, n_out: max(n_in, n_out) / 25,
}
"""‖A‖₂² of a raw step (at RMS(W) = 1) by the formula of ‖A‖₂: (fan_in, fan_out) → squared operator norm, exact."""


@dataclass(frozen=True)
class OptimizerFacts:
    """The facts that decide every ratio of a tensor under one optimizer (theory: "What an optimizer must declare").

    `decay` says how the class's own `weight_decay` acts: "decoupled" is `W *= 1 − lr·wd`, "coupled" adds `wd·W` to G.
    `certain` is False where published rules conflict or the update changes its character while training. `weight` is q: with
    q = 1 the step is ‖A‖₂ = norm·RMS(W), RMS(W) = ‖W‖_F/√(number of elements), as in LAMB (1904.00962) and Adafactor (1804.04235).
    `floor`: RMS(W) has a lower bound that the plan scales with the init (Adafactor's eps₂), so that a tensor of zeros follows too.
    """

    name: str
    degree: int
    norm: str
    kind: Kind
    eps_kind: EpsKind | None
    decay: Decay
    certain: bool = True
    source: str = ""
    weight: int = 0
    floor: bool = False
    weight: int = 0

    def __post_init__(self) -> None:
        if self.degree not in (0, 1):
            raise InputError(f"degree={self.degree!r} of optimizer {self.name!r}: 0 (normalised) or 1 (like SGD)")
        if type(self.weight) is not int or self.weight not in (0, 1):
            raise InputError(
                f"weight={self.weight!r} of optimizer {self.name!r}: 0, or 1 (its step is proportional to RMS(W))"
            )
        if self.norm != GRADIENT and self.norm not in SQUARED_NORMS:
            raise InputError(
                f"norm={self.norm!r} of optimizer {self.name!r}: one of {GRADIENT!r}, {quoted(SQUARED_NORMS)}"
            )
        for key, known in (
            ("kind", get_args(Kind)),
            ("eps_kind", (*get_args(EpsKind), None)),
            ("decay", get_args(Decay)),
        ):
            if getattr(self, key) not in known:
                raise InputError(f"{key}={getattr(self, key)!r} of optimizer {self.name!r}: one of {quoted(known)}")
        if (self.norm == GRADIENT) != (self.degree == 1):
            raise InputError(f"optimizer {self.name!r}: norm {GRADIENT!r} and degree 1 belong together")

    @property
    def matrix_only(self) -> bool:
        """Whether the update is a matrix function of G, so that embeddings, heads and vectors need another optimizer."""
        return self.kind == "matrix"

    @property
    def at_zero(self) -> OptimizerFacts:
        """The facts that hold for a tensor that starts at zero and so has no RMS of its own.

        Where the step follows RMS(W) without a floor, such a tensor takes plain steps (LAMB's trust ratio is 1 at ‖W‖ = 0; the
        plan keeps it there, as is usual for biases): q = 0. With a floor that follows the plan nothing differs.
        """
        return replace(self, weight=0) if self.weight and not self.floor else self


def quoted(names: Any) -> str:
    """The names as an error message lists them."""
    return ", ".join(repr(name) for name in names)
