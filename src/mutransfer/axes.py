"""Which axis of one tensor is its fan-in, which its fan-out: read off the module that owns it, never guessed.

An axis is labelled `in`, `out`, `lookup` (rows selected one at a time: an embedding's vocabulary), `kernel` (taps that are
summed over: part of the fan-in), or `stack` (independent copies: experts). A string such as "stack in out" names them.
"""

from __future__ import annotations

import re
from typing import Literal, cast

from torch import nn

from mutransfer.errors import InputError

Axis = Literal["in", "out", "lookup", "kernel", "stack"]
LABELS: tuple[Axis, ...] = ("in", "out", "lookup", "kernel", "stack")

_NORMS = (
    nn.modules.batchnorm._NormBase,
    nn.GroupNorm,
    nn.LayerNorm,
    nn.LocalResponseNorm,
    *((nn.RMSNorm,) if hasattr(nn, "RMSNorm") else ()),
)
TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
# what a bare table of learned rows is called; a matrix (query_weight, class_head) must not match
_TABLE_NAME = re.compile(
    r"(^|_)(r?pos|position|positions|positional|pe|embed\w*|emb|embs|tokens?|tok|table|latents?|queries|prompts?|registers?|"
    r"codebook|wpe|wte)(_|$)|(pos|posit|rel)\w*_?(emb|table|bias|enc)\w*$",
    re.IGNORECASE,
)
_MATRIX_NAME = re.compile(r"(^|_)(w|weight|kernel|proj|projection|head|out|matrix|linear|fc)(_|$)|proj$", re.IGNORECASE)


def parse(labels: str, name: str, ndim: int) -> tuple[Axis, ...]:
    """The user's axis string as labels, e.g. "stack in out". Raises InputError naming the tensor and what is wrong."""
    parts = labels.split() if isinstance(labels, str) else list(labels)
    unknown = [part for part in parts if part not in LABELS]
    if unknown:
        raise InputError(
            f"axes for {name!r}: unknown label {unknown[0]!r}; use {', '.join(LABELS)}, e.g. 'stack in out'"
        )
    if len(parts) != ndim:
        raise InputError(f"axes for {name!r}: {labels!r} names {len(parts)} axes, the tensor has {ndim}")
    return cast("tuple[Axis, ...]", tuple(parts))


def is_norm(module: nn.Module) -> bool:
    """Whether the module normalises: torch's norms, and any class named like one (HF's LlamaRMSNorm, …)."""
    return isinstance(module, _NORMS) or "norm" in type(module).__name__.lower().replace("normal", "")


def is_transposed_linear(module: nn.Module) -> bool:
    """transformers' Conv1D: a Linear whose weight is stored (in, out)."""
    return type(module).__name__ == "Conv1D" and hasattr(module, "nf")


def of_parameter(module: nn.Module, attribute: str, shape: tuple[int, ...]) -> tuple[Axis, ...] | None:
    """The axis labels of `module.<attribute>`, or None where the module's type does not tell (a bare parameter).

    Vectors (gains, biases) are ("out",). Stored the other way round and handled: Embedding (V, n), ConvTranspose (in, out, …).
    """
    if len(shape) == 0:
        return ()
    if len(shape) == 1:
        return ("out",)
    kernel: tuple[Axis, ...] = ("kernel",) * (len(shape) - 2)
    if is_norm(module):
        return ("out",) * len(shape)
    if is_transposed_linear(module):
        return ("in", "out")
    if isinstance(module, nn.Embedding | nn.EmbeddingBag) or (
        len(shape) == 2
        and (getattr(module, "num_embeddings", None), getattr(module, "embedding_dim", None)) == tuple(shape)
    ):
        return ("lookup", "out")
    if isinstance(module, TRANSPOSED):
        return ("in", "out", *kernel)
    if isinstance(module, nn.modules.conv._ConvNd):
        return ("out", "in", *kernel)
    if isinstance(module, nn.Bilinear):
        return ("out", "in", "in")
    if isinstance(module, nn.MultiheadAttention):
        return ("out", "in") if len(shape) == 2 else ("lookup", "lookup", "out")
    if isinstance(module, nn.RNNBase | nn.RNNCellBase):
        return ("out", "in")
    features = (getattr(module, "out_features", None), getattr(module, "in_features", None))
    if len(shape) == 2 and attribute in ("weight", "kernel", "w") and None not in features:
        if tuple(shape) == features:
            return ("out", "in")
        if tuple(shape) == features[::-1]:
            return ("in", "out")
    if isinstance(module, nn.Linear) and len(shape) == 2:
        return ("out", "in")
    return None


def of_bare(
    name: str, base: tuple[int, ...], target: tuple[int, ...], widths: frozenset[tuple[int, int]] = frozenset()
) -> tuple[Axis, ...] | None:
    """The axis labels of a parameter whose module says nothing, where shapes and name leave one reading; else None.

    One axis that is not 1: a vector (class token, layer scale). Both axes of a matrix growing alike: hidden, where the
    orientation cannot matter, if it is square or both are known `widths` (base, target) of the model. Only the last axis
    growing under a name like a table's: a lookup table.
    """
    if base == target:
        return ("out",) * len(target)
    wide = [i for i, (b, t) in enumerate(zip(base, target, strict=True)) if max(b, t) > 1]
    labels: list[Axis] = ["lookup"] * len(target)
    if len(wide) == 1:
        labels[wide[0]] = "out"
        return tuple(labels)
    grows = [i for i in wide if base[i] != target[i]]
    table = is_table(name)
    if len(wide) == 2 and len(grows) == 2 and not table:
        pairs = [(base[i], target[i]) for i in wide]
        same = base[wide[0]] * target[wide[1]] == base[wide[1]] * target[wide[0]]
        if same and (pairs[0] == pairs[1] or set(pairs) <= widths):
            labels[wide[0]], labels[wide[1]] = "out", "in"
            return tuple(labels)
    if grows == [len(target) - 1] and table:
        labels[-1] = "out"
        return tuple(labels)
    return None


def is_table(name: str) -> bool:
    """Whether a bare parameter is named like a table of learned rows (positions, tokens, latents)."""
    attribute = name.rpartition(".")[2]
    if attribute.isdigit() or attribute == "weight":
        attribute = name.split(".")[-2] if "." in name else attribute
    return bool(_TABLE_NAME.search(attribute)) and not _MATRIX_NAME.search(attribute)


def suggestions(name: str, base: tuple[int, ...], target: tuple[int, ...]) -> str:
    """The line(s) to write for an ambiguous tensor: every likely reading with what it means."""
    if len(target) == 2 and is_table(name):
        readings = {"lookup out": "a table of rows"}
    elif len(target) == 2:
        readings = {"out in": "if applied as F.linear(x, w)", "in out": "as x @ w"}
        if base[1] == target[1] or base[0] == target[0]:
            readings["out out"] = "as numbers per feature, one by one"
    elif len(target) == 1:
        readings = {"stack": "if it holds one number per layer", "out": "one per feature"}
    else:
        front = " ".join(["stack"] * (len(target) - 2))
        readings = {f"{front} in out": "if each copy is applied as x @ w", f"{front} out in": "as F.linear(x, w)"}
    return ", ".join(f"axes={{{name!r}: {labels!r}}} {meaning}" for labels, meaning in readings.items())
