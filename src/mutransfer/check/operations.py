"""The operations that are watched: where a weight meets its input, and where queries meet keys."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor

from mutransfer.check.seen import Attention, mean_square

if TYPE_CHECKING:
    from mutransfer.check.trace import Trace

ROWS = 64  # rows (tokens) that the extra product with a weight's change is computed for
QUERY = re.compile(r"(^|[._])(q|query|wq|q_?proj|to_q|c_attn|in_proj|qkv|query_key_value)", re.IGNORECASE)
KEY = re.compile(r"(^|[._])(k|key|wk|k_?proj|to_k)([._]|_?proj|_norm|$)", re.IGNORECASE)


def align(bias: Tensor, out: Tensor) -> Tensor:
    """A convolution's bias belongs to axis 1, everyone else's to the last."""
    if bias.dim() == 1 and out.dim() > 2 and out.shape[-1] != bias.numel():
        return bias.reshape(-1, *[1] * (out.dim() - 2))
    return bias


def _rows(x: Tensor) -> Tensor:
    flat = x.detach().reshape(-1, x.shape[-1])
    return flat[:: max(1, flat.shape[0] // ROWS)][:ROWS]


def _argument(args: Any, kwargs: Any, position: int, *names: str) -> Any:
    if len(args) > position:
        return args[position]
    return next((kwargs[name] for name in names if name in kwargs), None)


def _linear(trace: Trace, func: Any, args: Any, kwargs: Any, out: Tensor) -> None:
    x, w, b = (_argument(args, kwargs, k, name) for k, name in enumerate(("input", "weight", "bias")))
    param = trace.weight(w)
    if param is not None and w.dim() == 2:
        trace.measure(param, w, x, out, b, (w.shape[1], w.shape[0]), lambda d: F.linear(_rows(x), d))


def _matmul(trace: Trace, func: Any, args: Any, kwargs: Any, out: Tensor) -> None:
    left, right = args[0], _argument(args, kwargs, 1, "other", "mat2")
    if func is torch.Tensor.__rmatmul__:
        left, right = right, left
    if not isinstance(right, Tensor) or not isinstance(left, Tensor):
        return
    if (param := trace.weight(right)) is not None:
        fans = (right.shape[-2], right.shape[-1])
        apply = (lambda d: _rows(left) @ d) if right.dim() == 2 else (lambda d: left.detach() @ d)
        trace.measure(param, right, left, out, None, fans, apply)
    elif (param := trace.weight(left)) is not None:
        trace.measure(param, left, right, out, None, (left.shape[-1], left.shape[-2]), lambda d: d @ right.detach())
    elif left.dim() >= 3 and right.dim() >= 3:
        _product(trace, left, right, left.shape[-1], out)


def _addmm(trace: Trace, func: Any, args: Any, kwargs: Any, out: Tensor) -> None:
    bias, x, w = args[0], _argument(args, kwargs, 1, "mat1", "batch1"), _argument(args, kwargs, 2, "mat2", "batch2")
    if (param := trace.weight(w)) is not None:
        trace.measure(param, w, x, out, bias, (w.shape[-2], w.shape[-1]), lambda d: x.detach() @ d)


def _einsum(trace: Trace, func: Any, args: Any, kwargs: Any, out: Tensor) -> None:
    operands = list(args[1]) if len(args) == 2 and isinstance(args[1], (list, tuple)) else list(args[1:])
    if not isinstance(args[0], str) or len(operands) != 2 or "." in args[0] or "->" not in args[0]:
        return
    inputs, result = args[0].replace(" ", "").split("->")
    letters = inputs.split(",")
    for k, operand in enumerate(operands):
        if (param := trace.weight(operand)) is not None:
            sizes = dict(zip(letters[k], operand.shape, strict=True))
            fan_in = math.prod(n for letter, n in sizes.items() if letter not in result)
            fan_out = math.prod(n for c, n in sizes.items() if c in result and c not in letters[1 - k])
            other = operands[1 - k]

            def apply(d: Tensor, k: int = k, other: Tensor = other) -> Tensor:
                pair = (d, other.detach()) if k == 0 else (other.detach(), d)
                return torch.einsum(args[0], *pair)

            trace.measure(param, operand, other, out, None, (fan_in, fan_out), apply)
            return
    contracted = [c for c in letters[0] if c in letters[1] and c not in result]
    if contracted and operands[0].dim() >= 3:
        sizes = dict(zip(letters[0], operands[0].shape, strict=True))
        _product(trace, operands[0], operands[1], math.prod(sizes[c] for c in contracted), out)


def _embedding(trace: Trace, func: Any, args: Any, kwargs: Any, out: Tensor) -> None:
    index, w = _argument(args, kwargs, 0, "input"), _argument(args, kwargs, 1, "weight")
    if func is torch.Tensor.__getitem__:
        index, w = w if w is not None else args[1], args[0]
        if not isinstance(index, Tensor) or index.dtype != torch.int64:
            return
    param = trace.weight(w)
    if param is not None and w.dim() == 2 and isinstance(index, Tensor):
        trace.measure(param, w, None, out, None, (1, w.shape[1]), lambda d: d[index.reshape(-1)[: 4 * ROWS]])


def _conv(trace: Trace, func: Any, args: Any, kwargs: Any, out: Tensor) -> None:
    x, w, b = (_argument(args, kwargs, k, name) for k, name in enumerate(("input", "weight", "bias")))
    param = trace.weight(w)
    if param is None or w.dim() < 3:
        return
    groups = _argument(args, kwargs, 7 if "transpose" in func.__name__ else 6, "groups")
    if "transpose" in func.__name__:
        groups = _argument(args, kwargs, 6, "groups") or 1
        kernel = w[0, 0].numel()
        fans = (w.shape[0] // groups * kernel, w.shape[1] * groups)
    else:
        fans = (w[0].numel(), w.shape[0])
    few = x.detach()[: max(1, ROWS * x.shape[0] * x.shape[1] // x.numel())] if x.dim() == w.dim() else x.detach()

    def apply(change: Tensor) -> Tensor:
        swap = {id(x): few, id(w): change, id(b): None}
        return func(*(swap.get(id(a), a) for a in args), **{k: swap.get(id(a), a) for k, a in kwargs.items()})

    trace.measure(param, w, x, out, b, fans, apply)


def _product(trace: Trace, left: Tensor, right: Tensor, contracted: int, out: Tensor) -> None:
    """Remember an activation-times-activation product: it is an attention logit if a softmax follows."""
    if not trace.gradients:
        names = trace.source(left, QUERY), trace.source(right, KEY)
        trace.products.append((out, contracted, left, right, *names))


def _attend(trace: Trace, module: str, d: int, q: Tensor, k: Tensor, scale: Any, names: Any, explicit: bool) -> None:
    label = module or "(model)"
    query, key = names
    trace.seen.attention.setdefault(label, Attention(label, d, query, key, explicit))
    trace.seen.add("query", label, mean_square(q))
    trace.seen.add("key", label, mean_square(k))
    trace.seen.add("scale", label, scale if isinstance(scale, Tensor) else torch.tensor(float(scale)).square())


def _sdpa(trace: Trace, func: Any, args: Any, kwargs: Any, out: Any) -> None:
    if trace.gradients:
        return
    q, k = _argument(args, kwargs, 0, "query"), _argument(args, kwargs, 1, "key")
    scale = kwargs.get("scale")
    names = trace.source(q, QUERY), trace.source(k, KEY)
    d = q.shape[-1]
    _attend(trace, trace.stack[-1] if trace.stack else "", d, q, k, d**-0.5 if scale is None else scale, names, True)


def _softmax(trace: Trace, func: Any, args: Any, kwargs: Any, out: Tensor) -> None:
    logits = args[0] if args else kwargs.get("input")
    if trace.gradients or not isinstance(logits, Tensor) or logits.dim() < 3:
        return
    for product, d, q, k, query, key in reversed(trace.products):
        if product.numel() == logits.numel() and product.shape[-1] == logits.shape[-1]:
            product = product.detach().reshape(logits.shape)
            visible = logits.detach() > -1e4  # masked positions say nothing about the scale
            top, bottom = logits.detach()[visible].float(), product[visible].float()
            # a zero query shows no scale at this step (0/0 is nan); a later step will
            scale = mean_square(top) / mean_square(bottom)
            _attend(trace, trace.stack[-1] if trace.stack else "", d, q, k, scale, (query, key), False)
            trace.products.clear()
            return


def _packed_attention(trace: Trace, func: Any, args: Any, kwargs: Any, out: Any) -> None:
    """`nn.MultiheadAttention` is one opaque function: its three projections of the input are computed again here."""
    if trace.gradients:
        return
    q, k, v = args[:3]
    width, heads, packed = args[3], args[4], args[5]
    parts = packed.chunk(3) if packed is not None else [kwargs.get(f"{c}_proj_weight") for c in "qkv"]
    made = []
    for w, x in zip(parts, (q, k, v), strict=True):
        param = trace.weight(w)
        if param is None:
            return
        product = F.linear(x.detach(), w.detach())
        trace.measure(param, w, x, product, None, (w.shape[1], w.shape[0]), lambda d, x=x: F.linear(_rows(x), d))
        made.append((product, param))
    d = width // heads
    names = made[0][1], made[1][1]
    _attend(trace, trace.stack[-1] if trace.stack else "", d, made[0][0], made[1][0], d**-0.5, names, True)


HANDLERS: dict[Any, Callable[..., None]] = {
    F.linear: _linear,
    F.embedding: _embedding,
    torch.embedding: _embedding,
    torch.Tensor.__getitem__: _embedding,
    torch.addmm: _addmm,
    torch.baddbmm: _addmm,
    torch.einsum: _einsum,
    F.scaled_dot_product_attention: _sdpa,
    F.softmax: _softmax,
    torch.softmax: _softmax,
    torch.Tensor.softmax: _softmax,
    F.multi_head_attention_forward: _packed_attention,
    **dict.fromkeys((torch.matmul, torch.mm, torch.bmm), _matmul),
    **dict.fromkeys((torch.Tensor.matmul, torch.Tensor.mm, torch.Tensor.bmm), _matmul),
    **dict.fromkeys((torch.Tensor.__matmul__, torch.Tensor.__rmatmul__), _matmul),
    **dict.fromkeys((F.conv1d, F.conv2d, F.conv3d), _conv),
    **dict.fromkeys((F.conv_transpose1d, F.conv_transpose2d, F.conv_transpose3d), _conv),
}
"""The operations that are watched."""
