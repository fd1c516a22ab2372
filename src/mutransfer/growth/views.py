"""Operations that compute nothing: views, slices, joins, copies. They split axes into factors and parts, and put them together."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from mutransfer.growth.layout import Axis, divide, join, piece_of, pieces, product, split_any, unify
from mutransfer.growth.operations import Knows, carry, dim_of, dims_of, pointwise, rule

# ------------------------------------------------------------------ views


@rule("view", "_unsafe_view", "reshape", "_reshape_alias", "unflatten", "flatten")
def _view(knows: Knows, call: Mapping[str, Any], made: Sequence[Tensor]) -> None:
    source = [a for a in knows.of(call["self"]) if a.size != 1]
    sizes = list(made[0].shape)
    result: list[Axis] = []
    while sizes:
        if sizes[0] == 1:
            result.append(Axis(sizes.pop(0)))
            continue
        if not source or not sizes[0]:
            result.append(Axis(sizes.pop(0)))
            continue
        taken, wanted = [source.pop(0)], [sizes.pop(0)]
        have, need = taken[0].size, wanted[0]
        while have != need:  # the shortest run of axes whose product is that of a run of sizes
            if have < need:
                taken.append(source.pop(0))
                have *= taken[-1].size
            else:
                wanted.append(sizes.pop(0))
                need *= wanted[-1]
        result += divide(taken, wanted) or [Axis(size) for size in wanted]
    knows.put(made[0], result)


@rule("permute")
def _permute(knows: Knows, call: Mapping[str, Any], made: Sequence[Tensor]) -> None:
    source = knows.of(call["self"])
    knows.put(made[0], [source[d] for d in call["dims"]])


@rule("transpose", "t", "mT", "numpy_T", "swapaxes")
def _transpose(knows: Knows, call: Mapping[str, Any], made: Sequence[Tensor]) -> None:
    axes = list(knows.of(call["self"]))
    if len(axes) > 1:
        a, b = dim_of(call.get("dim0", 0), len(axes)), dim_of(call.get("dim1", 1), len(axes))
        axes[a], axes[b] = axes[b], axes[a]
    knows.put(made[0], axes)


@rule("movedim")
def _movedim(knows: Knows, call: Mapping[str, Any], made: Sequence[Tensor]) -> None:
    axes = knows.of(call["self"])
    source, to = [dim_of(d, len(axes)) for d in call["source"]], [dim_of(d, len(axes)) for d in call["destination"]]
    order = [d for d in range(len(axes)) if d not in source]
    for place, d in sorted(zip(to, source, strict=True)):
        order.insert(place, d)
    knows.put(made[0], [axes[d] for d in order])


@rule("unsqueeze")
def _unsqueeze(knows: Knows, call: Mapping[str, Any], made: Sequence[Tensor]) -> None:
    axes = list(knows.of(call["self"]))
    axes.insert(dim_of(call["dim"], len(axes) + 1), Axis(1))
    knows.put(made[0], axes)


@rule("squeeze")
def _squeeze(knows: Knows, call: Mapping[str, Any], made: Sequence[Tensor]) -> None:
    axes = knows.of(call["self"])
    gone = dims_of(call.get("dim"), len(axes))
    knows.put(made[0], [a for i, a in enumerate(axes) if not (i in gone and a.size == 1)])


@rule("expand", "expand_as", "broadcast_to")
def _expand(knows: Knows, call: Mapping[str, Any], made: Sequence[Tensor]) -> None:
    axes, shape = knows.of(call["self"]), made[0].shape
    start = len(shape) - len(axes)
    knows.put(made[0], [axes[i - start] if i >= start and axes[i - start].size == n else Axis(n) for i, n in enumerate(shape)])  # fmt: skip


@rule("repeat")
def _repeat(knows: Knows, call: Mapping[str, Any], made: Sequence[Tensor]) -> None:
    axes = knows.of(call["self"])
    axes = [*(Axis(1) for _ in range(made[0].ndim - len(axes))), *axes]
    knows.put(made[0], [a if n == 1 else product([Axis(n), a]) for a, n in zip(axes, call["repeats"], strict=True)])


@rule("repeat_interleave")
def _repeat_interleave(knows: Knows, call: Mapping[str, Any], made: Sequence[Tensor]) -> None:
    times, dim = call.get("repeats"), call.get("dim")
    if not isinstance(times, int) or dim is None or "self" not in call:
        return carry(knows, call, made)
    axes = list(knows.of(call["self"]))
    place = dim_of(dim, len(axes))
    axes[place] = product([axes[place], Axis(times)])
    knows.put(made[0], axes)


@rule("slice")
def _slice(knows: Knows, call: Mapping[str, Any], made: Sequence[Tensor]) -> None:
    axes = list(knows.of(call["self"]))
    place = dim_of(call.get("dim", 0), len(axes))
    axis, size, step = axes[place], axes[place].size, call.get("step", 1)
    start, _, _ = slice(call.get("start"), call.get("end"), step).indices(size)
    kept = made[0].shape[place]
    if kept == size or not kept:
        axes[place] = axis if kept else Axis(0)
    elif step == 1:
        axes[place] = piece_of(axis, start, kept)
    else:  # every step-th: one factor of a product of pairs (rotary positions turn such)
        halves = split_any(axis, step) if size % step == 0 and start < step and kept == size // step else None
        axes[place] = halves[0] if halves else Axis(kept)
        if halves is None:
            axis.complain(f"sliced by steps of {step}")
    knows.put(made[0], axes)


@rule("narrow")
def _narrow(knows: Knows, call: Mapping[str, Any], made: Sequence[Tensor]) -> None:
    start = call["start"]
    _slice(knows, {"self": call["self"], "dim": call["dim"], "start": start, "end": start + call["length"]}, made)


@rule("select")
def _select(knows: Knows, call: Mapping[str, Any], made: Sequence[Tensor]) -> None:
    axes = list(knows.of(call["self"]))
    place = dim_of(call["dim"], len(axes))
    axis = axes.pop(place)
    piece_of(axis, dim_of(call["index"], axis.size), 1)
    knows.put(made[0], axes)


@rule("split", "split_with_sizes", "chunk", "tensor_split", "unsafe_split", "unsafe_chunk", "unsafe_split_with_sizes")
def _split(knows: Knows, call: Mapping[str, Any], made: Sequence[Tensor]) -> None:
    axes = knows.of(call["self"])
    place, start = dim_of(call.get("dim", 0), len(axes)), 0
    ends = list(itertools.accumulate(t.shape[place] for t in made))
    pieces(axes[place], ends[:-1])
    for tensor in made:
        size = tensor.shape[place]
        knows.put(tensor, [*axes[:place], piece_of(axes[place], start, size), *axes[place + 1 :]])
        start += size


@rule("unbind")
def _unbind(knows: Knows, call: Mapping[str, Any], made: Sequence[Tensor]) -> None:
    axes = list(knows.of(call["self"]))
    place = dim_of(call.get("dim", 0), len(axes))
    axis = axes.pop(place)
    pieces(axis, range(1, axis.size))
    for tensor in made:
        knows.put(tensor, axes)


@rule("diagonal", "unfold", "as_strided")
def _strided(knows: Knows, call: Mapping[str, Any], made: Sequence[Tensor]) -> None:
    carry(knows, call, made)


# ------------------------------------------------------------------ putting together


@rule("cat", "concat", "concatenate")
def _cat(knows: Knows, call: Mapping[str, Any], made: Sequence[Tensor]) -> None:
    parts = [knows.of(t) for t in call["tensors"] if t.ndim == made[0].ndim and t.numel()]
    place, axes = dim_of(call.get("dim", 0), made[0].ndim), []
    for i, size in enumerate(made[0].shape):
        if i == place:
            axes.append(join([p[i] for p in parts]) if parts else Axis(size))
            continue
        for other in parts[1:]:
            unify(parts[0][i], other[i])
        axes.append(parts[0][i] if parts else Axis(size))
    knows.put(made[0], axes)


@rule("stack")
def _stack(knows: Knows, call: Mapping[str, Any], made: Sequence[Tensor]) -> None:
    parts = [knows.of(t) for t in call["tensors"]]
    for other in parts[1:]:
        for a, b in zip(parts[0], other, strict=True):
            unify(a, b)
    axes = list(parts[0])
    axes.insert(dim_of(call.get("dim", 0), made[0].ndim), Axis(len(parts)))
    knows.put(made[0], axes)


@rule("constant_pad_nd", "pad", "reflection_pad1d", "reflection_pad2d", "replication_pad2d")
def _pad(knows: Knows, call: Mapping[str, Any], made: Sequence[Tensor]) -> None:
    axes, pads = list(knows.of(call["self"])), [*call.get("pad", call.get("padding", ()))]
    for back in range(len(pads) // 2):
        before, after = pads[2 * back], pads[2 * back + 1]
        place, size = len(axes) - 1 - back, made[0].shape[len(axes) - 1 - back]
        if not before and not after:
            continue
        inside = axes[place]
        if min(before, after) < 0:
            inside = piece_of(inside, max(0, -before), size - max(before, 0) - max(after, 0))
        axes[place] = join([Axis(before)] * (before > 0) + [inside] + [Axis(after)] * (after > 0))
    knows.put(made[0], axes)


@rule("copy", "where", "masked_fill", "masked_scatter", "lerp", "addcmul", "addcdiv")
def _pointwise(knows: Knows, call: Mapping[str, Any], made: Sequence[Tensor]) -> None:
    pointwise(knows, call, made)
