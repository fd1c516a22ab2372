"""Whole models: where the sum is in the parent, or several stacks grow."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.residual_zoo.arranged import PlainPre
from tests.residual_zoo.parts import IMAGE, SEQUENCE, Feed, SelfAttention, attend


class Net(nn.Module):
    """A stack of blocks between a first and a last layer."""

    def __init__(self, block: type[nn.Module], n: int, depth: int) -> None:
        super().__init__()
        image = getattr(block, "kind", SEQUENCE) == IMAGE
        self.first = nn.Conv2d(3, n, 1) if image else nn.Linear(3, n)
        self.layers = nn.ModuleList(block(n) for _ in range(depth))
        self.last = nn.Conv2d(n, 2, 1) if image else nn.Linear(n, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        for layer in self.layers:
            x = layer(x)
        return self.last(x)

    def damped(self, x: Tensor, a: float) -> Tensor:
        x = self.first(x)
        for layer in self.layers:
            x = layer.damped(x, a)
        return self.last(x)


class SumOutside(Net):
    """`x = x + layer(x)`: the block is the branch."""

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        for layer in self.layers:
            x = x + layer(x)
        return self.last(x)

    def damped(self, x: Tensor, a: float) -> Tensor:
        x = self.first(x)
        for layer in self.layers:
            x = x + a * layer(x)
        return self.last(x)


class NormsOutside(nn.Module):
    """Lists of norms, attentions and MLPs side by side, all arranged by the model's own forward."""

    def __init__(self, n: int, depth: int) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(3, n), nn.Linear(n, 2)
        self.norms = nn.ModuleList(nn.LayerNorm(n) for _ in range(depth))
        self.attentions = nn.ModuleList(SelfAttention(n) for _ in range(depth))
        self.mlps = nn.ModuleList(Feed(n) for _ in range(depth))

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        for norm, attention, mlp in zip(self.norms, self.attentions, self.mlps, strict=True):
            x = attention(norm(x)) + x
            x = mlp(x) + x
        return self.last(x)

    def damped(self, x: Tensor, a: float) -> Tensor:
        x = self.first(x)
        for norm, attention, mlp in zip(self.norms, self.attentions, self.mlps, strict=True):
            x = a * attention(norm(x)) + x
            x = a * mlp(x) + x
        return self.last(x)


class CrossLayer(nn.Module):
    def __init__(self, n: int) -> None:
        super().__init__()
        self.own, self.q, self.kv, self.close, self.ffn = (
            SelfAttention(n), nn.Linear(n, n), nn.Linear(n, 2 * n), nn.Linear(n, n), Feed(n),
        )  # fmt: skip
        self.n1, self.n2, self.n3 = nn.LayerNorm(n), nn.LayerNorm(n), nn.LayerNorm(n)

    def cross(self, x: Tensor, memory: Tensor) -> Tensor:
        return self.close(attend(self.q(x), *self.kv(memory).chunk(2, dim=-1)))

    def forward(self, x: Tensor, memory: Tensor) -> Tensor:
        x = x + self.own(self.n1(x))
        x = x + self.cross(self.n2(x), memory)
        return x + self.ffn(self.n3(x))


class EncoderDecoder(nn.Module):
    """Both stacks grow; the decoder has three branches."""

    def __init__(self, n: int, depth: int) -> None:
        super().__init__()
        self.embed, self.head = nn.Embedding(11, n), nn.Linear(n, 11, bias=False)
        self.encoder = nn.ModuleList(PlainPre(n) for _ in range(depth))
        self.decoder = nn.ModuleList(CrossLayer(n) for _ in range(depth))

    def forward(self, source: Tensor, target: Tensor) -> Tensor:
        memory, x = self.embed(source), self.embed(target)
        for layer in self.encoder:
            memory = layer(memory)
        for layer in self.decoder:
            x = layer(x, memory)
        return self.head(x)

    def damped(self, source: Tensor, target: Tensor, a: float) -> Tensor:
        memory, x = self.embed(source), self.embed(target)
        for layer in self.encoder:
            memory = layer.damped(memory, a)
        for layer in self.decoder:
            x = x + a * layer.own(layer.n1(x))
            x = x + a * layer.cross(layer.n2(x), memory)
            x = x + a * layer.ffn(layer.n3(x))
        return self.head(x)


class LambdaGPT(nn.Module):
    """nanochat: learned numbers on the stream and on the first embedding, norms without gains, squared ReLU."""

    def __init__(self, n: int, depth: int) -> None:
        super().__init__()
        self.wte, self.n = nn.Embedding(11, n), n
        self.blocks = nn.ModuleList(nn.ModuleDict({"a": SelfAttention(n), "m": Feed(n)}) for _ in range(depth))
        self.resid, self.again = nn.Parameter(torch.ones(depth)), nn.Parameter(torch.zeros(depth))
        self.head = nn.Linear(n, 11, bias=False)

    def _norm(self, x: Tensor) -> Tensor:
        return F.rms_norm(x, (self.n,))

    def forward(self, idx: Tensor, targets: Tensor | None = None) -> Tensor:
        x = start = self._norm(self.wte(idx))
        for i, block in enumerate(self.blocks):
            x = self.resid[i] * x + self.again[i] * start
            x = x + block["a"](self._norm(x))
            x = x + block["m"](self._norm(x))
        logits = 15 * torch.tanh(self.head(self._norm(x)) / 15)
        return logits if targets is None else F.cross_entropy(logits.flatten(0, 1), targets.flatten())

    def damped(self, idx: Tensor, a: float) -> Tensor:
        x = start = self._norm(self.wte(idx))
        for i, block in enumerate(self.blocks):
            x = self.resid[i] * x + self.again[i] * start
            x = x + a * block["a"](self._norm(x))
            x = x + a * block["m"](self._norm(x))
        return 15 * torch.tanh(self.head(self._norm(x)) / 15)


class PatchTransformer(nn.Module):
    """A small ViT with a class token and a bare table of positions: only one image size fits."""

    def __init__(self, n: int, depth: int) -> None:
        super().__init__()
        self.patch = nn.Conv2d(3, n, 4, stride=4)
        self.cls, self.pos = nn.Parameter(torch.zeros(1, 1, n)), nn.Parameter(torch.randn(1, 17, n))
        self.stages = nn.Sequential(*(PlainPre(n) for _ in range(depth)))
        self.head = nn.Linear(n, 5)

    def _tokens(self, x: Tensor) -> Tensor:
        x = self.patch(x).flatten(2).transpose(1, 2)
        return torch.cat([self.cls.expand(x.shape[0], -1, -1), x], dim=1) + self.pos

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.stages(self._tokens(x))[:, 0])

    def damped(self, x: Tensor, a: float) -> Tensor:
        x = self._tokens(x)
        for block in self.stages:
            x = block.damped(x, a)
        return self.head(x[:, 0])
