"""What each operation of torch says about the axes of its operands: which are one, which are parts, which are new.

A rule is called with the tracer, the arguments by their names in the operation's schema, and the tensors it made. Operations that
have no rule: those torch tags as pointwise broadcast their operands; of any other, axes of equal size at equal places are carried.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

from torch import Tensor

from mutransfer.growth.layout import Axis, divide, join, pieces, product, split_any, unify


class Knows(Protocol):
    """Who knows the axes of tensors."""

    def of(self, tensor: Tensor) -> list[Axis]: ...
    def put(self, tensor: Tensor, axes: list[Axis]) -> None: ...


Rule = Callable[[Knows, Mapping[str, Any], Sequence[Tensor]], None]
OPERATIONS: dict[str, Rule] = {}


def rule(*names: str) -> Callable[[Rule], Rule]:
    """Register a rule under these operations' names."""

    def register(function: Rule) -> Rule:
        OPERATIONS.update(dict.fromkeys(names, function))
        return function

    return register


def given(call: Mapping[str, Any]) -> list[Tensor]:
    """The operands that are tensors, lists of them opened."""
    found = []
    for value in call.values():
        found += [t for t in (value if isinstance(value, tuple | list) else (value,)) if isinstance(t, Tensor)]
    return found


def pointwise(knows: Knows, call: Mapping[str, Any], made: Sequence[Tensor]) -> None:
    """Operands are aligned at their last axes; axes of one size are one, those of size 1 stretch."""
    operands = [knows.of(t) for t in given(call)]
    axes: list[Axis] = []
    for place, size in enumerate(made[0].shape):
        back = made[0].ndim - place
        met = [o[-back] for o in operands if len(o) >= back and o[-back].size == size]
        for other in met[1:]:
            unify(met[0], other)
        axes.append(met[0] if met else Axis(size))
    for tensor in made:
        if tensor.shape == made[0].shape:
            knows.put(tensor, axes)


@rule("new_zeros", "new_ones", "new_full", "new_empty", "new_empty_strided", "new_tensor")
def _new(knows: Knows, call: Mapping[str, Any], made: Sequence[Tensor]) -> None:
    """New axes, whatever the tensor that lends its type and device."""
    for tensor in made:
        knows.put(tensor, [Axis(n) for n in tensor.shape])


@rule("clone", "_softmax", "_log_softmax", "native_dropout", "cumsum", "cumprod", "sort", "tril", "triu", "flip", "roll",
      "detach", "alias", "_to_copy", "lift_fresh", "contiguous", "bernoulli", "cummax", "cummin", "zeros_like",
      "ones_like", "empty_like", "rand_like", "randn_like", "full_like", "dropout", "alpha_dropout", "renorm")  # fmt: skip
def carry(knows: Knows, call: Mapping[str, Any], made: Sequence[Tensor]) -> None:
    """Axes of the first operand at equal places, where sizes are equal; others are new."""
    operands = given(call)
    if not operands:
        return
    source = knows.of(operands[0])
    for tensor in made:
        axes = [source[i] if i < len(source) and source[i].size == n else Axis(n) for i, n in enumerate(tensor.shape)]
        knows.put(tensor, axes)


def _dim(dim: int, of: int) -> int:
    return dim + of if dim < 0 else dim


def _dims(dims: Any, of: int) -> set[int]:
    if dims is None or (isinstance(dims, tuple | list) and not dims):
        return set(range(of))
    return {_dim(d, of) for d in (dims if isinstance(dims, tuple | list) else (dims,))}


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
        a, b = _dim(call.get("dim0", 0), len(axes)), _dim(call.get("dim1", 1), len(axes))
        axes[a], axes[b] = axes[b], axes[a]
    knows.put(made[0], axes)


@rule("movedim")
def _movedim(knows: Knows, call: Mapping[str, Any], made: Sequence[Tensor]) -> None:
    axes = knows.of(call["self"])
    source, to = [_dim(d, len(axes)) for d in call["source"]], [_dim(d, len(axes)) for d in call["destination"]]
    order = [d for d in range(len(axes)) if d not in source]
    for place, d in sorted(zip(to, source, strict=True)):
        order.insert(place, d)
    knows.put(made[0], [axes[d] for d in order])


@rule("unsqueeze")
def _unsqueeze(knows: Knows, call: Mapping[str, Any], made: Sequence[Tensor]) -> None:
    axes = list(knows.of(call["self"]))
    axes.insert(_dim(call["dim"], len(axes) + 1), Axis(1))
    knows.put(made[0], axes)


@rule("squeeze")
def _squeeze(knows: Knows, call: Mapping[str, Any], made: Sequence[Tensor]) -> None:
    axes = knows.of(call["self"])
    gone = _dims(call.get("dim"), len(axes))
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
    place = _dim(dim, len(axes))
    axes[place] = product([axes[place], Axis(times)])
    knows.put(made[0], axes)


@rule("slice")
def _slice(knows: Knows, call: Mapping[str, Any], made: Sequence[Tensor]) -> None:
    axes = list(knows.of(call["self"]))
    place = _dim(call.get("dim", 0), len(axes))
    axis, size, step = axes[place], axes[place].size, call.get("step", 1)
    start, _, _ = slice(call.get("start"), call.get("end"), step).indices(size)
    kept = made[0].shape[place]
    if kept == size or not kept:
        axes[place] = axis if kept else Axis(0)
    elif step == 1:
        axes[place] = _piece(axis, start, kept)
    else:  # every step-th: one factor of a product of pairs (rotary positions turn such)
        halves = split_any(axis, step) if size % step == 0 and start < step and kept == size // step else None
        axes[place] = halves[0] if halves else Axis(kept)
        if halves is None:
            axis.complain(f"sliced by steps of {step}")
    knows.put(made[0], axes)


def _piece(axis: Axis, start: int, size: int) -> Axis:
    """`size` units of an axis from `start`: one of its pieces."""
    at, found = 0, []
    for piece in pieces(axis, (start, start + size)):
        if start <= at < start + size:
            found.append(piece)
        at += piece.size
    return join(found) if sum(p.size for p in found) == size else Axis(size)


@rule("narrow")
def _narrow(knows: Knows, call: Mapping[str, Any], made: Sequence[Tensor]) -> None:
    start = call["start"]
    _slice(knows, {"self": call["self"], "dim": call["dim"], "start": start, "end": start + call["length"]}, made)


@rule("select")
def _select(knows: Knows, call: Mapping[str, Any], made: Sequence[Tensor]) -> None:
    axes = list(knows.of(call["self"]))
    place = _dim(call["dim"], len(axes))
    axis = axes.pop(place)
    _piece(axis, _dim(call["index"], axis.size), 1)
    knows.put(made[0], axes)


@rule("split", "split_with_sizes", "chunk", "tensor_split", "unsafe_split", "unsafe_chunk", "unsafe_split_with_sizes")
def _split(knows: Knows, call: Mapping[str, Any], made: Sequence[Tensor]) -> None:
    axes = knows.of(call["self"])
    place, start = _dim(call.get("dim", 0), len(axes)), 0
    ends = list(itertools.accumulate(t.shape[place] for t in made))
    pieces(axes[place], ends[:-1])
    for tensor in made:
        size = tensor.shape[place]
        knows.put(tensor, [*axes[:place], _piece(axes[place], start, size), *axes[place + 1 :]])
        start += size


@rule("unbind")
def _unbind(knows: Knows, call: Mapping[str, Any], made: Sequence[Tensor]) -> None:
    axes = list(knows.of(call["self"]))
    place = _dim(call.get("dim", 0), len(axes))
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
    place, axes = _dim(call.get("dim", 0), made[0].ndim), []
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
    axes.insert(_dim(call.get("dim", 0), made[0].ndim), Axis(len(parts)))
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
            inside = _piece(inside, max(0, -before), size - max(before, 0) - max(after, 0))
        axes[place] = join([Axis(before)] * (before > 0) + [inside] + [Axis(after)] * (after > 0))
    knows.put(made[0], axes)


@rule("copy", "where", "masked_fill", "masked_scatter", "lerp", "addcmul", "addcdiv")
def _pointwise(knows: Knows, call: Mapping[str, Any], made: Sequence[Tensor]) -> None:
    pointwise(knows, call, made)


# ------------------------------------------------------------------ sums


@rule("sum", "mean", "amax", "amin", "var", "std", "var_mean", "std_mean", "norm", "logsumexp", "max", "min", "prod", "any",
      "all", "argmax", "argmin", "median", "linalg_vector_norm", "nansum", "count_nonzero", "mode", "kthvalue")  # fmt: skip
def _reduce(knows: Knows, call: Mapping[str, Any], made: Sequence[Tensor]) -> None:
    operands = given(call)
    if "other" in call and isinstance(call["other"], Tensor):  # maximum of two
        return pointwise(knows, call, made)
    axes = knows.of(operands[0])
    gone = _dims(call.get("dim"), len(axes))
    keep = call.get("keepdim", False)
    left = [Axis(1) if i in gone else a for i, a in enumerate(axes) if keep or i not in gone]
    for tensor in made:
        if tensor.ndim == len(left):
            knows.put(tensor, left)


def _matrix(a: list[Axis], b: list[Axis]) -> list[Axis]:
    """Axes of the product of two (batches of) matrices, or of a matrix and a vector."""
    unify(a[-1], b[-2] if len(b) > 1 else b[-1])
    left, right = a[:-2], b[:-2]
    batch = []
    for back in range(max(len(left), len(right)), 0, -1):
        pair = [side[-back] for side in (left, right) if len(side) >= back]
        large = [axis for axis in pair if axis.size != 1] or pair
        for other in large[1:]:
            unify(large[0], other)
        batch.append(large[0])
    return [*batch, *a[-2:-1], *(b[-1:] if len(b) > 1 else ())]


@rule("mm", "bmm", "matmul", "mv", "dot")
def _product(knows: Knows, call: Mapping[str, Any], made: Sequence[Tensor]) -> None:
    a, b = given(call)[:2]
    knows.put(made[0], _matrix(knows.of(a), knows.of(b)))


@rule("addmm", "baddbmm", "addbmm", "addmv")
def _add_product(knows: Knows, call: Mapping[str, Any], made: Sequence[Tensor]) -> None:
    bias, a, b = given(call)[:3]
    _with_bias(knows, _matrix(knows.of(a), knows.of(b)), bias, made[0])


def _with_bias(knows: Knows, axes: list[Axis], bias: Tensor | None, made: Tensor) -> None:
    for ours, theirs in zip(reversed(axes), reversed(knows.of(bias) if bias is not None else []), strict=False):
        if ours.size == theirs.size:
            unify(ours, theirs)
    knows.put(made, axes)


@rule("linear")
def _linear(knows: Knows, call: Mapping[str, Any], made: Sequence[Tensor]) -> None:
    x, weight = knows.of(call["input"]), knows.of(call["weight"])
    unify(x[-1], weight[-1])
    _with_bias(knows, [*x[:-1], *weight[:-1]], call.get("bias"), made[0])


@rule("bilinear")
def _bilinear(knows: Knows, call: Mapping[str, Any], made: Sequence[Tensor]) -> None:
    a, b, weight = (knows.of(call[key]) for key in ("input1", "input2", "weight"))
    unify(a[-1], weight[1])
    unify(b[-1], weight[2])
    _with_bias(knows, [*a[:-1], weight[0]], call.get("bias"), made[0])


@rule("_trilinear")
def _trilinear(knows: Knows, call: Mapping[str, Any], made: Sequence[Tensor]) -> None:
    operands = []
    for key, more in (("i1", "expand1"), ("i2", "expand2"), ("i3", "expand3")):
        axes = list(knows.of(call[key]))
        for place in sorted(call[more]):
            axes.insert(place, Axis(1))
        operands.append(axes)
    met = []
    for column in zip(*operands, strict=True):
        large = [axis for axis in column if axis.size != 1] or list(column)
        for other in large[1:]:
            unify(large[0], other)
        met.append(large[0])
    gone = set(call["sumdim"])
    knows.put(made[0], [axis for i, axis in enumerate(met) if i not in gone])


@rule("convolution", "_convolution", "conv1d", "conv2d", "conv3d", "mkldnn_convolution", "conv_transpose2d")
def _convolution(knows: Knows, call: Mapping[str, Any], made: Sequence[Tensor]) -> None:
    x, weight, groups = knows.of(call["input"]), knows.of(call["weight"]), call.get("groups", 1)
    channels = x[1] if len(x) == len(weight) else x[0]  # without a batch axis the channels come first
    if call.get("transposed"):  # stored (in, out / groups, …)
        unify(channels, weight[0])
        result = weight[1]
        if groups > 1:
            halves = split_any(weight[0], weight[0].size // groups)
            group = halves[0] if halves else Axis(groups)
            result = product([group, weight[1]])
    else:  # stored (out, in / groups, …)
        result = weight[0]
        if groups > 1:
            halves = split_any(weight[0], weight[0].size // groups)
            group = halves[0] if halves else Axis(groups)
            unify(channels, product([group, weight[1]]))
        else:
            unify(channels, weight[1])
    _channels(knows, call, made, result)


def _channels(knows: Knows, call: Mapping[str, Any], made: Sequence[Tensor], result: Axis) -> None:
    x, bias = knows.of(call["input"]), call.get("bias")
    if bias is not None:
        unify(result, knows.of(bias)[0])
    place = 1 if made[0].ndim == len(knows.of(call["weight"])) else 0
    axes = [Axis(size) for size in made[0].shape]
    axes[place] = result
    if place:
        axes[0] = x[0]
    knows.put(made[0], axes)


@rule("im2col")
def _im2col(knows: Knows, call: Mapping[str, Any], made: Sequence[Tensor]) -> None:
    x = knows.of(call["self"])
    taps = math.prod(call["kernel_size"])
    knows.put(made[0], [*x[:-3], product([x[-3], Axis(taps)]), Axis(made[0].shape[-1])])


@rule("col2im")
def _col2im(knows: Knows, call: Mapping[str, Any], made: Sequence[Tensor]) -> None:
    x = knows.of(call["self"])
    halves = split_any(x[-2], math.prod(call["kernel_size"]))
    front = x[:-2]
    knows.put(
        made[0], [*front, halves[0] if halves else Axis(made[0].shape[-3]), *(Axis(n) for n in made[0].shape[-2:])]
    )


@rule("glu")
def _glu(knows: Knows, call: Mapping[str, Any], made: Sequence[Tensor]) -> None:
    axes = list(knows.of(call["self"]))
    place = _dim(call.get("dim", -1), len(axes))
    half = axes[place].size // 2
    pieces(axes[place], (half,))
    first, second = _piece(axes[place], 0, half), _piece(axes[place], half, half)
    unify(first, second)
    axes[place] = first
    knows.put(made[0], axes)


@rule("channel_shuffle", "native_channel_shuffle")
def _channel_shuffle(knows: Knows, call: Mapping[str, Any], made: Sequence[Tensor]) -> None:
    x = list(knows.of(call["self"]))
    halves = split_any(x[1], x[1].size // call["groups"])
    x[1] = product([halves[1], halves[0]]) if halves else Axis(x[1].size)
    knows.put(made[0], x)


@rule("pixel_shuffle", "pixel_unshuffle")
def _shuffle(knows: Knows, call: Mapping[str, Any], made: Sequence[Tensor]) -> None:
    x = list(knows.of(call["self"]))
    size = made[0].shape[-3]
    channels = x[-3]
    if size < channels.size:
        halves = split_any(channels, channels.size // size)
        new = halves[0] if halves else Axis(size)
    else:
        new = product([channels, Axis(size // channels.size)])
    knows.put(made[0], [*x[:-3], new, *(Axis(n) for n in made[0].shape[-2:])])


# ------------------------------------------------------------------ norms, tables, attention


@rule("native_layer_norm", "layer_norm", "_fused_rms_norm", "rms_norm", "_native_layer_norm")
def _layer_norm(knows: Knows, call: Mapping[str, Any], made: Sequence[Tensor]) -> None:
    x = knows.of(call["input"])
    for axis in x[len(x) - len(call.get("normalized_shape", x[-1:])) :]:
        axis.find().normed = True
    for key in ("weight", "bias"):
        if isinstance(call.get(key), Tensor):
            for a, b in zip(x[::-1], knows.of(call[key])[::-1], strict=False):
                unify(a, b)
    knows.put(made[0], x)


@rule("native_batch_norm", "_native_batch_norm_legit", "_native_batch_norm_legit_no_training", "cudnn_batch_norm", "batch_norm",
      "_native_batch_norm_legit_functional", "_batch_norm_with_update", "_batch_norm_no_update", "instance_norm",
      "_batch_norm_impl_index", "batch_norm_with_update")  # fmt: skip
def _batch_norm(knows: Knows, call: Mapping[str, Any], made: Sequence[Tensor]) -> None:
    x = knows.of(call["input"])
    for key, value in call.items():
        if key != "input" and isinstance(value, Tensor) and value.ndim == 1:
            unify(x[1], knows.of(value)[0])
    knows.put(made[0], x)
    for tensor in made[1:]:
        if tensor.ndim == 1 and tensor.shape[0] == x[1].size:
            knows.put(tensor, [x[1]])


@rule("native_group_norm", "group_norm")
def _group_norm(knows: Knows, call: Mapping[str, Any], made: Sequence[Tensor]) -> None:
    x = knows.of(call["input"])
    groups = call.get("group", call.get("num_groups", 1))
    x[1].find().normed = True
    if groups > 1:
        split_any(x[1], x[1].size // groups)
    for key in ("weight", "bias"):
        if isinstance(call.get(key), Tensor):
            unify(x[1], knows.of(call[key])[0])
    knows.put(made[0], x)


@rule("embedding")
def _embedding(knows: Knows, call: Mapping[str, Any], made: Sequence[Tensor]) -> None:
    knows.put(made[0], [*knows.of(call["indices"]), *knows.of(call["weight"])[1:]])


@rule("_embedding_bag", "embedding_bag", "_embedding_bag_forward_only")
def _embedding_bag(knows: Knows, call: Mapping[str, Any], made: Sequence[Tensor]) -> None:
    knows.put(made[0], [Axis(made[0].shape[0]), knows.of(call["weight"])[1]])


@rule("index_select")
def _index_select(knows: Knows, call: Mapping[str, Any], made: Sequence[Tensor]) -> None:
    axes = list(knows.of(call["self"]))
    place = _dim(call["dim"], len(axes))
    axes[place] = knows.of(call["index"])[0] if made[0].ndim and call["index"].ndim else Axis(made[0].shape[place])
    knows.put(made[0], axes)


@rule("index", "_unsafe_index")
def _index(knows: Knows, call: Mapping[str, Any], made: Sequence[Tensor]) -> None:
    """Tensors of places replace the axes they index (where those are neighbours; in front otherwise)."""
    axes, indices = list(knows.of(call["self"])), list(call["indices"])
    at = [i for i, index in enumerate(indices) if index is not None]
    if not at or any(
        indices[i].dtype.is_floating_point or str(indices[i].dtype) in ("torch.bool", "torch.uint8") for i in at
    ):
        return _masked(knows, axes, indices, made)
    rank = max(indices[i].ndim for i in at)
    together = at == list(range(at[0], at[-1] + 1))
    start = at[0] if together else 0
    left = [a for i, a in enumerate(axes) if i not in at]
    result = [*left[:start], *(Axis(n) for n in made[0].shape[start : start + rank]), *left[start:]]
    knows.put(made[0], result)


def _masked(knows: Knows, axes: list[Axis], indices: list[Any], made: Sequence[Tensor]) -> None:
    """A mask over the first axes leaves the others as they are."""
    covered = sum(index.ndim if index is not None else 1 for index in indices)
    tail = axes[covered:]
    front = made[0].ndim - len(tail)
    knows.put(made[0], [*(Axis(n) for n in made[0].shape[:front]), *tail])


@rule(
    "index_put", "index_add", "index_copy", "scatter", "scatter_add", "scatter_reduce", "index_fill", "_index_put_impl"
)
def _write(knows: Knows, call: Mapping[str, Any], made: Sequence[Tensor]) -> None:
    """What is written has the axes of where it is written, at its end."""
    axes = knows.of(call["self"])
    for key in ("values", "source", "src"):
        if isinstance(value := call.get(key), Tensor):
            for a, b in zip(axes[:0:-1], knows.of(value)[:0:-1], strict=False):
                if a.size == b.size:
                    unify(a, b)
    for tensor in made:
        knows.put(tensor, axes)


@rule("gather", "take_along_dim")
def _gather(knows: Knows, call: Mapping[str, Any], made: Sequence[Tensor]) -> None:
    axes, place = list(knows.of(call["self"])), _dim(call["dim"], made[0].ndim)
    index = knows.of(call["index"])
    knows.put(made[0], [a if i != place and a.size == n else index[i] for i, (a, n) in enumerate(zip(axes, made[0].shape, strict=True))])  # fmt: skip


@rule("topk")
def _topk(knows: Knows, call: Mapping[str, Any], made: Sequence[Tensor]) -> None:
    axes = list(knows.of(call["self"]))
    axes[_dim(call.get("dim", -1), len(axes))] = Axis(made[0].shape[_dim(call.get("dim", -1), len(axes))])
    for tensor in made:
        knows.put(tensor, axes)


@rule("scaled_dot_product_attention", "_scaled_dot_product_flash_attention_for_cpu", "_scaled_dot_product_flash_attention",
      "_scaled_dot_product_efficient_attention", "_scaled_dot_product_attention_math", "_scaled_dot_product_cudnn_attention",
      "_scaled_dot_product_fused_attention_overrideable", "_scaled_dot_product_attention_math_for_mps")  # fmt: skip
def _attention(knows: Knows, call: Mapping[str, Any], made: Sequence[Tensor]) -> None:
    q, k, v = (knows.of(call[key]) for key in ("query", "key", "value"))
    unify(q[-1], k[-1])
    unify(k[-2], v[-2])
    for a, b, c in zip(q[:-2], k[:-2], v[:-2], strict=True):
        unify(b, c)
        if a.size == b.size:
            unify(a, b)
        elif b.size > 1 and a.size % b.size == 0:  # a key head serves several query heads, which lie together
            unify(a, product([b, Axis(a.size // b.size)]))
    mask = call.get("attn_mask", call.get("attn_bias"))
    if isinstance(mask, Tensor):
        for a, b in zip([*q[:-1], k[-2]][::-1], knows.of(mask)[::-1], strict=False):
            if a.size == b.size:
                unify(a, b)
    knows.put(made[0], [*q[:-1], v[-1]])
