"""What the zoo is put together from."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

SEQUENCE, IMAGE = "sequence", "image"


def attend(q: Tensor, k: Tensor, v: Tensor, heads: int = 2) -> Tensor:
    def split(t: Tensor) -> Tensor:
        return t.unflatten(-1, (heads, -1)).transpose(1, 2)

    return F.scaled_dot_product_attention(split(q), split(k), split(v)).transpose(1, 2).flatten(2)


class HandNorm(nn.Module):
    """A root-mean-square norm by hand, with a gain."""

    def __init__(self, n: int) -> None:
        super().__init__()
        self.g = nn.Parameter(torch.ones(n))

    def forward(self, x: Tensor) -> Tensor:
        return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6) * self.g


class ShiftedNorm(nn.Module):
    """Stores gain − 1."""

    def __init__(self, n: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(n))

    def forward(self, x: Tensor) -> Tensor:
        return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + 1e-6) * (1 + self.weight)


class SelfAttention(nn.Module):
    """Names that no list holds; queries, keys and values in one matrix."""

    def __init__(self, n: int) -> None:
        super().__init__()
        self.mix, self.back = nn.Linear(n, 3 * n), nn.Linear(n, n)

    def forward(self, x: Tensor) -> Tensor:
        return self.back(attend(*self.mix(x).chunk(3, dim=-1)))


class Feed(nn.Module):
    def __init__(self, n: int) -> None:
        super().__init__()
        self.one, self.two = nn.Linear(n, 2 * n), nn.Linear(2 * n, n)

    def forward(self, x: Tensor) -> Tensor:
        return self.two(F.gelu(self.one(x)))


class Swish(nn.Module):
    def __init__(self, n: int) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Linear(n, 2 * n), nn.Linear(n, 2 * n), nn.Linear(2 * n, n)

    def forward(self, x: Tensor) -> Tensor:
        return self.c(F.silu(self.a(x)) * self.b(x))


class Two(nn.Module):
    """Attention and MLP with a norm each: what most blocks below arrange in their own ways."""

    norm: type[nn.Module] = nn.LayerNorm

    def __init__(self, n: int) -> None:
        super().__init__()
        self.n1, self.n2 = self.norm(n), self.norm(n)
        self.att, self.ffn = SelfAttention(n), Feed(n)
        self.drop = nn.Dropout(0.1)
