"""An optimizer's saved state: which tensor each number means, and the same for the big model, its tensors made later."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from mutransfer.errors import InputError
from mutransfer.growth.files.growing import Growing
from mutransfer.growth.optimizer import grow_state_dict
from mutransfer.growth.state import rules_for


def is_optimizer(value: Any) -> bool:
    """Whether this is an optimizer's state dict."""
    return isinstance(value, Mapping) and {"state", "param_groups"} <= value.keys()


def is_scheduler(value: Any) -> bool:
    """Whether this is the state dict of a scheduler with a rate for each group."""
    return isinstance(value, Mapping) and isinstance(value.get("base_lrs"), list)


def tensor_names(
    state: Mapping[str, Any], small: nn.Module, optimizer: torch.optim.Optimizer | None, where: str
) -> list[str]:
    """The small model's tensor names in the order of the saved numbers, group after group.

    From the groups themselves (plan.optimizer and torch's `named_parameters` name them), from the factory's own optimizer, or, with a
    single group, from the order of model.parameters(). Raises InputError where that leaves a doubt, and for states of other shapes.
    """
    names = {id(p): n for n, p in small.named_parameters()}
    saved = state["param_groups"]
    if all("names" in group or "param_names" in group for group in saved):
        found = [list(group.get("names") or group["param_names"]) for group in saved]
    elif optimizer is not None:
        found = [[names.get(id(p), "?") for p in group["params"]] for group in optimizer.param_groups]
    elif len(saved) == 1:
        found = [[n for n, p in small.named_parameters() if p.requires_grad]]
    else:
        raise InputError(f"{where} has {len(saved)} param groups that do not name their tensors: let the factory return (model, optimizer)")  # fmt: skip
    counts = [len(group["params"]) for group in saved]
    if [len(group) for group in found] != counts:
        raise InputError(f"{where} has param groups of {counts} tensors, and the model's are {[len(g) for g in found]}: was it saved by another optimizer?")  # fmt: skip
    shapes = {name: tuple(p.shape) for name, p in small.named_parameters(remove_duplicate=False)}
    for group, members in zip(saved, found, strict=True):
        for index, name in zip(group["params"], members, strict=True):
            if name not in shapes:
                raise InputError(f"{where} has a tensor {name!r}, which the model does not have")
            for key, value in state["state"].get(index, {}).items():
                if isinstance(value, Tensor) and key.startswith("exp_avg") and tuple(value.shape) != shapes[name]:
                    raise InputError(f"{where}: {key!r} of {name!r} has shape {tuple(value.shape)}, and the tensor {shapes[name]}: are the groups in another order?")  # fmt: skip
    return [name for group in found for name in group]


def grown_optimizer(state: Mapping[str, Any], names: list[str], optimizer: str, growing: Growing) -> dict[str, Any]:
    """The state dict of the big model's optimizer, whose groups name their tensors (`grow.optimizer.grow_state_dict`).

    `optimizer` is the name of the class that saved it, for groups that do not say it themselves.
    """
    which = None if all("optimizer" in group for group in state["param_groups"]) else optimizer
    made = grow_state_dict(_shapes(state), which, growing.plan, names, state="fresh" if growing.fresh_state else "copy")
    held, start = {}, 0
    for group in state["param_groups"]:
        for index in group["params"]:
            held[names[start]] = (group, state["state"].get(index, {}))
            start += 1
    for group in made["param_groups"]:
        for number, name in zip(group["params"], group["names"], strict=True):
            if number in made["state"]:
                old, values = held[growing.of(name).source]
                made["state"][number] = state_later(growing, name, group["optimizer"], values, old)
    return made


def state_later(
    growing: Growing, name: str, optimizer: str, state: Mapping[str, Any], group: Mapping[str, Any]
) -> dict[str, Any]:
    """One tensor's state in the big model; `state` and `group` are those of the tensor that it copies."""
    return growing.state(name, rules_for(optimizer), state, group)


def _shapes(value: Any) -> Any:
    """The tree with shapes in place of large tensors."""
    if isinstance(value, Tensor):
        return value.to("meta") if value.ndim else value
    if isinstance(value, Mapping):
        return {key: _shapes(item) for key, item in value.items()}
    return type(value)(map(_shapes, value)) if isinstance(value, list | tuple) else value
