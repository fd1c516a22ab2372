"""Blocks with layers of their own: experts, convolutions, scans, recurrences."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.residual_zoo.arranged import PlainPre
from tests.residual_zoo.parts import IMAGE, Feed, Swish, Two


class Mixture(nn.Module):
    """Every expert in its own module, a router, two experts per token, results gathered by index_add_."""

    def __init__(self, n: int) -> None:
        super().__init__()
        self.n1, self.router = nn.LayerNorm(n), nn.Linear(n, 4, bias=False)
        self.experts = nn.ModuleList(Swish(n) for _ in range(4))

    def _branch(self, x: Tensor) -> Tensor:
        flat = self.n1(x).reshape(-1, x.shape[-1])
        weights, chosen = self.router(flat).softmax(-1).topk(2, dim=-1)
        out = torch.zeros_like(flat)
        for i, expert in enumerate(self.experts):
            token, slot = torch.where(chosen == i)
            if token.numel():
                out.index_add_(0, token, expert(flat[token]) * weights[token, slot, None])
        return out.view_as(x)

    def forward(self, x: Tensor) -> Tensor:
        return x + self._branch(x)

    def damped(self, x: Tensor, a: float) -> Tensor:
        return x + a * self._branch(x)


class StackedExperts(nn.Module):
    """All experts in one tensor, computed densely, weighted by the router; and a shared expert."""

    def __init__(self, n: int) -> None:
        super().__init__()
        self.router = nn.Linear(n, 4, bias=False)
        self.w_in = nn.Parameter(torch.randn(4, n, 2 * n) / math.sqrt(n))
        self.w_back = nn.Parameter(torch.randn(4, 2 * n, n) / math.sqrt(n))
        self.b_back = nn.Parameter(torch.zeros(4, n))
        self.shared = Swish(n)

    def _branch(self, x: Tensor) -> Tensor:
        weights = self.router(x).softmax(-1)
        hidden = F.relu(torch.einsum("bti,eij->btej", x, self.w_in))
        back = torch.einsum("btej,ejo->bteo", hidden, self.w_back) + self.b_back
        return (back * weights[..., None]).sum(2) + self.shared(x)

    def forward(self, x: Tensor) -> Tensor:
        return x + self._branch(x)

    def damped(self, x: Tensor, a: float) -> Tensor:
        return x + a * self._branch(x)


class MambaLike(nn.Module):
    """Expand, short convolution, a scan, a gate, project back."""

    def __init__(self, n: int) -> None:
        super().__init__()
        self.pre, self.expand = nn.RMSNorm(n), nn.Linear(n, 4 * n, bias=False)
        self.conv = nn.Conv1d(2 * n, 2 * n, 3, groups=2 * n, padding=2)
        self.rate, self.skip = nn.Parameter(torch.zeros(2 * n)), nn.Parameter(torch.ones(2 * n))
        self.shrink = nn.Linear(2 * n, n, bias=False)

    def _branch(self, x: Tensor) -> Tensor:
        u, z = self.expand(self.pre(x)).chunk(2, dim=-1)
        u = F.silu(self.conv(u.transpose(1, 2))[..., : x.shape[1]].transpose(1, 2))
        state, out = torch.zeros_like(u[:, 0]), []
        decay = torch.exp(-F.softplus(self.rate))
        for t in range(u.shape[1]):
            state = decay * state + u[:, t]
            out.append(state)
        y = torch.stack(out, dim=1) + u * self.skip
        return self.shrink(y * F.silu(z))

    def forward(self, x: Tensor) -> Tensor:
        return self._branch(x) + x

    def damped(self, x: Tensor, a: float) -> Tensor:
        return a * self._branch(x) + x


class Mixer(nn.Module):
    """MLP-Mixer: one branch over positions, one over features."""

    T = 5

    def __init__(self, n: int) -> None:
        super().__init__()
        self.ln_t, self.ln_c = nn.LayerNorm(n), nn.LayerNorm(n)
        self.t1, self.t2 = nn.Linear(self.T, 6), nn.Linear(6, self.T)
        self.channels = Feed(n)

    def _tokens(self, x: Tensor) -> Tensor:
        return self.t2(F.gelu(self.t1(self.ln_t(x).transpose(1, 2)))).transpose(1, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self._tokens(x)
        return x + self.channels(self.ln_c(x))

    def damped(self, x: Tensor, a: float) -> Tensor:
        x = x + a * self._tokens(x)
        return x + a * self.channels(self.ln_c(x))


class ConvNeXt(nn.Module):
    """Depthwise convolution, norm over the last axis, two pointwise matrices, a gain, back to the front axis."""

    kind = IMAGE

    def __init__(self, n: int) -> None:
        super().__init__()
        self.deep = nn.Conv2d(n, n, 3, padding=1, groups=n)
        self.ln, self.point = nn.LayerNorm(n), Feed(n)
        self.gamma = nn.Parameter(torch.full((n,), 1e-2))

    def _branch(self, x: Tensor) -> Tensor:
        h = self.point(self.ln(self.deep(x).permute(0, 2, 3, 1)))
        return (self.gamma * h).permute(0, 3, 1, 2)

    def forward(self, x: Tensor) -> Tensor:
        skip = x
        return skip + self._branch(x)

    def damped(self, x: Tensor, a: float) -> Tensor:
        return x + a * self._branch(x)


class Bottleneck(nn.Module):
    """ResNet: three convolutions with batch norm, and a nonlinearity behind the sum."""

    kind = IMAGE

    def __init__(self, n: int) -> None:
        super().__init__()
        self.c1, self.c2, self.c3 = (
            nn.Conv2d(n, 2 * n, 1),
            nn.Conv2d(2 * n, 2 * n, 3, padding=1),
            nn.Conv2d(2 * n, n, 1),
        )
        self.b1, self.b2, self.b3 = nn.BatchNorm2d(2 * n), nn.BatchNorm2d(2 * n), nn.BatchNorm2d(n)
        self.relu = nn.ReLU(inplace=True)

    def _branch(self, x: Tensor) -> Tensor:
        out = F.relu(self.b1(self.c1(x)))
        return self.b3(self.c3(F.relu(self.b2(self.c2(out)))))

    def forward(self, x: Tensor) -> Tensor:
        identity = x
        out = self.relu(self.b1(self.c1(x)))
        out = self.relu(self.b2(self.c2(out)))
        out = self.b3(self.c3(out))
        out += identity
        return self.relu(out)

    def damped(self, x: Tensor, a: float) -> Tensor:
        return F.relu(a * self._branch(x) + x)


class PreActivation(nn.Module):
    """ResNet v2: norms and nonlinearities before each convolution."""

    kind = IMAGE

    def __init__(self, n: int) -> None:
        super().__init__()
        self.b1, self.c1 = nn.BatchNorm2d(n), nn.Conv2d(n, n, 3, padding=1, bias=False)
        self.b2, self.c2 = nn.BatchNorm2d(n), nn.Conv2d(n, n, 3, padding=1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.c2(F.relu(self.b2(self.c1(F.relu(self.b1(x)))))) + x

    def damped(self, x: Tensor, a: float) -> Tensor:
        return a * self.c2(F.relu(self.b2(self.c1(F.relu(self.b1(x)))))) + x


class OneMatrix(nn.Module):
    """k = 1 with a positively homogeneous nonlinearity: x + relu(W x)."""

    def __init__(self, n: int) -> None:
        super().__init__()
        self.lin = nn.Linear(n, n)

    def forward(self, x: Tensor) -> Tensor:
        return x + F.relu(self.lin(x))

    def damped(self, x: Tensor, a: float) -> Tensor:
        return x + a * F.relu(self.lin(x))


class OneMatrixModule(nn.Module):
    """k = 1, and α can only act behind the nonlinearity, which is a module."""

    def __init__(self, n: int) -> None:
        super().__init__()
        self.lin, self.act = nn.Linear(n, n), nn.GELU()

    def forward(self, x: Tensor) -> Tensor:
        return x + self.act(self.lin(x))

    def damped(self, x: Tensor, a: float) -> Tensor:
        return x + a * self.act(self.lin(x))


class Recurrent(nn.Module):
    """A whole recurrent layer as the branch: only its output can be multiplied."""

    def __init__(self, n: int) -> None:
        super().__init__()
        self.ln, self.cell = nn.LayerNorm(n), nn.GRU(n, n, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.cell(self.ln(x))[0]

    def damped(self, x: Tensor, a: float) -> Tensor:
        return x + a * self.cell(self.ln(x))[0]


class TorchAttention(nn.Module):
    """torch's own attention module, whose last matrix is applied by name only."""

    def __init__(self, n: int) -> None:
        super().__init__()
        self.ln, self.mha, self.ln2, self.ffn = (
            nn.LayerNorm(n), nn.MultiheadAttention(n, 2, batch_first=True), nn.LayerNorm(n), Swish(n),
        )  # fmt: skip

    def forward(self, x: Tensor) -> Tensor:
        h = self.ln(x)
        x = x + self.mha(h, h, h, need_weights=False)[0]
        return x + self.ffn(self.ln2(x))

    def damped(self, x: Tensor, a: float) -> Tensor:
        h = self.ln(x)
        x = x + a * self.mha(h, h, h, need_weights=False)[0]
        return x + a * self.ffn(self.ln2(x))


class LinearAttention(nn.Module):
    """φ(q)·(φ(k)ᵀ v) with a rotary turn of q and k, and a hand-written projection by einsum."""

    def __init__(self, n: int) -> None:
        super().__init__()
        self.qkv, self.w_o = nn.Parameter(torch.randn(3, n, n) / math.sqrt(n)), nn.Parameter(torch.randn(n, n))
        self.ffn = Swish(n)

    def _attention(self, x: Tensor) -> Tensor:
        q, k, v = torch.einsum("btc,scd->sbtd", F.layer_norm(x, x.shape[-1:]), self.qkv)
        angle = torch.arange(x.shape[1], dtype=x.dtype, device=x.device)[:, None] / (1 + torch.arange(x.shape[2] // 2))
        cos, sin = torch.cat([angle.cos()] * 2, -1).to(x), torch.cat([angle.sin()] * 2, -1).to(x)

        def turn(t: Tensor) -> Tensor:
            a, b = t.chunk(2, dim=-1)
            return t * cos + torch.cat([-b, a], dim=-1) * sin

        context = torch.einsum("btc,btd->bcd", F.elu(turn(k)) + 1, v)
        return torch.einsum("btc,bcd->btd", F.elu(turn(q)) + 1, context) @ self.w_o

    def forward(self, x: Tensor) -> Tensor:
        x = x + self._attention(x)
        return x + self.ffn(x)

    def damped(self, x: Tensor, a: float) -> Tensor:
        x = x + a * self._attention(x)
        return x + a * self.ffn(x)


class BiasedScores(Two):
    """A learned table of relative positions and a causal mask are added to the scores: sums that are no residual ones."""

    T = 5

    def __init__(self, n: int) -> None:
        super().__init__(n)
        self.q, self.k, self.v, self.back = (nn.Linear(n, n) for _ in range(4))
        self.rel = nn.Embedding(2 * self.T, 1)
        del self.att

    def _attention(self, x: Tensor) -> Tensor:
        t = torch.arange(x.shape[1], device=x.device)
        bias = self.rel((t[:, None] - t[None]).clamp(-self.T, self.T - 1) + self.T)[..., 0]
        scores = self.q(x) @ self.k(x).transpose(1, 2) / math.sqrt(x.shape[-1]) + bias
        mask = torch.full(scores.shape[-2:], -torch.inf, dtype=x.dtype, device=x.device).triu(1)
        return self.back((scores + mask).softmax(-1) @ self.v(x))

    def forward(self, x: Tensor) -> Tensor:
        x = x + self._attention(self.n1(x))
        return x + self.ffn(self.n2(x))

    def damped(self, x: Tensor, a: float) -> Tensor:
        x = x + a * self._attention(self.n1(x))
        return x + a * self.ffn(self.n2(x))


class ResidualInside(Two):
    """A group: a small residual block of its own inside the branch, then a matrix (RCAN)."""

    def __init__(self, n: int) -> None:
        super().__init__(n)
        self.close = nn.Linear(n, n)

    def _branch(self, x: Tensor) -> Tensor:
        h = self.n1(x)
        h = h + self.att(h)
        return self.close(h + self.ffn(h))

    def forward(self, x: Tensor) -> Tensor:
        return x + self._branch(x)

    def damped(self, x: Tensor, a: float) -> Tensor:
        return x + a * self._branch(x)


class Shared(nn.Module):
    """One MLP serves as both branches."""

    def __init__(self, n: int) -> None:
        super().__init__()
        self.n1, self.n2, self.ffn = nn.LayerNorm(n), nn.LayerNorm(n), Feed(n)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.ffn(self.n1(x))
        return x + self.ffn(self.n2(x))

    def damped(self, x: Tensor, a: float) -> Tensor:
        x = x + a * self.ffn(self.n1(x))
        return x + a * self.ffn(self.n2(x))


class WeightNormed(nn.Module):
    """A reparametrised last matrix: its length takes α."""

    def __init__(self, n: int) -> None:
        super().__init__()
        self.ffn = Feed(n)
        nn.utils.parametrizations.weight_norm(self.ffn.two)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.ffn(x)

    def damped(self, x: Tensor, a: float) -> Tensor:
        """Bias included, as in every other block."""
        return x + a * self.ffn(x)


class ZeroInit(PlainPre):
    """Last matrices that start at zero: values tell nothing, the graph does."""

    def __init__(self, n: int) -> None:
        super().__init__(n)
        nn.init.zeros_(self.att.back.weight)
        nn.init.zeros_(self.ffn.two.weight)
