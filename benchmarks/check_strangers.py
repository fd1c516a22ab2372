"""How the coordinate check judges strangers' code: models and μP written by hand in many people's ways, correct and broken.

    python -m benchmarks.check_strangers [regex] [-v]

A variant is a model, an optimizer and a rule (tensor → LR factor), plus faults: exponents by which the init or the learning rate of
some tensors is wrong. Prints each wrong answer with the check's words and, at the end, the confusion counts.
"""

from __future__ import annotations

import functools
import math
import re
import sys
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mutransfer.check import coord_check

BASE, V, T = 32, 64, 16
WIDTHS = (32, 64, 128, 256)
Rule = Callable[[str, str, float], float]  # (role, name, m) -> LR factor
P = functools.partial


# models: (width, m, depth=..., readout=...) -> module; readout: "mult", "input" (as MuReadout), "absorbed" or "none" ------------------


class Head(nn.Linear):
    """A read-out; where its 1/m lives is the author's taste."""

    def __init__(self, n: int, out: int, m: float, readout: str) -> None:
        super().__init__(n, out)
        self.m, self.readout = m, readout

    def forward(self, x: Tensor) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride] # torch names it input
        if self.readout in ("input", "twice"):
            return super().forward(x / self.m) / (self.m if self.readout == "twice" else 1.0)
        y = super().forward(x)
        return y / self.m if self.readout == "mult" else y * self.m if self.readout == "double" else y


class Scaled(nn.Module):
    """Unit-variance weight and 1/fan_in^power in the forward: NTK, unit scaling."""

    def __init__(self, a: int, b: int, power: float = 0.5) -> None:
        super().__init__()
        self.weight, self.bias, self.power = nn.Parameter(torch.randn(b, a)), nn.Parameter(torch.zeros(b)), power

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight) * self.weight.shape[1] ** -self.power + self.bias


def drawn(model: nn.Module, m: float, readout: str = "mult", zero: str = "") -> nn.Module:
    """μP init by hand: 1/√fan_in, embeddings 1, the head constant (or 1/m of it, absorbed); biases 0."""
    for mod in model.modules():
        w = getattr(mod, "weight", None)
        if isinstance(mod, nn.Embedding):
            nn.init.normal_(mod.weight)
        elif isinstance(mod, (nn.Linear, nn.modules.conv._ConvNd)) and isinstance(w, Tensor):
            fan = w.shape[0] * w[0, 0].numel() if isinstance(mod, nn.modules.conv._ConvTransposeNd) else w[0].numel()
            std = fan**-0.5
            if isinstance(mod, Head):
                std = BASE**-0.5 / (m if readout == "absorbed" else m**0.5 if readout == "none" else 1.0)
            nn.init.normal_(w, 0.0, std)
            if mod.bias is not None:
                nn.init.zeros_(mod.bias)
    for name, p in model.named_parameters():
        if zero and re.search(zero, name):
            nn.init.zeros_(p)
    return model


ACTS = {"relu": nn.ReLU, "tanh": nn.Tanh, "gelu": nn.GELU}
NORMS: dict[str, Any] = {"ln": nn.LayerNorm, "bn": nn.BatchNorm1d, "rms": nn.RMSNorm}


def mlp(n: int, m: float, depth: int = 2, act: str = "relu", norm: str = "", bias: bool = True, a: int = 64, out: int = 10,
        readout: str = "mult", zero: str = "", middle: float = 0.0, torch_bias: bool = False, drop: float = 0.0) -> nn.Module:  # fmt: skip
    layers: list[nn.Module] = []
    for k in range(depth + 1):
        layers.append(nn.Linear(n if k else a, n, bias=bias))
        layers += [NORMS[norm](n)] if norm else []
        layers += [ACTS[act]()] + ([nn.Dropout(drop)] if drop else [])
        layers += [Times(m**middle)] if k == 1 and middle else []
    model = nn.Sequential(*layers, Head(n, out, m, readout))
    old = {name: p.detach().clone() for name, p in model.named_parameters() if torch_bias and name.endswith("bias")}
    drawn(model, m, readout, zero)
    with torch.no_grad():
        for name, value in old.items():
            model.get_parameter(name).copy_(value)
    return model


class Times(nn.Module):
    def __init__(self, c: float) -> None:
        super().__init__()
        self.c = c

    def forward(self, x: Tensor) -> Tensor:
        return x * self.c


def ntk(n: int, m: float, depth: int = 2, head: float = 1.0, act: str = "relu") -> nn.Module:
    body = [k for _ in range(depth) for k in (Scaled(n, n), ACTS[act]())]
    return nn.Sequential(Scaled(64, n), ACTS[act](), *body, Scaled(n, 10, head))


class Residual(nn.Module):
    """x + α·W₂φ(W₁x), or x + α·W φ(x) with one matrix."""

    def __init__(self, n: int, m: float, depth: int = 2, alpha: float = 0.0, two: bool = True, readout: str = "mult", norm: bool = False) -> None:  # fmt: skip
        super().__init__()
        self.inp = nn.Linear(64, n)
        self.blocks = nn.ModuleList([nn.Sequential(*([nn.LayerNorm(n)] if norm else []), *([nn.Linear(n, n)] if two else []), nn.ReLU(), nn.Linear(n, n)) for _ in range(depth)])  # fmt: skip
        self.alpha, self.norm, self.head = (depth / 2) ** -alpha, nn.LayerNorm(n), Head(n, 10, m, readout)
        drawn(self, m, readout)

    def forward(self, x: Tensor) -> Tensor:
        x = self.inp(x)
        for block in self.blocks:
            x = x + self.alpha * block(x)
        return self.head(self.norm(x))


class Cnn(nn.Module):
    def __init__(self, n: int, m: float, norm: str = "bn", depthwise: bool = False, flat: bool = False, up: bool = False, readout: str = "mult", res: bool = False) -> None:  # fmt: skip
        super().__init__()
        n = n // 2
        make = {"bn": nn.BatchNorm2d, "gn": lambda c: nn.GroupNorm(4, c), "": lambda c: nn.Identity()}[norm]
        self.stem, self.n0 = nn.Conv2d(1, n, 3, padding=1), make(n)
        self.c1, self.n1 = nn.Conv2d(n, n, 3, padding=1, groups=n if depthwise else 1), make(n)
        self.c2, self.n2 = (
            nn.Conv2d(n, 2 * n, 1 if depthwise else 3, stride=2, padding=0 if depthwise else 1),
            make(2 * n),
        )
        self.up = nn.ConvTranspose2d(2 * n, n, 2, stride=2) if up else None
        self.flat, self.res = flat, res
        c = n if up else 2 * n
        self.head = Head(c * (16 if flat else 1), 10, m, readout)
        drawn(self, m, readout)
        if flat:
            nn.init.normal_(self.head.weight, 0, (16 * 32) ** -0.5 / (m if readout == "absorbed" else 1))

    def forward(self, x: Tensor) -> Tensor:
        x = self.n0(self.stem(x.reshape(-1, 1, 8, 8))).relu()
        y = self.n1(self.c1(x)).relu()
        x = self.n2(self.c2(x + y if self.res else y)).relu()
        if self.up is not None:
            x = self.up(x).relu()
        return self.head(x.flatten(1) if self.flat else x.mean((2, 3)))


@dataclass
class Output:
    logits: Tensor
    loss: Tensor | None = None
    past: Any = None


class Attention(nn.Module):
    def __init__(
        self, n: int, heads: int, kv: int, scale: float | None, packed: bool, qknorm: bool, fused: bool
    ) -> None:
        super().__init__()
        self.h, self.kv, self.d, self.scale, self.fused = heads, kv, n // heads, scale, fused
        self.qkv = nn.Linear(n, 3 * n, bias=False) if packed else None
        if not packed:
            self.wq, self.wk, self.wv = (nn.Linear(n, c * self.d, bias=False) for c in (heads, kv, kv))
        self.causal = True
        self.qn, self.kn = (nn.RMSNorm(self.d), nn.RMSNorm(self.d)) if qknorm else (nn.Identity(), nn.Identity())
        self.proj = nn.Linear(n, n, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        b, t, n = x.shape
        q, k, v = self.qkv(x).chunk(3, -1) if self.qkv is not None else (self.wq(x), self.wk(x), self.wv(x))
        q, k, v = (z.view(b, t, -1, self.d).transpose(1, 2) for z in (q, k, v))
        q, k = self.qn(q), self.kn(k)
        if self.kv < self.h:
            k, v = (z.repeat_interleave(self.h // self.kv, 1) for z in (k, v))
        if self.fused:
            y = F.scaled_dot_product_attention(q, k, v, is_causal=self.causal, scale=self.scale)
        else:
            a = q @ k.transpose(-2, -1) * (self.d**-0.5 if self.scale is None else self.scale)
            mask = torch.ones(t, t, dtype=torch.bool, device=x.device).tril()
            y = a.masked_fill(~mask, float("-inf")).softmax(-1) @ v
        return self.proj(y.transpose(1, 2).reshape(b, t, n))


class Block(nn.Module):
    def __init__(self, n: int, alpha: float, post: bool, gain: bool, norm: Any, **kw: Any) -> None:
        super().__init__()
        self.ln1, self.ln2 = norm(n), norm(n)
        self.attn, self.fc, self.out = Attention(n, **kw), nn.Linear(n, 4 * n), nn.Linear(4 * n, n)
        self.alpha, self.post = alpha, post

    def forward(self, x: Tensor) -> Tensor:
        if self.post:
            x = self.ln1(x + self.alpha * self.attn(x))
            return self.ln2(x + self.alpha * self.out(F.gelu(self.fc(x))))
        x = x + self.alpha * self.attn(self.ln1(x))
        return x + self.alpha * self.out(F.gelu(self.fc(self.ln2(x))))


class Gpt(nn.Module):
    def __init__(self, n: int, m: float, depth: int = 2, heads: str = "grow", kv: str = "all", scale: str = "", packed: bool = False, qknorm: bool = False,
                 fused: bool = True, post: bool = False, tied: bool = False, readout: str = "mult", alpha: float = 0.0, embmult: float = 0.0,
                 zero: str = "", gain: bool = True, hf: bool = False, rms: bool = False, middle: float = 0.0) -> None:  # fmt: skip
        super().__init__()
        h = n // 8 if heads == "grow" else 4
        d = n // h
        c = {"": None, "1/d": 8**0.5 / d, "1/8": 1 / 8}[scale]
        k = {"all": h, "fixed": 2, "half": h // 2}[kv]
        norm = (
            (lambda n: nn.RMSNorm(n, elementwise_affine=gain))
            if rms
            else (lambda n: nn.LayerNorm(n, elementwise_affine=gain))
        )
        self.emb, self.pos = nn.Embedding(V, n), nn.Parameter(torch.randn(T, n))
        kw = dict(heads=h, kv=k, scale=c, packed=packed, qknorm=qknorm, fused=fused)
        a = (depth / 2) ** -alpha
        self.blocks = nn.ModuleList([Block(n, a, post, gain, norm, **kw) for _ in range(depth)])
        self.norm, self.head = norm(n), Head(n, V, m, readout)
        self.embmult, self.hf, self.middle, self.m = m**embmult, hf, middle, m
        drawn(self, m, readout, zero)
        if tied:
            self.head.weight = self.emb.weight
        if embmult:
            nn.init.normal_(self.emb.weight, 0, m**-embmult)

    def forward(self, x: Tensor, labels: Tensor | None = None) -> Any:
        x = self.emb(x) * self.embmult + self.pos[: x.shape[1]]
        for block in self.blocks:
            x = block(x)
            x = x * self.m**self.middle if self.middle else x
        y = self.head(self.norm(x))
        if self.hf:
            return Output(y, None if labels is None else F.cross_entropy(y.flatten(0, 1), labels.flatten()))
        return y


class Torch(nn.Module):
    """torch's own encoder layers, or LSTM, GRU, with whatever names they give."""

    def __init__(self, n: int, m: float, kind: str, readout: str = "mult", growing: bool = False) -> None:
        super().__init__()
        self.kind, self.emb, self.head = kind, nn.Embedding(V, n), Head(n, V, m, readout)
        if kind == "encoder":
            layer = nn.TransformerEncoderLayer(
                n, 4 if growing else n // 8, 4 * n, dropout=0.1, batch_first=True, norm_first=True
            )
            self.body: nn.Module = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        else:
            self.body = {"lstm": nn.LSTM, "gru": nn.GRU, "rnn": nn.RNN}[kind](n, n, batch_first=True)
        drawn(self, m, readout)
        for name, p in self.body.named_parameters():
            if p.dim() > 1 and ("weight_" in name or "in_proj" in name):
                nn.init.normal_(p, 0, p.shape[1] ** -0.5)
            elif p.dim() == 1 and "bias" in name:
                nn.init.zeros_(p)

    def forward(self, x: Tensor) -> Any:
        x = self.emb(x)
        if self.kind == "encoder":
            return self.head(self.body(x))
        y, state = self.body(x)
        return self.head(y), state


class Vit(nn.Module):
    def __init__(self, n: int, m: float, readout: str = "mult") -> None:
        super().__init__()
        self.patch, self.cls_emb = nn.Conv2d(1, n, 2, stride=2), nn.Parameter(torch.randn(1, 1, n))
        self.pos_emb = nn.Parameter(torch.randn(1, 17, n))
        kw = dict(heads=n // 8, kv=n // 8, scale=None, packed=True, qknorm=False, fused=True)
        self.blocks = nn.Sequential(*(Block(n, 1.0, False, True, nn.LayerNorm, **kw) for _ in range(2)))
        for module in self.modules():
            if isinstance(module, Attention):
                module.causal = False
        self.norm, self.head = nn.LayerNorm(n), Head(n, 10, m, readout)
        drawn(self, m, readout)

    def forward(self, x: Tensor) -> Tensor:
        x = self.patch(x.reshape(-1, 1, 8, 8)).flatten(2).transpose(1, 2)
        x = torch.cat([self.cls_emb.expand(len(x), -1, -1), x], 1) + self.pos_emb
        return self.head(self.norm(self.blocks(x))[:, 0])


class Moe(nn.Module):
    """Soft mixture of stacked experts, bare parameters (E, in, out)."""

    def __init__(self, n: int, m: float, readout: str = "mult", einsum: bool = True) -> None:
        super().__init__()
        self.inp, self.router, self.head = nn.Linear(64, n), nn.Linear(n, 4, bias=False), Head(n, 10, m, readout)
        self.w1, self.w2 = (nn.Parameter(torch.randn(4, a, b) * a**-0.5) for a, b in ((n, 2 * n), (2 * n, n)))
        self.einsum = einsum
        drawn(self, m, readout)
        nn.init.normal_(self.router.weight, 0, 1 / n)

    def forward(self, x: Tensor) -> Tensor:
        x = self.inp(x).relu()
        g = self.router(x).softmax(-1)
        if self.einsum:
            h = torch.einsum("bi,eio->beo", x, self.w1).relu()
            y = torch.einsum("beo,eoi->bei", h, self.w2)
        else:
            y = torch.bmm(torch.bmm(x.expand(4, -1, -1), self.w1).relu(), self.w2).transpose(0, 1)
        return self.head(x + (g[..., None] * y).sum(1))


class Sets(nn.Module):
    def __init__(self, n: int, m: float, readout: str = "mult") -> None:
        super().__init__()
        self.phi = nn.Sequential(nn.Linear(8, n), nn.ReLU(), nn.Linear(n, n), nn.ReLU())
        self.rho = nn.Sequential(nn.Linear(n, n), nn.ReLU(), Head(n, 10, m, readout))
        drawn(self, m, readout)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        return {"logits": self.rho(self.phi(x.reshape(-1, 8, 8)).mean(1))}


class Odd(nn.Module):
    """Small nets in unusual clothes: `kind` says which."""

    def __init__(self, n: int, m: float, kind: str, readout: str = "mult", first: float = 1.0) -> None:
        super().__init__()
        self.kind, self.m, self.first, self.seen = kind, m, first, []
        self.inp, self.mid, self.last = nn.Linear(64, n), nn.Linear(n, n), nn.Linear(n, n)
        self.head = Head(n, 10, m, readout)
        if kind == "two heads":
            self.aux = Head(n, 10, m, "mult")
        if kind == "bottleneck":
            self.down, self.back = nn.Linear(n, 16), nn.Linear(16, n)
        if kind == "conv1d":
            self.w = nn.Parameter(torch.randn(n, n) * n**-0.5)
            self.b = nn.Parameter(torch.zeros(n))
        if kind == "unused":
            self.spare, self.frozen = nn.Linear(n, n), nn.Linear(n, n)
            self.frozen.requires_grad_(False)
        self.register_buffer("calls", torch.zeros(1))
        drawn(self, m, readout)
        if kind == "weight norm":
            for layer in (self.inp, self.mid, self.last):
                nn.utils.parametrizations.weight_norm(layer)

    def forward(self, x: Tensor) -> Any:
        self.calls += 1
        self.seen.append(len(x))
        x = self.inp(x).relu()
        if self.kind == "shared":
            x = x + self.mid(x).tanh()
        if self.kind == "bottleneck":
            x = self.back(self.down(x).tanh()).relu()
        x = torch.addmm(self.b, x, self.w).relu() if self.kind == "conv1d" else self.mid(x).relu()
        if self.kind == "unused":
            x = self.frozen(x)
        if self.kind == "checkpoint":
            from torch.utils.checkpoint import checkpoint

            z = checkpoint(self.last, x, use_reentrant=False)
        elif self.kind == "gate":
            z = x * torch.sigmoid(self.last(x))
        elif self.kind == "functional":
            z = x @ self.last.weight.T + self.last.bias
        else:
            z = self.last(x)
        z = z.relu()
        if self.kind == "cosine":
            z = F.normalize(z, dim=-1)
            return 5 * z @ z[:10].T
        if self.kind == "two heads":
            return self.head(z) + self.first * self.m ** (self.first - 1) * self.aux(x)
        return self.head(z)


class Bf16(nn.Module):
    """Its own autocast."""

    def __init__(self, n: int, m: float) -> None:
        super().__init__()
        self.net = mlp(n, m)

    def forward(self, x: Tensor) -> Tensor:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            return self.net(x).float()


# optimizers: rows of (name, parameter, lr, weight_decay, eps) -> optimizer or a list -----------------------------------------------------


def plain(cls: Any, **kw: Any) -> Callable[[list[Any]], Any]:
    """A torch class with one group per tensor and only the settings that it takes."""
    takes = cls.__init__.__code__.co_varnames

    def make(rows: list[Any]) -> Any:
        keys = [k for k in ("lr", "weight_decay", "eps") if k in takes]
        return cls([{"params": [p], **{k: v for k, v in zip(("lr", "weight_decay", "eps"), r, strict=True) if k in keys}} for _, p, *r in rows], **kw)  # fmt: skip

    return make


def adafactor(rows: list[Any]) -> Any:
    """Its step is relative to the RMS of the weight, so hidden matrices need only 1/√N; its eps is another thing."""
    return torch.optim.Adafactor([{"params": [p], "lr": lr} for _, p, lr, *_ in rows])


class Lion(torch.optim.Optimizer):
    """Sign of an average of gradients, with decoupled decay."""

    def __init__(
        self, params: Any, lr: float = 1e-4, betas: tuple[float, float] = (0.9, 0.99), weight_decay: float = 0.0
    ) -> None:
        super().__init__(params, {"lr": lr, "betas": betas, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # pyright: ignore[reportIncompatibleMethodOverride] # torch declares overloads
        for g in self.param_groups:
            for p in g["params"]:
                if p.grad is None:
                    continue
                m = self.state[p].setdefault("m", torch.zeros_like(p))
                p.mul_(1 - g["lr"] * g["weight_decay"]).add_(
                    (m * g["betas"][0] + p.grad * (1 - g["betas"][0])).sign(), alpha=-g["lr"]
                )
                m.lerp_(p.grad, 1 - g["betas"][1])


class Walker(Lion):
    """A user's own class that no registry knows: normalised by the RMS of the tensor's gradient."""

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # pyright: ignore[reportIncompatibleMethodOverride] # torch declares overloads
        for g in self.param_groups:
            for p in g["params"]:
                if p.grad is not None:
                    p.add_(p.grad / (p.grad.square().mean().sqrt() + 1e-12), alpha=-g["lr"])


def orthogonal(g: Tensor) -> Tensor:
    u, _, v = torch.linalg.svd(g.flatten(1), full_matrices=False)
    return (u @ v).view_as(g)


class MuonWithAux(torch.optim.Optimizer):
    """One class, groups marked `use_muon`; `scale(out, in)` multiplies the orthogonal matrix."""

    def __init__(self, params: Any, scale: Callable[[int, int], float]) -> None:
        super().__init__(params, {"lr": 1e-2, "use_muon": False})
        self.scale = scale

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # pyright: ignore[reportIncompatibleMethodOverride] # torch declares overloads
        for g in self.param_groups:
            for p in g["params"]:
                if p.grad is None:
                    continue
                if g["use_muon"]:
                    m = self.state[p].setdefault("momentum", torch.zeros_like(p)).mul_(0.9).add_(p.grad)
                    p.add_(orthogonal(m) * self.scale(p.shape[0], p[0].numel()), alpha=-g["lr"])
                else:
                    s = self.state[p]
                    m = s.setdefault("m", torch.zeros_like(p)).lerp_(p.grad, 0.1)
                    v = s.setdefault("v", torch.zeros_like(p)).lerp_(p.grad.square(), 0.05)
                    k = s["k"] = s.get("k", 0) + 1
                    p.add_((m / (1 - 0.9**k)) / ((v / (1 - 0.95**k)).sqrt() + 1e-12), alpha=-g["lr"])


BODY = re.compile(r"blocks.*(wq|wk|wv|proj|qkv|fc|out|\d)\.(weight)|^(?!0\.)\d+\.weight")


def muon(kind: str, on: str = "", factor: float = 10.0) -> Callable[[list[Any]], Any]:
    """Muon on matrices in blocks (and what `on` names), AdamW on the rest."""
    scales = {
        "keller": lambda o, i: max(1, o / i) ** 0.5,
        "kimi": lambda o, i: 0.2 * max(o, i) ** 0.5,
        "none": lambda o, i: 1.0,
    }

    def make(rows: list[Any]) -> Any:
        chosen = [r for r in rows if r[1].dim() == 2 and (r[0].startswith("blocks") or (on and re.search(on, r[0])))]
        rest = [r for r in rows if all(r is not c for c in chosen)]
        if kind.startswith("torch"):
            adjust = {"torch": "original", "torch-kimi": "match_rms_adamw"}[kind]
            groups = [{"params": [r[1]], "lr": r[2] * factor, "weight_decay": 0.0} for r in chosen]
            return [torch.optim.Muon(groups, adjust_lr_fn=adjust), plain(torch.optim.AdamW)(rest)]  # pyright: ignore[reportArgumentType]
        groups = [
            {"params": [r[1]], "lr": r[2] * (factor if k == 0 else 1), "use_muon": k == 0}
            for k, rs in enumerate((chosen, rest))
            for r in rs
        ]
        return MuonWithAux(groups, scales[kind])

    return make


# rules: (role, name, m) -> LR factor ------------------------------------------------------------------------------------------------------

ADAM: dict[str, float] = {"hidden": -1, "inner": -1}
ABSORBED = {"hidden": -1, "output": -1}
SGD: dict[str, float] = {"input": 1, "vector": 1, "output": 1}
SGD_ABSORBED = {"input": 1, "vector": 1, "output": -1}
MUON: dict[str, float] = {}
NTK = {"hidden": -0.5}


def role(name: str, p: Tensor, q: Tensor) -> str:
    """By which axes grow, with the layouts of these models."""
    if p.dim() == 1:
        return "vector" if p.shape != q.shape else "fixed"
    grows = [s != t for s, t in zip(p.shape, q.shape, strict=True)]
    if re.search("emb|pos|cls", name):
        return "input"
    if re.search(r"\.w[kv]\.", name):  # also where the number of key and value heads is fixed
        return "hidden"
    if re.search(r"^down\.weight|^router", name):
        return "inner"
    if re.search(r"(^|\.)w[12]?$", name):
        return "hidden"
    a, b = (grows[0], grows[1]) if name.startswith("up.") else (grows[1], grows[0])
    return "hidden" if a and b else "input" if b else "output"


@dataclass(frozen=True)
class Variant:
    """One stranger: `culprits` None must PASS, otherwise must FAIL with a first culprit that matches it."""

    name: str
    model: Callable[..., nn.Module]
    opt: Callable[[list[Any]], Any]
    rule: dict[str, float]  # role -> exponent of its LR in m
    data: str = "digits"
    lr: float = 3e-3
    init: dict[str, float] = field(default_factory=dict)  # regex -> wrong exponent of the init
    rate: dict[str, float] = field(default_factory=dict)  # regex -> wrong exponent of the LR
    culprits: str | None = None
    sizes: tuple[Any, ...] = WIDTHS
    rows: int = 32
    steps: int = 3
    seeds: int = 3
    options: dict[str, Any] = field(default_factory=dict)
    decay: float = 0.0
    decay_rule: float = 0.0  # extra exponent of the decay; 0 keeps lr·wd
    eps: float = 1e-12
    lenient: bool = False  # whether INCONCLUSIVE is an acceptable answer too

    def build(self, size: Any) -> tuple[nn.Module, Any]:
        """The stranger's own function."""
        deep = {"depth": size["depth"]} if isinstance(size, dict) and "depth" in size else {}
        width = size["width"] if deep else size["n_embd"] if isinstance(size, dict) else size
        ratio = deep["depth"] / 2 if deep else width / BASE
        m = 1.0 if deep else ratio
        model = self.model(width, m, **deep)
        with torch.device("meta"):
            other = dict(self.model(2 * width, 2 * m, **deep).named_parameters())
        rows = []
        for name, p in model.named_parameters():
            with torch.no_grad():
                for pattern, exponent in self.init.items():
                    if re.search(pattern, name):
                        p.mul_(ratio**exponent)
            own = role(name, p, other[name])
            factor = ratio ** self.rule.get(("depth " + ("block" if "blocks" in name else "")) if deep else own, 0.0)
            wrong = math.prod(ratio**e for pattern, e in self.rate.items() if re.search(pattern, name))
            rows.append((name, p, self.lr * factor * wrong, self.decay / factor * ratio**self.decay_rule, self.eps))
        return model, self.opt(rows)


def broken(v: Variant, name: str, culprits: str = "", **changes: Any) -> Variant:
    """The same stranger with a fault; the culprit is by default what the fault's own patterns match."""
    faults = "|".join([*changes.get("init", {}), *changes.get("rate", {})])
    return replace(v, name=f"{v.name}: {name}", culprits=culprits or faults, **changes)


ADAMW, SGDM = plain(torch.optim.AdamW), plain(torch.optim.SGD, momentum=0.9)
SWEPT = (
    "mlp adam mureadout", "mlp adamw absorbed", "mlp sgd", "mlp tanh 5 layers", "cnn bn adam", "gpt", "gpt tied", "mlp lion", "mlp sgd absorbed", "cnn sgd", "lstm", "ntk layers adam",
    "mlp adam mureadout: first hidden lr ×N", "mlp adam mureadout: last hidden lr ÷√N", "mlp adam mureadout: readout missing", "mlp adam mureadout: a bias lr ×√N", "mlp ln: one hidden lr ×√N",
    "mlp ln: one hidden constant std", "mlp sgd: input lr ÷√N", "mlp sgd: readout missing", "mlp sgd: head lr constant", "mlp sgd: hidden lr ×√N", "cnn bn adam: one conv lr ×√N",
    "cnn bn adam: readout missing", "gpt: query lr ×√N", "gpt: emb lr ÷√N", "gpt: 1/√d with growing d", "gpt: readout missing", "gpt: fc constant std", "mlp adam mureadout: head lr ×√N",
)  # fmt: skip
DEPTHS = tuple({"width": 32, "depth": d} for d in (2, 4, 8, 16))


def variants() -> list[Variant]:
    """All of them."""
    v: list[Variant] = []
    # perceptrons
    base = Variant("mlp adam mureadout", P(mlp, readout="input"), plain(torch.optim.Adam), ADAM)
    for what in ("mult", "absorbed", "none"):
        rule = ADAM if what == "mult" else ABSORBED
        one = replace(base, name=f"mlp adamw {what}", model=P(mlp, readout=what, depth=3), opt=ADAMW, rule=rule)
        v.append(one if what != "none" else broken(one, "head drawn like 1/√n", "^8"))
    for norm in ("ln", "bn", "rms"):
        v.append(replace(base, name=f"mlp {norm} adam", model=P(mlp, norm=norm, act="gelu")))
    for act in ("tanh", "gelu"):
        v.append(replace(base, name=f"mlp {act} 5 layers", model=P(mlp, act=act, depth=4), rows=128))
    v += [
        base,
        replace(base, name="mlp torch's bias", model=P(mlp, torch_bias=True)),
        replace(base, name="mlp one hidden no bias", model=P(mlp, depth=1, bias=False)),
        replace(base, name="mlp no hidden", model=P(mlp, depth=0)),
        replace(base, name="mlp zero head", model=P(mlp, zero="^6")),
        replace(base, name="mlp dropout", model=P(mlp, drop=0.2)),
        replace(base, name="mlp regression", model=P(mlp, a=16, out=1, act="tanh"), data="regression"),
        replace(base, name="mlp regression 4 rows", model=P(mlp, a=16, out=1), data="regression", rows=4),
        replace(base, name="mlp lr 3e-2 256 rows", lr=3e-2, rows=256),
        replace(base, name="mlp lr 1e-4 1 seed", lr=1e-4, seeds=1),
        replace(base, name="mlp 5 seeds 8 steps", seeds=5, steps=8),
        replace(base, name="mlp 1 step", steps=1),
        replace(base, name="mlp widths 16-128", sizes=(16, 32, 64, 128)),
        replace(base, name="mlp widths 64-1024", sizes=(64, 128, 256, 512, 1024), seeds=2),
        replace(base, name="mlp lion", opt=plain(Lion), lr=1e-3),
        replace(base, name="mlp rmsprop", opt=plain(torch.optim.RMSprop), lr=1e-3),
        replace(base, name="mlp unknown walker", opt=plain(Walker), lr=1e-3, rule={"hidden": -1}),
        replace(base, name="mlp nadam", opt=plain(torch.optim.NAdam)),
        replace(base, name="mlp adamax", opt=plain(torch.optim.Adamax)),
        replace(base, name="mlp adagrad", opt=plain(torch.optim.Adagrad)),
        replace(base, name="mlp adamw decay lr·wd", opt=ADAMW, decay=0.1),
        replace(base, name="mlp adamw default decay", opt=ADAMW, decay=0.01, decay_rule=0.0, lenient=False),
        broken(
            replace(base, name="mlp adamw", opt=ADAMW, decay=0.3),
            "decay not scaled",
            r"[24]\.weight",
            decay=0.3,
            options={"flat_decay": True},
        ),
    ]
    for pattern, e, what in ((r"^[24]\.weight", 1.0, "hidden lr ×N"), (r"^[24]\.weight", 0.5, "hidden lr ×√N"), (r"^2\.weight", 1.0, "first hidden lr ×N"),
                             (r"^4\.weight", 0.5, "last hidden lr ×√N"), (r"^4\.weight", -0.5, "last hidden lr ÷√N"), (r"^[24]\.weight", -1, "hidden lr ÷N"),
                             (r"^0\.weight", -0.5, "input lr ÷√N"), (r"^0\.weight", -1, "input lr ÷N"), (r"^2\.bias", 0.5, "a bias lr ×√N"), (r"^2\.bias", -1, "a bias lr ÷N"),
                             (r"^6\.weight", -1, "head lr ÷N"), (r"^6\.weight", 0.5, "head lr ×√N")):  # fmt: skip
        v.append(broken(base, what, rate={pattern: e}))
    lnb = replace(base, name="mlp ln", model=P(mlp, norm="ln", depth=3), opt=ADAMW)
    for pattern, e, what in ((r"^[369]\.weight", 1.0, "hidden lr ×N"), (r"^6\.weight", 0.5, "one hidden lr ×√N"), (r"^9\.weight", -1, "one hidden lr ÷N"), (r"^7\.weight", -0.5, "a gain lr ÷√N"), (r"^7\.bias", 0.5, "a norm bias lr ×√N")):  # fmt: skip
        v.append(broken(lnb, what, rate={pattern: e}))
    v += [
        broken(base, "one hidden constant std", init={r"^2\.weight": 0.5}),
        broken(base, "all hidden constant std", init={r"^[24]\.weight": 0.5}),
        broken(base, "hidden std 1/n", init={r"^[24]\.weight": -0.5}),
        broken(lnb, "one hidden constant std", init={r"^6\.weight": 0.5}),
        broken(lnb, "one hidden std 1/n", init={r"^6\.weight": -0.5}),
        broken(base, "input grows", init={r"^0\.weight": 0.5}),
        broken(base, "readout missing", "^6", model=P(mlp, readout="")),
        broken(base, "readout doubled", "^6", model=P(mlp, readout="input"), init={r"^6\.weight": 1.0}),
        broken(base, "mureadout, and LR ÷N on every matrix", "^6", rule=ABSORBED),
        broken(
            replace(base, name="mlp mult"),
            "multiplier, and LR ÷N on every matrix",
            "^6",
            model=P(mlp, readout="mult"),
            rule=ABSORBED,
        ),
        broken(base, "readout twice in the forward", "^6", model=P(mlp, readout="twice")),
        broken(base, "absorbed init, LR not", "^6", model=P(mlp, readout="absorbed")),
        broken(base, "forward ×√N in the middle", r"^[234]\.", model=P(mlp, readout="input", middle=0.5)),
        broken(base, "forward ÷√N in the middle", r"^[234]\.", model=P(mlp, readout="input", middle=-0.5)),
        broken(base, "eps 1e-3", r".*weight", eps=1e-3),
        broken(base, "eps 1e-4", r".*weight", eps=1e-4, rows=128),
        broken(
            base,
            "sp: torch defaults and plain Adam",
            r"^[2]\.weight",
            model=lambda n, m: nn.Sequential(
                nn.Linear(64, n), nn.ReLU(), nn.Linear(n, n), nn.ReLU(), nn.Linear(n, n), nn.ReLU(), nn.Linear(n, 10)
            ),
            rule={},
        ),
        broken(base, "mup init plain adam", r"^2\.weight", rule={}),
        broken(replace(base, name="mlp lion", opt=plain(Lion)), "constant lr", r"^2\.weight", rule={}),
        broken(
            replace(base, name="mlp rmsprop", opt=plain(torch.optim.RMSprop)), "constant lr", r"^2\.weight", rule={}
        ),
        broken(replace(base, name="mlp walker", opt=plain(Walker)), "constant lr", r"^2\.weight", rule={}),
    ]
    # stochastic gradient descent
    sgd = Variant("mlp sgd", P(mlp, readout="mult"), plain(torch.optim.SGD), SGD, lr=0.1)
    v += [
        sgd,
        replace(sgd, name="mlp sgd nesterov", opt=plain(torch.optim.SGD, momentum=0.9, nesterov=True), lr=0.02),
        replace(sgd, name="mlp sgd momentum mureadout", opt=SGDM, model=P(mlp, readout="input"), lr=0.02),
        replace(sgd, name="mlp sgd absorbed", model=P(mlp, readout="absorbed"), rule=SGD_ABSORBED),
        replace(sgd, name="mlp sgd tanh regression", model=P(mlp, a=16, out=1, act="tanh"), data="regression", lr=0.05),
        replace(sgd, name="mlp sgd lr 1", lr=0.5),
        replace(sgd, name="mlp sgd lr 0.01 4 rows", lr=0.01, rows=4),
        replace(sgd, name="mlp sgd ln", model=P(mlp, norm="ln"), lr=0.05),
        broken(sgd, "plain lr", r"^0\.", rule={}),
        broken(sgd, "input lr constant", rate={r"^0\.weight": -1}),
        broken(sgd, "input lr ÷√N", rate={r"^0\.weight": -0.5}),
        broken(sgd, "one hidden lr ÷N", rate={r"^4\.weight": -1}),
        broken(sgd, "hidden lr ×√N", rate={r"^[24]\.weight": 0.5}),
        broken(sgd, "a bias lr constant", rate={r"^2\.bias": -1}),
        broken(sgd, "head lr constant", rate={r"^6\.weight": -1}),
        broken(sgd, "readout missing", "^6", model=P(mlp, readout="")),
        broken(sgd, "readout doubled", "^6", init={r"^6\.weight": -1.0}, model=P(mlp, readout="absorbed"), rule=SGD),
        replace(sgd, name="mlp sgd clipped", options={"clip": 0.05}, lr=1.0),
        broken(
            replace(sgd, name="mlp sgd absorbed", model=P(mlp, readout="absorbed"), rule=SGD_ABSORBED),
            "global clip bites",
            "^6",
            options={"clip": 0.05},
            lr=1.0,
            sizes=(64, 256, 1024),
        ),
        broken(sgd, "hidden constant std", init={r"^2\.weight": 0.5}),
    ]
    # multipliers in custom layers
    u = Variant("ntk layers adam", P(ntk), ADAMW, NTK)
    v += [
        replace(u, name="unit scaling adam", model=P(ntk, head=1.0, act="gelu")),
        broken(u, "constant lr", r"^2\.weight", rule={}),
        broken(u, "lr ÷N", r"^2\.weight", rule={"hidden": -1}),
        broken(u, "readout 1/√n", "^6", model=P(ntk, head=0.5)),
        replace(
            u,
            name="ntk layers sgd",
            opt=plain(torch.optim.SGD),
            rule={"input": 1, "vector": 1, "hidden": 1, "output": 1},
            lr=0.1,
        ),
    ]
    # convolutions
    c = Variant("cnn bn adam", P(Cnn), ADAMW, ADAM)
    for name, kw in (("gn", {"norm": "gn"}), ("no norm", {"norm": ""}), ("depthwise", {"depthwise": True}), ("flatten", {"flat": True}),
                     ("transposed", {"up": True}), ("residual", {"res": True}), ("absorbed", {"readout": "absorbed"})):  # fmt: skip
        v.append(replace(c, name=f"cnn {name}", model=P(Cnn, **kw), rule=ABSORBED if name == "absorbed" else ADAM))
    v += [
        c,
        replace(c, name="cnn sgd", opt=SGDM, rule=SGD, lr=0.01),
        broken(c, "one conv lr ×N", rate={r"^c2\.weight": 1.0}),
        broken(c, "one conv lr ×√N", rate={r"^c1\.weight": 0.5}),
        broken(c, "stem lr ÷√N", rate={r"^stem\.weight": -0.5}),
        broken(c, "gain lr ÷√N", rate={r"^n1\.weight": -0.5}),
        broken(c, "conv constant std", init={r"^c1\.weight": 0.5}),
        broken(c, "readout missing", "head", model=P(Cnn, readout="")),
        broken(c, "plain", r"^c1", rule={}),
        broken(replace(c, name="cnn transposed", model=P(Cnn, up=True)), "up lr ×N", rate={r"^up\.weight": 1.0}),
        broken(
            replace(c, name="cnn depthwise", model=P(Cnn, depthwise=True, norm="gn")),
            "depthwise lr ÷N",
            rate={r"^c1\.weight": -1.0},
        ),
        broken(
            replace(c, name="cnn sgd", opt=SGDM, rule=SGD, lr=0.01), "stem lr constant", rate={r"^stem\.weight": -1.0}
        ),
        broken(
            replace(c, name="cnn flatten", model=P(Cnn, flat=True)),
            "readout missing",
            "head",
            model=P(Cnn, flat=True, readout=""),
        ),
    ]
    # transformers
    g = Variant("gpt", Gpt, ADAMW, ADAM, data="text", rows=4)
    for name, kw in (("absorbed", {"readout": "absorbed"}), ("mureadout", {"readout": "input"}), ("packed", {"packed": True}), ("packed by hand", {"packed": True, "fused": False}),
                     ("post-norm", {"post": True}), ("tied", {"tied": True}), ("tied mureadout", {"tied": True, "readout": "input"}), ("gqa fixed", {"kv": "fixed"}), ("gqa half", {"kv": "half"}),
                     ("head size grows 1/d", {"heads": "fixed", "scale": "1/d"}), ("head size grows 1/d by hand", {"heads": "fixed", "scale": "1/d", "fused": False}),
                     ("qk-norm", {"qknorm": True}), ("zero query", {"zero": "wq"}), ("zero head", {"zero": "head"}), ("zero branch ends", {"zero": r"proj|out\."}),
                     ("gainless rms", {"rms": True, "gain": False}), ("hf", {"hf": True}), ("heads const scale 1/8", {"scale": "1/8"})):  # fmt: skip
        v.append(replace(g, name=f"gpt {name}", model=P(Gpt, **kw), rule=ABSORBED if name == "absorbed" else ADAM))
    v += [
        g,
        replace(g, name="gpt tied zero query lion", model=P(Gpt, tied=True, zero="wq"), opt=plain(Lion), lr=1e-3),
        replace(g, name="gpt widths 16..128", sizes=(16, 32, 64, 128)),
        replace(g, name="gpt widths 64-512", sizes=(64, 128, 256, 512), seeds=2, steps=2),
        replace(g, name="gpt lr 1e-4", lr=1e-4),
        replace(g, name="gpt sgd", opt=SGDM, rule=SGD, lr=0.05),
        replace(g, name="gpt zero query decay", model=P(Gpt, zero="wq|head"), decay=0.1),
        replace(g, name="gpt muon torch", opt=muon("torch"), rule=MUON),
        replace(g, name="gpt muon keller", opt=muon("keller"), rule=MUON),
        replace(g, name="gpt heads half", model=P(Gpt, kv="half"), opt=muon("torch"), rule=MUON),
        replace(g, name="gpt muon kimi scaled", opt=muon("torch-kimi"), rule={"hidden": -0.5}),
        replace(g, name="gpt kimi own class scaled", opt=muon("kimi"), rule={"hidden": -0.5}),
        broken(
            replace(g, opt=muon("torch-kimi"), rule=MUON, name="gpt muon"), "kimi constant lr", "blocks.0.attn.w[qkv]"
        ),
        broken(
            replace(g, opt=muon("kimi"), rule=MUON, name="gpt muon"), "own kimi constant lr", "blocks.0.attn.w[qkv]"
        ),
        broken(
            replace(g, opt=muon("none"), rule={"hidden": -1}, name="gpt muon"), "lr like Adam's", "blocks.0.attn.w[qkv]"
        ),
        broken(replace(g, opt=muon("torch", on="emb"), rule=MUON, name="gpt muon"), "on the embedding", "emb"),
        broken(replace(g, opt=muon("torch", on="head"), rule=MUON, name="gpt muon"), "on the head", "head"),
        broken(g, "plain adam", "blocks.0.attn.w[qkv]", rule={}),
        broken(g, "emb lr ÷√N", rate={"emb": -0.5}),
        broken(g, "emb lr ÷N", rate={"emb|pos": -1}),
        broken(g, "pos lr ×√N", rate={"pos": 0.5}),
        broken(g, "query and key lr ×N", rate={r"attn\.w[qk]": 1.0}),
        broken(g, "query lr ×√N", rate={r"attn\.wq": 0.5}),
        broken(g, "key lr ÷N", rate={r"attn\.wk": -1.0}),
        broken(g, "value lr ×√N", rate={r"blocks\.1\.attn\.wv": 0.5}),
        broken(g, "proj lr ×N", rate={r"blocks\.1\.attn\.proj": 1.0}),
        broken(g, "fc lr ×√N", rate={r"blocks\.1\.fc\.weight": 0.5}),
        broken(g, "gain lr ÷√N", rate={r"blocks\.1\.ln1\.weight": -0.5}),
        broken(g, "fc bias lr ×√N", rate={r"blocks\.0\.fc\.bias": 0.5}),
        broken(g, "fc constant std", init={r"blocks\.0\.fc\.weight": 0.5}),
        broken(g, "query constant std", init={r"blocks\.0\.attn\.wq": 0.5}),
        broken(g, "all 0.02", r"emb|blocks.0.attn", init={r"attn|fc\.w|out\.w": 0.5}),
        broken(g, "emb std 1/√n", init={"emb": -0.5, "pos": -0.5}),
        broken(g, "readout missing", "head", model=P(Gpt, readout="")),
        broken(g, "tied readout missing", "emb|head|^norm", model=P(Gpt, tied=True, readout="")),
        broken(g, "readout doubled", "head", model=P(Gpt, readout="mult"), init={"head.weight": 1.0}),
        broken(g, "1/√d with growing d", r"attn\.w[qk]", model=P(Gpt, heads="fixed")),
        broken(g, "1/√d with growing d by hand", r"attn\.w[qk]", model=P(Gpt, heads="fixed", fused=False)),
        broken(g, "1/√d growing d packed", r"attn\.qkv", model=P(Gpt, heads="fixed", packed=True)),
        broken(g, "1/√d growing d zero query", r"attn\.w[qk]", model=P(Gpt, heads="fixed", zero="wq")),
        broken(g, "×√N after each block", r"blocks", model=P(Gpt, middle=0.5)),
        broken(g, "eps 1e-4", r".", eps=1e-4),
        broken(g, "decay not scaled", r"blocks", decay=0.3, options={"flat_decay": True}),
        broken(
            replace(g, name="gpt post-norm", model=P(Gpt, post=True)),
            "hidden lr ×√N",
            r"blocks.0.attn.w",
            rate={"blocks.*(w[qkv]|proj|fc|out).*weight": 0.5},
        ),
        broken(
            replace(g, name="gpt gqa fixed", model=P(Gpt, kv="fixed")), "fc lr ×N", rate={r"blocks\.0\.fc\.weight": 1.0}
        ),
        broken(
            replace(g, name="gpt zero branch ends", model=P(Gpt, zero=r"proj|out\.")),
            "out lr ×N",
            rate={r"blocks\.1\.out\.weight": 1.0},
        ),
        broken(replace(g, name="gpt sgd", opt=SGDM, rule=SGD, lr=0.05), "emb lr constant", rate={"emb": -1.0}),
        broken(replace(g, name="gpt sgd", opt=SGDM, rule=SGD, lr=0.05), "plain", "emb|pos", rule={}),
        replace(g, name="gpt emb×√N", model=P(Gpt, embmult=0.5), rule={**ADAM, "emb": -0.5}, rate={"^emb": -0.5}),
        broken(replace(g, name="gpt emb×√N"), "lr not adapted", "emb", model=P(Gpt, embmult=0.5)),
    ]
    # others
    o = Variant("lstm", P(Torch, kind="lstm"), ADAMW, ADAM, data="text", rows=4)
    v += [
        o,
        replace(o, name="gru", model=P(Torch, kind="gru")),
        replace(o, name="encoder", model=P(Torch, kind="encoder")),
        broken(o, "recurrent lr ×N", rate={"weight_hh": 1.0}),
        broken(o, "input-hidden lr ×√N", rate={"weight_ih": 0.5}),
        broken(o, "plain", "body.weight", rule={}),
        broken(
            replace(o, name="encoder", model=P(Torch, kind="encoder")), "in_proj lr ×N", rate={r"in_proj_weight": 1.0}
        ),
        broken(replace(o, name="encoder"), "d grows", r"in_proj", model=P(Torch, kind="encoder", growing=True)),
        broken(
            replace(o, name="encoder", model=P(Torch, kind="encoder")),
            "linear2 lr ×√N",
            rate={r"layers\.1\.linear2\.weight": 0.5},
        ),
    ]
    t = Variant("vit", Vit, ADAMW, ADAM)
    e = Variant("moe", Moe, ADAMW, {"hidden": -1, "output": 0}, init={}, rate={"router": -1})
    s = Variant("sets", Sets, ADAMW, ADAM)
    v += [
        t, e, s,
        replace(e, name="moe bmm", model=P(Moe, einsum=False)),
        broken(t, "cls lr ÷√N", rate={"cls": -0.5}),
        broken(t, "patch lr ÷N", rate={r"patch\.weight": -1.0}),
        broken(t, "qkv lr ×√N", rate={r"blocks\.1\.attn\.qkv": 0.5}),
        broken(e, "w2 lr ×N", r"^w2", rate={"router": -1, "^w2": 1.0}),
        broken(e, "experts plain", r"^w1", rate={"router": -1, "^w[12]": 1.0}),
        broken(replace(e, name="moe bmm", model=P(Moe, einsum=False)), "w1 constant std", "^w1", init={"^w1": 0.5}),
        broken(s, "rho lr ×√N", rate={r"rho\.0\.weight": 0.5}),
        broken(s, "readout missing", "rho.2", model=P(Sets, readout="")),
    ]  # fmt: skip
    # odd code
    w = Variant("odd", P(Odd, kind=""), ADAMW, ADAM)
    for kind in (
        "shared",
        "unused",
        "checkpoint",
        "gate",
        "functional",
        "conv1d",
        "two heads",
        "bottleneck",
        "weight norm",
        "cosine",
    ):
        v.append(replace(w, name=f"odd {kind}", model=P(Odd, kind=kind), rule=ADAM))
        if kind not in ("unused", "bottleneck", "cosine"):
            v.append(broken(v[-1], "last lr ×√N", rate={r"^last.*weight(\.original1)?$": 0.5}))
    v += [
        replace(w, name="odd bf16", model=Bf16),
        broken(replace(w, name="odd conv1d", model=P(Odd, kind="conv1d")), "w plain", rate={"^w$": 1.0}),
        broken(
            replace(w, name="odd two heads", model=P(Odd, kind="two heads")),
            "aux without multiplier",
            "aux",
            model=P(Odd, kind="two heads", first=2.0),
        ),
        broken(
            replace(w, name="odd two heads", model=P(Odd, kind="two heads")), "aux lr ÷N", rate={r"^aux\.weight": -1.0}
        ),
        broken(
            replace(w, name="odd bottleneck", model=P(Odd, kind="bottleneck")),
            "down lr ×N",
            rate={r"^down\.weight": 1.0},
        ),
        broken(
            replace(w, name="odd bottleneck", model=P(Odd, kind="bottleneck")),
            "back lr ÷√N",
            rate={r"^back\.weight": -0.5},
        ),
        broken(base, "head bias lr ÷N", rate={r"^6\.bias": -1.0}),
        broken(
            replace(base, name="mlp zero head absorbed"),
            "head lr not scaled",
            "^6",
            model=P(mlp, readout="absorbed", zero="^6"),
        ),
        broken(
            replace(base, name="mlp zero head", model=P(mlp, zero="^6")), "one hidden lr ×√N", rate={r"^4\.weight": 0.5}
        ),
        broken(replace(base, name="mlp zero head", model=P(mlp, zero="^6")), "head lr ÷√N", rate={r"^6\.weight": -0.5}),
        broken(replace(g, name="gpt zero query", model=P(Gpt, zero="wq")), "query lr ×N", rate={"attn.wq": 1.0}),
        broken(replace(g, name="gpt zero query", model=P(Gpt, zero="wq")), "key lr ×√N", rate={"attn.wk": 0.5}),
        broken(
            replace(g, name="gpt zero branch ends", model=P(Gpt, zero=r"proj|out\.")),
            "value lr ×N",
            rate={r"blocks\.0\.attn\.wv": 1.0},
        ),
        broken(replace(g, name="gpt lion", opt=plain(Lion), lr=1e-3), "constant lr", r"blocks.0.attn.w", rule={}),
        broken(
            replace(g, name="gpt qk-norm", model=P(Gpt, qknorm=True, heads="fixed")),
            "1/√d with growing d",
            r"blocks.0.attn",
        ),
        replace(g, name="gpt qk-norm growing d 1/d", model=P(Gpt, qknorm=True, heads="fixed", scale="1/d")),
        broken(
            replace(g, name="gpt sgd", opt=SGDM, rule=SGD, lr=0.05),
            "gain lr constant",
            rate={r"blocks\.0\.ln1\.weight": -1.0},
        ),
        broken(replace(g, name="gpt tied", model=P(Gpt, tied=True)), "emb lr ÷√N", rate={"emb": -0.5}),
        broken(
            replace(g, name="gpt tied", model=P(Gpt, tied=True)), "proj lr ×√N", rate={r"blocks\.0\.attn\.proj": 0.5}
        ),
        replace(g, name="gpt dicts", sizes=tuple({"n_embd": n, "n_head": n // 8} for n in WIDTHS)),
        replace(
            base,
            name="mlp sgd l2",
            opt=plain(torch.optim.SGD),
            rule=SGD,
            model=P(mlp, readout="mult"),
            lr=0.1,
            decay=1e-3,
        ),
        replace(base, name="mlp eps scaled, large", eps=1e-3, options={"scaled_eps": True}),
        replace(
            base,
            name="mlp warm-up",
            options={"schedule": lambda o: torch.optim.lr_scheduler.LambdaLR(o, lambda t: (t + 1) / 4)},
        ),
        broken(
            base,
            "OneCycleLR",
            ".",
            options={"schedule": lambda o: torch.optim.lr_scheduler.OneCycleLR(o, 1e-2, total_steps=50)},
        ),
        broken(
            base,
            "cosine with eta_min",
            ".",
            options={"schedule": lambda o: torch.optim.lr_scheduler.CosineAnnealingLR(o, 50, eta_min=1e-3)},
        ),
        replace(base, name="mlp adam amsgrad", opt=plain(torch.optim.Adam, amsgrad=True)),
        replace(base, name="mlp radam", opt=plain(torch.optim.RAdam), lenient=True, steps=8),
        replace(
            base,
            name="mlp rprop-like asgd",
            opt=plain(torch.optim.ASGD),
            rule=SGD,
            model=P(mlp, readout="mult"),
            lr=0.1,
        ),
        replace(base, name="mlp adafactor", opt=adafactor, rule={"hidden": -0.5}, lenient=True),
        replace(base, name="mlp bn sgd", opt=SGDM, rule=SGD, model=P(mlp, norm="bn", readout="mult"), lr=0.02),
        replace(
            g, name="gpt muon absorbed head", model=P(Gpt, readout="absorbed"), opt=muon("torch"), rule={"output": -1}
        ),
        broken(replace(g, name="gpt muon", opt=muon("torch"), rule=MUON), "emb lr ÷√N", rate={"emb": -0.5}),
        broken(
            replace(g, name="gpt muon", opt=muon("torch"), rule=MUON),
            "one proj lr ×√N",
            rate={r"blocks\.1\.attn\.proj": 0.5},
        ),
        broken(
            replace(g, name="gpt muon gqa fixed", model=P(Gpt, kv="fixed"), opt=muon("torch"), rule=MUON),
            "constant lr",
            r"attn.w[kv]",
        ),
        broken(
            replace(base, name="mlp zero head 1 step", model=P(mlp, zero="^6"), steps=1),
            "hidden lr ×N",
            rate={r"^4\.weight": 1.0},
        ),
    ]
    settings: tuple[dict[str, Any], ...] = (dict(sizes=(16, 32, 64, 128), rows=8, lr=1e-4), dict(sizes=(64, 128, 256, 512), rows=128, lr=1e-2, seeds=2), dict(sizes=(32, 128, 512), rows=4, lr=3e-2, seeds=1),
                dict(sizes=(32, 64, 128, 256, 512), rows=256, lr=1e-3, steps=6, seeds=2))  # fmt: skip
    for k, setting in enumerate(settings):
        for one in list(v):
            if one.name in SWEPT:
                changed = (
                    {**setting, "rows": max(2, setting["rows"] // 8)}
                    if one.data == "text" or "cnn" in one.name
                    else setting
                )
                changed = {**changed, "lr": one.lr * changed["lr"] / 3e-3} if "sgd" in one.name else changed
                v.append(replace(one, name=f"setting {k} {one.name}", **changed))
    # depth: the rule's key for tensors in blocks
    d = Variant("deep mlp 1/L", P(Residual, alpha=1.0), ADAMW, {}, sizes=DEPTHS)
    v += [
        d,
        replace(d, name="deep mlp 1/L norm", model=P(Residual, alpha=1.0, norm=True)),
        replace(d, name="deep mlp 1/√L", model=P(Residual, alpha=0.5, two=False), rule={"depth block": -0.5}),
        replace(d, name="deep mlp sgd 1/L", opt=plain(torch.optim.SGD), rule={"depth block": 1.0}, lr=0.05),
        broken(d, "no multiplier", "blocks", model=P(Residual, alpha=0.0)),
        broken(d, "1/L, lr ×L", rate={"blocks": 1.0}),
        broken(d, "1/√L, lr constant", "blocks", model=P(Residual, alpha=0.5, two=False)),
        broken(
            replace(d, name="deep mlp sgd 1/L", opt=plain(torch.optim.SGD), lr=0.05), "lr constant", "blocks", rule={}
        ),
    ]
    gd = replace(g, name="deep gpt 1/L", model=P(Gpt, alpha=1.0), sizes=DEPTHS, rule={})
    v += [
        gd,
        replace(gd, name="deep gpt 1/L zero ends", model=P(Gpt, alpha=1.0, zero=r"proj|out\.")),
        broken(gd, "no multiplier", "blocks", model=P(Gpt, alpha=0.0)),
        broken(gd, "lr ×L", rate={"blocks": 1.0}),
        broken(gd, "1/L, block lr ÷L", rate={"blocks": -1.0}),
        broken(gd, "1/√L, lr constant", "blocks", model=P(Gpt, alpha=0.5)),
    ]
    return v


# running -----------------------------------------------------------------------------------------------------------------------------------


def task(v: Variant) -> tuple[list[Any], Callable[..., Tensor]]:
    """Batches and a loss: digits, teacher regression or characters."""
    gen = torch.Generator().manual_seed(7)
    if v.data == "text":
        import pydoc_data.topics

        raw = torch.tensor(list(" ".join(pydoc_data.topics.topics.values()).encode()[:100_000])) % V
        at = torch.randint(len(raw) - T - 1, (4, v.rows), generator=gen)
        windows = raw[at[..., None] + torch.arange(T + 1)]
        return [{"x": w[:, :-1], "labels": w[:, 1:]} for w in windows], text_loss
    if v.data == "regression":
        x = torch.randn(4, v.rows, 16, generator=gen)
        y = torch.tanh(x[..., :4].sum(-1, keepdim=True))
        return list(zip(x, y, strict=True)), lambda model, b: F.mse_loss(model(b[0]), b[1])
    from sklearn.datasets import load_digits

    x, y = load_digits(return_X_y=True)
    x, y = torch.tensor(x, dtype=torch.float32) / 8 - 1, torch.tensor(y)
    order = torch.randperm(len(x), generator=gen)[: 4 * v.rows].view(4, -1)
    return [(x[i], y[i]) for i in order], digit_loss


def text_loss(model: Any, b: dict[str, Tensor]) -> Tensor:
    """Cross-entropy, whatever the model returns."""
    out = model(b["x"], labels=b["labels"]) if getattr(model, "hf", False) else model(b["x"])
    if isinstance(out, Output):
        return F.cross_entropy(out.logits.flatten(0, 1), b["labels"].flatten()) if out.loss is None else out.loss
    return F.cross_entropy((out[0] if isinstance(out, tuple) else out).flatten(0, 1), b["labels"].flatten())


def digit_loss(model: Any, b: Any) -> Tensor:
    """Cross-entropy of a classifier that returns logits or a dict."""
    out = model(b[0])
    return F.cross_entropy(out["logits"] if isinstance(out, dict) else out, b[1])


def run(v: Variant) -> tuple[str, Any, float]:
    """One word of judgement, the report and the seconds it took."""
    batches, loss = task(v)
    options = dict(v.options)
    build = v.build
    if options.pop("flat_decay", False):

        def build(size: Any) -> Any:
            model, opt = v.build(size)
            for group in opt.param_groups:
                group["weight_decay"] = v.decay
            return model, opt

    if options.pop("scaled_eps", False):

        def build(size: Any) -> Any:
            model, opt = v.build(size)
            for group, p in zip(opt.param_groups, model.parameters(), strict=True):
                group["eps"] = v.eps * (1.0 if p.shape == (10,) else BASE / size)
            return model, opt

    start = time.perf_counter()
    report = coord_check(build, list(v.sizes), batches, loss, steps=v.steps, seeds=v.seeds, **options)
    seconds = time.perf_counter() - start
    wanted = "PASS" if v.culprits is None else "FAIL"
    if report.verdict == wanted == "FAIL" and not re.search(v.culprits or "", report.culprits[0]):
        late = any(re.search(v.culprits or "", name) for name in report.culprits)
        return ("wrong first culprit" if late else "culprit not named"), report, seconds
    if report.verdict == wanted:
        return "right", report, seconds
    if report.verdict == "INCONCLUSIVE":
        return (
            ("right" if v.lenient else f"inconclusive on {'correct' if wanted == 'PASS' else 'broken'}"),
            report,
            seconds,
        )
    return ("false alarm" if wanted == "PASS" else "miss"), report, seconds


def main() -> None:
    only = next((a for a in sys.argv[1:] if not a.startswith("-")), "")
    counts: Counter[str] = Counter()
    for v in variants():
        if not re.search(only, v.name):
            continue
        try:
            answer, report, seconds = run(v)
            words = report.words()
        except Exception as error:
            answer, words, seconds = f"raised {type(error).__name__}", str(error), 0.0
        counts[answer] += 1
        counts["correct" if v.culprits is None else "broken"] += 1
        if answer != "right" or "-v" in sys.argv:
            print(f"{answer:22} {v.name} [{seconds:.1f} s] wanted {v.culprits or 'PASS'}", flush=True)
            if answer != "right":
                print("    " + "\n    ".join(words.splitlines()[:8]), flush=True)
    print("\n" + "\n".join(f"{n:5}  {answer}" for answer, n in sorted(counts.items())))


if __name__ == "__main__":
    main()
