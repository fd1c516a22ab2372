"""Branches written in unusual ways: a late bias, halves, slices, masks, a norm by hand."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.residual_zoo.arranged import PlainPre, Post
from tests.residual_zoo.parts import Feed, HandNorm, Two


class LateBias(PlainPre):
    """The bias of the last matrix, and one more, are added after the stream."""

    def __init__(self, n: int) -> None:
        super().__init__(n)
        self.more = nn.Parameter(torch.zeros(n))

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.att(self.n1(x))
        return x + F.linear(F.gelu(self.ffn.one(self.n2(x))), self.ffn.two.weight) + self.ffn.two.bias + self.more

    def damped(self, x: Tensor, a: float) -> Tensor:
        x = x + a * self.att(self.n1(x))
        return x + a * (self.ffn(self.n2(x)) + self.more)


class HandLayerNorm(HandNorm):
    def __init__(self, n: int) -> None:
        super().__init__(n)
        self.b = nn.Parameter(torch.zeros(n))

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x - x.mean(-1, keepdim=True)) + self.b


class HandPost(Post):
    """A layer norm by hand behind the sum: its gain and bias belong to the stream."""

    norm = HandLayerNorm


class Reversible(nn.Module):
    """Two half streams that feed each other."""

    def __init__(self, n: int) -> None:
        super().__init__()
        self.p, self.q = Feed(n // 2), Feed(n // 2)

    def forward(self, x: Tensor) -> Tensor:
        a, b = x.chunk(2, dim=-1)
        a = a + self.p(b)
        return torch.cat([a, b + self.q(a)], dim=-1)

    def damped(self, x: Tensor, a: float) -> Tensor:
        one, two = x.chunk(2, dim=-1)
        one = one + a * self.p(two)
        return torch.cat([one, two + a * self.q(one)], dim=-1)


class HalfOfTheStream(Two):
    """A branch that is written into a part of the stream, in place."""

    def __init__(self, n: int) -> None:
        super().__init__(n)
        self.narrow_out = nn.Linear(n, n // 2)
        del self.att

    def forward(self, x: Tensor) -> Tensor:
        x = x.clone()
        x[..., : x.shape[-1] // 2] += self.narrow_out(torch.tanh(self.n1(x)))
        return x + self.ffn(self.n2(x))

    def damped(self, x: Tensor, a: float) -> Tensor:
        half = a * self.narrow_out(torch.tanh(self.n1(x)))
        x = x + torch.cat([half, torch.zeros_like(half)], dim=-1)
        return x + a * self.ffn(self.n2(x))


class Masked(PlainPre):
    """Some positions skip the block; the other branch is put together in slices."""

    def forward(self, x: Tensor) -> Tensor:
        out = torch.empty_like(x)
        out[:, 0::2] = self.att(self.n1(x))[:, 0::2]
        out[:, 1::2] = self.ffn(self.n1(x))[:, 1::2]
        keep = torch.arange(x.shape[1], device=x.device)[:, None] < 4
        x = torch.where(keep, x + out, x)
        return x + self.ffn(self.n2(x))

    def damped(self, x: Tensor, a: float) -> Tensor:
        odd = torch.arange(x.shape[1], device=x.device)[:, None] % 2 == 1
        out = torch.where(odd, self.ffn(self.n1(x)), self.att(self.n1(x)))
        x = x + a * out * (torch.arange(x.shape[1], device=x.device)[:, None] < 4)
        return x + a * self.ffn(self.n2(x))


class Flamingo(PlainPre):
    """tanh of a learned number in front of the branch."""

    def __init__(self, n: int) -> None:
        super().__init__(n)
        self.open = nn.Parameter(torch.zeros(1))

    def forward(self, x: Tensor) -> Tensor:
        x = x + torch.tanh(self.open) * self.att(self.n1(x))
        return x + self.ffn(self.n2(x))

    def damped(self, x: Tensor, a: float) -> Tensor:
        x = x + a * torch.tanh(self.open) * self.att(self.n1(x))
        return x + a * self.ffn(self.n2(x))
