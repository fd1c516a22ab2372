"""Models as people write them, one for each way of using an axis. None was looked at while the tracing was written."""

import math
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

V, T, C = 11, 6, 5


def tok(g: torch.Generator) -> Tensor:
    return torch.randint(V, (3, T), generator=g)


def img(g: torch.Generator) -> Tensor:
    return torch.randn(4, 3, 8, 8, generator=g)


def feat(g: torch.Generator) -> Tensor:
    return torch.randn(6, 7, generator=g)


def ser(g: torch.Generator) -> Tensor:
    return torch.randn(3, T, 7, generator=g)


Stranger = tuple[
    Callable[..., nn.Module], Callable[[torch.Generator], Tensor], dict[str, int], dict[str, int], dict[str, Any]
]
STRANGERS: dict[str, Stranger] = {}
"""Name → class, input, sizes of the small model and of the big one, options of `grow`."""


def reg(
    inputs: Callable[[torch.Generator], Tensor],
    base: dict[str, int] | None = None,
    target: dict[str, int] | None = None,
    **options: Any,
) -> Callable[[Any], Any]:
    def register(cls: Any) -> Any:
        STRANGERS[cls.__name__] = (cls, inputs, base or dict(w=8), target or dict(w=16), options)
        return cls

    return register


@reg(ser)
class Mixer(nn.Module):
    def __init__(self, w: int) -> None:
        super().__init__()
        self.a = nn.Linear(7, w)
        self.n = nn.LayerNorm(w)
        self.t1 = nn.Linear(T, 10)
        self.t2 = nn.Linear(10, T)
        self.c1 = nn.Linear(w, 2 * w)
        self.c2 = nn.Linear(2 * w, w)
        self.h = nn.Linear(w, C)

    def forward(self, x: Tensor) -> Tensor:
        x = self.a(x)
        y = self.n(x).transpose(1, 2)
        x = x + self.t2(F.gelu(self.t1(y))).transpose(1, 2)
        x = x + self.c2(F.gelu(self.c1(self.n(x))))
        return self.h(x.mean(1))


@reg(img)
class UNet(nn.Module):
    def __init__(self, w: int) -> None:
        super().__init__()
        self.d1 = nn.Conv2d(3, w, 3, padding=1)
        self.d2 = nn.Conv2d(w, 2 * w, 3, stride=2, padding=1)
        self.u = nn.ConvTranspose2d(2 * w, w, 2, stride=2)
        self.m = nn.Conv2d(2 * w, w, 3, padding=1)
        self.o = nn.Conv2d(w, C, 1)
        self.n = nn.GroupNorm(4, 2 * w)

    def forward(self, x: Tensor) -> Tensor:
        a = F.relu(self.d1(x))
        b = F.relu(self.n(self.d2(a)))
        c = torch.cat([a, self.u(b)], 1)
        return self.o(F.relu(self.m(c))).mean((2, 3))


@reg(img)
class Dense(nn.Module):
    def __init__(self, w: int) -> None:
        super().__init__()
        self.a = nn.Conv2d(3, w, 3, padding=1)
        self.b = nn.Conv2d(w, w // 2, 3, padding=1)
        self.c = nn.Conv2d(w + w // 2, w, 3, padding=1)
        self.bn = nn.BatchNorm2d(w + w // 2)
        self.h = nn.Linear(2 * w + w // 2, C)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.a(x))
        x = torch.cat([x, self.b(x)], 1)
        x = torch.cat([x, self.c(F.relu(self.bn(x)))], 1)
        return self.h(F.adaptive_avg_pool2d(x, 1).flatten(1))


@reg(img)
class OptionA(nn.Module):
    def __init__(self, w: int) -> None:
        super().__init__()
        self.a = nn.Conv2d(3, w, 3, padding=1)
        self.b = nn.Conv2d(w, 2 * w, 3, stride=2, padding=1)
        self.h = nn.Linear(2 * w, C)
        self.w = w

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.a(x))
        y = F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, self.w // 2, self.w // 2))
        return self.h(F.relu(self.b(x) + y).mean((2, 3)))


@reg(img)
class SE(nn.Module):
    def __init__(self, w: int) -> None:
        super().__init__()
        self.a = nn.Conv2d(3, w, 3)
        self.bn = nn.BatchNorm2d(w)
        self.f1 = nn.Linear(w, w // 4)
        self.f2 = nn.Linear(w // 4, w)
        self.h = nn.Linear(w, C)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.bn(self.a(x)))
        z = torch.sigmoid(self.f2(F.relu(self.f1(x.mean((2, 3))))))
        return self.h((x * z[:, :, None, None]).amax((2, 3)))


@reg(img, target=dict(w=24))
class Shuffle(nn.Module):
    def __init__(self, w: int) -> None:
        super().__init__()
        self.a = nn.Conv2d(3, w, 1)
        self.g = nn.Conv2d(w, w, 3, padding=1, groups=2)
        self.g2 = nn.Conv2d(w, w, 1, groups=2)
        self.h = nn.Linear(w, C)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.tanh(self.a(x))
        x = torch.tanh(self.g(x))
        b, c, h, w = x.shape
        x = x.view(b, 2, c // 2, h, w).transpose(1, 2).reshape(b, c, h, w)
        return self.h(torch.tanh(self.g2(x)).mean((2, 3)))


@reg(feat)
class GLU(nn.Module):
    def __init__(self, w: int) -> None:
        super().__init__()
        self.a = nn.Linear(7, 2 * w)
        self.b = nn.Linear(w, 6 * w)
        self.c = nn.Linear(3 * w, w)
        self.h = nn.Linear(w, C)

    def forward(self, x: Tensor) -> Tensor:
        x = F.glu(self.a(x))
        u, g = self.b(x).chunk(2, -1)
        return self.h(x + self.c(u * torch.sigmoid(g)))


def attn(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return (q @ k.mT / math.sqrt(q.shape[-1])).softmax(-1) @ v


@reg(ser, base=dict(w=8, h=2), target=dict(w=16, h=4))
class Einsum(nn.Module):
    def __init__(self, w: int, h: int) -> None:
        super().__init__()
        self.a = nn.Linear(7, w)
        self.wq = nn.Linear(w, w)
        self.wkv = nn.Linear(w, 2 * w, bias=False)
        self.o = nn.Linear(w, w)
        self.h_ = nn.Linear(w, C)
        self.h = h
        self.scale = nn.Parameter(torch.ones(h, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        x = self.a(x)
        B, t, w = x.shape
        q = self.wq(x).reshape(B, t, self.h, -1)
        k, v = self.wkv(x).reshape(B, t, 2, self.h, -1).unbind(2)
        logits = torch.einsum("bihd,bjhd->bhij", q, k) * self.scale / math.sqrt(q.shape[-1])
        y = torch.einsum("bhij,bjhd->bihd", logits.softmax(-1), v).reshape(B, t, w)
        return self.h_((x + self.o(y)).mean(1))


@reg(ser, base=dict(w=8, h=2), target=dict(w=24, h=6))
class Interleaved(nn.Module):
    """heads innermost: view(d, h)"""

    def __init__(self, w: int, h: int) -> None:
        super().__init__()
        self.a = nn.Linear(7, w)
        self.qkv = nn.Linear(w, 3 * w)
        self.o = nn.Linear(w, w)
        self.h_ = nn.Linear(w, C)
        self.h = h

    def forward(self, x: Tensor) -> Tensor:
        x = self.a(x)
        B, t, w = x.shape
        q, k, v = self.qkv(x).view(B, t, w // self.h, self.h, 3).permute(4, 0, 3, 1, 2)
        return self.h_((x + self.o(attn(q, k, v).permute(0, 2, 3, 1).reshape(B, t, w))).mean(1))


@reg(tok, base=dict(w=16, h=2), target=dict(w=32, h=4))
class RotPairs(nn.Module):
    def __init__(self, w: int, h: int) -> None:
        super().__init__()
        self.e = nn.Embedding(V, w)
        self.q = nn.Linear(w, w)
        self.k = nn.Linear(w, w)
        self.v = nn.Linear(w, w)
        self.o = nn.Linear(w, w)
        self.h_ = nn.Linear(w, C)
        self.h = h

    def rot(self, x: Tensor) -> Tensor:
        d = x.shape[-1]
        f = 1e4 ** (-torch.arange(0, d, 2, device=x.device, dtype=x.dtype) / d)
        an = torch.outer(torch.arange(x.shape[-2], device=x.device, dtype=x.dtype), f)
        c, sn = an.cos(), an.sin()
        a, b = x[..., ::2], x[..., 1::2]
        return torch.stack([a * c - b * sn, a * sn + b * c], -1).flatten(-2)

    def forward(self, i: Tensor) -> Tensor:
        x = self.e(i)
        B, t, w = x.shape
        q, k, v = (f(x).view(B, t, self.h, -1).transpose(1, 2) for f in (self.q, self.k, self.v))
        y = F.scaled_dot_product_attention(self.rot(q), self.rot(k), v, is_causal=True)
        return self.h_(x + self.o(y.transpose(1, 2).reshape(B, t, w)))


@reg(tok, base=dict(w=16, h=2), target=dict(w=32, h=2))
class RotBuffer(RotPairs):
    def __init__(self, w: int, h: int) -> None:
        super().__init__(w, h)
        d = w // h
        self.register_buffer("freq", 1e4 ** (-torch.arange(0, d, 2) / d), persistent=False)

    def rot(self, x: Tensor) -> Tensor:
        an = torch.outer(torch.arange(x.shape[-2], device=x.device, dtype=x.dtype), self.freq.to(x.dtype))
        c, sn = an.cos().repeat(1, 2), an.sin().repeat(1, 2)
        a, b = x.chunk(2, -1)
        return x * c + torch.cat([-b, a], -1) * sn


@reg(tok, base=dict(w=16, h=2), target=dict(w=32, h=4))
class Alibi(RotPairs):
    def __init__(self, w: int, h: int) -> None:
        super().__init__(w, h)
        self.register_buffer("slopes", 2.0 ** (-8 * torch.arange(1, h + 1) / h))

    def forward(self, i: Tensor) -> Tensor:
        x = self.e(i)
        B, t, w = x.shape
        q, k, v = (f(x).view(B, t, self.h, -1).transpose(1, 2) for f in (self.q, self.k, self.v))
        r = torch.arange(t)
        bias = -(r[:, None] - r).abs() * self.slopes[:, None, None]
        y = F.scaled_dot_product_attention(q, k, v, attn_mask=bias.to(q.dtype))
        return self.h_(x + self.o(y.transpose(1, 2).reshape(B, t, w)))


@reg(ser, axes={"lat": "lookup out"})
class Perceiver(nn.Module):
    def __init__(self, w: int) -> None:
        super().__init__()
        self.lat = nn.Parameter(torch.randn(4, w))
        self.a = nn.Linear(7, w)
        self.m = nn.MultiheadAttention(w, 2, batch_first=True)
        self.h = nn.Linear(w, C)

    def forward(self, x: Tensor) -> Tensor:
        x = self.a(x)
        latents = self.lat.expand(len(x), -1, -1)
        return self.h((latents + self.m(latents, x, x)[0]).mean(1))


@reg(tok)
class TextCNN(nn.Module):
    def __init__(self, w: int) -> None:
        super().__init__()
        self.e = nn.Embedding(V, w)
        self.c = nn.ModuleList([nn.Conv1d(w, w // 2, k, padding=1) for k in (2, 3)])
        self.h = nn.Linear(w, C)

    def forward(self, i: Tensor) -> Tensor:
        x = self.e(i).mT
        return self.h(torch.cat([F.relu(c(x)).amax(-1) for c in self.c], 1))


@reg(feat)
class Handnorm(nn.Module):
    def __init__(self, w: int) -> None:
        super().__init__()
        self.a = nn.Linear(7, w)
        self.g = nn.Parameter(torch.ones(w))
        self.b = nn.Parameter(torch.zeros(w))
        self.c = nn.Linear(w, w)
        self.h = nn.Linear(w, C)

    def forward(self, x: Tensor) -> Tensor:
        x = self.a(x)
        m = x.mean(-1, keepdim=True)
        v = ((x - m) ** 2).mean(-1, keepdim=True)
        x = (x - m) / torch.sqrt(v + 1e-5) * self.g + self.b
        return self.h(torch.relu(self.c(x)))


@reg(img)
class PixelShuffle(nn.Module):
    def __init__(self, w: int) -> None:
        super().__init__()
        self.a = nn.Conv2d(3, 4 * w, 3, padding=1)
        self.ps = nn.PixelShuffle(2)
        self.b = nn.Conv2d(w, w, 3)
        self.h = nn.Linear(w, C)

    def forward(self, x: Tensor) -> Tensor:
        return self.h(torch.relu(self.b(torch.relu(self.ps(self.a(x))))).mean((2, 3)))


@reg(feat)
class MoE(nn.Module):
    def __init__(self, w: int) -> None:
        super().__init__()
        self.a = nn.Linear(7, w)
        self.r = nn.Linear(w, 4)
        self.e = nn.ModuleList([nn.Sequential(nn.Linear(w, 2 * w), nn.GELU(), nn.Linear(2 * w, w)) for _ in range(4)])
        self.h = nn.Linear(w, C)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.tanh(self.a(x))
        p = self.r(x).softmax(-1)
        v, i = p.topk(2, -1)
        y = torch.zeros_like(x)
        for j, e in enumerate(self.e):
            rows, slot = torch.where(i == j)
            if len(rows):
                y.index_add_(0, rows, e(x[rows]) * v[rows, slot, None])
        return self.h(x + y)


@reg(ser)
class Trans(nn.Module):
    def __init__(self, w: int) -> None:
        super().__init__()
        self.a = nn.Linear(7, w)
        self.t = nn.Transformer(w, 2, 1, 1, 2 * w, 0.0, batch_first=True)
        self.h = nn.Linear(w, C)

    def forward(self, x: Tensor) -> Tensor:
        x = self.a(x)
        return self.h(self.t(x, x))


@reg(img, base=dict(w=16), target=dict(w=32))
class GNgrow(nn.Module):
    def __init__(self, w: int) -> None:
        super().__init__()
        self.a = nn.Conv2d(3, w, 3)
        self.n = nn.GroupNorm(w // 8, w)
        self.b = nn.Conv2d(w, w, 3, groups=w // 8)
        self.h = nn.Linear(w, C)

    def forward(self, x: Tensor) -> Tensor:
        return self.h(torch.tanh(self.b(torch.tanh(self.n(self.a(x))))).mean((2, 3)))


@reg(feat)
class WeightNorm(nn.Module):
    def __init__(self, w: int) -> None:
        super().__init__()
        self.a = nn.utils.parametrizations.weight_norm(nn.Linear(7, w))
        self.b = nn.utils.parametrizations.weight_norm(nn.Linear(w, w))
        self.h = nn.Linear(w, C)

    def forward(self, x: Tensor) -> Tensor:
        return self.h(torch.relu(self.b(torch.relu(self.a(x)))))


@reg(feat)
class SpectralNorm(nn.Module):
    def __init__(self, w: int) -> None:
        super().__init__()
        self.a = nn.Linear(7, w)
        self.b = nn.utils.parametrizations.spectral_norm(nn.Linear(w, w))
        self.h = nn.Linear(w, C)

    def forward(self, x: Tensor) -> Tensor:
        return self.h(torch.relu(self.b(torch.relu(self.a(x)))))


@reg(ser, head_size=(1, 1))
class GRUAttn(nn.Module):
    def __init__(self, w: int) -> None:
        super().__init__()
        self.g = nn.GRU(7, w, batch_first=True, bidirectional=True)
        self.q = nn.Parameter(torch.randn(2 * w))
        self.h = nn.Linear(2 * w, C)

    def forward(self, x: Tensor) -> Tensor:
        y, _ = self.g(x)
        a = (torch.tanh(y) @ self.q / y.shape[-1]).softmax(-1)
        return self.h((a[..., None] * y).sum(1))


@reg(feat)
class Autoenc(nn.Module):
    def __init__(self, w: int) -> None:
        super().__init__()
        self.a = nn.Linear(7, w)
        self.b = nn.Parameter(torch.zeros(7))
        self.h = nn.Linear(7, C)

    def forward(self, x: Tensor) -> Tensor:
        h = torch.tanh(self.a(x))
        return self.h(F.linear(h, self.a.weight.t()) / h.shape[-1] + self.b)


@reg(img)
class FlatMLP(nn.Module):
    def __init__(self, w: int) -> None:
        super().__init__()
        self.c = nn.Conv2d(3, w, 3, padding=1)
        self.p = nn.MaxPool2d(2)
        self.f = nn.Flatten()
        self.l1 = nn.Linear(w * 16, w)
        self.l2 = nn.Linear(w, C)
        self.d = nn.Dropout(0.5)

    def forward(self, x: Tensor) -> Tensor:
        return self.l2(self.d(torch.relu(self.l1(self.f(self.p(torch.relu(self.c(x))))))))


@reg(img)
class FlatLast(nn.Module):
    """channels last flatten"""

    def __init__(self, w: int) -> None:
        super().__init__()
        self.c = nn.Conv2d(3, w, 3, stride=2, padding=1)
        self.l1 = nn.Linear(w * 16, w)
        self.l2 = nn.Linear(w, C)

    def forward(self, x: Tensor) -> Tensor:
        return self.l2(torch.relu(self.l1(torch.relu(self.c(x)).permute(0, 2, 3, 1).reshape(len(x), -1))))


@reg(feat)
class MaxOut(nn.Module):
    def __init__(self, w: int) -> None:
        super().__init__()
        self.a = nn.Linear(7, 3 * w)
        self.b = nn.Linear(w, 4 * w)
        self.h = nn.Linear(w, C)
        self.w = w

    def forward(self, x: Tensor) -> Tensor:
        x = self.a(x).view(len(x), self.w, 3).amax(-1)
        x = self.b(x).view(len(x), 4, self.w).amax(1)
        return self.h(x)


@reg(tok, base=dict(w=16, h=2, kv=1), target=dict(w=32, h=4, kv=1))
class MQA(nn.Module):
    def __init__(self, w: int, h: int, kv: int) -> None:
        super().__init__()
        self.e = nn.Embedding(V, w)
        self.d = w // h
        self.qkv = nn.Linear(w, (h + 2 * kv) * self.d, bias=False)
        self.o = nn.Linear(w, w)
        self.hd = nn.Linear(w, V)
        self.h, self.kv = h, kv

    def forward(self, i: Tensor) -> Tensor:
        x = self.e(i)
        B, t, w = x.shape
        q, k, v = self.qkv(x).split([self.h * self.d, self.kv * self.d, self.kv * self.d], -1)
        q = q.view(B, t, self.h, self.d).transpose(1, 2)
        k, v = (z.view(B, t, self.kv, self.d).transpose(1, 2).repeat_interleave(self.h // self.kv, 1) for z in (k, v))
        return self.hd(x + self.o(attn(q, k, v).transpose(1, 2).reshape(B, t, w)))


@reg(tok, base=dict(w=16, h=4, kv=2), target=dict(w=32, h=8, kv=4))
class GQAfused(MQA):
    pass


@reg(tok, base=dict(w=16, h=2), target=dict(w=32, h=2))
class Diff(nn.Module):
    """sinusoidal positions computed in forward, learned temperature, cosine attention"""

    def __init__(self, w: int, h: int) -> None:
        super().__init__()
        self.e = nn.Embedding(V, w)
        self.q = nn.Linear(w, w)
        self.k = nn.Linear(w, w)
        self.v = nn.Linear(w, w)
        self.o = nn.Linear(w, w)
        self.hd = nn.Linear(w, C)
        self.h = h
        self.t = nn.Parameter(torch.ones(h, 1, 1) * 5)

    def forward(self, i: Tensor) -> Tensor:
        x = self.e(i)
        B, t, w = x.shape
        q, k, v = (f(x).view(B, t, self.h, -1).transpose(1, 2) for f in (self.q, self.k, self.v))
        a = (F.normalize(q, dim=-1) @ F.normalize(k, dim=-1).mT * self.t).softmax(-1)
        return self.hd(x + self.o((a @ v).transpose(1, 2).reshape(B, t, w)))
