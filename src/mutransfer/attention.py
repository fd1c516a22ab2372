"""The attention factor: when the head size d grows, logits must be q·k/d, equal to the user's own at the base (theory §5).

Fixed head size: `1/√d` is right and nothing is done. Growing head size: a factor √(d_base/d) on the logits, moved into the
query's norm gain, else the query projection, else (packed q, k, v) the whole packed projection by its square root, with the
inverse on the output projection: q·k then carries the factor, and v none.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from torch import nn

from mutransfer.errors import InputError
from mutransfer.hooks import Hook
from mutransfer.laws import Law
from mutransfer.reading import forward_source

_HEAD_SIZE = (
    "head_dim",
    "head_size",
    "d_head",
    "dim_head",
    "attention_head_size",
    "size_per_head",
    "qk_head_dim",
    "d_k",
    "d_qk",
)
_HEADS = ("n_heads", "num_heads", "n_head", "num_attention_heads", "nhead", "n_heads_q", "heads", "num_q_heads")
_WIDTH = ("embed_dim", "n_embd", "hidden_size", "d_model", "embed_size", "width", "dim", "model_dim", "all_head_size")
_QUERY = re.compile(
    r"^(q|q_proj|query|wq|w_q|to_q|q_lin|query_proj|q_linear|linear_q|proj_q|q_b_proj|qproj)$", re.IGNORECASE
)
_PACKED = re.compile(
    r"^(qkv|c_attn|qkv_proj|wqkv|in_proj|to_qkv|query_key_value|proj_qkv|attn_qkv|kqv|w_pack|wi_qkv)$", re.IGNORECASE
)
_QUERY_NORM = re.compile(r"^(q_norm|query_norm|norm_q|q_layernorm|q_ln|ln_q)$", re.IGNORECASE)
_OUTPUT = re.compile(
    r"^(out_proj|c_proj|o_proj|proj|wo|w_o|dense|to_out|out|o|proj_out|out_lin|output)$", re.IGNORECASE
)
_FACTOR = re.compile(r"scale|scaling|factor|mult|coef|temperature", re.IGNORECASE)
_SCALE = ("scale", "scaling", "softmax_scale", "attn_scale", "scale_attn", "norm_factor")


@dataclass(frozen=True)
class Absorbed:
    """A factor t that the parameters of one module take in: `prefix` is the module path, `attributes` which of its tensors."""

    module: str
    attributes: tuple[str, ...]
    factor: float
    reason: str


def head_size(module: nn.Module) -> int | None:
    """The head size that an attention module declares by its attributes, or None."""
    config = getattr(module, "config", None)
    for name in _HEAD_SIZE:
        value = getattr(module, name, None)
        if isinstance(value, int) and not isinstance(value, bool) and value > 0:
            return value
    for owner in (module, config):
        heads = next((v for n in _HEADS if isinstance(v := getattr(owner, n, None), int) and v > 0), None)
        if heads is None and owner is module:
            size, heads = _by_words(module)
            if size is not None:
                return size
        if heads is None:
            continue
        rows = _query_rows(module)
        if rows is None:
            rows = next(
                (v for o in (module, config) for n in _WIDTH if isinstance(v := getattr(o, n, None), int)), None
            )
        if isinstance(rows, int) and rows % heads == 0:
            return rows // heads
    return None


def _by_words(module: nn.Module) -> tuple[int | None, int | None]:
    """(head size, number of heads) from whole numbers whose names say so in other words: `hs`, `nh`, `attn_heads`, …"""
    size = heads = None
    for name, value in vars(module).items():
        if not isinstance(value, int) or isinstance(value, bool) or value < 1 or re.search(r"kv|key|value|group", name):
            continue
        if re.fullmatch(r"hs|hd|dh|d_h|head_?d", name.lower()) or re.search(r"head.*(dim|size|width)", name.lower()):
            size = value
        elif re.fullmatch(r"h|nh|n_h|num_h", name.lower()) or "head" in name.lower():
            heads = value
    return size, heads


def _query_rows(module: nn.Module) -> int | None:
    """heads × head size: the features of the query, or those that the output projection reads."""
    children = dict(module.named_children())
    query = next((getattr(c, "out_features", None) for name, c in children.items() if _QUERY.match(name)), None)
    output = next((getattr(c, "in_features", None) for name, c in children.items() if _OUTPUT.match(name)), None)
    bare = next((p.shape for name, p in module._parameters.items() if p is not None and _QUERY.match(name)), (0, 1))
    return query or output or (bare[0] if len(bare) == 2 and bare[0] == bare[1] else None)


def is_query(name: str) -> bool:
    """Whether a module or parameter of this name projects to queries."""
    return _QUERY.match(name) is not None


def is_packed(name: str) -> bool:
    """Whether a module or parameter of this name projects to queries, keys and values at once."""
    return _PACKED.match(name) is not None


def looks_like_attention(module: nn.Module) -> bool:
    """Whether the module owns a query or a packed projection. Mamba's mixers have an `in_proj` too, and no heads to scale."""
    if isinstance(module, nn.MultiheadAttention):
        return True
    names = [name for name, _ in module.named_children()] + list(module._parameters)
    named = "att" in type(module).__name__.lower()
    return any(_QUERY.match(n) or (_PACKED.match(n) and (named or n != "in_proj")) for n in names)


def _hidden_attention(module: nn.Module) -> bool:
    """Whether the class is called an attention and owns projections, but none by a name that tells the query."""
    owns = any(p is not None and p.ndim > 1 for child in module.children() for p in child._parameters.values())
    return re.search(r"att(entio)?n|mha", type(module).__name__.lower()) is not None and owns


def _own_scale(module: nn.Module) -> float | None:
    """The softmax scale that the module declares as a number (√d, not 1/√d, where it divides)."""
    for name in _SCALE:
        value = getattr(module, name, None)
        if isinstance(value, float) and value > 0:
            return value if value <= 1 else 1 / value
    return None


def factors(
    base: nn.Module,
    target: nn.Module,
    counterpart: dict[str, str],
    declared: tuple[int, int] | None,
    laws: dict[str, Law],
    absolute: bool = False,
) -> tuple[list[Absorbed], list[Hook], list[str]]:
    """What the attention modules whose head size grows must absorb; hooks where nothing can; notes for the table.

    `counterpart` maps target module paths to base ones; `declared` is the user's own (d_base, d_target). With `absolute` every
    attention gets q·k/d, at the base too, whatever its own code has there.
    Raises InputError when the head size grows and no query projection can be found.
    """
    absorbed: list[Absorbed] = []
    hooks: list[Hook] = []
    notes: list[str] = []
    bases = dict(base.named_modules())
    for path, module in target.named_modules():
        partner = bases.get(counterpart.get(path, path))
        if partner is None:
            continue
        known = looks_like_attention(module)
        if not known and not _hidden_attention(module):
            notes += _size_factors(path, partner, module)
            continue
        before, after = declared or (head_size(partner), head_size(module))
        if not known and before == after and not absolute:
            continue
        if before is None or after is None:
            same = [p.shape for p in partner.parameters()] == [p.shape for p in module.parameters()]
            if (not known or same) and not absolute:
                notes.append(f"{path}: its head size is not declared by an attribute; taken as fixed")
                continue
            raise InputError(
                f"{path!r} ({type(module).__name__}): its head size is not declared by an attribute such as n_heads or "
                f"head_dim, and logits need a factor if it grows; say head_size=(base, target), e.g. head_size=(64, 64)"
            )
        if before == after and not absolute:
            continue
        if _cosine(module):
            notes.append(f"{path}: queries and keys are normalised to unit vectors; the head size needs no factor")
            continue
        ratio = before / after
        scales = _own_scale(partner), _own_scale(module)
        wanted = ratio**0.5
        if absolute:
            wanted = 1 / (after * (scales[1] or after**-0.5))
            if abs(wanted - 1) < 1e-6:
                continue  # the code's own scale is 1/d
        elif scales[0] is not None and scales[1] is not None:
            wanted = ratio / (scales[1] / scales[0])  # the code's own growth of the scale counts
            if abs(wanted - 1) < 1e-6:
                notes.append(f"{path}: head size {before} → {after}, its own scale already falls like 1/d")
                continue
        sizes = f"{before} → {after}" if before != after else f"{after}, at every size"
        more, hook = _place(path, module, wanted, f"attention q·k/d: head size {sizes}", laws)
        absorbed += more
        hooks += hook
    return absorbed, hooks, notes


def _size_factors(path: str, base: nn.Module, target: nn.Module) -> list[str]:
    """Notes on numbers in the user's own forward that change with size: they act on top of the plan's, which cannot see how."""
    if type(target).__module__.startswith("torch."):
        return []
    text, found = forward_source(type(target)), []
    for name, value in vars(target).items():
        before = getattr(base, name, None)
        if (
            isinstance(value, bool)
            or not isinstance(value, int | float)
            or type(before) is not type(value)
            or before == value
        ):
            continue
        own = rf"self\.(config\.)?{re.escape(name)}\b"
        power = re.search(rf"{own}\s*\*\*|sqrt\(\s*{own}|{own}\s*\)?\.(sqrt|pow)", text)
        if (isinstance(value, float) and _FACTOR.search(name)) or power:
            found.append(f"{path or 'the model'}: its own {name} goes {before:.4g} → {value:.4g}; the plan does not see where it "
                         f"acts: keep it at the base's value, or check that it is meant")  # fmt: skip
    return found


def _cosine(module: nn.Module) -> bool:
    """Whether the code turns queries into unit vectors, so that q·k does not grow with the head size."""
    return re.search(r"\bnormalize\(\s*q", forward_source(type(module))) is not None


def _normalises_query(module: nn.Module) -> bool:
    """Whether the forward puts the query through a norm that is no module of its own (an optional one may be absent)."""
    for call in re.findall(r"([\w.]*norm\w*)\(\s*(?:q|query\w*)\b", forward_source(type(module))):
        owned = getattr(module, call[5:], None) if call.startswith("self.") else call
        if owned is not None and not isinstance(owned, nn.Module):
            return True
    return False


def _place(
    path: str, module: nn.Module, t: float, reason: str, laws: dict[str, Law]
) -> tuple[list[Absorbed], list[Hook]]:
    children = dict(module.named_children())
    if not any(_QUERY_NORM.match(name) for name in children) and _normalises_query(module):
        raise InputError(f"{path!r}: {reason}, but its forward normalises the query without a gain, which would undo any "
                         f"factor in the projection; multiply the logits by 1/d in your code and say head_size=(1, 1)")  # fmt: skip

    def find(pattern: re.Pattern[str]) -> str | None:
        return next((name for name in children if pattern.match(name)), None)

    def at(name: str) -> str:
        return f"{path}.{name}" if path else name

    if norm := find(_QUERY_NORM):
        gain = f"{at(norm)}.weight"
        if getattr(children[norm], "weight", None) is not None and not laws[gain].zeros:
            return [Absorbed(at(norm), ("weight", "bias"), t, reason)], []
        return [], [Hook(at(norm), "output", t, reason)]
    if query := find(_QUERY):
        return [Absorbed(at(query), ("weight", "bias"), t, reason)], []
    bare = next((name for name in module._parameters if _QUERY.match(name)), None)
    if bare is not None and laws.get(at(bare)) is not None:
        return [Absorbed(path, (bare,), t, reason)], []
    output = find(_OUTPUT)
    if isinstance(module, nn.MultiheadAttention):
        separate = ("q_proj_weight", "k_proj_weight", "v_proj_weight")  # the bias is packed even then
        weights = ("in_proj_weight",) if module.in_proj_weight is not None else separate
        packed = Absorbed(path, (*weights, "in_proj_bias", "bias_k", "bias_v"), t**0.5, reason)
        return [packed, Absorbed(at("out_proj"), ("weight",), t**-0.5, reason)], []
    projection = find(_PACKED)
    if projection is None or output is None:
        raise InputError(f"{path!r}: {reason}, but its query and output projections have no known names; keep the head size "
                         f"fixed, name them q_proj/out_proj, or scale the logits by 1/d in your code and say head_size=(1, 1)")  # fmt: skip
    return [
        Absorbed(at(projection), ("weight", "bias"), t**0.5, reason),
        Absorbed(at(output), ("weight",), t**-0.5, reason),
    ], []
