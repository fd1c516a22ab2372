"""Operations that sum: products, convolutions, reductions; and norms, tables and attention, which meet the axes of several tensors."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from mutransfer.growth.layout import Axis, piece_of, pieces, product, split_any, unify
from mutransfer.growth.operations import Knows, dim_of, dims_of, given, pointwise, rule

# ------------------------------------------------------------------ sums


@rule("sum", "mean", "amax", "amin", "var", "std", "var_mean", "std_mean", "norm", "logsumexp", "max", "min", "prod", "any",
      "all", "argmax", "argmin", "median", "linalg_vector_norm", "nansum", "count_nonzero", "mode", "kthvalue")  # fmt: skip
def _reduce(knows: Knows, call: Mapping[str, Any], made: Sequence[Tensor]) -> None:
    operands = given(call)
    if "other" in call and isinstance(call["other"], Tensor):  # maximum of two
        return pointwise(knows, call, made)
    axes = knows.of(operands[0])
    gone = dims_of(call.get("dim"), len(axes))
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
    place = dim_of(call.get("dim", -1), len(axes))
    half = axes[place].size // 2
    pieces(axes[place], (half,))
    first, second = piece_of(axes[place], 0, half), piece_of(axes[place], half, half)
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
    place = dim_of(call["dim"], len(axes))
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
    axes, place = list(knows.of(call["self"])), dim_of(call["dim"], made[0].ndim)
    index = knows.of(call["index"])
    knows.put(made[0], [a if i != place and a.size == n else index[i] for i, (a, n) in enumerate(zip(axes, made[0].shape, strict=True))])  # fmt: skip


@rule("topk")
def _topk(knows: Knows, call: Mapping[str, Any], made: Sequence[Tensor]) -> None:
    axes = list(knows.of(call["self"]))
    axes[dim_of(call.get("dim", -1), len(axes))] = Axis(made[0].shape[dim_of(call.get("dim", -1), len(axes))])
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
