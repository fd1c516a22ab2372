"""The clipping norm that is invariant over width, depth and the gauge (theory §4, §6)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from mutransfer.errors import InputError

if TYPE_CHECKING:
    from mutransfer.plans import Plan


def grad_norm(plan: Plan, model: nn.Module) -> Tensor:
    """√Σ ‖G‖² / (expected²·repeats), a scalar on the first gradient's device; 0 when there are no gradients."""
    norms: list[Tensor] = []
    for row, parameter in plan.named(model):
        if parameter.grad is None:
            continue
        gradient: Any = parameter.grad
        norm = torch.linalg.vector_norm(gradient)
        norm = norm.full_tensor() if hasattr(norm, "full_tensor") else norm  # a sharded gradient
        norms.append(norm / (row.ratios.gradient * row.repeats**0.5))
    if not norms:
        return torch.tensor(0.0)
    return torch.linalg.vector_norm(torch.stack([norm.to(norms[0].device) for norm in norms]))


def clip_grad_norm_(plan: Plan, model: nn.Module, max_norm: float) -> Tensor:
    """Scale all gradients by min(1, max_norm / norm), in place; returns the norm before clipping."""
    known = isinstance(max_norm, int | float | Tensor) and not isinstance(max_norm, bool)
    if not known or not max_norm > 0:
        raise InputError(f"max_norm={max_norm!r}: write a positive number")
    total = grad_norm(plan, model)
    nn.utils.clip_grads_with_norm_(model.parameters(), max_norm, total)
    return total
