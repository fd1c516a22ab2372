"""What one forward pass showed: sizes by kind and name, the sites where weights act, the attention calls."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

KEPT = 1 << 18  # numbers kept of an output to measure its later change


@dataclass
class Site:
    """A place where a parameter multiplies its input: which operation, in which module, with which fans."""

    key: str
    param: str
    module: str
    fan_in: int
    fan_out: int
    order: int
    after: str  # the module with weights whose output was the latest when the product was made
    owned: bool  # whether the parameter hangs on that very module, so that the module's input is what reaches it


@dataclass
class Attention:
    """One attention call: the head size and the tensors' sizes that decide how large its logits are."""

    module: str
    head_size: int
    query: str | None  # the parameter that made the query, if it can be told
    key: str | None
    explicit: bool  # whether the scale was seen (fused) or measured at the softmax


@dataclass
class Seen:
    """What one forward pass showed: mean squares by (kind, name), sites and attention calls in order of execution."""

    squares: dict[tuple[str, str], list[Tensor]] = field(default_factory=dict)
    sites: dict[str, Site] = field(default_factory=dict)
    attention: dict[str, Attention] = field(default_factory=dict)
    first_use: dict[str, int] = field(default_factory=dict)  # module path -> when it was entered
    leaves: dict[str, int] = field(default_factory=dict)  # module output -> size of its last axis or channels
    outputs: dict[str, Tensor] = field(default_factory=dict)
    clock: int = 0

    def add(self, kind: str, name: str, value: Tensor) -> None:
        self.squares.setdefault((kind, name), []).append(value)

    def tick(self) -> int:
        self.clock += 1
        return self.clock


def mean_square(x: Tensor) -> Tensor:
    """Mean of the squares as a 0-d float32 tensor on the same device."""
    x = x.detach()
    dtype = torch.float64 if x.dtype == torch.float64 else torch.float32
    return (torch.linalg.vector_norm(x, dtype=dtype) / math.sqrt(x.numel())).square().float()


def kept(x: Tensor) -> Tensor:
    """The part of an output that is kept for later steps: its first samples, whole."""
    x = x.detach()
    if x.numel() > KEPT and x.dim() > 1:
        x = x[: max(1, KEPT * x.shape[0] // x.numel())]
    return x.clone()


def numbers(values: dict[Any, Tensor]) -> list[tuple[Any, float]]:
    """All 0-d tensors fetched from the device at once."""
    if not values:
        return []
    return list(
        zip(values, torch.stack([v.detach().float().reshape(()) for v in values.values()]).tolist(), strict=True)
    )
