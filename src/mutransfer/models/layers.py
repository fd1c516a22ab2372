"""The layers that the reference models share: PyTorch's own, with a normal initialization drawn once."""

from collections.abc import Callable
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Activation = Literal["gelu", "relu", "relu2"]
EPS = 1e-5  # the same for every norm, so that switching the norm changes nothing else


class Linear(nn.Linear):
    """`nn.Linear` whose weight is drawn from `N(0, std²)` and whose bias is zero."""

    def __init__(self, fan_in: int, fan_out: int, bias: bool, std: float, device: torch.device | None = None) -> None:
        self.std = std  # before the parent's constructor, which draws the weight
        super().__init__(fan_in, fan_out, bias=bias, device=device)

    def reset_parameters(self) -> None:
        _draw(self.weight, self.std)
        if self.bias is not None:
            nn.init.zeros_(self.bias)


class Embedding(nn.Embedding):
    """`nn.Embedding` whose weight (entries, width) is drawn from `N(0, std²)`."""

    def __init__(self, entries: int, width: int, std: float) -> None:
        self.std = std
        super().__init__(entries, width)

    def reset_parameters(self) -> None:
        _draw(self.weight, self.std)


def _draw(weight: Tensor, std: float) -> None:
    nn.init.normal_(weight, std=std) if std > 0 else nn.init.zeros_(weight)


def norm_layer(kind: str, width: int, gain: bool, bias: bool) -> nn.Module:
    """The normalisation over the last axis named `kind`: "layernorm", "rmsnorm" or "none" (identity)."""
    if kind == "none":
        return nn.Identity()
    if kind == "rmsnorm":
        return nn.RMSNorm(width, eps=EPS, elementwise_affine=gain)
    return nn.LayerNorm(width, eps=EPS, elementwise_affine=gain, bias=bias)


def relu2(x: Tensor) -> Tensor:
    """Squared ReLU, `max(x, 0)²` (Primer, 2109.08668)."""
    return F.relu(x).square()


ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {"gelu": F.gelu, "relu": F.relu, "relu2": relu2}
