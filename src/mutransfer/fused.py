"""Several matrices fused in one tensor (query, key and value; gate and up): their sizes along the fan-out.

An optimizer that is a function of a matrix, such as Muon, means each of them alone: orthogonalising the fused tensor ties them.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from fractions import Fraction
from typing import Any

from mutransfer.errors import InputError
from mutransfer.shapes import TensorShape, check_patterns, lookup

_QKV = re.compile(
    r"(^|[._])(c_attn|qkv|wqkv|qkv_proj|to_qkv|in_proj_qkv|attn_qkv)$|(^|\.)in_proj_weight$", re.IGNORECASE
)
_PAIR = re.compile(r"(^|[._])(kv|to_kv|kv_proj|wkv|gate_up_proj|gate_up|w13|w12|fc13)$", re.IGNORECASE)
_MIXED = re.compile(r"(^|\.)query_key_value$")  # heads in turn: no slice is one matrix


def declared(fused: Any, shapes: Sequence[TensorShape]) -> Mapping[str, Any]:
    """The user's `fused` option, checked. Raises InputError for what is no pattern with a number or relative sizes."""
    if fused is None:
        return {}
    if not isinstance(fused, Mapping):
        raise InputError(
            f"fused={fused!r}: write patterns and numbers of matrices, such as fused={{'*.qkv.weight': 3}}"
        )
    check_patterns("fused", fused, [name for s in shapes for name in (s.name, *s.aliases)])
    for pattern, value in fused.items():
        hit = [s for s in shapes if any(lookup({pattern: True}, name) for name in (s.name, *s.aliases))]
        if not any(s.axes.count("out") == 1 and "in" in s.axes for s in hit):
            raise InputError(
                f"fused={{{pattern!r}: …}} names no matrix: {hit[0].name!r} has axes ({', '.join(hit[0].axes)})"
            )
        sizes = [value] if type(value) is int else value
        if not isinstance(sizes, list | tuple) or not sizes or not all(type(n) is int and n > 0 for n in sizes):
            raise InputError(f"fused={{{pattern!r}: {value!r}}}: write a number of equal matrices such as 3, or relative sizes "
                             f"along the fan-out such as (4, 1, 1)")  # fmt: skip
    return fused


def parts(shape: TensorShape, fused: Mapping[str, Any]) -> tuple[tuple[int, ...], str]:
    """(sizes along the fan-out at the target, note); no sizes: one matrix. Of `fused` what the user declared, else known names.

    Raises InputError where the declared parts do not divide the tensor.
    """
    if shape.axes.count("out") != 1 or "in" not in shape.axes:
        return (), ""
    axis = shape.axes.index("out")
    small, big = shape.base_shape[axis], shape.target_shape[axis]
    told = lookup(fused, shape.name)
    if told is not None:
        grown = Fraction(big, small), Fraction(_inputs(shape, False), _inputs(shape, True))
        if isinstance(told, list | tuple) and len(set(told)) > 1 and grown[0] != grown[1]:
            raise InputError(
                f"fused={{{shape.name!r}: {told!r}}}: its rows grow ×{float(grown[0]):g} and its inputs ×{float(grown[1]):g}, so the matrices fused "
                f"in it do not grow alike (a fixed number of key/value heads?) and no relative sizes hold at both; write 1 to keep it one matrix"
            )
        return _declared(shape.name, told, big), ""
    path = shape.name.removesuffix(".weight")
    if _MIXED.search(path):
        return (), (f"{shape.name} mixes queries, keys and values head by head: a matrix optimizer takes it whole; where they lie one "
                    f"after another say fused={{{shape.name!r}: 3}}")  # fmt: skip
    wanted = 3 if _QKV.search(path) else 2 if _PAIR.search(path) else 1
    if wanted == 1:
        return (), ""
    found = [_known(size, _inputs(shape, at_base), wanted) for size, at_base in ((small, True), (big, False))]
    if found[0] is None or found[1] is None:
        return (), (f"{shape.name}: the sizes of the matrices fused in its {big} rows cannot be told; say fused="
                    f"{{{shape.name!r}: (4, 1, 1)}} with their relative sizes, or 1 for one matrix")  # fmt: skip
    if [Fraction(n, small) for n in found[0]] != [Fraction(n, big) for n in found[1]]:
        return (
            (),
            f"{shape.name}: the matrices fused in it grow by different factors and stay one under a matrix optimizer",
        )
    return found[1], ""


def _inputs(shape: TensorShape, at_base: bool) -> int:
    stored = shape.base_shape if at_base else shape.target_shape
    return stored[shape.axes.index("in")]


def _known(rows: int, inputs: int, wanted: int) -> tuple[int, ...] | None:
    """Thirds, or with grouped queries one matrix as large as the input and two that share the rest."""
    if wanted == 3 and inputs < rows < 3 * inputs and (rows - inputs) % 2 == 0:
        return (inputs, (rows - inputs) // 2, (rows - inputs) // 2)
    if rows % wanted or (wanted == 3 and rows < inputs):
        return None
    return (rows // wanted,) * wanted


def _declared(name: str, told: Any, rows: int) -> tuple[int, ...]:
    relative = (1,) * told if isinstance(told, int) else tuple(told)
    sizes = [Fraction(rows * n, sum(relative)) for n in relative]
    if any(size.denominator != 1 for size in sizes):
        raise InputError(f"fused={{{name!r}: {told!r}}}: its fan-out {rows} does not divide like that")
    return tuple(int(size) for size in sizes) if len(sizes) > 1 else ()
