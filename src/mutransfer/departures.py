"""A published recipe's departures from the derived rules, applied to the derived ratios and written down beside them.

Everything is in multiplier form, before any multiplier is absorbed: the gauge then moves the departed numbers like any others.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction

from torch import nn

from mutransfer.blocks import collapse
from mutransfer.errors import InputError
from mutransfer.matrices import inner_matrices
from mutransfer.optimizers import OptimizerFacts
from mutransfer.reading import applied_as_matrix
from mutransfer.recipes import KINDS, Change, Kind, Recipe
from mutransfer.rules import Fan, Ratios, root
from mutransfer.shapes import TensorShape

_INSIDE = re.compile(r"(^|\.)\d+\.")
_POSITION = re.compile(r"(^|[._])(wpe|pos|pe|position\w*|pos_\w+|\w+_pos)([._]|$)|pos\w*_?emb", re.IGNORECASE)
_WHAT = {"embedding": "embeddings", "head": "heads", "vector": "vectors in blocks", "final": "other vectors", "router": "routers",
         "position": "position tables", "matrix": "hidden matrices", "residual": "last matrices of branches"}  # fmt: skip


@dataclass(frozen=True)
class Ends:
    """The kind of every tensor by name; `growth` is the heads' fan-in ratio N (1 where no head grows), `depth` is L.

    `inner` are the hidden matrices, `residual` those of them that end a residual branch (where depth grows); `tied` the tables that
    serve as a head, too.
    """

    kinds: Mapping[str, Kind]
    growth: Fraction
    depth: Fraction = Fraction(1)
    inner: frozenset[str] = frozenset()
    residual: frozenset[str] = frozenset()
    tied: frozenset[str] = frozenset()

    def of(self, kind: Kind) -> tuple[str, ...]:
        """The names of the tensors of one kind."""
        return tuple(name for name in self.kinds if self.has(name, kind))

    def has(self, name: str, kind: Kind) -> bool:
        """Whether the tensor is of this kind; a last matrix of a branch is a hidden matrix, too."""
        return name in self.residual if kind == "residual" else self.kinds[name] == kind


def power(ratio: Fraction, exponent: float) -> float:
    """`ratio^exponent` for a multiple of ½; exact wherever the result is rational."""
    return root(ratio ** round(2 * exponent))


def logits_text(growth: float, exponent: float) -> str:
    """`1/N` or `1/√N` with the number put in."""
    return f"1/{growth:g}" if exponent == -1.0 else f"{growth:g}^{exponent:g}"


def find_ends(
    shapes: Sequence[TensorShape],
    recipe: Recipe,
    model: nn.Module,
    roles: Mapping[str, str] | None = None,
    depth: float = 1.0,
) -> Ends:
    """Inputs before and outputs after everything that grows; a bottleneck inside a block is neither, and keeps its derived LR.

    Where nothing grows in width, place tells. Raises InputError for a recipe with logits of its own where heads grow by
    different ratios: the model has no one N.
    """
    hidden = [i for i, shape in enumerate(shapes) if shape.role == "hidden"]
    first, last = (hidden[0], hidden[-1]) if hidden else (len(shapes), -1)
    inputs = {s.name for i, s in enumerate(shapes) if s.role == "input" and (not _INSIDE.search(s.name) or i < first)}
    heads = {s.name for i, s in enumerate(shapes) if s.role == "output" and (not _INSIDE.search(s.name) or i > last)}
    inner, _ = inner_matrices(shapes, roles, stored_flat=False)
    layers = [s.name for s in shapes if "in" in s.axes or "lookup" in s.axes]
    tied = {s.name for s in shapes if s.tied_output or _serves_as_head(s, model)}
    kinds: dict[str, Kind] = {}
    for s in shapes:
        if s.name in inputs or (s.name not in heads | inner and "lookup" in s.axes and not _INSIDE.search(s.name)):
            kinds[s.name] = "position" if _POSITION.search(s.name) and s.name not in tied else "embedding"
        elif s.name in heads:
            kinds[s.name] = "head"
        elif s.name in inner:
            kinds[s.name] = "matrix"
        elif "in" in s.axes:
            kinds[s.name] = "embedding" if s.name == layers[0] else "router" if _INSIDE.search(s.name) else "head"
        else:
            kinds[s.name] = "vector" if _INSIDE.search(s.name) else "final"
    grown = {s.name: s.fan_in.exact for s in shapes if s.name in heads}
    grown |= {s.name: s.fan_out.exact for s in shapes if s.name in inputs and s.tied_output}
    if recipe.logits != -1.0 and len(set(grown.values())) > 1:
        listed = ", ".join(f"{name!r} ×{float(ratio):g}" for name, ratio in grown.items())
        raise InputError(f"recipe={recipe.name!r} scales the logits, but the heads grow differently ({listed}): "
                         f"use recipe='mup', which scales each head by its own fan-in")  # fmt: skip
    return Ends(kinds, next(iter(grown.values()), Fraction(1)), Fraction(depth), frozenset(inner), tied=frozenset(tied))


def _serves_as_head(shape: TensorShape, model: nn.Module) -> bool:
    """Whether a table is applied as a matrix, too: by another name, or in the model's own forward. Ratio 1 cannot show it by growth."""
    if "lookup" not in shape.axes:
        return False
    others = {collapse(alias) for alias in shape.aliases} - {collapse(shape.name)}
    return bool(others) or applied_as_matrix(model, model.get_submodule(shape.name.rpartition(".")[0]))


def depart(
    ratios: Ratios, recipe: Recipe, ends: Ends, name: str, fans: tuple[Fan, Fan], facts: OptimizerFacts
) -> tuple[Ratios, str]:
    """The ratios of one tensor under this recipe, and the text of what changed. `fans` are (in, out).

    A changed LR: `lr·f, decay/f` (and L2/f under degree 1). Logits r times the derived ones make every gradient r times as large
    while steps stay what they were: `G·r, lr/r^p, decay·r^p, eps·r (outer: r²), L2·r`. An eps of its own is the element-wise
    optimizers'; a matrix optimizer's, added to a norm, stays derived.
    """
    if not recipe.departs:
        return ratios, ""
    parts = []
    r = power(ends.growth, recipe.logits + 1)
    if r != 1.0:
        ratios = _louder(ratios, r, facts)
        if ends.has(name, "head"):
            ratios = replace(ratios, multiplier=ratios.multiplier * r)
            parts.append(f"c=a^{recipe.logits:g}={ratios.multiplier:g}")
        eps = "" if ratios.eps is None else f" and eps={ratios.eps:g}"
        parts.append(f"every gradient ×{r:g}{eps}")
    mine = [change for change in recipe.changes if any(ends.has(name, kind) for kind in change.kinds)]
    for change in (c for c in mine if c.quantity == "lr"):
        fan, symbol = _fan(change, ends, name, fans)
        size = power(fan.exact, change.width) * power(ends.depth, change.depth)
        f = size / ratios.lr if change.instead else size
        ratios = replace(
            ratios, lr=ratios.lr * f, decay=ratios.decay / f, l2=ratios.l2 / f if facts.degree == 1 else ratios.l2
        )
        parts.append(f"lr{'=' if change.instead else '·'}{_exponents(change, symbol)}={ratios.lr:g}")
    if recipe.decay == "fixed":
        ratios = replace(ratios, decay=1.0, l2=1.0)
        parts.append("weight_decay itself kept, ×1")
    for change in (c for c in mine if c.quantity != "lr"):
        if change.quantity == "eps" and facts.eps_kind != "element":
            continue
        fan, symbol = _fan(change, ends, name, fans)
        size = power(fan.exact, change.width) * power(ends.depth, change.depth)
        before = getattr(ratios, change.quantity)
        after = size if change.instead else before * size
        ratios = replace(ratios, **{change.quantity: after})
        if change.quantity == "decay":
            ratios = replace(ratios, l2=size if change.instead else ratios.l2 * size)
        relation = "=" if change.instead else "·"
        parts.append(f"{change.quantity}{relation}{_exponents(change, symbol)}={after:g}")
    for kind, factor in recipe.multipliers:
        if ends.has(name, kind):
            ratios = replace(ratios, multiplier=ratios.multiplier * factor)
            parts.append(f"forward ×{factor:g} at every size")
    return ratios, f"; {recipe.name}: {', '.join(parts)}" if parts else ""


def _fan(change: Change, ends: Ends, name: str, fans: tuple[Fan, Fan]) -> tuple[Fan, str]:
    """The tensor's own N. eps follows |G_ij| ~ 1/fan-out, but a head's the 1/fan-in of its multiplier."""
    kind = ends.kinds[name]
    by_out = kind in ("embedding", "position", "vector", "final") or (
        change.quantity == "eps" and kind == "matrix" and fans[1].grows
    )
    return (fans[1], "b") if by_out else (fans[0], "a")


def _exponents(change: Change, symbol: str) -> str:
    return (
        "·".join([s if e == 1 else f"{s}^{e:g}" for s, e in ((symbol, change.width), ("L", change.depth)) if e]) or "1"
    )


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


def notes(recipe: Recipe, ends: Ends) -> list[str]:
    """What departs, on which tensors, and the source; what changes the base; what the variant sets outside of the plan."""
    parts = [_described(change, ends) for change in recipe.changes]
    if recipe.logits != -1.0:
        parts.append(f"logits × N^{recipe.logits:g} instead of 1/N")
    if recipe.decay == "fixed":
        rest = " of the rest" if any(change.quantity == "decay" for change in recipe.changes) else ""
        parts.append(f"weight_decay{rest} unscaled, so that lr·weight_decay falls with the LR")
    if recipe.decay == "independent":
        parts.append("weight_decay is the decay of a step at the peak LR: weight_decay / lr goes to the optimizer")
    changed = [f"{_WHAT[kind]} × {factor:g} in the forward pass" for kind, factor in recipe.multipliers]
    changed += ["attention logits q·k/d whatever the base's code has"] if recipe.attention == "1/d" else []
    changed += [f"{' and '.join(recipe.zero)} start at zero"] if recipe.zero else []
    found = []
    if parts:
        found.append(
            f"recipe {recipe.name!r} departs from the derived rules: {'; '.join(parts)}. Source: {recipe.source}"
        )
    if changed:
        found.append(f"recipe {recipe.name!r} changes the base, too, which is no longer the user's own model: "
                     f"{'; '.join(changed)}. Source: {recipe.source}")  # fmt: skip
    if recipe.beside:
        found.append(f"recipe {recipe.name!r}, outside of the plan: {recipe.beside}")
    return found


def per_lr(weight_decay: float | None, lr: float, recipe: str) -> float:
    """The weight_decay that makes one step at this LR shrink weights by the given fraction: `lr·wd = weight_decay`.

    Raises InputError where none is given (a class's own default is meant per LR), or a step would turn weights around.
    """
    if weight_decay is None or not 0 <= weight_decay < 1:
        raise InputError(f"weight_decay={weight_decay!r}: under recipe {recipe!r} it is the fraction that one step takes off every weight, "
                         f"whatever the LR: write a number from 0 and below 1, such as weight_decay=1e-4")  # fmt: skip
    return weight_decay / lr if lr else 0.0


_LONG = {"lr": "LR", "eps": "eps", "std": "init std", "decay": "weight_decay"}


def _described(change: Change, ends: Ends) -> str:
    """`LR of embeddings (wte.weight, wpe.weight) × N^-0.5`."""
    relation = "kept as it is" if change.instead and not (change.width or change.depth) else (
        ("= the base's × " if change.instead else "× ") + _exponents(change, "N"))  # fmt: skip
    if set(change.kinds) == set(KINDS):
        return f"{_LONG[change.quantity]} of every tensor {relation}"
    kinds = [
        k
        for k in change.kinds
        if not (k == "position" and "embedding" in change.kinds) and not (k == "residual" and "matrix" in change.kinds)
    ]
    if {"matrix", "residual", "vector"} & set(kinds):
        return f"{_LONG[change.quantity]} of {', '.join(_WHAT[kind] for kind in kinds)} {relation}"
    every = [name for kind in change.kinds for name in ends.of(kind)]
    patterns = [collapse(name) for name in every]
    names = dict.fromkeys(
        p if patterns.count(p) > 1 and p != "*.weight" else n for p, n in zip(patterns, every, strict=True)
    )
    what = " and ".join(_WHAT[kind] for kind in kinds)
    return f"{_LONG[change.quantity]} of {what} ({', '.join(names) or 'none of their own'}) {relation}"
