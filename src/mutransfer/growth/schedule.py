"""What goes on beside the optimizer when the model grows: the LR schedule at its step, and averages of the weights."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.optim.lr_scheduler import LRScheduler
from torch.optim.swa_utils import AveragedModel

from mutransfer.errors import InputError
from mutransfer.growth.optimizer import Part, split, times
from mutransfer.growth.tensors import GrowPlan
from mutransfer.growth.weights import grown
from mutransfer.shapes import clean

PER_GROUP: dict[str, Literal["lr", "copy"]] = {
    "base_lrs": "lr", "_last_lr": "lr", "min_lrs": "lr", "max_lrs": "lr",
    "lr_lambdas": "copy", "base_momentums": "copy", "max_momentums": "copy",
}  # fmt: skip
"""Attributes of torch's schedulers that hold one value per param group, and whether it is a learning rate."""


def grow_scheduler(
    scheduler: LRScheduler,
    big_optimizer: torch.optim.Optimizer,
    small: nn.Module,
    grow_plan: GrowPlan,
    *,
    per_group: Mapping[str, Literal["lr", "copy"]] | None = None,
) -> LRScheduler:
    """The scheduler of the big optimizer (`grow_optimizer`'s), at the same step: every group's lr keeps its ratio to the small one's.

    One value per group becomes one per new group, learning rates times the group's ratio; schedulers inside are grown as well. `per_group`
    says of a class that is not torch's which of its lists hold a value per group, learning rates ("lr") or not ("copy").
    ReduceLROnPlateau's `eps`, the least change of a rate (1e-8), stays one number for all groups.

    Raises InputError for one absolute rate for all groups (eta_min above 0) where the groups' ratios differ: it would erase them.
    """
    if not isinstance(scheduler, LRScheduler):
        raise InputError(f"a {type(scheduler).__name__} is no scheduler: give one of torch.optim.lr_scheduler")
    parts = split(scheduler.optimizer, small, grow_plan)
    count = sum(map(len, parts))
    if len(big_optimizer.param_groups) != count:
        raise InputError(f"the big optimizer has {len(big_optimizer.param_groups)} param groups where the grow plan makes {count}: give the "
                         f"one that grow_optimizer returned for the scheduler's own optimizer")  # fmt: skip
    made = _grown(scheduler, big_optimizer, parts, {**PER_GROUP, **(per_group or {})})
    if hasattr(scheduler.optimizer.step, "_wrapped_by_lr_sched"):
        _Counting(big_optimizer)
        big_optimizer._opt_called = getattr(scheduler.optimizer, "_opt_called", False)  # pyright: ignore[reportAttributeAccessIssue]
    return made


class _Counting(LRScheduler):
    """Changes no rate: torch's schedulers warn of an optimizer whose `step` none of them has wrapped."""

    def get_lr(self) -> list[Any]:
        return [group["lr"] for group in self.optimizer.param_groups]


def _grown(
    scheduler: LRScheduler,
    optimizer: torch.optim.Optimizer,
    parts: list[list[Part]],
    per_group: Mapping[str, Literal["lr", "copy"]],
) -> LRScheduler:
    """The same object with its state copied, and what is per group or a rate of its own grown."""
    name, ratios = type(scheduler).__name__, [part.ratio for made in parts for part in made]
    made = object.__new__(type(scheduler))
    memo: dict[int, Any] = {id(scheduler): made, id(scheduler.optimizer): optimizer}  # bound methods find the new ones
    for key, value in vars(scheduler).items():
        if key == "_schedulers":
            made.__dict__[key] = [_grown(inner, optimizer, parts, per_group) for inner in value]
        elif key in per_group and isinstance(value, list | tuple):
            if len(value) != len(parts):
                raise InputError(
                    f"{name}.{key} has {len(value)} values for {len(parts)} param groups of the small optimizer"
                )
            made.__dict__[key] = type(value)(
                times(one, part.ratio) if per_group[key] == "lr" else copy.deepcopy(one, memo)
                for one, its in zip(value, parts, strict=True)
                for part in its
            )
        elif _is_rate(key, value):
            made.__dict__[key] = _one_rate(name, key, value, ratios)
        else:
            if _may_be_per_group(scheduler, value, len(parts)) and set(ratios) != {1.0}:
                raise InputError(f"{name}.{key}={value!r:.60} may hold one value per param group: write per_group={{{key!r}: 'lr'}} "
                                 f"(learning rates), or 'copy'")  # fmt: skip
            made.__dict__[key] = copy.deepcopy(value, memo)
    return made


def _is_rate(key: str, value: Any) -> bool:
    """A number that is a learning rate by its name: eta_min, default_min_lr, warmup_lr, …"""
    return isinstance(value, float | int) and not isinstance(value, bool) and value > 0 and (
        key == "eta_min" or "lr" in key.split("_")
    )  # fmt: skip


def _one_rate(name: str, key: str, value: float, ratios: Sequence[float]) -> float | None:
    if len(set(ratios)) == 1:
        return times(value, ratios[0])
    if key == "default_min_lr":  # ReduceLROnPlateau goes by min_lrs; this is for groups added later
        return None
    raise InputError(
        f"{name}({key}={value:g}) is one absolute rate for all param groups, and the grown groups' ratios are {min(ratios):g} to {max(ratios):g}: "
        f"write the schedule as a factor, such as LambdaLR(optimizer, lambda t: f + (1 - f) * (1 + cos(pi * t / T_max)) / 2) with f = {key}/lr"
    )


def _may_be_per_group(scheduler: LRScheduler, value: Any, count: int) -> bool:
    """Whether a class that is not torch's holds a list as long as there are groups."""
    theirs = not type(scheduler).__module__.startswith("torch.optim")
    numbers = isinstance(value, list | tuple) and len(value) == count > 0
    return theirs and numbers and all(isinstance(one, float | int | Tensor) for one in value)


def grow_average(average: Any, big: nn.Module, grow_plan: GrowPlan) -> Any:
    """An average of the small model's weights as the big model's: averages are linear, so they grow as the weights do.

    `average` is an AveragedModel (its update rule and count go on), a module of the small model's tensors, or a mapping of
    tensors by their names (prefix "module." and counters allowed); the result is of the same kind. Nothing is shared.
    Raises InputError for a tensor that the grow plan does not know, or of another shape.
    """
    if isinstance(average, AveragedModel):
        made = AveragedModel(
            big, avg_fn=average.avg_fn, multi_avg_fn=average.multi_avg_fn, use_buffers=average.use_buffers
        )
        _fill(made.module, average.module, grow_plan)
        made.n_averaged.copy_(average.n_averaged)
        return made
    if isinstance(average, nn.Module):
        made = copy.deepcopy(big)
        _fill(made, average, grow_plan)
        return made
    if isinstance(average, Mapping):
        return _grown_tensors(average, grow_plan)
    raise InputError(
        f"a {type(average).__name__} is no average of weights: give an AveragedModel, a module, or tensors by name"
    )


@torch.no_grad()
def _fill(made: nn.Module, average: nn.Module, grow_plan: GrowPlan) -> None:
    values = _grown_tensors(_tensors(average), grow_plan)
    for name, tensor in _tensors(made).items():
        if (value := values.get(name, values.get(name.removeprefix("module.")))) is not None:
            tensor.copy_(value)
    training = {p.requires_grad for p in average.parameters()}
    if len(training) == 1:
        made.requires_grad_(training.pop())
    made.train(average.training)


def _tensors(model: nn.Module) -> dict[str, Tensor]:
    named = (*model.named_parameters(remove_duplicate=False), *model.named_buffers(remove_duplicate=False))
    return {clean(name): tensor.detach() for name, tensor in named}


def _grown_tensors(tensors: Mapping[str, Any], grow_plan: GrowPlan) -> dict[str, Any]:
    sources = {growth.source for growth in grow_plan.tensors}
    prefix = "module." if not sources & set(tensors) and any(name.startswith("module.") for name in tensors) else ""
    aliases = {alias for row in grow_plan.plan.rows for alias in row.aliases}
    made: dict[str, Any] = {}
    for name, value in tensors.items():
        known = name.removeprefix(prefix) in sources | aliases
        if not known and isinstance(value, Tensor) and value.ndim > 0:
            raise InputError(f"the average has {name!r} {tuple(value.shape)}, which the grow plan does not copy")
        if not known:
            made[name] = copy.deepcopy(value)
    for name, growth in grow_plan.by_name.items():
        value = tensors.get(prefix + growth.source)
        if value is None or (name in aliases and prefix + name not in tensors):
            continue
        if tuple(value.shape) != growth.base_shape:
            raise InputError(
                f"the average's {growth.source!r} has shape {tuple(value.shape)}, the small model's {growth.base_shape}"
            )
        made[prefix + name] = grown(growth, value.detach())
    return made
