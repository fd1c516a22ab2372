"""Which tensors a matrix optimizer (Muon, Shampoo) runs: the same at every size, so the base tunes the mix the target trains."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence

from mutransfer.blocks import collapse
from mutransfer.shapes import TensorShape, lookup

_IN_A_BLOCK = re.compile(r"(^|\.)\d+\.(.+\.)[^.]+$")  # blocks.3.mlp.up.weight, not layers.3.weight


def is_matrix(shape: TensorShape) -> bool:
    """Whether this is one matrix of learned numbers, a stack of them (experts), or a kernel that is one when flattened.

    A depthwise kernel, with one input per output, is not: its rows are filters that share nothing.
    """
    plain = sorted(axis for axis in shape.axes if axis not in ("stack", "kernel")) == ["in", "out"]
    return plain and not ("kernel" in shape.axes and shape.target_shape[shape.axes.index("in")] == 1)


def inner_matrices(
    shapes: Sequence[TensorShape], roles: Mapping[str, str] | None, *, stored_flat: bool = True
) -> tuple[set[str], list[str]]:
    """The names of the model's inner matrices, and notes on where position and growth disagree.

    By position, not by growth, which ratio 1 cannot show: every untied matrix but the model's first tensor (its input), its last
    (its head) and the routers of experts. Inside a block of a repeated stack nothing is a head. `stored_flat` leaves out stacks and
    kernels, which a class that takes two axes cannot run. `roles` has the last word.
    """
    # a class token or a position table is no input of its own: a lookup counts where it is a layer's weight
    ends = [s for s in shapes if "in" in s.axes or ("lookup" in s.axes and s.kind.endswith(".weight"))]
    copies = Counter((collapse(s.name), s.target_shape) for s in shapes)
    routers = {s.name for s in ends if _routes(s, shapes)}
    inner: set[str] = set()
    notes: list[str] = []
    for shape in ends:
        if not is_matrix(shape) or shape.aliases or (stored_flat and len(shape.target_shape) != 2):
            continue
        block = _IN_A_BLOCK.search(shape.name) is not None
        repeated = block and copies[collapse(shape.name), shape.target_shape] > 1
        edge = (shape is ends[0] and not repeated) or (shape is ends[-1] and not block) or shape.name in routers
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


def _routes(shape: TensorShape, shapes: Sequence[TensorShape]) -> bool:
    """Whether each output chooses an expert: as many as its parent module has experts, stacked or in a numbered list."""
    if sorted(shape.axes) != ["in", "out"]:
        return False
    outputs = shape.target_shape[shape.axes.index("out")]
    parent = shape.name.rpartition(".")[0].rpartition(".")[0]
    inside = f"{parent}." if parent else ""
    members: dict[str, set[str]] = {}
    for other in shapes:
        if other.name == shape.name or not other.name.startswith(inside):
            continue
        parts = other.name[len(inside) :].split(".")
        if (
            len(other.target_shape) > 2
            and other.target_shape[0] == outputs
            and len(parts) <= 2
            and "kernel" not in other.axes
        ):
            return True
        if len(parts) > 2 and parts[1].isdigit() and "expert" in parts[0].lower():
            members.setdefault(parts[0], set()).add(parts[1])
    return any(len(found) == outputs for found in members.values())
