"""The same two branches, arranged in many ways."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.residual_zoo.parts import Feed, HandNorm, SelfAttention, ShiftedNorm, Two, attend


class PlainPre(Two):
    def forward(self, x: Tensor) -> Tensor:
        x = x + self.att(self.n1(x))
        return x + self.ffn(self.n2(x))

    def damped(self, x: Tensor, a: float) -> Tensor:
        x = x + a * self.att(self.n1(x))
        return x + a * self.ffn(self.n2(x))


class InPlace(PlainPre):
    def forward(self, x: Tensor) -> Tensor:
        x = x.clone()
        x += self.drop(self.att(self.n1(x)))
        x.add_(self.ffn(self.n2(x)))
        return x


class TorchAdd(PlainPre):
    def forward(self, x: Tensor) -> Tensor:
        stream = torch.add(self.drop(x), self.att(self.n1(x)))
        return torch.add(self.ffn(self.n2(stream)), stream, alpha=1)


class Fractions(PlainPre):
    """A branch times a number of the user's own."""

    def forward(self, x: Tensor) -> Tensor:
        x = x + 0.3 * self.att(self.n1(x))
        return torch.add(x, self.ffn(self.n2(x)), alpha=0.5)

    def damped(self, x: Tensor, a: float) -> Tensor:
        x = x + a * 0.3 * self.att(self.n1(x))
        return x + a * 0.5 * self.ffn(self.n2(x))


class Helper(PlainPre):
    """The stream goes through a helper function and a loop."""

    def _step(self, stream: Tensor, norm: nn.Module, fn: nn.Module) -> Tensor:
        delta = fn(norm(stream))
        return stream + delta

    def forward(self, x: Tensor) -> Tensor:
        for norm, fn in ((self.n1, self.att), (self.n2, self.ffn)):
            x = self._step(x, norm, fn)
        return x


class Post(Two):
    def forward(self, x: Tensor) -> Tensor:
        x = self.n1(x + self.drop(self.att(x)))
        return self.n2(x + self.drop(self.ffn(x)))

    def damped(self, x: Tensor, a: float) -> Tensor:
        x = self.n1(x + a * self.att(x))
        return self.n2(x + a * self.ffn(x))


class DeepNorm(Two):
    """DeepNet (2203.00555): the stream is enlarged before the norm."""

    def forward(self, x: Tensor) -> Tensor:
        x = self.n1(x * 1.7 + self.att(x))
        return self.n2(x * 1.7 + self.ffn(x))

    def damped(self, x: Tensor, a: float) -> Tensor:
        x = self.n1(x * 1.7 + a * self.att(x))
        return self.n2(x * 1.7 + a * self.ffn(x))


class Sandwich(Two):
    norm = HandNorm

    def __init__(self, n: int) -> None:
        super().__init__(n)
        self.n3, self.n4 = self.norm(n), self.norm(n)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.n2(self.att(self.n1(x)))
        return x + self.n4(self.ffn(self.n3(x)))

    def damped(self, x: Tensor, a: float) -> Tensor:
        x = x + a * self.n2(self.att(self.n1(x)))
        return x + a * self.n4(self.ffn(self.n3(x)))


class ShiftedSandwich(Sandwich):
    """Gemma's: no tensor can take α, a hook on the norm does."""

    norm = ShiftedNorm


class OutputNorm(Two):
    """OLMo 2: norms only behind the branches."""

    def forward(self, x: Tensor) -> Tensor:
        h = x + self.n1(self.att(x))
        return h + self.n2(self.ffn(h))

    def damped(self, x: Tensor, a: float) -> Tensor:
        h = x + a * self.n1(self.att(x))
        return h + a * self.n2(self.ffn(h))


class GPTJ(Two):
    """One norm, both branches in one sum."""

    def forward(self, x: Tensor) -> Tensor:
        h = self.n1(x)
        return self.att(h) + self.ffn(h) + x

    def damped(self, x: Tensor, a: float) -> Tensor:
        return a * self.att(self.n1(x)) + a * self.ffn(self.n1(x)) + x


class PaLM(nn.Module):
    """Parallel, with the first matrices of both branches fused, and the last ones too."""

    def __init__(self, n: int) -> None:
        super().__init__()
        self.ln, self.n = nn.RMSNorm(n), n
        self.fused, self.joined = nn.Linear(n, 3 * n + 2 * n, bias=False), nn.Linear(n + 2 * n, n, bias=False)

    def _branch(self, x: Tensor) -> Tensor:
        q, k, v, up = self.fused(self.ln(x)).split([self.n, self.n, self.n, 2 * self.n], dim=-1)
        return self.joined(torch.cat([attend(q, k, v), F.silu(up)], dim=-1))

    def forward(self, x: Tensor) -> Tensor:
        return x + self._branch(x)

    def damped(self, x: Tensor, a: float) -> Tensor:
        return x + a * self._branch(x)


class LayerScaled(Two):
    """CaiT: a gain per feature at the end of each branch, as bare parameters."""

    def __init__(self, n: int) -> None:
        super().__init__(n)
        self.gamma_1, self.gamma_2 = nn.Parameter(torch.full((n,), 0.1)), nn.Parameter(torch.full((n,), 0.1))

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.drop(self.gamma_1 * self.att(self.n1(x)))
        return x + self.drop(self.gamma_2 * self.ffn(self.n2(x)))

    def damped(self, x: Tensor, a: float) -> Tensor:
        x = x + a * self.gamma_1 * self.att(self.n1(x))
        return x + a * self.gamma_2 * self.ffn(self.n2(x))


class ReZero(Two):
    """One learned number per branch (2003.04887)."""

    def __init__(self, n: int) -> None:
        super().__init__(n)
        self.resweight = nn.Parameter(torch.zeros(1))

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.resweight * self.att(x)
        return x + self.resweight * self.ffn(x)

    def damped(self, x: Tensor, a: float) -> Tensor:
        x = x + a * self.resweight * self.att(x)
        return x + a * self.resweight * self.ffn(x)


class ScaledActivation(nn.Module):
    """Only the gain stands behind the nonlinearity: x + γ·tanh(W x)."""

    def __init__(self, n: int) -> None:
        super().__init__()
        self.w, self.gain = nn.Linear(n, n), nn.Parameter(torch.ones(n))

    def forward(self, x: Tensor) -> Tensor:
        return x + self.gain * torch.tanh(self.w(x))

    def damped(self, x: Tensor, a: float) -> Tensor:
        return x + a * self.gain * torch.tanh(self.w(x))


class DropPath(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        if not self.training:
            return x
        keep = torch.rand(x.shape[0], *[1] * (x.dim() - 1), device=x.device) < 0.9
        return x * keep / 0.9


class StochasticDepth(Two):
    def __init__(self, n: int) -> None:
        super().__init__(n)
        self.path = DropPath()

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.path(self.att(self.n1(x)))
        x = x + self.path(self.ffn(self.n2(x)))
        return x

    damped = PlainPre.damped


class Residual(nn.Module):
    def __init__(self, fn: nn.Module) -> None:
        super().__init__()
        self.fn = fn

    def forward(self, x: Tensor, **kwargs: Tensor) -> Tensor:
        return self.fn(x, **kwargs) + x


class InSubmodules(nn.Sequential):
    """The sum is in a module around each branch."""

    def __init__(self, n: int) -> None:
        super().__init__(
            Residual(nn.Sequential(nn.LayerNorm(n), SelfAttention(n))),
            Residual(nn.Sequential(nn.LayerNorm(n), Feed(n))),
        )

    def damped(self, x: Tensor, a: float) -> Tensor:
        for residual in self:
            x = x + a * residual.fn(x)
        return x


class SelfOutput(nn.Module):
    def __init__(self, n_in: int, n: int) -> None:
        super().__init__()
        self.proj_back, self.norm = nn.Linear(n_in, n), nn.LayerNorm(n)

    def forward(self, hidden: Tensor, given: Tensor) -> Tensor:
        return self.norm(self.proj_back(hidden) + given)


class BertLike(nn.Module):
    """The sum is in the module that holds the last matrix."""

    def __init__(self, n: int) -> None:
        super().__init__()
        self.q, self.k, self.v = (nn.Linear(n, n) for _ in range(3))
        self.closing, self.wide, self.closing2 = SelfOutput(n, n), nn.Linear(n, 2 * n), SelfOutput(2 * n, n)

    def forward(self, x: Tensor) -> Tensor:
        x = self.closing(attend(self.q(x), self.k(x), self.v(x)), x)
        return self.closing2(F.gelu(self.wide(x)), x)

    def damped(self, x: Tensor, a: float) -> Tensor:
        one, two = self.closing, self.closing2
        x = one.norm(a * one.proj_back(attend(self.q(x), self.k(x), self.v(x))) + x)
        return two.norm(a * two.proj_back(F.gelu(self.wide(x))) + x)


class Gated(Two):
    """The branch times a gate that is made of the stream."""

    def __init__(self, n: int) -> None:
        super().__init__(n)
        self.gate = nn.Linear(n, n)
        del self.att

    def forward(self, x: Tensor) -> Tensor:
        h = self.n1(x)
        return x + torch.sigmoid(self.gate(h)) * self.ffn(h)

    def damped(self, x: Tensor, a: float) -> Tensor:
        h = self.n1(x)
        return x + a * torch.sigmoid(self.gate(h)) * self.ffn(h)


class Modulated(Two):
    """DiT: shift, scale and gate from a condition, here the mean of the stream."""

    def __init__(self, n: int) -> None:
        super().__init__(n)
        self.condition = nn.Linear(n, 6 * n)

    def _parts(self, x: Tensor) -> tuple[Tensor, ...]:
        return self.condition(F.silu(x.mean(1, keepdim=True))).chunk(6, dim=-1)

    def forward(self, x: Tensor) -> Tensor:
        s1, c1, g1, s2, c2, g2 = self._parts(x)
        x = x + g1 * self.att(self.n1(x) * (1 + c1) + s1)
        x = x + g2 * self.ffn(self.n2(x) * (1 + c2) + s2)
        return x

    def damped(self, x: Tensor, a: float) -> Tensor:
        s1, c1, g1, s2, c2, g2 = self._parts(x)
        x = x + a * g1 * self.att(self.n1(x) * (1 + c1) + s1)
        return x + a * g2 * self.ffn(self.n2(x) * (1 + c2) + s2)


class Adapted(Two):
    """A parallel low-rank adapter in each branch's own sum."""

    def __init__(self, n: int) -> None:
        super().__init__(n)
        self.low, self.high = nn.Linear(n, 2, bias=False), nn.Linear(2, n, bias=False)
        del self.ffn

    def forward(self, x: Tensor) -> Tensor:
        h = self.n1(x)
        return x + (self.att(h) + self.high(self.low(h)))

    def damped(self, x: Tensor, a: float) -> Tensor:
        h = self.n1(x)
        return x + a * (self.att(h) + self.high(self.low(h)))
