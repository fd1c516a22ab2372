"""The copies themselves: one tensor of the small model becomes one of the big model (theory §6)."""

from __future__ import annotations

from torch import Tensor

from mutransfer.growth.tensors import TensorGrowth


def dup(growth: TensorGrowth, tensor: Tensor) -> Tensor:
    """dup(W): every unit of every growing axis copied; no number changed. A new tensor on `tensor`'s device."""
    for axis, map_ in enumerate(growth.maps):
        if map_.grows:
            tensor = tensor.index_select(axis, map_.index().to(tensor.device))
    return tensor.clone() if not any(m.grows for m in growth.maps) else tensor


def grown(growth: TensorGrowth, tensor: Tensor) -> Tensor:
    """`W' = s·dup(W)`; along summed axes that grow by no whole factor each copy counts by the number of its unit's copies.

    The sum over the copies of one unit is then the unit's own contribution, whatever their number. A buffer is copied only (scale 1; a spectral norm's unit vectors: 1/√k).
    """
    copied = dup(growth, tensor)
    if growth.fresh == "zero":
        return copied.zero_()
    if not (tensor.is_floating_point() or tensor.is_complex()):
        return copied
    copied *= growth.scale
    return copied if growth.buffer else _shared(growth, copied, 1, summed=True)


def grown_moment(growth: TensorGrowth, moment: Tensor, degree: int) -> Tensor:
    """A running average of `Gᵈ`: `g^d·dup(m)`; a unit with more copies than its share has smaller gradients in each."""
    copied = dup(growth, moment)
    if growth.fresh:
        return copied.zero_()
    copied *= growth.gradient**degree
    return _shared(growth, copied, degree, summed=False)


def _shared(growth: TensorGrowth, copied: Tensor, degree: int, *, summed: bool) -> Tensor:
    """Times (average number of copies / this unit's own)^degree along the axes that are summed over, or along the others."""
    for axis, (map_, sums) in enumerate(zip(growth.maps, growth.sums, strict=True)):
        if sums is summed and map_.grows and not map_.whole:
            share = (map_.factor / map_.copies().to(copied)) ** degree
            copied *= share.view(-1, *[1] * (copied.ndim - axis - 1))
    return copied
