"""Models parametrized by hand, correct and broken, that the check must tell apart. No rule of the library is used here.

A variant is correct by the published tables; a defect multiplies the init std or learning rate of the tensors that a pattern names by a
power of the width ratio N, or changes the forward.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

BASE = 32


class MLP(nn.Module):
    def __init__(
        self,
        n: int,
        inputs: int = 20,
        outputs: int = 5,
        multiplier: float = 1.0,
        bias: bool = True,
        scale_body: float = 1.0,
    ) -> None:
        super().__init__()
        self.first = nn.Linear(inputs, n, bias=bias)
        self.middle = nn.ModuleList(nn.Linear(n, n, bias=bias) for _ in range(2))
        self.head = nn.Linear(n, outputs, bias=bias)
        self.multiplier, self.scale_body = multiplier, scale_body

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.first(x))
        for layer in self.middle:
            x = F.relu(layer(x) * self.scale_body)
        return self.head(x) * self.multiplier


class CNN(nn.Module):
    def __init__(self, n: int, norm: bool = False, multiplier: float = 1.0) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(1, n, 3, padding=1, bias=not norm)
        self.conv2 = nn.Conv2d(n, 2 * n, 3, padding=1, stride=2, bias=not norm)
        self.conv3 = nn.Conv2d(2 * n, 2 * n, 3, padding=1, bias=not norm)
        self.bn1, self.bn2, self.bn3 = (nn.BatchNorm2d(k) if norm else nn.Identity() for k in (n, 2 * n, 2 * n))
        self.head = nn.Linear(2 * n, 10)
        self.multiplier = multiplier

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.bn1(self.conv1(x)))
        x = F.relu(self.bn2(self.conv2(x)))
        x = F.relu(self.bn3(self.conv3(x)))
        return self.head(x.mean((2, 3))) * self.multiplier


class Norm(nn.Module):
    def __init__(self, n: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(n))

    def forward(self, x: Tensor) -> Tensor:
        return F.rms_norm(x, (x.shape[-1],), self.weight)


class Attention(nn.Module):
    def __init__(self, n: int, heads: int, kv: int, by_hand: bool, power: float, d_base: int, bias: bool) -> None:
        super().__init__()
        self.d = n // heads
        self.heads, self.kv, self.by_hand = heads, kv, by_hand
        self.q = nn.Linear(n, n, bias=bias)
        self.k = nn.Linear(n, kv * self.d, bias=bias)
        self.v = nn.Linear(n, kv * self.d, bias=bias)
        self.out = nn.Linear(n, n, bias=bias)
        self.scale = d_base**-0.5 * (d_base / self.d) ** power

    def forward(self, x: Tensor) -> Tensor:
        b, t, n = x.shape
        q = self.q(x).view(b, t, self.heads, self.d).transpose(1, 2)
        k, v = (w(x).view(b, t, self.kv, self.d).transpose(1, 2) for w in (self.k, self.v))
        if self.kv != self.heads:
            k, v = (z.repeat_interleave(self.heads // self.kv, 1) for z in (k, v))
        if self.by_hand:
            logits = (q @ k.transpose(-2, -1)) * self.scale
            logits = logits.masked_fill(~torch.ones(t, t, dtype=torch.bool).tril(), -torch.inf)
            y = F.softmax(logits, -1) @ v
        else:
            y = F.scaled_dot_product_attention(q, k, v, is_causal=True, scale=self.scale)
        return self.out(y.transpose(1, 2).reshape(b, t, n))


class Block(nn.Module):
    def __init__(self, n: int, norm: bool, branch: float, **attention: Any) -> None:
        super().__init__()
        self.norm1, self.norm2 = (Norm(n) if norm else nn.Identity() for _ in range(2))
        self.attn = Attention(n, **attention)
        self.up = nn.Linear(n, 4 * n, bias=attention["bias"])
        self.down = nn.Linear(4 * n, n, bias=attention["bias"])
        self.branch = branch

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.branch * self.attn(self.norm1(x))
        return x + self.branch * self.down(F.gelu(self.up(self.norm2(x))))


class GPT(nn.Module):
    def __init__(
        self, n: int, depth: int = 2, vocab: int = 48, context: int = 16, head: int = 16, heads: int = 0, kv: int = 0, tied: bool = False,
        norm: bool = True, by_hand: bool = False, power: float = 0.5, branch: float = 1.0, multiplier: float = 1.0, embed: float = 1.0,
        bias: bool = False, dictionary: bool = False, inner: bool = False,
    ) -> None:  # fmt: skip
        super().__init__()
        heads = heads or n // head
        d_base = head if not heads or n // heads == head else BASE // heads
        self.wte = nn.Embedding(vocab, n)
        self.wpe = nn.Parameter(torch.zeros(context, n))
        arguments = dict(heads=heads, kv=kv or heads, by_hand=by_hand, power=power, d_base=d_base, bias=bias)
        self.blocks = nn.ModuleList(Block(n, norm, branch, **arguments) for _ in range(depth))
        self.norm_f = Norm(n) if norm else nn.Identity()
        self.head = nn.Linear(n, vocab, bias=False)
        if tied:
            self.head.weight = self.wte.weight
        self.multiplier, self.embed, self.dictionary, self.inner = multiplier, embed, dictionary, inner

    def forward(self, idx: Tensor, targets: Tensor | None = None) -> Any:
        x = (self.wte(idx) + self.wpe[: idx.shape[1]]) * self.embed
        for block in self.blocks:
            x = block(x)
        x = self.norm_f(x)
        logits = self.head(x * self.multiplier) if self.inner else self.head(x) * self.multiplier
        if not self.dictionary:
            return logits
        return {"loss": cross_entropy(logits, targets), "logits": logits, "cache": None}


def cross_entropy(logits: Tensor, targets: Any) -> Tensor:
    return F.cross_entropy(logits.reshape(-1, logits.shape[-1]), targets.reshape(-1))


class Lion(torch.optim.Optimizer):
    def __init__(self, params: Any, lr: float = 1e-4, weight_decay: float = 0.0) -> None:
        super().__init__(params, dict(lr=lr, weight_decay=weight_decay))

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is not None:
                    m = self.state[p].setdefault("m", torch.zeros_like(p))
                    p.mul_(1 - group["lr"] * group["weight_decay"])
                    p.add_(torch.sign(0.9 * m + 0.1 * p.grad), alpha=-group["lr"])
                    m.lerp_(p.grad, 0.01)


class HomeMadeSign(Lion):
    """An optimizer that nobody has declared."""


# role -> (std exponent, lr exponent) of N, in the multiplier form (logits × 1/N)
TABLES: dict[str, dict[str, tuple[float, float]]] = {
    "adam": {"input": (0, 0), "hidden": (-0.5, -1), "vector": (0, 0), "output": (0, 0), "scalar": (0, 0)},
    "sgd": {"input": (0, 1), "hidden": (-0.5, 0), "vector": (0, 1), "output": (0, 1), "scalar": (0, 0)},
    "muon": {"input": (0, 0), "hidden": (-0.5, 0), "vector": (0, 0), "output": (0, 0), "scalar": (0, 0)},
    "kimi": {"input": (0, 0), "hidden": (-0.5, -0.5), "vector": (0, 0), "output": (0, 0), "scalar": (0, 0)},
}
FAMILY = {
    "adam": "adam",
    "adamw": "adam",
    "lion": "adam",
    "unknown": "adam",
    "sgd": "sgd",
    "muon": "muon",
    "kimi": "kimi",
}


def role(name: str) -> str:
    if name in ("wte.weight", "wpe", "first.weight", "conv1.weight"):
        return "input"
    if name == "head.weight":
        return "output"
    if name == "head.bias":
        return "scalar"
    return "vector" if name.endswith("bias") or "norm" in name or "bn" in name else "hidden"


@dataclass(frozen=True)
class Variant:
    """One way to parametrize one model. `defects`: pattern -> (std exponent, lr exponent) on top of the correct ones."""

    name: str
    model: str = "gpt"
    optimizer: str = "adamw"
    culprits: str | None = None  # a pattern for culprits[0]; None: correct
    defects: dict[str, tuple[float, float]] = field(default_factory=dict)
    absorbed: bool = True  # whether the 1/N of the logits is in the head's init and LR, else in the forward
    options: dict[str, Any] = field(default_factory=dict)
    readout: float = -1.0  # exponent of the logits' multiplier
    gain: bool = False  # tied head: the multiplier is in the final norm's gain
    zero: str = "^$"
    eps: float | Callable[[str, float], float] = 1e-12
    decay: float | Callable[[str, float], float] = 0.0
    schedule: Callable[[Any], Any] | None = None
    clip: float | None = None
    plain_init: bool = False  # PyTorch's own init for everything


def lr_of(variant: Variant, lr: float) -> float:
    return {"sgd": 30 * lr, "muon": 5 * lr, "lion": 0.3 * lr, "kimi": 3 * lr}.get(variant.optimizer, lr)


def builder(variant: Variant, lr: float = 3e-3, base: int = BASE) -> Callable[[int], Any]:
    """`build(width)` of a variant."""

    def build(n: int) -> Any:
        ratio = n / base
        outer = ratio**variant.readout if not variant.absorbed and not variant.gain else 1.0
        if variant.model == "gpt":
            model: nn.Module = GPT(n, multiplier=outer, **variant.options)
        elif variant.model == "cnn":
            model = CNN(n, multiplier=outer, **variant.options)
        else:
            model = MLP(n, multiplier=outer, **variant.options)
        family = FAMILY[variant.optimizer]
        groups, matrices = [], []
        for name, p in model.named_parameters():
            kind = role(name)
            std, rate = TABLES[family][kind]
            if kind == "output" and variant.absorbed:
                power = 1 if family == "sgd" else 0
                std, rate = std + variant.readout, rate + (1 + power) * variant.readout
            if name == "norm_f.weight" and variant.gain:
                power = 1 if family == "sgd" else 0
                std, rate = std + variant.readout, rate + (1 + power) * variant.readout
            for pattern, (dstd, drate) in variant.defects.items():
                if re.search(pattern, name):
                    std, rate = std + dstd, rate + drate
            with torch.no_grad():
                initialise(name, p, kind, ratio, std, variant, base)
            decay = variant.decay(name, ratio) if callable(variant.decay) else variant.decay
            eps = variant.eps(name, ratio) if callable(variant.eps) else variant.eps
            group = dict(params=[p], lr=lr_of(variant, lr) * ratio**rate, weight_decay=decay)
            if variant.optimizer in ("adam", "adamw", "muon", "kimi"):
                group["eps"] = eps
            if family in ("muon", "kimi") and kind != "hidden":
                group["lr"] = lr * ratio**rate
            (matrices if family in ("muon", "kimi") and kind == "hidden" else groups).append(group)
        if variant.optimizer == "sgd":
            return model, torch.optim.SGD(groups, lr=lr, momentum=0.9)
        if variant.optimizer == "lion":
            return model, Lion(groups)
        if variant.optimizer == "unknown":
            return model, HomeMadeSign(groups)
        if variant.optimizer == "adam":
            return model, torch.optim.Adam(groups)
        adamw = torch.optim.AdamW(groups)
        if not matrices:
            return model, adamw
        for group in matrices:
            group.pop("eps")
        adjust = "match_rms_adamw" if family == "kimi" else "original"
        return model, [torch.optim.Muon(matrices, adjust_lr_fn=adjust), adamw]

    return build


def initialise(name: str, p: Tensor, kind: str, ratio: float, std: float, variant: Variant, base: int) -> None:
    if re.search(variant.zero, name):
        p.zero_()
    elif kind in ("vector", "scalar"):
        value = 0.0 if name.endswith("bias") else 1.0
        p.fill_(value * ratio**std)
    elif not variant.plain_init:
        sigma = 1.0 if name in ("wte.weight", "wpe") else 1 / math.sqrt(fan_in(name, p, base))
        p.normal_(0, sigma * ratio**std)


def fan_in(name: str, p: Tensor, base: int) -> float:
    """The fan-in at the base width: the std there is 1/√fan_in."""
    if name in ("first.weight", "conv1.weight"):
        return p[0].numel()
    factor = 4 if name.endswith("down.weight") else 2 if name in ("conv3.weight",) else 1
    kernel = p[0, 0].numel() if p.dim() > 2 else 1
    return base * factor * kernel


def gpt_batches(rows: int = 4, context: int = 16, vocab: int = 48, seed: int = 0) -> list[Any]:
    g = torch.Generator().manual_seed(seed)
    tables = torch.randint(vocab, (vocab, 3), generator=g)
    found = []
    for _ in range(3):
        idx = torch.randint(vocab, (rows, context + 1), generator=g)
        for t in range(context):  # a language with three likely followers
            pick = torch.randint(3, (rows,), generator=g)
            keep = torch.rand(rows, generator=g) < 0.8
            idx[:, t + 1] = torch.where(keep, tables[idx[:, t], pick], idx[:, t + 1])
        found.append((idx[:, :-1], idx[:, 1:]))
    return found


def task(variant: Variant, rows: int = 16, seed: int = 0) -> tuple[Any, Any]:
    """(batches, loss) of a variant's model."""
    g = torch.Generator().manual_seed(seed)
    if variant.model == "gpt":
        batches = gpt_batches(max(2, rows // 4), seed=seed)
        if variant.options.get("dictionary"):
            return [dict(idx=x, targets=y) for x, y in batches], None
        return batches, lambda model, batch: cross_entropy(model(batch[0]), batch[1])
    if variant.model == "cnn":
        batches = [(torch.randn(rows, 1, 8, 8, generator=g), torch.randint(10, (rows,), generator=g)) for _ in range(3)]
        return batches, lambda model, batch: cross_entropy(model(batch[0]), batch[1])
    teacher = torch.randn(20, 5, generator=g) / 20**0.5
    batches = []
    for _ in range(3):
        x = torch.randn(rows, 20, generator=g)
        batches.append((x, torch.sin(2 * x @ teacher)))
    return batches, lambda model, batch: F.mse_loss(model(batch[0]), batch[1])


def correct() -> list[Variant]:
    """Variants that transfer."""
    fixed = {"heads": 2, "power": 1.0}
    return [
        Variant("mlp adamw absorbed", "mlp"),
        Variant("mlp adam multiplier", "mlp", "adam", absorbed=False),
        Variant("mlp sgd absorbed", "mlp", "sgd"),
        Variant("mlp sgd multiplier", "mlp", "sgd", absorbed=False),
        Variant("mlp lion", "mlp", "lion"),
        Variant("mlp undeclared optimizer", "mlp", "unknown"),
        Variant("mlp zero head", "mlp", zero="^head", absorbed=False),
        Variant(
            "mlp N(0,1) weights with 1/√n in the forward",
            "mlp",
            defects={"middle.*weight": (0.5, 0.5)},
            options={"scale_body": "ntk"},
        ),
        Variant("cnn adamw", "cnn"),
        Variant("cnn sgd", "cnn", "sgd", absorbed=False),
        Variant("cnn batchnorm adamw", "cnn", options={"norm": True}),
        Variant("cnn batchnorm sgd", "cnn", "sgd", options={"norm": True}),
        Variant("gpt adamw absorbed"),
        Variant("gpt adamw multiplier", absorbed=False),
        Variant("gpt multiplier inside the head", absorbed=False, options={"inner": True}),
        Variant("gpt biases", options={"bias": True}),
        Variant("gpt sgd momentum", optimizer="sgd", absorbed=False),
        Variant("gpt lion", optimizer="lion"),
        Variant("gpt muon", optimizer="muon"),
        Variant("gpt muon-kimi", optimizer="kimi"),
        Variant("gpt tied multiplier", absorbed=False, options={"tied": True}),
        Variant("gpt tied gain", absorbed=False, gain=True, options={"tied": True}),
        Variant("gpt tied multiplier inside", absorbed=False, options={"tied": True, "inner": True}),
        Variant("gpt zero query", zero="q.weight"),
        Variant("gpt zero head", zero="^head", absorbed=False),
        Variant("gpt no norm", options={"norm": False, "branch": 0.5}),
        Variant("gpt head size grows", options=fixed),
        Variant(
            "gpt head size grows, factor in the query",
            defects={"attn.q": (-0.5, -0.5)},
            options={"heads": 2, "power": 0.5},
        ),
        Variant("gpt head size grows, by hand", options={**fixed, "by_hand": True}),
        Variant("gpt head size grows, by hand, zero query", zero="q.weight", options={**fixed, "by_hand": True}),
        Variant("gpt dict outputs", options={"dictionary": True}),
        Variant("gpt grouped queries", options={"kv": "half"}),
        Variant("gpt one key/value head", options={"kv": 1}),
        Variant("gpt embedding × √n", defects={"^w[tp]e": (-0.5, -0.5)}, options={"embed": "root"}),
        Variant(
            "gpt decay coupled rightly", decay=lambda name, r: 0.1 * r if role(name) in ("hidden", "output") else 0.1
        ),
        Variant("gpt adam clip", clip=0.5),
        Variant("gpt sgd clip multiplier", optimizer="sgd", absorbed=False, clip=0.3),
    ]


def broken() -> list[Variant]:
    """Variants with one mistake; `culprits` matches the tensor to be named first."""
    hidden = r"attn|up|down|middle|conv[23]"
    weight = rf"({hidden}).*weight"

    def erase(optimizer: Any) -> Any:
        return torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=3e-3, total_steps=20)

    return [
        Variant("mlp hidden lr ×√N", "mlp", culprits=r"^middle.0.weight", defects={"middle.*weight": (0, 0.5)}),
        Variant("mlp hidden lr ×N", "mlp", culprits=r"^middle.0.weight", defects={"middle.*weight": (0, 1)}),
        Variant("mlp hidden lr ÷N", "mlp", culprits=r"^middle.0.weight", defects={"middle.*weight": (0, -1)}),
        Variant("mlp one layer's lr ×N", "mlp", culprits=r"^middle.1.weight", defects={r"middle.1.weight": (0, 1)}),
        Variant("mlp one layer's lr ÷√N", "mlp", culprits=r"^middle.1.weight", defects={r"middle.1.weight": (0, -0.5)}),
        Variant("mlp constant init", "mlp", culprits=r"^middle.0.weight", defects={"middle.*weight": (0.5, 0)}),
        Variant("mlp init falls too fast", "mlp", culprits=r"^middle.0.weight", defects={"middle.*weight": (-0.5, 0)}),
        Variant("mlp sgd missing multiplier", "mlp", "sgd", culprits="^head", absorbed=False, readout=0.0),
        Variant("mlp sgd doubled multiplier", "mlp", "sgd", culprits="^head", absorbed=False, readout=-2.0),
        Variant("mlp adam doubled multiplier", "mlp", "adam", culprits="^head", absorbed=False, readout=-2.0),
        Variant(
            "mlp sgd first lr not scaled",
            "mlp",
            "sgd",
            culprits=r"^first.weight",
            defects={r"first.weight": (0, -1)},
            absorbed=False,
        ),
        Variant(
            "mlp sgd bias lr not scaled",
            "mlp",
            "sgd",
            culprits=r"^(first|middle).*bias",
            defects={r"(first|middle).*bias": (0, -1)},
        ),
        Variant("mlp adam bias lr over N", "mlp", culprits=r"^first.bias", defects={r"(first|middle).*bias": (0, -1)}),
        Variant(
            "mlp plain adam",
            "mlp",
            culprits=r"^middle.0.weight",
            defects={"middle.*weight": (0, 1), "head.weight": (0, 1)},
        ),
        Variant(
            "mlp undeclared optimizer, lr ×N",
            "mlp",
            "unknown",
            culprits=r"^middle.0.weight",
            defects={"middle.*weight": (0, 1)},
        ),
        Variant("mlp forward × √n", "mlp", culprits=r"^middle", options={"scale_body": "grow"}),
        Variant("mlp eps too large", "mlp", culprits=r"^first", eps=1e-1),
        Variant("mlp sgd clip", "mlp", "sgd", culprits="^head", clip=0.05),
        Variant("cnn hidden lr ×N", "cnn", culprits=r"^conv2.weight", defects={"conv[23].weight": (0, 1)}),
        Variant(
            "cnn batchnorm hidden lr ×√N",
            "cnn",
            culprits=r"^conv2.weight",
            defects={"conv[23].weight": (0, 0.5)},
            options={"norm": True},
        ),
        Variant(
            "cnn batchnorm constant init",
            "cnn",
            culprits=r"^conv2.weight",
            defects={"conv[23].weight": (0.5, 0)},
            options={"norm": True},
        ),
        Variant("cnn sgd missing multiplier", "cnn", "sgd", culprits="^head", absorbed=False, readout=0.0),
        Variant("gpt hidden lr ×√N", culprits=r"^blocks.0.attn", defects={weight: (0, 0.5)}),
        Variant("gpt plain adamw", culprits=r"^blocks.0.attn", defects={weight: (0, 1), "head": (0, 1)}),
        Variant("gpt constant init", culprits=r"^blocks.0.attn", defects={weight: (0.5, 0)}),
        Variant("gpt standard parametrization", culprits=r"^blocks.0.attn", defects={weight: (0, 1), "head": (0.5, 1)}),
        Variant("gpt one down lr ×N", culprits=r"^blocks.1.down.weight", defects={r"blocks.1.down": (0, 1)}),
        Variant("gpt one query lr ÷√N", culprits=r"^blocks.0.attn.q.weight", defects={r"blocks.0.attn.q": (0, -0.5)}),
        Variant("gpt missing multiplier", culprits=r"^head", absorbed=False, readout=0.0),
        Variant("gpt doubled multiplier", culprits=r"^head", absorbed=False, readout=-2.0),
        Variant("gpt head init 1/√n", culprits=r"^head", defects={"head": (0.5, 0)}),
        Variant("gpt logits 1/√N", culprits=r"^head", absorbed=False, readout=-0.5),
        Variant("gpt tied missing multiplier", culprits=r"^wte", absorbed=False, readout=0.0, options={"tied": True}),
        Variant("gpt embedding lr over N", culprits=r"^wte", defects={"wte": (0, -1)}),
        Variant("gpt embedding lr over √N", culprits=r"^wte", defects={"wte": (0, -0.5)}),
        Variant("gpt norm gain lr over N", culprits=r"^blocks.0.norm1", defects={"norm": (0, -1)}),
        Variant(
            "gpt sgd embedding lr not scaled",
            optimizer="sgd",
            culprits=r"^(wte|wpe)",
            defects={"^w[tp]e": (0, -1)},
            absorbed=False,
        ),
        Variant("gpt sgd doubled multiplier", optimizer="sgd", culprits=r"^head", absorbed=False, readout=-2.0),
        Variant("gpt kimi constant lr", optimizer="kimi", culprits=r"^blocks.0.attn", defects={weight: (0, 0.5)}),
        Variant("gpt muon lr over N", optimizer="muon", culprits=r"^blocks.0.attn", defects={weight: (0, -1)}),
        Variant("gpt lion plain", optimizer="lion", culprits=r"^blocks.0.attn", defects={weight: (0, 1)}),
        Variant("gpt attention 1/√d as d grows", culprits=r"attn.q", options={"heads": 2, "power": 0.5}),
        Variant("gpt attention 1/√d by hand", culprits=r"attn.q", options={"heads": 2, "power": 0.5, "by_hand": True}),
        Variant(
            "gpt attention 1/√d, zero query", culprits=r"attn.q", zero="q.weight", options={"heads": 2, "power": 0.5}
        ),
        Variant("gpt eps too large", culprits=r"^w[tp]e", eps=1e-2),
        Variant("gpt decay unscaled", culprits=r"^blocks.0.attn", decay=0.1),
        Variant("gpt schedule erased", culprits=r".", schedule=erase),
        Variant("gpt sgd clip absorbed", optimizer="sgd", culprits=r"^head", clip=0.1),
    ]


def resolved(variant: Variant) -> Callable[[int], Any]:
    """The variant's builder with the options that depend on the width filled in."""
    import dataclasses

    def build(n: int) -> Any:
        options = dict(variant.options)
        if options.get("kv") == "half":
            options["kv"] = max(1, n // 16 // 2)
        if options.get("embed") == "root":
            options["embed"] = (n / BASE) ** 0.5
        if options.get("scale_body") == "ntk":
            options["scale_body"] = (n / BASE) ** -0.5
        if options.get("scale_body") == "grow":
            options["scale_body"] = (n / BASE) ** 0.5
        return builder(dataclasses.replace(variant, options=options), lr=RATE[0])(n)

    return build


RATE = [3e-3]
