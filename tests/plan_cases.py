"""What the tests of the plan share: small models with data, a sign optimizer of their own, and a bare training loop."""

import random
from collections.abc import Callable
from typing import Any

import numpy
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mutransfer.models import gpt_factory, mlp_factory, resnet_factory


class Lion(torch.optim.Optimizer):
    """The test's own optimizer: `W ← (1 − lr·wd)·W − lr·sign(0.9·m + 0.1·G)`, `m ← 0.99·m + 0.01·G` (2302.06675)."""

    def __init__(self, params: Any, lr: float = 1e-4, weight_decay: float = 0.0) -> None:
        super().__init__(params, dict(lr=lr, weight_decay=weight_decay))

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> None:
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is None:
                    continue
                m = self.state[p].setdefault("momentum", torch.zeros_like(p))
                p.mul_(1 - group["lr"] * group["weight_decay"])
                p.add_(torch.sign(0.9 * m + 0.1 * p.grad), alpha=-group["lr"])
                m.mul_(0.99).add_(p.grad, alpha=0.01)


FACTORIES: dict[str, Callable[..., nn.Module]] = {
    "mlp": mlp_factory(inputs=12, outputs=5, depth=2),
    "residual mlp": mlp_factory(inputs=12, outputs=5, residual=True, norm="layernorm"),
    "gpt": gpt_factory(vocab_size=17, context=8, head_size=8),
    "tied gpt": gpt_factory(vocab_size=17, context=8, head_size=8, tied=True, norm="rmsnorm", bias=True, qk_norm=True),
    "resnet": resnet_factory(classes=5, blocks=(1, 1)),
}
SIZES = {name: dict(width=16, depth=2) if name != "resnet" else dict(width=8) for name in FACTORIES}


def batch(model: nn.Module, seed: int, rows: int = 6, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor]:
    """One batch for any of these models, a function of the seed alone."""
    g = torch.Generator().manual_seed(seed)
    kind = type(model).__name__
    if kind == "GPT":
        ids = torch.randint(17, (rows, 9), generator=g)
        return ids[:, :-1], ids[:, 1:]
    shape = (rows, 3, 8, 8) if kind == "ResNet" else (rows, 12)
    return torch.randn(shape, generator=g).to(dtype), torch.randint(5, (rows,), generator=g)


def loss(model: nn.Module, seed: int) -> Tensor:
    """Cross-entropy on the batch of this seed."""
    x, y = batch(model, seed, dtype=next(model.parameters()).dtype)
    return F.cross_entropy(model(x).flatten(0, -2), y.flatten())


def train(model: nn.Module, optimizer: torch.optim.Optimizer, steps: int) -> list[float]:
    """The losses of this many steps, each on its own batch."""
    losses = []
    for step in range(steps):
        optimizer.zero_grad()
        value = loss(model, step)
        value.backward()
        optimizer.step()
        losses.append(value.item())
    return losses


def build(factory: Callable[..., nn.Module], sizes: dict[str, Any], seed: int = 0) -> nn.Module:
    """The model of these sizes with its own code's draw."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        numpy.random.seed(seed)
        random.seed(seed)
        return factory(**sizes)


def values(model: nn.Module) -> dict[str, Tensor]:
    """A copy of every parameter."""
    return {name: p.detach().clone() for name, p in model.named_parameters()}


def widen(small: nn.Module, big: nn.Module, k: int, head: str = "head.weight") -> None:
    """Copy every neuron k-fold into `big`: `W' = dup(W)/(a·c)`, the head carrying its own multiplier c = 1/k (theory §6)."""
    for (name, p), (_, q) in zip(small.named_parameters(), big.named_parameters(), strict=True):
        copied, grown_in = p.detach(), 1
        for axis, (m, n) in enumerate(zip(p.shape, q.shape, strict=True)):
            if m != n:
                copied = copied.repeat_interleave(k, dim=axis)
                grown_in = k if axis == 1 else grown_in
        q.data.copy_(copied if name == head else copied / grown_in)
