"""What a grow plan makes of a checkpoint's tensors: weights and optimizer state, each made when it is written."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from mutransfer.errors import InputError
from mutransfer.growth.files.later import Later
from mutransfer.growth.noise import Noise, noisy, noisy_moment
from mutransfer.growth.state import Rules, grown_state
from mutransfer.growth.tensors import GrowPlan, TensorGrowth
from mutransfer.growth.weights import grown
from mutransfer.plans import Row


@dataclass(frozen=True)
class Growing:
    """A grow plan on its way: `weights` by the small model's names, all of them, tied ones under each name."""

    plan: GrowPlan
    weights: Mapping[str, Tensor]
    noise: Noise = field(default_factory=Noise)
    seed: int = 0
    fresh_state: bool = False
    """The optimizer starts its state anew."""

    def of(self, name: str) -> TensorGrowth:
        """The plan's entry for a tensor of the big model. Raises InputError where it has none."""
        growth = self.plan.by_name.get(name)
        if growth is None:
            raise InputError(f"the grow plan has no tensor {name!r}")
        return growth

    def weight(self, name: str) -> Later:
        """A parameter or buffer of the big model; the same object for tied names."""
        return self._tensor(self.of(name), self.weights)

    def copied(self, weights: Mapping[str, Tensor]) -> dict[str, Later]:
        """Another set of weights of the same model, such as averages (EMA), under the big model's names."""
        return {
            name: self._tensor(growth, weights)
            for name, growth in self.plan.by_name.items()
            if growth.source in weights
        }

    def _tensor(self, growth: TensorGrowth, weights: Mapping[str, Tensor]) -> Later:
        source = weights[growth.source]
        return Later(
            growth.target_shape, source.dtype, lambda: self._noisy(growth, grown(growth, weights[growth.source]))
        )

    def _noisy(self, growth: TensorGrowth, tensor: Tensor) -> Tensor:
        return noisy(self.noise, growth, tensor, self.seed, self._row(growth))

    def _row(self, growth: TensorGrowth) -> Row | None:
        return None if growth.row is None else self.plan.plan[growth.row]

    def state(
        self, name: str, rules: Rules, state: Mapping[Any, Any], group: Mapping[str, Any], path: tuple[Any, ...] = ()
    ) -> dict[Any, Any]:
        """The optimizer's state of one tensor, its large tensors made later; `state` and `group` are those of the small tensor."""
        growth, made = self.of(name), {}
        for key, value in state.items():
            if isinstance(value, Mapping):
                made[key] = self.state(name, rules, value, group, (*path, key))
                continue
            large = isinstance(value, Tensor) and value.ndim > 0
            shape = grown_state(rules, growth, {key: value.to("meta") if large else value}, group)
            if key in shape:  # else the rule drops it
                made[key] = self._moment(growth, rules, value, group, (*path, key), shape[key]) if large else shape[key]
        return made

    def _moment(
        self, growth: TensorGrowth, rules: Rules, value: Tensor, group: Mapping[str, Any], path: tuple[Any, ...], shape: Tensor
    ) -> Later:  # fmt: skip
        label = "/".join(map(str, path))

        def make() -> Tensor:
            moment = grown_state(rules, growth, {path[-1]: value}, group)[path[-1]]
            return noisy_moment(self.noise, growth, moment, label, self.seed, self._row(growth))

        return Later(tuple(shape.shape), shape.dtype, make)


def nbytes(content: Any) -> int:
    """Bytes of all tensors in a tree of dicts and lists, those that share storage once."""
    seen: dict[int, int] = {}

    def walk(value: Any) -> None:
        if isinstance(value, Later):
            seen[id(value)] = value.nbytes
        elif isinstance(value, Tensor):
            seen[id(value)] = value.numel() * value.element_size()
        elif isinstance(value, dict):
            for item in value.values():
                walk(item)
        elif isinstance(value, list | tuple):
            for item in value:
                walk(item)

    walk(content)
    return sum(seen.values())


def check_weights(
    weights: Mapping[str, Tensor], model: torch.nn.Module, where: str, made: str, *, tied: bool = False
) -> None:
    """Raise InputError unless these are the model's tensors, by name and shape. `made` says how the model came about.

    With `tied` one name of a tied tensor is enough.
    """
    due = model.state_dict(keep_vars=True)
    held = {id(tensor) for name, tensor in due.items() if name in weights}
    for name, tensor in due.items():
        if name not in weights and not (tied and id(tensor) in held):
            raise InputError(f"{where} has no tensor {name!r}, which {made} has")
    for name, tensor in weights.items():
        if name not in due:
            raise InputError(f"{where} has a tensor {name!r}, which {made} does not have")
        if tensor.shape != due[name].shape:
            raise InputError(
                f"{where}: {name!r} has shape {tuple(tensor.shape)}, and {tuple(due[name].shape)} in {made}"
            )
