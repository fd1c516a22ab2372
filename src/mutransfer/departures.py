"""A published recipe's departures from the derived rules, applied to the derived ratios and written down beside them.

Everything is in multiplier form, before any multiplier is absorbed: the gauge then moves the departed numbers like any others.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from fractions import Fraction

from mutransfer.errors import InputError
from mutransfer.optimizers import OptimizerFacts
from mutransfer.recipes import Recipe
from mutransfer.rules import Fan, Ratios, root
from mutransfer.shapes import TensorShape

_INSIDE = re.compile(r"(^|\.)\d+\.")


@dataclass(frozen=True)
class Ends:
    """Where the model begins and ends, by tensor name; `growth` is the heads' fan-in ratio N, 1 where no head grows."""

    embeddings: tuple[str, ...]
    heads: tuple[str, ...]
    growth: Fraction


def power(ratio: Fraction, exponent: float) -> float:
    """`ratio^exponent` for a multiple of ½; exact wherever the result is rational."""
    return root(ratio ** round(2 * exponent))


def logits_text(growth: float, exponent: float) -> str:
    """`1/N` or `1/√N` with the number put in."""
    return f"1/{growth:g}" if exponent == -1.0 else f"{growth:g}^{exponent:g}"


def find_ends(shapes: Sequence[TensorShape], recipe: Recipe) -> Ends:
    """Inputs before and outputs after everything that grows; a bottleneck inside a block is neither, and keeps its derived LR.

    Raises InputError for a recipe with logits of its own where heads grow by different ratios: the model has no one N.
    """
    inner = [i for i, shape in enumerate(shapes) if shape.role == "hidden"]
    first, last = (inner[0], inner[-1]) if inner else (len(shapes), -1)
    inputs = [s for i, s in enumerate(shapes) if s.role == "input" and (not _INSIDE.search(s.name) or i < first)]
    heads = [s for i, s in enumerate(shapes) if s.role == "output" and (not _INSIDE.search(s.name) or i > last)]
    grown = {s.name: s.fan_in.exact for s in heads} | {s.name: s.fan_out.exact for s in inputs if s.tied_output}
    if recipe.logits != -1.0 and len(set(grown.values())) > 1:
        listed = ", ".join(f"{name!r} ×{float(ratio):g}" for name, ratio in grown.items())
        raise InputError(f"recipe={recipe.name!r} scales the logits, but the heads grow differently ({listed}): "
                         f"use recipe='mup', which scales each head by its own fan-in")  # fmt: skip
    growth = next(iter(grown.values()), Fraction(1))
    return Ends(tuple(s.name for s in inputs), tuple(s.name for s in heads), growth)


def depart(
    ratios: Ratios, recipe: Recipe, ends: Ends, name: str, fans: tuple[Fan, Fan], facts: OptimizerFacts
) -> tuple[Ratios, str]:
    """The ratios of one tensor under this recipe, and the text of what changed. `fans` are (in, out).

    LR of embeddings and heads: `lr·f, decay/f` (and L2/f under degree 1). Logits r times the derived ones make every gradient
    r times as large while steps stay what they were: `G·r, lr/r^p, decay·r^p, eps·r (outer: r²), L2·r`.
    """
    if not recipe.departs:
        return ratios, ""
    parts = []
    r = power(ends.growth, recipe.logits + 1)
    if r != 1.0:
        ratios = _louder(ratios, r, facts)
        if name in ends.heads:
            ratios = replace(ratios, multiplier=ratios.multiplier * r)
            parts.append(f"c=a^{recipe.logits:g}={ratios.multiplier:g}")
        eps = "" if ratios.eps is None else f" and eps={ratios.eps:g}"
        parts.append(f"every gradient ×{r:g}{eps}")
    for names, exponent, fan, symbol in (
        (ends.embeddings, recipe.embedding_lr, fans[1], "b"),
        (ends.heads, recipe.head_lr, fans[0], "a"),
    ):
        if name in names and exponent != 0.0:
            f = power(fan.exact, exponent)
            ratios = replace(
                ratios, lr=ratios.lr * f, decay=ratios.decay / f, l2=ratios.l2 / f if facts.degree == 1 else ratios.l2
            )
            parts.append(f"lr·{symbol}^{exponent:g}={ratios.lr:g}")
    if recipe.decay == "fixed":
        ratios = replace(ratios, decay=1.0, l2=1.0)
        parts.append("weight_decay itself kept, ×1")
    return ratios, f"; {recipe.name}: {', '.join(parts)}" if parts else ""


def _louder(ratios: Ratios, r: float, facts: OptimizerFacts) -> Ratios:
    """Every gradient r times as large, every step the same size."""
    steps = r**facts.degree
    return replace(
        ratios,
        lr=ratios.lr / steps,
        decay=ratios.decay * steps,
        l2=ratios.l2 * r,
        eps=None if ratios.eps is None else ratios.eps * (r * r if facts.eps_kind == "outer" else r),
        gradient=ratios.gradient * r,
    )


def note(recipe: Recipe, ends: Ends) -> str:
    """One line: what departs, on which tensors, and the source."""
    parts = []
    for names, exponent, what in (
        (ends.embeddings, recipe.embedding_lr, "embeddings"),
        (ends.heads, recipe.head_lr, "heads"),
    ):
        if exponent != 0.0:
            parts.append(f"LR of {what} ({', '.join(names) or 'none of their own'}) × N^{exponent:g}")
    if recipe.logits != -1.0:
        parts.append(f"logits × N^{recipe.logits:g} instead of 1/N")
    if recipe.decay == "fixed":
        parts.append("weight_decay unscaled, so that lr·weight_decay falls with the LR")
    return f"recipe {recipe.name!r} departs from the derived rules: {'; '.join(parts)}. Source: {recipe.source}"
