"""Which tensors a matrix optimizer (Muon, Shampoo) runs: the same at every size, so the base tunes the mix the target trains."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence

from mutransfer.blocks import collapse
from mutransfer.shapes import TensorShape, lookup

_IN_A_BLOCK = re.compile(r"(^|\.)\d+\.(.+\.)[^.]+$")  # blocks.3.mlp.up.weight, not layers.3.weight


def inner_matrices(shapes: Sequence[TensorShape], roles: Mapping[str, str] | None) -> tuple[set[str], list[str]]:
    """The names of the model's inner matrices, and notes on where position and growth disagree.

    By position, not by growth, which ratio 1 cannot show: every untied matrix (in, out) but the model's first tensor (its
    input) and its last (its head). Inside a block of a repeated stack nothing is a head. `roles` has the last word.
    """
    # a class token or a position table is no input of its own: a lookup counts where it is a layer's weight
    ends = [s for s in shapes if "in" in s.axes or ("lookup" in s.axes and s.kind.endswith(".weight"))]
    copies = Counter((collapse(s.name), s.target_shape) for s in shapes)
    inner: set[str] = set()
    notes: list[str] = []
    for shape in ends:
        if len(shape.target_shape) != 2 or set(shape.axes) != {"in", "out"} or shape.aliases:
            continue
        block = _IN_A_BLOCK.search(shape.name) is not None
        repeated = block and copies[collapse(shape.name), shape.target_shape] > 1
        edge = (shape is ends[0] and not repeated) or (shape is ends[-1] and not block)
        declared = lookup(roles, shape.name)
        is_inner = declared == "hidden" if declared is not None else not edge
        if is_inner:
            inner.add(shape.name)
        grows = shape.fan_in.grows or shape.fan_out.grows
        if declared is None and grows and not block and is_inner != (shape.role == "hidden"):
            where = "neither first nor last" if is_inner else "first or last"
            optimizer, role = ("the matrix optimizer", "hidden") if is_inner else ("the fallback", shape.role)
            other = shape.role if is_inner else "input" if shape is ends[0] else "output"
            notes.append(
                f"{shape.name} runs under {optimizer}, being {where} in the model, although it grows like {shape.role!r}; say "
                f"roles={{{shape.name!r}: {role!r}}} or {other!r} for base and target alike to choose"
            )
    return inner, notes
