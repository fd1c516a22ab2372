"""Hand-written models: a nanoGPT with fused projections that can also run as published codes do, and mixtures of experts."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

VOCABULARY, CONTEXT, HEAD = 19, 8, 16


@dataclass(frozen=True)
class How:
    """What a published forward pass does: scale of attention, factors on tokens, positions, branches and logits."""

    attention: float | None = None  # None: 1/√d
    tokens: float = 1.0
    positions: float = 1.0
    branch: float = 1.0
    logits: float = 1.0


class NanoAttention(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.n_head, self.n_embd = width // HEAD, width
        self.c_attn, self.c_proj = nn.Linear(width, 3 * width), nn.Linear(width, width)

    def forward(self, x: Tensor, scale: float | None) -> Tensor:
        b, t, n = x.shape
        q, k, v = (part.view(b, t, self.n_head, -1).transpose(1, 2) for part in self.c_attn(x).split(n, dim=2))
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True, scale=scale)
        return self.c_proj(y.transpose(1, 2).reshape(b, t, n))


class NanoMLP(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.c_fc, self.c_proj = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        return self.c_proj(F.gelu(self.c_fc(x)))


class NanoBlock(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.ln_1, self.ln_2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attn, self.mlp = NanoAttention(width), NanoMLP(width)

    def forward(self, x: Tensor, how: How) -> Tensor:
        x = x + how.branch * self.attn(self.ln_1(x), how.attention)
        return x + how.branch * self.mlp(self.ln_2(x))


class NanoGPT(nn.Module):
    """nanoGPT's names and init: σ, residual projections σ/√(2·n_layer) where `gpt2`, zero biases."""

    def __init__(self, width: int, depth: int, tied: bool = True, gpt2: bool = True) -> None:
        super().__init__()
        self.how = How()
        self.wte, self.wpe = nn.Embedding(VOCABULARY, width), nn.Embedding(CONTEXT, width)
        self.h = nn.ModuleList(NanoBlock(width) for _ in range(depth))
        self.ln_f = nn.LayerNorm(width)
        self.lm_head = nn.Linear(width, VOCABULARY, bias=False)
        if tied:
            self.lm_head.weight = self.wte.weight
        for name, p in self.named_parameters():
            if name.endswith("bias"):
                nn.init.zeros_(p)
            elif p.dim() > 1:
                nn.init.normal_(p, std=0.125 / (math.sqrt(2 * depth) if gpt2 and "c_proj" in name else 1.0))

    def forward(self, idx: Tensor) -> Tensor:
        x = self.how.tokens * self.wte(idx)
        x = x + self.how.positions * self.wpe(torch.arange(idx.shape[1], device=idx.device))
        for block in self.h:
            x = block(x, self.how)
        return self.lm_head(self.how.logits * self.ln_f(x))


class MoE(nn.Module):
    """Two experts of four a token, in separate modules."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.router = nn.Linear(width, 4, bias=False)
        self.experts = nn.ModuleList(NanoMLP(width) for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        weights = chosen(self.router(x))
        return sum((weights[..., i : i + 1] * expert(x) for i, expert in enumerate(self.experts)), torch.zeros_like(x))


class StackedMoE(nn.Module):
    """The same with each matrix of all experts in one tensor (expert, in, out)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.router = nn.Linear(width, 4, bias=False)
        self.w_in = nn.Parameter(torch.randn(4, width, 2 * width) * width**-0.5)
        self.w_out = nn.Parameter(torch.randn(4, 2 * width, width) * (2 * width) ** -0.5)

    def forward(self, x: Tensor) -> Tensor:
        hidden = F.gelu(torch.einsum("btn,enm->btem", x, self.w_in))
        return torch.einsum("btem,emn,bte->btn", hidden, self.w_out, chosen(self.router(x)))


def chosen(logits: Tensor) -> Tensor:
    """Softmax over the two largest."""
    top = logits.topk(2, dim=-1).values[..., -1:]
    return logits.masked_fill(logits < top, -math.inf).softmax(-1)


class MoEBlock(nn.Module):
    def __init__(self, width: int, stacked: bool) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.RMSNorm(width), nn.RMSNorm(width)
        self.attn = NanoAttention(width)
        self.moe = StackedMoE(width) if stacked else MoE(width)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attn(self.norm1(x), None)
        return x + self.moe(self.norm2(x))


class MoEGPT(nn.Module):
    def __init__(self, width: int, depth: int, stacked: bool = False) -> None:
        super().__init__()
        self.wte, self.wpe = nn.Embedding(VOCABULARY, width), nn.Embedding(CONTEXT, width)
        self.blocks = nn.ModuleList(MoEBlock(width, stacked) for _ in range(depth))
        self.norm = nn.RMSNorm(width)
        self.lm_head = nn.Linear(width, VOCABULARY, bias=False)
        for table in (self.wte, self.wpe):
            nn.init.normal_(table.weight, std=0.25)

    def forward(self, idx: Tensor) -> Tensor:
        x = self.wte(idx) + self.wpe(torch.arange(idx.shape[1], device=idx.device))
        for block in self.blocks:
            x = block(x)
        return self.lm_head(self.norm(x))


def stacked_moe(width: int, depth: int) -> MoEGPT:
    """The mixture with stacked experts, as a factory."""
    return MoEGPT(width, depth, stacked=True)


AXES = {"*.w_in": "stack in out", "*.w_out": "stack in out"}


def loss(model: nn.Module, step: int) -> Tensor:
    """Cross-entropy on text that can be learnt: each token follows from the one before it."""
    g = torch.Generator().manual_seed(step)
    idx = torch.randint(VOCABULARY, (8, 1), generator=g)
    for _ in range(CONTEXT):
        idx = torch.cat((idx, (3 * idx[:, -1:] + 1) % VOCABULARY), 1)
    return F.cross_entropy(model(idx[:, :-1]).flatten(0, 1), idx[:, 1:].flatten())


def train(model: nn.Module, optimizer: torch.optim.Optimizer, steps: int, plan: Any = None) -> list[float]:
    """The losses of this many steps; with a plan, gradients clipped by its norm."""
    found = []
    for step in range(steps):
        optimizer.zero_grad()
        value = loss(model, step)
        value.backward()
        if plan is not None:
            plan.clip_grad_norm_(model, 1.0)
        optimizer.step()
        found.append(value.item())
    return found
