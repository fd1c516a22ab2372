"""The spectral condition solved: (role, fans, optimizer facts, branch) → ratios target/base. The gauge.

Symbols, all ratios target / base: a, b = fan-in and fan-out of the tensor, L = number of residual blocks, c = the tensor's own
forward multiplier, α = L^(−e) the multiplier of its residual branch (e = 1: two or more matrices per branch, CompleteP
2505.01618; e = ½: one matrix, Depth-μP 2310.02244). Features must be of size Θ(1) and change by Θ(1) per step
(2310.17813; joint width and depth 2603.00541):

    c         = 1/a for an output tensor (logits × 1/N), else 1
    init std  = a^−½ hidden, else 1
    ‖G‖_F     = c·α·√(a/b)            |G_ij| = c·α/b
    ‖A‖₂      = norm·RMS(W)^q, where RMS(W) is the init std     (q = 0 for most; 1 for LAMB and Adafactor)
    lr        = L^(e−1)[in branch] / (c·√(a/b)·‖A‖₂)
    decoupled decay = 1/lr            coupled L2 = 1/lr (degree 1), |G_ij|/|W_ij| = c²·α·a/b (degree 0)
    eps       = |G_ij| (element), ‖G‖_F (frobenius), ‖G‖_F² (outer)

The gauge (exact): for any t > 0, `mult/t, std·t, lr·t^(1+p−q), wd/t^(1+p−q), eps/t (outer: t²), L2/t²` changes nothing: with
`W' = tW` and `G' = G/t` the raw step is `A' = t^(q−p)·A`, and `lr'·A'` must be `t·lr·A`. At p = 0, q = 1 no learning rate moves.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from fractions import Fraction
from typing import Literal

from mutransfer.errors import InputError
from mutransfer.optimizers import GRADIENT, SQUARED_NORMS, OptimizerFacts

Role = Literal["input", "hidden", "output", "vector", "scalar"]
Mode = Literal["exact", "asymptotic"]
ROLES: tuple[Role, ...] = ("input", "hidden", "output", "vector", "scalar")
MODES: tuple[Mode, ...] = ("exact", "asymptotic")

_INFINITE = Fraction(2**80)  # asymptotic mode: a growing fan dominates every fixed one


@dataclass(frozen=True)
class Fan:
    """One logical fan of a tensor at the base and at the target (numbers of features, kernel taps included)."""

    base: float
    target: float

    @property
    def ratio(self) -> float:
        """target / base."""
        return float(self.exact)

    @property
    def exact(self) -> Fraction:
        """target / base, without rounding."""
        return Fraction(self.target) / Fraction(self.base)

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


def root(square: Fraction) -> float:
    """√ of an exact fraction; exact itself wherever the root is rational, so that N·N^−1 is 1 and not 0.9999…"""
    above, below = math.isqrt(square.numerator), math.isqrt(square.denominator)
    if above * above == square.numerator and below * below == square.denominator:
        return above / below
    return math.sqrt(square)


def squared_step_ratio(facts: OptimizerFacts, fan_in: Fan, fan_out: Fan, gradient: Fraction, mode: Mode) -> Fraction:
    """Ratio of ‖A‖₂² at RMS(W) = 1, the raw step's operator norm. Exact: real fans. Asymptotic: growing ones dominate fixed ones.

    The two differ where a formula compares a growing with a fixed fan: a 50,304-way head under 0.2√max(in,out).
    """
    if facts.norm == GRADIENT:
        return gradient
    norm = SQUARED_NORMS[facts.norm]
    scale_in = _INFINITE if mode == "asymptotic" and fan_in.grows else 1
    scale_out = _INFINITE if mode == "asymptotic" and fan_out.grows else 1
    target = norm(Fraction(fan_in.target) * scale_in, Fraction(fan_out.target) * scale_out)
    return target / norm(Fraction(fan_in.base) * scale_in, Fraction(fan_out.base) * scale_out)


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
    upside_down: bool = False,
) -> Ratios:
    """The ratios of one tensor in multiplier form (nothing absorbed), from the equations at the head of this file.

    `depth` is L, `in_branch` says whether the tensor sits inside a residual branch, `exponent` is e (1 or ½). `upside_down` is a
    matrix stored (in, out): an optimizer's own scaling reads rows as out and columns as in, whatever they mean.
    Squares are exact fractions until the last root. Raises InputError for an unknown role or mode, or bad ratios.
    """
    if role not in ROLES:
        raise InputError(f"role={role!r}: one of {', '.join(ROLES)}")
    if mode not in MODES:
        raise InputError(f"mode={mode!r}: one of {', '.join(MODES)}")
    if min(fan_in.base, fan_in.target, fan_out.base, fan_out.target, depth) <= 0:
        raise InputError(f"sizes must be positive, got fan-in {fan_in}, fan-out {fan_out}, depth {depth}")
    if exponent not in (0.5, 1.0):
        raise InputError(f"exponent={exponent}: 1 (two or more matrices per residual branch) or 0.5 (one)")
    a, b = fan_in.exact, fan_out.exact
    blocks = Fraction(depth) if in_branch else Fraction(1)
    twice = int(2 * exponent)
    c = 1 / a if role == "output" else Fraction(1)
    alpha2 = blocks**-twice
    element2 = c**2 * alpha2 / b**2
    gradient2 = c**2 * alpha2 * a / b
    seen = (fan_out, fan_in) if upside_down else (fan_in, fan_out)
    std2 = 1 / a if role == "hidden" else Fraction(1)
    step2 = squared_step_ratio(facts, *seen, gradient2, mode) * std2**facts.weight
    lr2 = blocks ** (twice - 2) / (c**2 * a / b * step2)
    eps2 = {None: None, "element": element2, "frobenius": gradient2, "outer": gradient2**2}[facts.eps_kind]
    return Ratios(
        multiplier=float(c),
        branch=root(alpha2),
        std=root(std2),
        lr=root(lr2),
        decay=root(1 / lr2),
        l2=root(1 / lr2) if facts.degree == 1 else root(element2 * a**2 * c**2),
        eps=None if eps2 is None else root(eps2),
        gradient=root(gradient2),
    )


def gauge(ratios: Ratios, t: float, facts: OptimizerFacts, *, of: Literal["multiplier", "branch"]) -> Ratios:
    """Move a factor t of the forward multiplier (or branch multiplier) into the tensor: exact, function and path alike.

    `mult/t, std·t, lr·t^(1+p−q), wd/t^(1+p−q), eps/t, outer eps/t², L2/t²`; the gradient shrinks like 1/t (head of this file).
    """
    if t <= 0:
        raise InputError(f"a gauge factor must be positive, got {t}")
    power = t ** (1 + facts.degree - facts.weight)
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
