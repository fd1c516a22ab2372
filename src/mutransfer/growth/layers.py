"""Outputs of a module of the big model against those of its partner in the small one."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass

from torch import Tensor

from mutransfer.growth.axis import AxisMap
from mutransfer.growth.tensors import GrowPlan

_TRIED = 64  # combinations of axis maps that are tried for an output of which no map is known


@dataclass(frozen=True)
class Compared:
    """Largest relative difference, and the constant by which the copy was multiplied."""

    error: float
    factor: float


def partners(growth: GrowPlan, big: Iterable[str], small: set[str]) -> dict[str, str]:
    """By module of the big model, in the given order: its partner in the small model, found by the tensors that they hold.

    A module without tensors has its nearest ancestor's partner's child of the same name. Blocks with one partner between them have none.
    """
    found: dict[str, str] = {"": ""}
    for tensor in growth.tensors:
        theirs, ours = (name.split(".")[:-1] for name in (tensor.name, tensor.source))
        for length in range(len(theirs), 0, -1):
            if len(theirs) == len(ours) or length == len(theirs):
                found.setdefault(
                    ".".join(theirs[:length]), ".".join(ours[: length if len(theirs) == len(ours) else None])
                )
    listed = list(big)
    for path in listed:
        parts = path.split(".")
        for length in range(len(parts) - 1, -1, -1):
            above = ".".join(parts[:length])
            if path not in found and above in found:
                found[path] = ".".join([*found[above].split("."), *parts[length:]]).lstrip(".")
    claims = Counter(found[path] for path in listed if path in found)
    return {p: found[p] for p in listed if p in found and found[p] in small and claims[found[p]] == 1}


def compare(growth: GrowPlan, path: str, big: Tensor, small: Tensor, free: bool) -> Compared:
    """The big output against the small one copied; `free` lets it be any constant times that.

    Axes that grew follow the map of the tensors in the module, else the one of the plan's maps of these sizes that fits best; where
    none is known, the sorted numbers are compared. Another number of axes can only be compared by size (RMS).
    """
    big, small = big.double(), small.double()
    if big.ndim != small.ndim:
        return _close(_rms(big), _rms(small), free)
    choices: list[list[AxisMap | None]] = []
    for b, t in zip(small.shape, big.shape, strict=True):
        choices.append([None] if b == t else list(_maps(growth, path, b, t)))
    if not all(choices):
        if big.numel() % max(1, small.numel()):
            return _close(_rms(big), _rms(small), free)
        return _close(
            big.flatten().sort().values,
            small.flatten().sort().values.repeat_interleave(big.numel() // small.numel()),
            free,
        )
    tried = []
    for maps in itertools.islice(itertools.product(*choices), _TRIED):
        copied = small
        for axis, map_ in enumerate(maps):
            if map_ is not None:
                copied = copied.index_select(axis, map_.index().to(copied.device))
        tried.append(_close(big, copied, free))
    return min(tried, key=lambda c: c.error)


def _maps(growth: GrowPlan, path: str, base: int, target: int) -> Iterable[AxisMap]:
    """The maps of these sizes of the tensors in the module, along axes that are not summed over; else every map of the plan."""
    own: dict[AxisMap, None] = {}
    every: dict[AxisMap, None] = {}
    for tensor in growth.tensors:
        for map_, summed in zip(tensor.maps, tensor.sums, strict=True):
            if (map_.base, map_.target) == (base, target):
                every[map_] = None
                if not summed and path and tensor.name.startswith(f"{path}."):
                    own[map_] = None
    return own or every


def _rms(tensor: Tensor) -> Tensor:
    return tensor.square().mean().sqrt()


def _close(found: Tensor, expected: Tensor, free: bool) -> Compared:
    if found.numel() == 0:
        return Compared(0.0, 1.0)
    square = float((expected * expected).sum())
    factor = float((found * expected).sum()) / square if square > 0 else 1.0
    used = factor if free and factor != 0 else 1.0
    largest = float((found - used * expected).abs().max())
    size = abs(used) * float(expected.abs().max())
    return Compared(0.0 if largest == 0.0 else largest / max(size, 1e-300), factor)
