"""Initial values that shrink with depth, in the base's code and in the target's: noticed, so that depth is counted once.

The target gets the base's law at std · ratio (theory, "where the base's numbers come from"). A factor such as GPT-2's
`1/√(2·n_layer)` is therefore the base's number at every depth, the branch multiplier comes on top, and what the target's own code
would have drawn for its depth is not used. This file finds such factors by comparing laws, and says so in the plan.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from mutransfer.blocks import Stack, block_of, collapse
from mutransfer.laws import Law
from mutransfer.recipes import Recipe

if TYPE_CHECKING:
    from mutransfer.plans import Row

_EXPONENTS = (0.5, 1.0)


def notes(rows: Sequence[Row], stacks: Sequence[Stack], depth: float, recipe: Recipe, measured: bool) -> list[str]:
    """What the plan says about initial values that know the depth: which tensors, which factor, what becomes of it."""
    if depth == 1.0 or not recipe.width:
        return []
    found: dict[tuple[str, float], list[str]] = {}
    indexed: dict[str, list[str]] = {}
    inside = [row for row in rows if row.block is not None and _size(row.base_law) and _size(row.target_law)]
    for pattern in dict.fromkeys(collapse(row.name) for row in inside):
        alike = [row for row in inside if collapse(row.name) == pattern]
        if (text := _indexed(alike, measured)) is not None:
            indexed.setdefault(text, []).append(pattern)
            continue
        row = alike[-1]
        factor = _over_depth(row, [r for r in inside if r.block == row.block], stacks, depth, measured)
        if factor is not None:
            found.setdefault((_formula(row, inside, stacks, factor, measured), factor), []).append(pattern)
    rule = recipe.depth_exponent is not None
    result = []
    for (formula, factor), names in found.items():
        kept = ("the branch multiplier comes on top, and depth is counted once" if rule else
                f"recipe {recipe.name!r} has no depth rule of its own")  # fmt: skip
        result.append(f"{_listed(names)}: the initial std holds {formula}; the target keeps the base's number, its own code "
                      f"would draw ×{factor:.4g} more: {kept}")  # fmt: skip
    for text, names in indexed.items():
        result.append(f"{_listed(names)}: the initial std {text}; a target's block takes the number of the base's block at the "
                      f"same relative depth, not its own code's")  # fmt: skip
    return result


def _listed(names: Sequence[str]) -> str:
    return ", ".join(names[:4]) + (", …" if len(names) > 4 else "")


def _size(law: Law) -> float:
    """The number that a factor in the initialisation multiplies: the std, or the value of a constant."""
    return law.std if law.kind != "constant" else abs(law.mean)


def _close(one: float, two: float, row: Row, measured: bool) -> bool:
    """Equal, within the sampling error of both where they were measured."""
    error = 1e-4
    if measured and row.base_law.kind != "constant":
        error += 4 * math.sqrt(0.5 / math.prod(row.base_shape) + 0.5 / math.prod(row.target_shape))
    return abs(one / two - 1) < error


def _widths(row: Row) -> set[float]:
    """What usual initialisations do over width: nothing, 1/√fan-in, 1/√fan-out, Xavier, 1/fan-in."""
    a, b = row.fan_in.ratio, row.fan_out.ratio
    both = (row.fan_in.target + row.fan_out.target) / (row.fan_in.base + row.fan_out.base)
    return {1.0} if row.base_law.kind == "constant" else {1.0, a**-0.5, b**-0.5, both**-0.5, 1 / a}


def _over_depth(
    row: Row, block: Iterable[Row], stacks: Sequence[Stack], depth: float, measured: bool
) -> float | None:  # fmt: skip
    """The factor from base to target that only depth explains; None where width explains it.

    With N = L the two look alike: the other matrices of the block with the same fan ratios then tell what width does.
    """
    ratio = _size(row.target_law) / _size(row.base_law)
    depths = {length**-e for length in (depth, *_length(row, stacks)) for e in _EXPONENTS if length != 1}
    options = [d for d in depths for w in _widths(row) if _close(ratio, w * d, row, measured)]
    if not options:
        return None
    for other in block:
        same = (other.fan_in.ratio, other.fan_out.ratio, other.role) == (row.fan_in.ratio, row.fan_out.ratio, row.role)
        if not same or other is row or other.base_law.kind == "constant":
            continue
        theirs = _size(other.target_law) / _size(other.base_law)
        own = next((d for d in options if _close(ratio / theirs, d, row, measured)), None)
        if own is not None:
            return own
    by_width = any(_close(ratio, w, row, measured) for w in _widths(row))
    return None if by_width else options[0]


def _length(row: Row, stacks: Sequence[Stack]) -> list[float]:
    """Growth of the row's own stack, where several grow."""
    found = [s for s in stacks if block_of(row.name, [s]) is not None]
    return [s.target / s.base for s in found]


def _formula(row: Row, rows: Sequence[Row], stacks: Sequence[Stack], factor: float, measured: bool) -> str:
    """The factor's usual name, from its value at the base: against the other matrices of its block."""
    lengths = {s.base for s in stacks if block_of(row.name, [s]) is not None} | {sum(s.base for s in stacks)}
    rooted = any(math.isclose(factor, growth**-0.5) for growth in _growths(stacks))
    names: dict[float, str] = {}
    for n in lengths:
        names |= {(2 * n) ** -0.5: "1/√(2·n_layer)", n**-0.5: "1/√n_layer"} if rooted else {1 / n: "1/n_layer"}
    if row.base_law.kind == "constant":
        others = [1.0]
    else:
        others = [_size(r.base_law) for r in rows
                  if r.block == row.block and r.role == row.role and r is not row and r.base_law.kind != "constant"]  # fmt: skip
    for other in others:
        for value, text in names.items():
            if value < 1 and _close(_size(row.base_law) / other, value, row, measured):
                return f"{text} (×{value:.4g} at the base's {max(lengths)} blocks)"
    return f"{'1/√n_layer' if rooted else '1/n_layer'} or the like"


def _growths(stacks: Sequence[Stack]) -> list[float]:
    return [s.target / s.base for s in stacks] + [sum(s.target for s in stacks) / max(1, sum(s.base for s in stacks))]


def _indexed(alike: Sequence[Row], measured: bool) -> str | None:
    """A std that differs from block to block in the base (DS-init 1908.11365 draws with 1/√layer)."""
    by_block: dict[str, Row] = {}
    for row in alike:
        by_block.setdefault(row.base_name, row)
    rows = list(by_block.values())
    if len(rows) < 2 or all(_close(_size(r.base_law), _size(rows[0].base_law), r, measured) for r in rows):
        return None
    falls = all(
        _close(_size(r.base_law) * math.sqrt(i + 1), _size(rows[0].base_law), r, measured) for i, r in enumerate(rows)
    )
    return "falls like 1/√layer from block to block" if falls else "differs from block to block"
