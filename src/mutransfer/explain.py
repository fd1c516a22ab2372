"""The arithmetic behind each number, in words that a reader can check by hand."""

from __future__ import annotations

from fractions import Fraction

from mutransfer.optimizers import GRADIENT, OptimizerFacts
from mutransfer.rules import Fan, Mode, Ratios, Role, root, squared_step_ratio


def derivation(
    role: Role,
    fan_in: Fan,
    fan_out: Fan,
    facts: OptimizerFacts,
    ratios: Ratios,
    depth: float,
    mode: Mode,
    upside_down: bool = False,
) -> str:
    """One line: the ratios a, b, L, c, α of this tensor and the formula of std, lr and eps with the numbers put in."""
    a, b, c, alpha = fan_in.ratio, fan_out.ratio, ratios.multiplier, ratios.branch
    parts = [f"a={a:g} b={b:g}"]
    if depth != 1.0:
        parts.append(f"L={depth:g} α={alpha:g}")
    if c != 1.0:
        parts.append(f"c=1/a={c:g}")
    if role == "hidden":
        parts.append(f"std=a^-½={ratios.std:g}")
    seen = (fan_out, fan_in) if upside_down else (fan_in, fan_out)
    rms = Fraction(ratios.std) ** (2 * facts.weight)
    step = root(squared_step_ratio(facts, *seen, Fraction(ratios.gradient) ** 2, mode) * rms)
    stored = " of (rows, columns) = (in, out)" if upside_down and facts.matrix_only else ""
    parts.append(
        f"‖A‖={'c·α·√(a/b)' if facts.norm == GRADIENT else facts.norm}{stored}{'·RMS(W)' if facts.weight else ''} ×{step:g}"
    )
    parts.append(f"lr={'L^(e−1)' if depth != 1.0 else '1'}/(c·√(a/b)·‖A‖)={ratios.lr:g}")
    if ratios.eps is not None:
        size = {"element": "c·α/b", "frobenius": "c·α·√(a/b)", "outer": "(c·α)²·a/b"}[facts.eps_kind or "element"]
        parts.append(f"eps={size}={ratios.eps:g}")
    return ", ".join(parts)
