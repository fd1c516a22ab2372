"""A sweep over sizes, learning rates and seeds under several variants, as plain data."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mutransfer.train import RunConfig


def powers(low: int, high: int) -> tuple[float, ...]:
    """Every power of two from 2^low to 2^high."""
    return tuple(2.0**exponent for exponent in range(low, high + 1))


@dataclass(frozen=True)
class Variant:
    """One curve per size: the fields that it sets on top of the grid's, and its learning rates (or values of the grid's `knob`).

    `decay_at`: weight_decay is meant at this learning rate; at others it is weight_decay · decay_at / lr, so that the decay of an
    update depends neither on width nor on the learning rate.
    """

    name: str
    fields: Mapping[str, Any]
    lrs: tuple[float, ...]
    decay_at: float | None = None


@dataclass(frozen=True)
class Grid:
    """Every variant at every size, learning rate (or value of another `knob`) and seed. The smallest size is the base, where `run` names none.

    `run` holds the fields of the run and of its model (`kind` names the model) that all variants share; what the data decides
    (vocabulary, inputs, classes) is filled in. `judged`: the variants that should hold, whose verdicts are the experiment's.
    """

    run: Mapping[str, Any]
    sizes: tuple[int, ...]
    seeds: tuple[int, ...]
    variants: tuple[Variant, ...]
    judged: tuple[str, ...]
    size: str = "width"
    metrics: tuple[str, ...] = ("train_loss",)
    knob: str = "lr"

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        return asdict(self)

    def configs(self, variant: Variant) -> list[RunConfig]:
        """The runs of a variant. Raises InputError when its data is not there."""
        from mutransfer.commands.builtin import described
        from mutransfer.sweep import grid_configs

        fields = {**self.run, **variant.fields}
        kind = fields.pop("kind")
        axes = {self.size: self.sizes, self.knob: variant.lrs, "seed": self.seeds}
        configs = grid_configs(described(kind, fields, axes), axes)
        if variant.decay_at is None:
            return configs
        return [replace(c, weight_decay=c.weight_decay * variant.decay_at / c.lr) for c in configs]
