"""The grow plan: tensor by tensor, what becomes of the small model's numbers. Data, printed and saved before anything is done."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from torch import nn

from mutransfer.errors import InputError
from mutransfer.files import write_whole
from mutransfer.growth.axis import AxisMap
from mutransfer.hooks import Hook, attach
from mutransfer.plans import Plan

VERSION = 1


@dataclass(frozen=True)
class TensorGrowth:
    """One tensor of the big model: `W' = scale·dup(W)`, and its gradient `G' = gradient·dup(G)` (theory §6).

    `source` is the small model's tensor, `maps` one per axis, `sums` which axes a layer sums over (fan-in and kernel): where a unit
    has more copies than its share, each copy counts less there. `fresh` is "" for a copy, "new" for one in a new block, without optimizer state, "zero" for a
    tensor of a new block that starts at zero. `inexact` says why the copies will not train alike; "" where they do. `row` names the plan's row: None for a buffer.
    """

    name: str
    source: str
    maps: tuple[AxisMap, ...]
    sums: tuple[bool, ...]
    scale: float = 1.0
    gradient: float = 1.0
    row: str | None = None
    fresh: str = ""
    inexact: str = ""

    @property
    def buffer(self) -> bool:
        """Whether this is a buffer: copied, never scaled, never noise, no optimizer."""
        return self.row is None

    @property
    def base_shape(self) -> tuple[int, ...]:
        """The small tensor's shape."""
        return tuple(m.base for m in self.maps)

    @property
    def target_shape(self) -> tuple[int, ...]:
        """The big tensor's shape."""
        return tuple(m.target for m in self.maps)

    @property
    def fan_in_growth(self) -> float:
        """a: the growth of the axes that the layer sums over."""
        return math.prod(m.factor for m, summed in zip(self.maps, self.sums, strict=True) if summed)

    @property
    def fan_out_growth(self) -> float:
        """b: the growth of the other axes."""
        return math.prod(m.factor for m, summed in zip(self.maps, self.sums, strict=True) if not summed)

    @property
    def whole(self) -> bool:
        """Whether every axis grows by a whole factor."""
        return all(m.whole for m in self.maps)


@dataclass(frozen=True)
class GrowPlan:
    """What `mutransfer.grow` does: one entry per tensor of the big model, parameters and buffers; immutable; JSON in and out.

    `plan` goes from the small model to the big one: its ratios are those of rates, decay and eps. `notes` say what is not exact. `hooks` are
    all multipliers that the big model carries, the small one's own among them.
    """

    tensors: tuple[TensorGrowth, ...]
    plan: Plan
    depth: str = ""
    notes: tuple[str, ...] = ()
    hooks: tuple[Hook, ...] = ()

    def attach(self, model: nn.Module) -> nn.Module:
        """Register the multipliers that the big model's function needs, on a model whose weights are loaded from elsewhere."""
        attach(model, self.hooks)
        return model

    @cached_property
    def by_name(self) -> dict[str, TensorGrowth]:
        """Entries by the big model's names, tied ones included."""
        aliases = {alias: row.name for row in self.plan.rows for alias in row.aliases}
        found = {t.name: t for t in self.tensors}
        return found | {alias: found[name] for alias, name in aliases.items() if name in found}

    @property
    def exact(self) -> bool:
        """Whether the big model trains as the small one for ever, as long as nothing breaks the tie between copies."""
        return not any(t.inexact or t.fresh for t in self.tensors)

    def __str__(self) -> str:
        from mutransfer.growth.table import render

        return render(self)

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON types."""
        rows = [
            {**{k: v for k, v in asdict(t).items() if k != "maps"}, "maps": [m.to_dict() for m in t.maps]}
            for t in self.tensors
        ]
        return {"version": VERSION, "tensors": rows, "plan": self.plan.to_dict(), "depth": self.depth,
                "notes": list(self.notes), "hooks": [asdict(h) for h in self.hooks]}  # fmt: skip

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> GrowPlan:
        """The inverse of `to_dict`. Raises InputError for another version or missing fields."""
        if not isinstance(data, Mapping) or data.get("version") != VERSION or "tensors" not in data:
            raise InputError("not a grow plan that this release reads: give what to_dict or save made")
        try:
            tensors = tuple(
                TensorGrowth(**{**t, "maps": tuple(map(AxisMap.from_dict, t["maps"])), "sums": tuple(t["sums"])})
                for t in data["tensors"]
            )
            return cls(
                tensors,
                Plan.from_dict(data["plan"]),
                data["depth"],
                tuple(data["notes"]),
                tuple(Hook(**h) for h in data["hooks"]),
            )
        except (KeyError, TypeError) as error:
            raise InputError(f"not a grow plan: {type(error).__name__}: {error}") from error

    def save(self, path: str | Path) -> None:
        """Write the grow plan as JSON, atomically. Raises InputError where that cannot be."""
        write_whole(Path(path), json.dumps(self.to_dict(), indent=1, ensure_ascii=False))

    @classmethod
    def load(cls, path: str | Path) -> GrowPlan:
        """Read what `save` wrote. Raises InputError for a missing or malformed file."""
        try:
            return cls.from_dict(json.loads(Path(path).read_text(encoding="utf-8")))
        except OSError as error:
            raise InputError(f"cannot read grow plan {str(path)!r}: {error.strerror}") from error
        except ValueError as error:
            raise InputError(f"{str(path)!r} is not a grow plan: {error}") from error
