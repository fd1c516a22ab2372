"""How one stored tensor falls into the matrices out × in that it holds: experts, fused projections, kernels, transposes."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from mutransfer.errors import InputError

LABELS = ("out", "in", "stack", "kernel")


@dataclass(frozen=True)
class Layout:
    """`order`: the stored axes as stack axes, then rows, then columns. `fans` are (in, out) of the matrices, part by part.

    Rows are out, or in where the tensor is stored that way round: an orthogonalisation does not care, a scaling does.
    """

    order: tuple[int, ...]
    stacks: int
    rows_are_out: bool
    parts: tuple[int, ...]
    fans: tuple[tuple[int, int], ...]

    def matrices(self, tensor: Tensor) -> list[list[Tensor]]:
        """Views of the tensor, for each part its matrices: (rows…, columns…), kernel taps on axes of their own."""
        whole = tensor.permute(self.order)
        along = self.stacks if self.rows_are_out else whole.ndim - 1
        result = []
        for part in whole.split(self.parts, dim=along) if self.parts else (whole,):
            views = [part]
            for _ in range(self.stacks):
                views = [view for stack in views for view in stack.unbind()]
            result.append(views)
        return result

    def sizes(self) -> list[tuple[int, int]]:
        """(rows, columns) of each part's matrices."""
        return [(out, fan_in) if self.rows_are_out else (fan_in, out) for fan_in, out in self.fans]


def layout(shape: Sequence[int], axes: Any, parts: Any, name: str) -> Layout:
    """The layout of a tensor of this shape whose axes mean `axes` (None: a plain matrix, ("out", "in")).

    Kernel taps count as fan-in. `parts` are the sizes along "out" of matrices fused in the tensor. Raises InputError naming the
    tensor, its shape and what to write.
    """
    shape = tuple(shape)
    what = f"{name} of shape {shape}"
    if axes is None:
        if len(shape) != 2:
            raise InputError(f"{what} is not one matrix: say what its axes are, such as {_example(len(shape))}")
        axes = ("out", "in")
    if isinstance(axes, str) or not isinstance(axes, list | tuple) or any(label not in LABELS for label in axes):
        raise InputError(f"axes={axes!r}: write a tuple of {', '.join(map(repr, LABELS))}, one per stored axis")
    if len(axes) != len(shape):
        raise InputError(f"axes={tuple(axes)!r} names {len(axes)} axes; {what} has {len(shape)}")
    stacks = [i for i, label in enumerate(axes) if label == "stack"]
    outs = [i for i, label in enumerate(axes) if label == "out"]
    ins = [i for i, label in enumerate(axes) if label in ("in", "kernel")]
    if not outs or "in" not in axes:
        raise InputError(f"axes={tuple(axes)!r} of {what}: a matrix needs an 'out' and an 'in' axis")
    rows_are_out = not max(ins) < min(outs)
    rows, columns = (outs, ins) if rows_are_out else (ins, outs)
    fan_in, fan_out = (math.prod(shape[i] for i in of) for of in (ins, outs))
    parts = _checked_parts(parts, fan_out, len(outs), what)
    return Layout(
        order=(*stacks, *rows, *columns),
        stacks=len(stacks),
        rows_are_out=rows_are_out,
        parts=parts,
        fans=tuple((fan_in, size) for size in parts or (fan_out,)),
    )


def _checked_parts(parts: Any, fan_out: int, outs: int, what: str) -> tuple[int, ...]:
    if parts is None:
        return ()
    if not isinstance(parts, list | tuple) or not all(type(size) is int and size > 0 for size in parts):
        raise InputError(f"parts={parts!r}: write the sizes along 'out' of the fused matrices, such as (256, 64, 64)")
    if parts and sum(parts) != fan_out:
        raise InputError(f"parts={tuple(parts)!r} add up to {sum(parts)}; {what} has {fan_out} along 'out'")
    if parts and outs > 1:
        raise InputError(f"parts={tuple(parts)!r} of {what}: only one axis may be 'out' where parts are given")
    return tuple(parts)


def _example(ndim: int) -> str:
    if ndim == 3:
        return "axes=('stack', 'in', 'out') or ('stack', 'out', 'in') for experts, ('out', 'in', 'kernel') for a Conv1d"
    return f"axes=('out', 'in'{', ' + repr('kernel') if ndim > 2 else ''}{', ' + repr('kernel') if ndim > 3 else ''}) for a convolution"
