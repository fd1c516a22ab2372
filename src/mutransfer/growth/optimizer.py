"""The big model's optimizer: the small one's class, settings as they are now times the plan's ratios, and its state by rule.

A param group of the small optimizer becomes as many as there are distinct ratios among the tensors that copy its own.
"""

from __future__ import annotations

import copy
import inspect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, overload

import torch
from torch import Tensor, nn

from mutransfer import sparsity
from mutransfer.combined import CombinedOptimizer
from mutransfer.engines import torch_muon
from mutransfer.errors import InputError
from mutransfer.groups import native_factor
from mutransfer.growth.state import Declared, grown_state, identified, rules_for
from mutransfer.growth.tensors import GrowPlan, TensorGrowth
from mutransfer.optimizers import OptimizerFacts, facts_for
from mutransfer.optimizers.classes import known_class, read_setting
from mutransfer.plans import Plan, Row
from mutransfer.rules import Fan
from mutransfer.shapes import parameters_of

State = Literal["copy", "fresh"]
LR_KEYS = ("lr", "initial_lr", "max_lr", "min_lr", "swa_lr", "lr_max", "scheduled_lr", "base_lr", "prev_lr")
"""Group keys that are learning rates: the optimizer's own, schedulers', schedule-free's and heavyball's."""
COUNTERS = frozenset(("step", "step_count", "prev_lr", "_sf_step", "k", "weight_sum", "lr_max", "scheduled_lr"))
"""Group keys in which classes keep state of the whole group."""
_START = {"k": 0, "weight_sum": 0.0, "lr_max": -1.0, "scheduled_lr": 0.0}
"""Those that schedule-free classes expect at a fresh start; the others are made by the first step."""


@dataclass(frozen=True)
class Part:
    """One group of the big optimizer: its settings (no "params"), the tensors in it, and its lr over that of the small group."""

    settings: dict[str, Any]
    tensors: tuple[TensorGrowth, ...]
    ratio: float


@overload
def grow_optimizer(
    optimizer: Sequence[torch.optim.Optimizer], small: nn.Module, big: nn.Module, grow_plan: GrowPlan, *, state: State = ...,
    state_rules: Mapping[str, Declared] | None = ...,
) -> list[torch.optim.Optimizer]: ...  # fmt: skip
@overload
def grow_optimizer(
    optimizer: torch.optim.Optimizer, small: nn.Module, big: nn.Module, grow_plan: GrowPlan, *, state: State = ...,
    state_rules: Mapping[str, Declared] | None = ...,
) -> torch.optim.Optimizer: ...  # fmt: skip
def grow_optimizer(
    optimizer: Any,
    small: nn.Module,
    big: nn.Module,
    grow_plan: GrowPlan,
    *,
    state: State = "copy",
    state_rules: Mapping[str, Declared] | None = None,
) -> Any:
    """The optimizer of `big` that goes on where `optimizer` is with `small`: same class, same base settings, state by rule.

    lr, weight_decay, eps and every other learning rate of a group are as they are now, times the plan's ratio; the rest is copied. A
    list of optimizers gives a list. The groups name their tensors, so that `plan.verify` reads them: their `base` stays where a
    plan built the small one; elsewhere it is the small one's own settings. Nothing of the small optimizer is changed or shared.
    state="fresh" starts the state anew; `state_rules` declares keys of a class that is not known.

    Raises InputError for a state without a rule, for a tensor that the small model does not have, and for a class whose
    optimizer is not the plan's.
    """
    if state not in ("copy", "fresh"):
        raise InputError(f"optimizer_state={state!r}: write 'copy' or 'fresh'")
    if isinstance(optimizer, list | tuple):
        return [grow_optimizer(one, small, big, grow_plan, state=state, state_rules=state_rules) for one in optimizer]
    if not isinstance(optimizer, torch.optim.Optimizer):
        raise InputError(
            f"a {type(optimizer).__name__} is no optimizer: give the torch optimizer that trains the small model"
        )
    if isinstance(optimizer, CombinedOptimizer):
        parts = [
            grow_optimizer(one, small, big, grow_plan, state=state, state_rules=state_rules) for one in optimizer.parts
        ]
        kept = [item for part in parts for item in part.state.items()]
        made = _hooked(CombinedOptimizer(parts), optimizer)
        made.state.update(kept)
        return made
    held = {p: s for group in optimizer.param_groups for p in group["params"] if (s := optimizer.state.get(p))}
    rules = rules_for(optimizer, state_rules) if held and state == "copy" else None
    tensors, of_small = _tensors(big, grow_plan), _tensors(small, grow_plan)
    groups: list[dict[str, Any]] = []
    states: dict[Tensor, dict[Any, Any]] = {}
    for group, parts in zip(optimizer.param_groups, split(optimizer, small, grow_plan), strict=True):
        for part in parts:
            params = [_found(tensors, growth) for growth in part.tensors]
            groups.append({"params": params, **(part.settings if state == "copy" else _started(part.settings))})
            for growth, p in zip(part.tensors, params, strict=True):
                old = of_small[growth.source]
                if rules is not None and old in held:
                    states[p] = grown_state(rules, growth, held[old], group, small=old, big=p)
    made = _hooked(_made(optimizer, groups), optimizer)
    for p, values in states.items():
        if values:
            made.state[p] = values
    return made


def split(optimizer: torch.optim.Optimizer, small: nn.Module, grow_plan: GrowPlan) -> list[list[Part]]:
    """For every param group of the small optimizer the groups that it becomes, in the order in which they stand."""
    named = {id(p): name for name, p in _tensors(small, grow_plan).items()}
    return [
        parts_of(
            {k: v for k, v in group.items() if k != "params"},
            _names(group, named),
            grow_plan,
            type(one),
            dtype=group["params"][0].dtype if group["params"] else None,
        )
        for one in getattr(optimizer, "parts", [optimizer])
        for group in one.param_groups
    ]


def grow_state_dict(
    state_dict: Mapping[str, Any],
    optimizer: Any,
    grow_plan: GrowPlan,
    names: Sequence[str] | None = None,
    *,
    state: State = "copy",
    state_rules: Mapping[str, Declared] | None = None,
) -> dict[str, Any]:
    """As `grow_optimizer`, for an optimizer's state dict alone: the big optimizer's, to be loaded into one built of its groups.

    `optimizer` is the class, or its name; `names` are the small model's tensors in the order of the groups, where the groups
    themselves do not hold them ("names" of a plan's, "param_names" of torch's). Groups of several optimizers in one (`CombinedOptimizer`) are
    told apart by their own `optimizer` key: give None. Raises InputError as `grow_optimizer` does.
    """
    held: Mapping[Any, Any] = state_dict["state"]
    groups: list[dict[str, Any]] = []
    states: dict[int, dict[Any, Any]] = {}
    count = sum(len(group["params"]) for group in state_dict["param_groups"])
    if names is not None and len(names) != count:
        raise InputError(f"names: {len(names)} given, and the optimizer's groups hold {count} tensors")
    start = number = 0
    for group in state_dict["param_groups"]:
        size = len(group["params"])
        own = names[start : start + size] if names is not None else group.get("names") or group.get("param_names")
        if own is None:
            raise InputError("the optimizer's groups do not name their tensors: give names=[name for name, _ in model.named_parameters()], "
                             "in the order in which the optimizer was given them")  # fmt: skip
        start += size
        which = group.get("optimizer") if optimizer is None else optimizer
        if which is None:
            raise InputError("the optimizer's groups do not say which optimizer they are of: give its class or name")
        rules = rules_for(which, state_rules) if held and state == "copy" else None
        index = dict(zip(own, group["params"], strict=True))
        dtype = next((v.dtype for n in group["params"] for v in held.get(n, {}).values() if _moment(v)), None)
        for part in parts_of({k: v for k, v in group.items() if k != "params"}, own, grow_plan, which, dtype=dtype):
            numbers = list(range(number, number := number + len(part.tensors)))
            groups.append({**(part.settings if state == "copy" else _started(part.settings)), "params": numbers})
            for at, growth in zip(numbers, part.tensors, strict=True):
                old = held.get(index[growth.source])
                if rules is not None and old and (values := grown_state(rules, growth, old, group)):
                    states[at] = values
    return {**{k: copy.deepcopy(v) for k, v in state_dict.items() if k not in ("state", "param_groups")},
            "state": states, "param_groups": groups}  # fmt: skip


def _moment(value: Any) -> bool:
    return isinstance(value, Tensor) and value.ndim > 0 and value.is_floating_point()


# ------------------------------------------------------------------ groups


def parts_of(
    group: Mapping[str, Any],
    names: Sequence[str],
    grow_plan: GrowPlan,
    optimizer: Any,
    *,
    dtype: torch.dtype | None = None,
) -> list[Part]:
    """The groups that one small group becomes; `names` are its tensors' (of this dtype), `optimizer` the class (or name) that runs it."""
    _check_group(optimizer, group)
    rows = {row.name: row for row in grow_plan.plan.rows}
    copies: dict[str, list[TensorGrowth]] = {}
    for growth in grow_plan.tensors:
        if not growth.buffer:
            copies.setdefault(growth.source, []).append(growth)
    made: dict[tuple[Any, ...], tuple[dict[str, Any], list[TensorGrowth], float]] = {}
    for name in names:
        if name not in copies:
            raise InputError(
                f"the optimizer trains {name!r}, and the grow plan copies no such tensor of the small model"
            )
        for growth in copies[name]:
            row = rows[growth.row or ""]
            factors = _factors(row, group, optimizer, grow_plan.plan)
            parts = _parts(growth, row, group)
            key = (*factors.values(), parts, growth.fresh)
            if key not in made:
                settings = _scaled(group, factors, row, dtype)
                if parts is not None:
                    settings["parts"] = parts
                made[key] = (settings, [], factors["lr"])
            made[key][1].append(growth)
    for settings, tensors, _ in made.values():
        settings["names"] = [growth.name for growth in tensors]
        if "param_names" in group:
            settings["param_names"] = settings["names"]
    return [
        Part(_started(settings) if tensors[0].fresh else settings, tuple(tensors), ratio)
        for settings, tensors, ratio in made.values()
    ]


def _factors(row: Row, group: Mapping[str, Any], optimizer: Any, plan: Plan) -> dict[str, float]:
    """lr, weight_decay, eps and the init's std of one tensor over those of the tensor it copies; `native` of the small one."""
    facts = plan.facts[row.optimizer]
    _check_facts(optimizer, facts, row)
    native = _built_in(optimizer, group, row, plan) / (small := _built_in(optimizer, group, _at_base(row), plan))
    decay = row.ratios.l2 if _coupled(group, facts) else row.ratios.decay
    return {
        "lr": row.ratios.lr * native,
        "weight_decay": decay / native,
        "eps": 1.0 if row.ratios.eps is None else row.ratios.eps,
        "std": row.ratios.std,
        "native": small,
    }


def _built_in(optimizer: Any, group: Mapping[str, Any], row: Row, plan: Plan) -> float:
    """torch's Muon multiplies by a factor of the shape itself, of which the plan's lr is free; ours (its groups have a scale) does not."""
    is_torch = optimizer is torch_muon() or (isinstance(optimizer, str) and "adjust_lr_fn" in group)
    return native_factor(plan, row) if is_torch and "scale" not in group else 1.0


def _at_base(row: Row) -> Row:
    fans = {key: Fan(fan.base, fan.base) for key, fan in (("fan_in", row.fan_in), ("fan_out", row.fan_out))}
    return replace(row, target_shape=row.base_shape, **fans)


def _coupled(group: Mapping[str, Any], facts: OptimizerFacts) -> bool:
    """Whether the decay is added to the gradient: torch's flag says, or the packages', or the plan's facts."""
    for key in ("decoupled_weight_decay", "weight_decouple"):
        if isinstance(group.get(key), bool):
            return not group[key]
    return facts.decay == "coupled"


def _parts(growth: TensorGrowth, row: Row, group: Mapping[str, Any]) -> tuple[int, ...] | None:
    """The sizes of matrices fused in one tensor, at the big model; None where the group does not cut its tensors."""
    if not group.get("parts"):
        return None
    if len(row.parts) == len(group["parts"]):
        return tuple(row.parts)
    for map_ in growth.maps:
        if map_.form == "join" and tuple(p.base for p in map_.parts) == tuple(group["parts"]):
            return tuple(p.target for p in map_.parts)
    if any(map_.grows for map_ in growth.maps):
        raise InputError(f"{growth.name!r} {growth.target_shape}: its group cuts the small tensor into parts={tuple(group['parts'])}, "
                         f"and neither the plan nor its axis map says what they grow to")  # fmt: skip
    return tuple(group["parts"])


def _scaled(
    group: Mapping[str, Any], factors: Mapping[str, float], row: Row, dtype: torch.dtype | None
) -> dict[str, Any]:
    """The small group's settings as they are now times the factors; with the base's own values for `plan.verify`."""
    lr, settings = factors["lr"], {}
    for key, value in group.items():
        if key in LR_KEYS:
            settings[key] = times(value, lr)
        elif key == "weight_decay":
            settings[key] = times(value, factors["weight_decay"])
        elif key in ("eps", "matrix_eps"):
            settings[key] = _eps(value, factors, dtype)
        elif key == "weight_sum":  # schedule-free: a sum of powers of the rate
            settings[key] = times(value, lr ** float(group.get("weight_lr_power", 2.0)))
        else:
            settings[key] = copy.deepcopy(value)
    settings.setdefault("optimizer", row.optimizer)
    if "base" not in group:
        started = group.get("initial_lr", group.get("lr"))
        settings["base"] = {
            "lr": None if started is None else float(started) / factors["native"],
            "weight_decay": None if group.get("weight_decay") is None else float(group["weight_decay"]) * factors["native"],
            "eps": read_setting(group, "eps"),
        }  # fmt: skip
    return settings


def _eps(value: Any, factors: Mapping[str, float], dtype: torch.dtype | None) -> Any:
    """Adafactor's pair is (eps₁, a lower bound of RMS(W)); its eps₁ = None is the dtype's own."""
    if isinstance(value, tuple):
        own = value[0] is None and factors["eps"] != 1
        first = torch.finfo(dtype or torch.get_default_dtype()).eps if own else value[0]
        return times(first, factors["eps"]), times(value[1], factors["std"])
    return times(value, factors["eps"])


def times(value: Any, factor: float) -> Any:
    """A new number or tensor; None stays None, and a factor of 1 changes no bit."""
    if value is None or factor == 1.0:
        return copy.deepcopy(value)
    return value.detach().clone().mul_(factor) if isinstance(value, Tensor) else value * factor


def _started(settings: Mapping[str, Any]) -> dict[str, Any]:
    """The settings with what the class counts in its groups at the start."""
    return {key: _START.get(key, value) for key, value in settings.items() if key not in COUNTERS or key in _START}


# ------------------------------------------------------------------ checks


def _check_group(optimizer: Any, group: Mapping[str, Any]) -> None:
    known = known_class(optimizer) if isinstance(optimizer, type) else None
    if known is not None:
        known.check(group)


def _check_facts(optimizer: Any, facts: OptimizerFacts, row: Row) -> None:
    """The plan's ratios are those of an optimizer that steps as this one does."""
    try:
        found = facts_for(optimizer)
    except InputError:
        return  # a class of the user's own, whose facts the plan was given
    if (found.degree, found.kind, found.weight) != (facts.degree, facts.kind, facts.weight):
        name = identified(optimizer)[0]
        raise InputError(f"{row.name!r} is trained by {name}, and the plan from the small model to the big one has it under {row.optimizer!r}: "
                         f"write plan(big, base=small, optimizer={found.name.split()[0]!r})")  # fmt: skip


def _names(group: Mapping[str, Any], named: Mapping[int, str]) -> list[str]:
    for p in group["params"]:
        if id(p) not in named:
            raise InputError(f"the optimizer trains a tensor of shape {tuple(p.shape)} that is no parameter of the small model: give the "
                             f"model that it was built for")  # fmt: skip
    return [named[id(p)] for p in group["params"]]


def _tensors(model: nn.Module, grow_plan: GrowPlan) -> dict[str, nn.Parameter]:
    """By the grow plan's names: DDP puts `module.` before those of the model that was planned."""
    found = {name: p.module._parameters[p.attribute] for name, p in parameters_of(model).items()}
    wrapped = found and all(name.startswith("module.") for name in found)
    own = any(t.source.startswith("module.") for t in grow_plan.tensors)
    prefix = "module." if wrapped and not own else ""
    return {name.removeprefix(prefix): p for name, p in found.items() if p is not None}


def _found(tensors: Mapping[str, nn.Parameter], growth: TensorGrowth) -> nn.Parameter:
    p = tensors.get(growth.name)
    if p is None or tuple(p.shape) != growth.target_shape:
        what = "which the big model lacks" if p is None else f"and the big model's has {tuple(p.shape)}"
        raise InputError(f"the grow plan has {growth.name!r} {growth.target_shape}, {what}")
    return p


def _made(optimizer: torch.optim.Optimizer, groups: list[dict[str, Any]]) -> torch.optim.Optimizer:
    """A new instance of the class: each argument of it as its groups' defaults or the instance itself hold it."""
    cls, given = type(optimizer), {}
    accepted = list(inspect.signature(cls).parameters.values())[1:]
    for argument in accepted:
        name = argument.name
        if argument.kind in (argument.VAR_KEYWORD, argument.VAR_POSITIONAL):
            continue
        if name in optimizer.defaults:
            given[name] = copy.deepcopy(optimizer.defaults[name])
        elif name in vars(optimizer):
            given[name] = copy.deepcopy(vars(optimizer)[name])
        elif argument.default is argument.empty:
            raise InputError(f"{cls.__name__} takes {name}, which its instance does not hold: build it with {cls.__name__}(groups, {name}=…) "
                             f"from plan.groups of the big model")  # fmt: skip
    try:
        return cls(groups, **given)  # pyright: ignore[reportCallIssue] # the class's own arguments
    except (TypeError, ValueError, RuntimeError) as error:
        raise InputError(
            f"{cls.__name__} refuses its own settings for the big model: {' '.join(str(error).split())}"
        ) from error


def _hooked(made: torch.optim.Optimizer, optimizer: torch.optim.Optimizer) -> torch.optim.Optimizer:
    """Masks of a plan with a density below 1 go on; other hooks are the user's own, and of the small model."""
    if sparsity.remask in optimizer._optimizer_step_post_hooks.values():
        made.register_step_post_hook(sparsity.remask)
    return made
