"""Which copies are still equal: two copies that agree in every tensor and moment get equal gradients, and agree for ever."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from mutransfer.growth.tensors import GrowPlan


def tied(
    big: torch.nn.Module,
    grow_plan: GrowPlan,
    tolerance: float = 0.0,
    optimizer: torch.optim.Optimizer | None = None,
) -> tuple[str, ...]:
    """The axes along which all copies are equal, weights and moments alike, such as "fc.weight axis 1 (32→64)".

    `tolerance` is relative to the tensor's largest number. States of another shape than their tensor are not looked at.
    """
    return tuple(axis for axis, equal in _ties(big, grow_plan, tolerance, optimizer) if equal)


def tie_warning(
    big: torch.nn.Module,
    grow_plan: GrowPlan,
    tolerance: float = 0.0,
    optimizer: torch.optim.Optimizer | None = None,
) -> str:
    """One sentence where the copies of every axis of every tensor are equal, and so will train alike for ever; else ""."""
    ties = _ties(big, grow_plan, tolerance, optimizer)
    if not ties or not all(equal for _, equal in ties):
        return ""
    same = ", and the big model trains as the small one" if grow_plan.exact else ""
    return (
        f"the copies are equal in all {len(ties)} axes that grew, weights and moments: they will stay equal for ever{same}; "
        f"break the tie with noise=0.05"
    )


def _ties(
    big: torch.nn.Module, grow_plan: GrowPlan, tolerance: float, optimizer: torch.optim.Optimizer | None
) -> list[tuple[str, bool]]:
    parameters = dict(big.named_parameters(remove_duplicate=False))
    found: list[tuple[str, bool]] = []
    for growth in grow_plan.tensors:
        if growth.buffer or growth.name not in parameters:
            continue
        parameter: Any = parameters[growth.name]
        state: Mapping[str, Any] = {} if optimizer is None else optimizer.state.get(parameter, {})
        tensors = [parameter.detach()]
        tensors += [v for v in state.values() if isinstance(v, Tensor) and v.shape == parameter.shape]
        tensors = [t.full_tensor() if hasattr(t, "full_tensor") else t for t in tensors]  # sharded
        for axis, map_ in enumerate(growth.maps):
            if map_.grows and bool((map_.copies() > 1).any()):
                behind = map_.first()[map_.index()]
                equal = all(_same(t, t.index_select(axis, behind.to(t.device)), tolerance) for t in tensors)
                found.append((f"{growth.name} axis {axis} ({map_})", equal))
    return found


def _same(tensor: Tensor, copied: Tensor, tolerance: float) -> bool:
    if tolerance == 0.0:
        return torch.equal(tensor, copied)
    return float((tensor - copied).abs().max()) <= tolerance * float(tensor.abs().max())
