"""Which unit of the small model each unit of one axis of the big model is a copy of."""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from mutransfer.errors import InputError

Form = Literal["copy", "product", "join"]


@dataclass(frozen=True)
class AxisMap:
    """One axis of `base` units that becomes one of `target`.

    "copy": every unit is copied, its copies side by side: `i → i·base // target`, which is `i // k` for a whole factor k.
    "product": the axis is a product of smaller ones, outermost first (heads × head size), each with its own map.
    "join": the axis is `parts` one after another (query | key | value).
    """

    base: int
    target: int
    form: Form = "copy"
    parts: tuple[AxisMap, ...] = ()

    @classmethod
    def product(cls, *parts: AxisMap) -> AxisMap:
        """The map of a product of axes; parts that are products themselves and those of one unit are folded in."""
        flat = [q for p in parts for q in (p.parts if p.form == "product" else (p,)) if (q.base, q.target) != (1, 1)]
        if len(flat) < 2:
            return next(iter(flat), cls(1, 1))
        if all(p.base == p.target for p in flat):
            return cls(math.prod(p.base for p in flat), math.prod(p.target for p in flat))
        return cls(math.prod(p.base for p in flat), math.prod(p.target for p in flat), "product", tuple(flat))

    @classmethod
    def join(cls, *parts: AxisMap) -> AxisMap:
        """The map of axes laid one after another."""
        if len(parts) == 1:
            return parts[0]
        base, target = sum(p.base for p in parts), sum(p.target for p in parts)
        if all(p.base == p.target for p in parts):
            return cls(base, target)
        return cls(base, target, "join", parts)

    @property
    def factor(self) -> float:
        """target / base."""
        return self.target / self.base

    @property
    def grows(self) -> bool:
        """Whether anything is copied at all."""
        return self.base != self.target

    @property
    def whole(self) -> bool:
        """Whether every unit has the same number of copies: only then do the copies train alike."""
        if self.form == "join" and len({p.factor for p in self.parts}) > 1:
            return False
        return all(p.whole for p in self.parts) if self.parts else self.target % self.base == 0

    @property
    def divides(self) -> bool:
        """Whether every part by itself grows by a whole factor, not all parts of a join by the same."""
        return all(p.divides for p in self.parts) if self.parts else self.target % self.base == 0

    def index(self) -> Tensor:
        """(target,) int64: the unit of the small axis behind each unit of the big one."""
        return _index(self)

    def copies(self) -> Tensor:
        """(target,) int64: how many copies there are of the unit that each one copies, itself included."""
        index = self.index()
        return torch.bincount(index, minlength=self.base)[index]

    def first(self) -> Tensor:
        """(base,) int64: the first copy of every unit; the inverse of `index`."""
        index = self.index()
        return torch.full((self.base,), self.target).scatter_reduce(0, index, torch.arange(self.target), "amin")

    def __str__(self) -> str:
        if self.form == "copy":
            return f"{self.base}→{self.target}" if self.grows else f"{self.base}"
        inner = [f"({p})" if p.form != "copy" else str(p) for p in self.parts]
        if self.form == "join" and len(set(inner)) == 1:
            return f"{len(inner)}×[{inner[0]}]"
        return ("·" if self.form == "product" else " | ").join(inner)

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON types."""
        parts = {"parts": [p.to_dict() for p in self.parts]} if self.parts else {}
        return {"base": self.base, "target": self.target, "form": self.form, **parts}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> AxisMap:
        """The inverse of `to_dict`. Raises InputError for what no map can be."""
        try:
            made = cls(
                int(data["base"]), int(data["target"]), data["form"], tuple(map(cls.from_dict, data.get("parts", ())))
            )
            sizes = [(p.base, p.target) for p in made.parts]
            whole = {"copy": not sizes, "product": len(sizes) > 1, "join": len(sizes) > 1}[made.form]
            total = math.prod if made.form == "product" else sum
            whole &= not sizes or tuple(map(total, zip(*sizes, strict=True))) == (made.base, made.target)
            if not whole or min(made.base, made.target) < 1:
                raise ValueError(str(made))
        except (KeyError, TypeError, ValueError) as error:
            raise InputError(f"not an axis map: {data!r:.80} ({type(error).__name__}: {error})") from error
        return made


@functools.lru_cache(maxsize=1024)
def _index(axis: AxisMap) -> Tensor:
    if axis.form == "copy":
        return torch.arange(axis.target) * axis.base // axis.target
    if axis.form == "join":
        starts, found = 0, []
        for part in axis.parts:
            found.append(_index(part) + starts)
            starts += part.base
        return torch.cat(found)
    index = torch.zeros(1, dtype=torch.int64)
    for part in axis.parts:
        index = (index[:, None] * part.base + _index(part)).flatten()
    return index
