"""The spectral condition solved: (role, fans, optimizer facts, branch) → ratios target/base. The gauge.

Symbols, all ratios target / base: a, b = fan-in and fan-out of the tensor, L = number of residual blocks, c = the tensor's own
forward multiplier, α = L^(−e) the multiplier of its residual branch (e = 1: two or more matrices per branch, CompleteP
2505.01618; e = ½: one matrix, Depth-μP 2310.02244). Features must be of size Θ(1) and change by Θ(1) per step
(2310.17813; joint width and depth 2603.00541):

    c         = 1/a for an output tensor (logits × 1/N), else 1
    init std  = a^−½ hidden, else 1
    ‖G‖_F     = c·α·√(a/b)            |G_ij| = c·α/b
    lr        = L^(e−1)[in branch] / (c·√(a/b)·‖A‖₂)
    decoupled decay = 1/lr            coupled L2 = 1/lr (degree 1), |G_ij|/|W_ij| = c²·α·a/b (degree 0)
    eps       = |G_ij| (element), ‖G‖_F (frobenius), ‖G‖_F² (outer)

The gauge (exact): for any t > 0, `mult/t, std·t, lr·t^(1+p), wd/t^(1+p), eps/t (outer: t²), L2/t²` changes nothing.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Literal

from mutransfer.errors import InputError
from mutransfer.optimizers import GRADIENT, NORMS, OptimizerFacts

Role = Literal["input", "hidden", "output", "vector", "scalar"]
Mode = Literal["exact", "asymptotic"]
ROLES: tuple[Role, ...] = ("input", "hidden", "output", "vector", "scalar")
MODES: tuple[Mode, ...] = ("exact", "asymptotic")

_INFINITE = 2.0**60  # asymptotic mode: a growing fan dominates every fixed one; a power of two keeps ratios exact


@dataclass(frozen=True)
class Fan:
    """One logical fan of a tensor at the base and at the target (numbers of features, kernel taps included)."""

    base: float
    target: float

    @property
    def ratio(self) -> float:
        """target / base."""
        return self.target / self.base

    @property
    def grows(self) -> bool:
        """Whether the fan differs between base and target."""
        return self.base != self.target


@dataclass(frozen=True)
class Ratios:
    """Every number of one tensor as a ratio target/base; `multiplier` and `branch` are what the forward pass must hold.

    `eps` is None for an optimizer without eps. `gradient` is the expected ratio of the Frobenius norm of its gradient.
    """

    multiplier: float
    branch: float
    std: float
    lr: float
    decay: float
    l2: float
    eps: float | None
    gradient: float


IDENTITY = Ratios(1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0)


def step_norm_ratio(facts: OptimizerFacts, fan_in: Fan, fan_out: Fan, gradient: float, mode: Mode) -> float:
    """Ratio of ‖A‖₂, the raw step's operator norm. Exact: real fans. Asymptotic: growing fans dominate fixed ones.

    The two differ where a formula compares a growing with a fixed fan: a 50,304-way head under 0.2√max(in,out).
    """
    if facts.norm == GRADIENT:
        return gradient
    norm = NORMS[facts.norm]
    scale_in = _INFINITE if mode == "asymptotic" and fan_in.grows else 1.0
    scale_out = _INFINITE if mode == "asymptotic" and fan_out.grows else 1.0
    return norm(fan_in.target * scale_in, fan_out.target * scale_out) / norm(
        fan_in.base * scale_in, fan_out.base * scale_out
    )


def solve(
    role: Role,
    fan_in: Fan,
    fan_out: Fan,
    facts: OptimizerFacts,
    *,
    depth: float = 1.0,
    in_branch: bool = False,
    exponent: float = 1.0,
    mode: Mode = "exact",
) -> Ratios:
    """The ratios of one tensor in multiplier form (nothing absorbed), from the equations at the head of this file.

    `depth` is L, `in_branch` says whether the tensor sits inside a residual branch, `exponent` is e (1 or ½).
    Raises InputError for an unknown role or mode, or a ratio that is not positive.
    """
    if role not in ROLES:
        raise InputError(f"role={role!r}: one of {', '.join(ROLES)}")
    if mode not in MODES:
        raise InputError(f"mode={mode!r}: one of {', '.join(MODES)}")
    a, b = fan_in.ratio, fan_out.ratio
    if min(a, b, depth) <= 0:
        raise InputError(f"ratios must be positive, got fan-in {a}, fan-out {b}, depth {depth}")
    alpha = depth**-exponent if in_branch else 1.0
    c = 1.0 / a if role == "output" else 1.0
    std = a**-0.5 if role == "hidden" else 1.0
    element = c * alpha / b
    gradient = c * alpha * math.sqrt(a / b)
    slow = depth ** (exponent - 1.0) if in_branch else 1.0
    lr = slow / (c * math.sqrt(a / b) * step_norm_ratio(facts, fan_in, fan_out, gradient, mode))
    l2 = 1.0 / lr if facts.degree == 1 else element * a * c
    eps = {None: None, "element": element, "frobenius": gradient, "outer": gradient**2}[facts.eps_kind]
    return Ratios(c, alpha, std, lr, 1.0 / lr, l2, eps, gradient)


def gauge(ratios: Ratios, t: float, facts: OptimizerFacts, *, of: Literal["multiplier", "branch"]) -> Ratios:
    """Move a factor t of the forward multiplier (or branch multiplier) into the tensor: exact, function and path alike.

    theory §4: `mult/t, std·t, lr·t^(1+p), wd/t^(1+p), eps/t, outer eps/t², L2/t²`; the gradient shrinks like 1/t.
    """
    if t <= 0:
        raise InputError(f"a gauge factor must be positive, got {t}")
    power = t ** (1 + facts.degree)
    eps = ratios.eps if ratios.eps is None else ratios.eps / (t * t if facts.eps_kind == "outer" else t)
    return replace(
        ratios,
        **{of: getattr(ratios, of) / t},
        std=ratios.std * t,
        lr=ratios.lr * power,
        decay=ratios.decay / power,
        l2=ratios.l2 / (t * t),
        eps=eps,
        gradient=ratios.gradient / t,
    )
