"""Small models that grow by whole factors, one for each kind of axis the plan reads."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mutransfer.models import gpt_factory
from tests.growth import Case, Unit

CLASSES, VOCABULARY, TIME = 5, 11, 5


def rows(g: torch.Generator) -> tuple[Tensor]:
    """Feature rows (6, 7)."""
    return (torch.randn(6, 7, generator=g),)


def tokens(g: torch.Generator) -> tuple[Tensor]:
    """Token ids (3, TIME)."""
    return (torch.randint(VOCABULARY, (3, TIME), generator=g),)


def series(g: torch.Generator) -> tuple[Tensor]:
    """Sequences of features (3, TIME, 7)."""
    return (torch.randn(3, TIME, 7, generator=g),)


def images(g: torch.Generator) -> tuple[Tensor]:
    """Images (4, 3, 4, 4)."""
    return (torch.randn(4, 3, 4, 4, generator=g),)


class MLP(nn.Module):
    """Two hidden layers that grow by different factors, biases everywhere."""

    def __init__(self, width: int, wide: int, norm: bool = False) -> None:
        super().__init__()
        self.first = nn.Linear(7, width)
        self.norm = nn.LayerNorm(width, eps=1e-2) if norm else nn.Identity()
        self.second = nn.Linear(width, wide)
        self.norm2 = nn.RMSNorm(wide, eps=1e-2) if norm else nn.Identity()
        self.third = nn.Linear(wide, width, bias=False)
        self.temperature = nn.Parameter(torch.ones(()))
        self.head = nn.Linear(width, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        x = F.gelu(self.norm(self.first(x)))
        x = x + self.third(torch.tanh(self.norm2(self.second(x))))
        return self.head(x * self.temperature)


class CNN(nn.Module):
    """Convolutions with batch statistics, then pixels flattened into a Linear."""

    def __init__(self, width: int, wide: int, bias: bool = False, frozen: bool = False) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, width, 3, padding=1, bias=bias)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, wide, 3, stride=2, padding=1, bias=bias)
        self.bn2 = nn.BatchNorm2d(wide)
        self.fc = nn.Linear(wide * 4, width)
        self.head = nn.Linear(width, CLASSES)
        self.frozen = frozen

    def forward(self, x: Tensor) -> Tensor:
        if self.frozen:  # running statistics, also while training
            self.bn1.eval(), self.bn2.eval()
        x = F.gelu(self.bn1(self.conv1(x)))
        x = F.gelu(self.bn2(self.conv2(x)))
        return self.head(torch.tanh(self.fc(x.flatten(1))))


class Convolutions(nn.Module):
    """One middle layer of any kind between two ordinary convolutions, GroupNorm, mean over the pixels."""

    def __init__(self, middle: str, width: int, wide: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, width, 3)
        self.middle = {
            "depthwise": lambda: nn.Conv2d(width, width, 3, padding=1, groups=width),
            "multiplied depthwise": lambda: nn.Conv2d(width, 2 * width, 3, padding=1, groups=width),
            "grouped": lambda: nn.Conv2d(width, wide, 3, padding=1, groups=2),
            "more groups": lambda: nn.Conv2d(width, width, 3, padding=1, groups=width // 2),
            "transposed": lambda: nn.ConvTranspose2d(width, wide, 3),
            "transposed grouped": lambda: nn.ConvTranspose2d(width, wide, 3, groups=2),
            "transposed depthwise": lambda: nn.ConvTranspose2d(width, width, 3, groups=width),
        }[middle]()
        out = self.middle.out_channels
        self.norm = nn.GroupNorm(2, out)
        self.last = nn.Conv2d(out, width, 1)
        self.head = nn.Linear(width, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        x = self.middle(torch.tanh(self.first(x)))
        return self.head(torch.tanh(self.last(F.gelu(self.norm(x)))).mean((2, 3)))


class Autoencoder(nn.Module):
    """Stored the other way round at both ends: a transposed convolution as the input layer, another as the head."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.first = nn.ConvTranspose1d(7, width, 3)
        self.last = nn.ConvTranspose1d(width, CLASSES, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(torch.tanh(self.first(x.mT))).mT


class Recurrent(nn.Module):
    """Two layers of torch's own recurrent modules, forward and backward in time."""

    def __init__(self, kind: str, width: int, both: bool) -> None:
        super().__init__()
        self.cells = getattr(nn, kind)(7, width, num_layers=2, batch_first=True, bidirectional=both)
        self.head = nn.Linear(2 * width if both else width, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.cells(x)[0])


class Projected(nn.Module):
    """An LSTM whose state is projected: its hidden and its output size grow by different factors."""

    def __init__(self, width: int, narrow: int) -> None:
        super().__init__()
        self.cells = nn.LSTM(7, width, proj_size=narrow, batch_first=True)
        self.head = nn.Linear(narrow, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.cells(x)[0])


class Packed(nn.Module):
    """Attention whose queries, keys and values are one hand-written projection, with a learned bias per head and distance."""

    def __init__(self, width: int, n_heads: int) -> None:
        super().__init__()
        self.n_heads = n_heads
        self.relative = nn.Embedding(2 * TIME - 1, n_heads)
        self.qkv = nn.Linear(width, 3 * width)
        self.out_proj = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (y.unflatten(-1, (self.n_heads, -1)).transpose(1, 2) for y in self.qkv(x).chunk(3, -1))
        time = torch.arange(TIME)
        bias = self.relative(time[:, None] - time + TIME - 1).permute(2, 0, 1)  # (heads, T, T)
        y = F.scaled_dot_product_attention(q, k, v, attn_mask=bias)
        return self.out_proj(y.transpose(1, 2).flatten(2))


class Sequence(nn.Module):
    """Features, one residual attention layer of any kind, a norm, a head."""

    def __init__(self, kind: str, width: int, n_heads: int) -> None:
        super().__init__()
        self.first = nn.Linear(7, width)
        self.memory = nn.Linear(7, 6)
        self.kind = kind
        if kind == "packed":
            self.attn: nn.Module = Packed(width, n_heads)
        elif kind == "cross":  # separate projections, packed bias, keys of a size that stays
            self.attn = nn.MultiheadAttention(width, n_heads, batch_first=True, kdim=6, vdim=6, add_bias_kv=True)
        else:
            self.attn = nn.MultiheadAttention(width, n_heads, batch_first=True)
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        h, m = self.first(x), self.memory(x)
        if self.kind == "packed":
            y = self.attn(h)
        else:
            m = m if self.kind == "cross" else h
            y = self.attn(h, m, m, need_weights=False)[0]
        return self.head(self.norm(h + y))


class ViT(nn.Module):
    """Patches, a class token and a position table as bare parameters, torch's own encoder layer."""

    def __init__(self, width: int, n_heads: int) -> None:
        super().__init__()
        self.patch = nn.Conv2d(3, width, 2, stride=2)
        self.cls_token = nn.Parameter(torch.randn(1, 1, width))
        self.pos_embed = nn.Parameter(torch.randn(1, 5, width))
        self.block = nn.TransformerEncoderLayer(width, n_heads, 2 * width, 0.0, "gelu", batch_first=True)
        self.layer_scale = nn.Parameter(torch.ones(width))
        self.head = nn.Linear(width, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        x = self.patch(x).flatten(2).mT
        x = torch.cat([self.cls_token.expand(len(x), 1, -1), x], 1) + self.pos_embed
        return self.head(self.block(x)[:, 0] * self.layer_scale)


class Experts(nn.Module):
    """A soft mixture of experts in stacked tensors: one (expert, in, out), the other (expert, out, in)."""

    def __init__(self, width: int, wide: int) -> None:
        super().__init__()
        self.first = nn.Linear(7, width)
        self.router = nn.Linear(width, 3, bias=False)
        self.up = nn.Parameter(torch.randn(3, width, wide))
        self.up_bias = nn.Parameter(torch.randn(3, 1, wide))
        self.down = nn.Parameter(torch.randn(3, width, wide))
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        h = torch.tanh(self.first(x))
        y = torch.tanh(torch.einsum("bi,eio->ebo", h, self.up) + self.up_bias)
        y = torch.einsum("ebi,eoi,be->bo", y, self.down, self.router(h).softmax(-1))
        return self.head(self.norm(h + y))


class ByHand(nn.Module):
    """Bare matrices, applied both ways round; a gain per pixel and feature; a slope per feature; only `wide` may grow."""

    def __init__(self, width: int, wide: int) -> None:
        super().__init__()
        self.start = nn.Parameter(torch.randn(7, width))
        self.w_up = nn.Parameter(torch.randn(width, wide))
        self.b_up = nn.Parameter(torch.randn(wide))
        self.slope = nn.PReLU(wide)
        self.w_down = nn.Parameter(torch.randn(width, wide))
        self.norm = nn.LayerNorm([TIME, width])
        self.head = nn.Linear(width, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        h = x @ self.start
        y = self.slope((h @ self.w_up + self.b_up).mT).mT
        return self.head(self.norm(h + F.linear(y, self.w_down)))


class Cells(nn.Module):
    """A bag of tokens, then recurrent cells stepped by hand."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.bag = nn.EmbeddingBag(VOCABULARY, width, padding_idx=0)
        self.gru = nn.GRUCell(width, width)
        self.lstm = nn.LSTMCell(width, width)
        self.head = nn.Linear(2 * width, CLASSES)

    def forward(self, ids: Tensor) -> Tensor:
        x = self.bag(ids)
        h, state = torch.tanh(x), None
        for _ in range(3):
            h = self.gru(x, h)
            state = self.lstm(h, state)
        return self.head(torch.cat([h, state[1]], -1))


class OffsetNorm(nn.Module):
    """RMS norm whose weight is gain − 1."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(width))

    def forward(self, x: Tensor) -> Tensor:
        return F.rms_norm(x, x.shape[-1:], eps=1e-5) * (1 + self.weight)


def offset_gpt(**sizes: int) -> nn.Module:
    """A tied GPT whose last norm and query norms store gain − 1, as Gemma's, and whose head has a bias."""
    model = gpt_factory(vocab_size=VOCABULARY, context=TIME, depth=1, tied=True, qk_norm=True, mlp_ratio=2.0)(**sizes)
    model.norm_f = OffsetNorm(model.config.width)
    model.head.bias = nn.Parameter(torch.zeros(VOCABULARY))
    for block in model.blocks:
        block.attn.q_norm = OffsetNorm(model.config.head_width)
    return model


def biased_gpt(**sizes: int) -> nn.Module:
    """A tied GPT with a plain last norm whose head has a bias."""
    model = gpt_factory(vocab_size=VOCABULARY, context=TIME, depth=1, tied=True, mlp_ratio=2.0)(**sizes)
    model.head.bias = nn.Parameter(torch.zeros(VOCABULARY))
    return model


class Bilinear(nn.Module):
    """A product of two hidden vectors: both its fan-in axes grow."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.first = nn.Linear(7, width)
        self.product = nn.Bilinear(width, width, width)
        self.head = nn.Linear(width, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        h = torch.tanh(self.first(x))
        return self.head(torch.tanh(self.product(h, h)))


def by_heads(n: Unit) -> dict[str, dict[int, Unit]]:
    """Whole heads of n numbers are copied: rows of the queries, keys and values, columns of the output projection."""
    return {
        "*qkv.*": {0: n},
        "*in_proj_*": {0: n},
        "*[qkv]_proj.*": {0: n},
        "*[qkv]_proj_weight": {0: n},
        "*bias_[kv]": {2: n},
        "*out_proj.weight": {1: n},
    }


def gpt(base: dict, target: dict, units: dict | None = None, needs: dict | None = None, /, **options) -> Case:
    """A GPT of two blocks with biases."""
    make = gpt_factory(vocab_size=VOCABULARY, context=TIME, depth=2, bias=True, mlp_ratio=2.0, **options)
    return Case(make, base, target, tokens, units or {}, needs or {})


_SMALL, _BIG = dict(width=4), dict(width=8)
_HALF = 2**-0.5  # q·k/√d grows like √2 when the head size doubles
_HALVES = {"*qkv.*": _HALF**0.5, "*in_proj_*": _HALF**0.5, "*[qkv]_proj_weight": _HALF**0.5, "*bias_[kv]": _HALF**0.5,
           "*out_proj.weight": _HALF**-0.5}  # fmt: skip
_TIED = {"norm_f.*": (0.5, "head")}
_HEADS = dict(head_size=2)
_TWO = dict(width=4, n_heads=2)

CASES: dict[str, Case] = {
    "mlp": Case(MLP, dict(width=4, wide=3), dict(width=8, wide=9), rows),
    "normed mlp": Case(lambda **s: MLP(norm=True, **s), dict(width=4, wide=3), dict(width=8, wide=9), rows),
    "by hand": Case(ByHand, dict(width=4, wide=3), dict(width=8, wide=9), series),
    "by hand, inside only": Case(ByHand, dict(width=4, wide=3), dict(width=4, wide=9), series),
    "by hand, outside only": Case(ByHand, dict(width=4, wide=3), dict(width=8, wide=3), series),
    "cells": Case(Cells, _SMALL, _BIG, tokens),
    "bilinear": Case(Bilinear, _SMALL, _BIG, rows),
    "cnn": Case(CNN, dict(width=4, wide=3), dict(width=8, wide=9), images, {"fc.weight": {1: 4}}),
    "cnn with running statistics": Case(
        lambda **s: CNN(bias=True, frozen=True, **s), dict(width=4, wide=3), dict(width=12, wide=6), images,
        {"fc.weight": {1: 4}},
    ),
    **{
        kind: Case(lambda kind=kind, **s: Convolutions(kind, **s), dict(width=4, wide=6), dict(width=8, wide=18), images)
        for kind in ("depthwise", "grouped", "transposed", "transposed grouped", "transposed depthwise")
    },
    # a group is copied with all its channels: a copy that fed only some of them would not get the same gradient
    "multiplied depthwise": Case(
        lambda **s: Convolutions("multiplied depthwise", **s), dict(width=4, wide=1), dict(width=12, wide=1), images,
        {"middle.*": {0: 2}, "norm.*": {0: 2}, "last.weight": {1: 2}},
    ),
    "more groups": Case(
        lambda **s: Convolutions("more groups", **s), dict(width=4, wide=1), dict(width=8, wide=1), images,
        {"first.*": {0: 2}, "middle.*": {0: 2}, "norm.*": {0: 2}, "last.weight": {1: 2}},
    ),
    "autoencoder": Case(Autoencoder, dict(width=4), dict(width=12), series),
    **{
        kind: Case(lambda kind=kind, **s: Recurrent(kind, both=kind == "GRU", **s), _SMALL, _BIG, series)
        for kind in ("RNN", "LSTM", "GRU")
    },
    "projected LSTM": Case(Projected, dict(width=4, narrow=2), dict(width=8, narrow=6), series),
    "experts": Case(
        Experts, dict(width=4, wide=3), dict(width=8, wide=9), rows,
        axes={"up": "stack in out", "up_bias": "stack lookup out", "down": "stack out in"},
    ),
    "class token, by heads": Case(ViT, _TWO, dict(width=8, n_heads=4), images, by_heads(2)),
    "class token, by head size": Case(ViT, _TWO, dict(width=8, n_heads=2), images, {}, _HALVES),
    "packed, by heads": Case(
        lambda **s: Sequence("packed", **s), _TWO, dict(width=8, n_heads=4), series, by_heads(2)
    ),
    "packed, by head size": Case(lambda **s: Sequence("packed", **s), _TWO, dict(width=8, n_heads=2), series, {}, _HALVES),
    "cross attention, by heads": Case(
        lambda **s: Sequence("cross", **s), _TWO, dict(width=8, n_heads=4), series, by_heads(2)
    ),
    "cross attention, by head size": Case(
        lambda **s: Sequence("cross", **s), _TWO, dict(width=8, n_heads=2), series, {}, _HALVES
    ),
    "multi-head attention, by head size": Case(
        lambda **s: Sequence("torch", **s), _TWO, dict(width=8, n_heads=2), series, {}, _HALVES
    ),
    "gpt, by heads": gpt(_SMALL, dict(width=12), by_heads(2), **_HEADS),
    "gpt, by head size": gpt(_SMALL, _BIG, {}, {"*.q_proj.*": _HALF}, n_heads=2),
    "gpt, by both": gpt(
        dict(width=4, n_heads=2), dict(width=16, n_heads=4),
        by_heads((2, 2)), {"*.q_proj.*": _HALF},
    ),
    "tied gpt": gpt(_SMALL, _BIG, by_heads(2), _TIED, tied=True, **_HEADS),
    "tied gpt without a gain": gpt(_SMALL, _BIG, by_heads(2), tied=True, norm="rmsnorm", norm_gain=False, **_HEADS),
    "tied gpt with a biased head": Case(
        biased_gpt, dict(width=4, head_size=2), dict(width=8, head_size=2), tokens, by_heads(2), _TIED
    ),
    "gains stored less one": Case(
        offset_gpt, dict(width=4, n_heads=2), dict(width=8, n_heads=2), tokens, {}, {"*.q_norm.*": _HALF}
    ),
    "query norm, by heads": gpt(_SMALL, _BIG, by_heads(2), qk_norm=True, **_HEADS),
    "query norm, by head size": gpt(_SMALL, _BIG, {}, {"*.q_norm.*": _HALF}, qk_norm=True, n_heads=2),
    "query norm without a gain, by head size": gpt(
        _SMALL, _BIG, {}, {}, qk_norm=True, n_heads=2, norm="rmsnorm", norm_gain=False
    ),
    # a key head is copied with all the query heads it serves
    "more key heads": gpt(
        dict(width=8, kv_heads=2), dict(width=16, kv_heads=4),
        {"*.q_proj.*": {0: 4}, "*.out_proj.weight": {1: 4}} | by_heads(2), **_HEADS,
    ),
    "same key heads": gpt(dict(width=8, kv_heads=2), dict(width=16, kv_heads=2), by_heads(2), **_HEADS),
    "key heads, by head size": gpt(_SMALL, _BIG, {}, {"*.q_proj.*": _HALF}, n_heads=2, kv_heads=1),
    "rotary": gpt(_SMALL, _BIG, by_heads(2), positions="rotary", **_HEADS),
    "swiglu": gpt(dict(width=8), dict(width=16), by_heads(2), activation="swiglu", norm="rmsnorm", **_HEADS),
}  # fmt: skip
