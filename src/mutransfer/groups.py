"""Param groups and optimizers from a plan: the base's settings times each tensor's ratios, one group per distinct setting."""

from __future__ import annotations

import inspect
import math
from collections.abc import Mapping
from fractions import Fraction
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor, nn

from mutransfer import hooks as hook_tools
from mutransfer.combined import CombinedOptimizer
from mutransfer.departures import per_lr
from mutransfer.duration import class_memories
from mutransfer.engines import PLANNED, Engine, choose, class_of, named_muon, torch_muon
from mutransfer.errors import InputError
from mutransfer.optimizers import SQUARED_NORMS
from mutransfer.optimizers.classes import (
    COUPLED_OR_NOT,
    SHAPED_STATES,
    check_settings,
    default_setting,
    read_setting,
    ready,
    worded,
)
from mutransfer.rules import root
from mutransfer.shapes import check_patterns, lookup

if TYPE_CHECKING:
    from mutransfer.plans import Plan, Row

_SETTINGS = ("lr", "weight_decay", "eps")


def groups(
    plan: Plan,
    model: nn.Module,
    lr: float,
    weight_decay: float | None,
    eps: float | None,
    overrides: Mapping[str, Mapping[str, float]] | None,
    *,
    decoupled: frozenset[str] = frozenset(),
    own: frozenset[str] = frozenset(),
    memories: Mapping[str, Mapping[str, Any]] | None = None,
) -> list[dict[str, Any]]:
    """See `Plan.groups`. `decoupled` optimizers are told to decay so, by classes that offer both; `own` ones run in our Muon.

    `memories` are the base's betas, momentum or alpha by optimizer, which a duration changes.
    """
    rows = plan.named(model)
    _check_overrides(overrides)
    check_patterns("overrides", overrides, [name for row, _ in rows for name in (row.name, *row.aliases)])
    result: dict[tuple[Any, ...], dict[str, Any]] = {}
    for row, parameter in rows:
        given: dict[str, Any] = {"lr": lr, "weight_decay": weight_decay, "eps": eps}
        if len(plan.facts) > 1 and plan.facts[row.optimizer].matrix_only:
            given["eps"] = None  # the user's eps is the element-wise optimizer's; a matrix one adds it to a norm
        for name in (row.name, *row.aliases):
            given.update(cast("Mapping[str, float] | None", lookup(overrides, name)) or {})
        if given["lr"] is None:
            raise InputError(f"lr=None for {row.name!r}: write the base's learning rate, such as lr=1e-3")
        base: dict[str, Any] = {
            key: _checked(key, _default(plan, row, key) if given[key] is None else given[key]) for key in _SETTINGS
        }
        if plan.parametrization is not None and plan.parametrization.decay == "independent":
            if plan.facts[row.optimizer].decay == "coupled" and row.optimizer not in decoupled:
                raise InputError(f"recipe={plan.recipe!r} sets the decay of a step, and {row.optimizer!r} adds its weight_decay to the gradient: "
                                 f"use an optimizer that decays apart from it, such as 'adamw'")  # fmt: skip
            base["weight_decay"] = per_lr(given["weight_decay"], base["lr"], plan.recipe)
        if plan.duration is not None:
            known = {**(memories or {}).get(row.optimizer, {}), **given}
            base |= plan.duration.base_memories(row.optimizer, known, _class_parameters(plan, row.optimizer))
        extra = {key: value for key, value in given.items() if key not in base}
        ours, coupled = row.optimizer in own, False if row.optimizer in decoupled else None
        settings = {key: value for key, value in _scaled(plan, row, base, coupled, ours).items() if value is not None}
        if plan.duration is not None:
            settings |= plan.duration.remembered(row.optimizer, base)
        extra |= _layout(plan, row, ours)
        cls, facts = class_of(plan, row.optimizer, required=False), plan.facts[row.optimizer]
        check_settings(cls, facts, extra)
        settings = worded(cls, facts, settings, row.ratios.std, row.base_law.zeros)
        key = (row.optimizer, *base.values(), *settings.items(), *sorted((k, repr(v)) for k, v in extra.items()))
        group = result.setdefault(
            key, {"params": [], **settings, **extra, "names": [], "optimizer": row.optimizer, "base": base}
        )
        group["params"].append(parameter)
        group["names"].append(row.name)
    return list(result.values())


def _check_overrides(overrides: Any) -> None:
    if overrides is not None and not isinstance(overrides, Mapping):
        raise InputError(
            f"overrides={overrides!r}: write settings by pattern, such as {{'*.bias': {{'weight_decay': 0.0}}}}"
        )
    for pattern, values in (overrides or {}).items():
        if not isinstance(values, Mapping):
            raise InputError(f"overrides={{{pattern!r}: {values!r}}}: write settings, such as {{'weight_decay': 0.0}}")


def _checked(key: str, value: Any) -> float | None:
    if value is None:
        return None
    try:
        number = float(value)
    except (TypeError, ValueError):
        number = math.nan
    if isinstance(value, str) or not 0 <= number < math.inf:
        raise InputError(f"{key}={value!r}: write a finite number, 0 or more")
    return value


def _default(plan: Plan, row: Row, key: str) -> float | None:
    """What the optimizer's own class would take: that value is the base's, and is scaled like any other."""
    return default_setting(class_of(plan, row.optimizer, required=False), key)


def _class_parameters(plan: Plan, name: str) -> Mapping[str, inspect.Parameter] | None:
    cls = class_of(plan, name, required=False)
    return None if cls is None else inspect.signature(cls).parameters


def _layout(plan: Plan, row: Row, own: bool) -> dict[str, Any]:
    """What a matrix optimizer must know of the tensor beyond its shape: its axes, what is fused in it, and its scaling (mutransfer.muon)."""
    facts = plan.facts[row.optimizer]
    if not facts.matrix_only:
        return {}
    layout = {"axes": row.axes, "parts": row.parts} if own or row.parts or len(row.target_shape) != 2 else {}
    return {"scale": facts.norm, **layout} if own else layout


def _scaled(plan: Plan, row: Row, base: Mapping[str, Any], coupled: bool | None, own: bool) -> dict[str, float | None]:
    """The base's settings times the row's ratios; None where the optimizer has no such setting."""
    ratios, native = row.ratios, 1.0 if own else native_factor(plan, row)
    is_coupled = plan.facts[row.optimizer].decay == "coupled" if coupled is None else coupled
    factors = {
        "lr": ratios.lr * native,
        "weight_decay": (ratios.l2 if is_coupled else ratios.decay) / native,
        "eps": ratios.eps,
    }
    if plan.duration is not None:
        longer = plan.duration.factors(row.optimizer, base, is_coupled)
        factors = {key: None if factor is None else factor * longer[key] for key, factor in factors.items()}
    return {key: None if base[key] is None or factor is None else base[key] * factor for key, factor in factors.items()}


def native_factor(plan: Plan, row: Row) -> float:
    """torch's Muon always multiplies by √max(1, rows/columns): divide it out where the plan asks for another scaling."""
    facts = plan.facts[row.optimizer]
    if facts.kind != "matrix" or facts.norm not in ("1", "√(out/in)") or not _is_torch_muon(plan, row.optimizer):
        return 1.0
    if len(row.target_shape) == 2:
        rows, columns = (Fraction(size) for size in row.target_shape)
    else:  # stacks and kernels run in our Muon, whose default is the same factor of each single matrix
        rows, columns = Fraction(row.fan_out.target), Fraction(row.fan_in.target)
    return root(SQUARED_NORMS[facts.norm](columns, rows) / SQUARED_NORMS["√max(1,out/in)"](columns, rows))


def _is_torch_muon(plan: Plan, name: str) -> bool:
    cls = class_of(plan, name, required=False)
    return cls is not None and (cls is torch_muon() or named_muon(plan, name))


def optimizer(
    plan: Plan,
    model: nn.Module,
    lr: float,
    weight_decay: float | None,
    overrides: Mapping[str, Mapping[str, float]] | None,
    engine: Engine,
    each: Mapping[str, Mapping[str, Any]] | None,
    settings: Mapping[str, Any],
) -> torch.optim.Optimizer:
    """See `Plan.optimizer`. Settings go to the classes that take them, `each[name]` to that one; `eps` to the element-wise one."""
    _check_overrides(overrides)
    used = list(dict.fromkeys(row.optimizer for row in plan.rows))
    _check_each(each, used)
    asked = dict(settings) | ({} if weight_decay is None else {"weight_decay": weight_decay})
    for values in (overrides or {}).values():
        asked.update(values)
    for key in PLANNED:
        if key in asked or any(key in values for values in (each or {}).values()):
            raise InputError(f"{key} is part of the plan: say plan(…, optimizer='muon') or 'muon-kimi'")
    named = plan.named(model)
    classes = {
        name: choose(
            plan,
            name,
            [pair for pair in named if pair[0].optimizer == name],
            engine,
            {**asked, **(each or {}).get(name, {})},
        )
        for name in used
    }
    accepted = {name: set(inspect.signature(cls).parameters) for name, cls in classes.items()}
    _check_taken(asked, {cls.__name__: accepted[name] for name, cls in classes.items()})
    own = {name: {k: v for k, v in settings.items() if k in accepted[name] and k != "eps"} for name in used}
    for name in used:
        _check_taken((each or {}).get(name, {}), {classes[name].__name__: accepted[name]})
        own[name] |= (each or {}).get(name, {})
        check_settings(classes[name], plan.facts[name], own[name])
        if classes[name] is torch_muon():
            own[name]["adjust_lr_fn"] = "match_rms_adamw" if plan.facts[name].norm.startswith("0.2") else "original"
        if "decoupled_weight_decay" in accepted[name] and plan.facts[name].name in COUPLED_OR_NOT:
            own[name].setdefault("decoupled_weight_decay", plan.facts[name].decay == "decoupled")
    decoupled = frozenset(name for name, values in own.items() if values.get("decoupled_weight_decay"))
    ours = frozenset(name for name in used if named_muon(plan, name) and classes[name] is not torch_muon())
    made = groups(
        plan, model, lr, weight_decay, settings.get("eps"), overrides, decoupled=decoupled, own=ours, memories=own
    )
    parts = [
        _made(classes[name], [group for group in made if group["optimizer"] == name], {"lr": lr, **own[name]})
        for name in used
    ]
    return parts[0] if len(parts) == 1 else CombinedOptimizer(parts)


def _check_each(each: Any, used: list[str]) -> None:
    if each is None:
        return
    if not isinstance(each, Mapping) or not all(isinstance(values, Mapping) for values in each.values()):
        raise InputError(
            f"each={each!r}: write settings by optimizer, such as each={{{used[0]!r}: {{'momentum': 0.9}}}}"
        )
    for name, values in each.items():
        if name not in used:
            raise InputError(f"each={{{name!r}: …}}: the plan's optimizers are {', '.join(map(repr, used))}")
        for key in _SETTINGS:
            if key in values:
                raise InputError(
                    f"each={{{name!r}: {{{key!r}: …}}}}: write overrides={{pattern: {{{key!r}: …}}}}, which the plan scales"
                )


def _check_taken(asked: Mapping[str, Any], accepted: Mapping[str, set[str]]) -> None:
    for key, value in asked.items():
        if not any(key in names for names in accepted.values()):
            raise InputError(f"{key}={value!r}: {' and '.join(accepted)} take no {key!r}")


def _made(cls: Any, param_groups: list[dict[str, Any]], settings: Mapping[str, Any]) -> torch.optim.Optimizer:
    try:
        return ready(cls(param_groups, **settings))
    except (TypeError, ValueError) as error:
        given = ", ".join(f"{key}={value!r}" for key, value in settings.items())
        raise InputError(f"{cls.__name__} refuses {given}: {' '.join(str(error).split())}") from error


def verify(plan: Plan, optimizer: torch.optim.Optimizer, model: nn.Module | None) -> dict[str, float]:
    """See `Plan.verify`. A schedule may multiply a setting of every group by one factor; that factor must be one."""
    if not hasattr(optimizer, "param_groups"):
        raise _error(
            f"verify takes the optimizer, then the model; the first is {type(optimizer).__name__}, no optimizer"
        )
    implied: dict[str, tuple[float, str]] = {}  # setting → the factor of the first group that has it, and its tensor
    for group in optimizer.param_groups:
        if "names" not in group or "base" not in group:
            raise _error("this optimizer was not built from plan.groups or plan.optimizer: its groups name no tensors")
        coupled = False if group.get("decoupled_weight_decay") else None
        for name, parameter in zip(group["names"], group["params"], strict=True):
            row = plan[name]
            _check_shapes(row, parameter, optimizer)
            wrong = None if plan.duration is None else plan.duration.departure(row.optimizer, group)
            if wrong is not None:
                raise _error(f"{name!r} has {wrong}")
            for key, due in _scaled(plan, row, group["base"], coupled, "scale" in group).items():
                if key == "eps" and plan.facts[row.optimizer].eps_kind is None:
                    continue  # a clamp of its own, for which the plan has no ratio
                found = read_setting(group, key)
                if not found and not due:
                    continue
                if not due:
                    raise _error(f"{name!r} has {key} {float(found or 0):.4g} where the plan gives "
                                 f"{'none' if due is None else 'zero'}; give it to plan.groups or plan.optimizer, not to the class")  # fmt: skip
                factor = float(found or 0.0) / due
                label = key if key == "lr" else f"{key} ({row.optimizer})"
                known, by = implied.setdefault(label, (factor, name))
                if not abs(factor - known) <= 1e-5 * max(abs(factor), abs(known)):
                    raise _error(
                        f"{key} has left the plan's ratios: {name!r} has {float(found or 0.0):.4g} where {by!r} implies "
                        f"{known * due:.4g}; a schedule must multiply each group's own value, and no state of another "
                        f"width may be loaded"
                    )
    if plan.duration is not None and (lost := class_memories(plan.duration, optimizer)) is not None:
        raise _error(lost)
    if model is not None:
        present = hook_tools.attached(model)
        for hook in plan.hooks:
            if hook not in present:
                raise _error(
                    f"module {hook.module!r} must carry ×{hook.factor:g} ({hook.reason}); call plan.attach(model)"
                )
    return {"lr": float(optimizer.param_groups[0]["base"]["lr"]) * implied.get("lr", (0.0, ""))[0]}


def _error(message: str) -> Exception:
    from mutransfer.plans import PlanError

    return PlanError(message)


def _check_shapes(row: Row, parameter: Tensor, optimizer: torch.optim.Optimizer) -> None:
    if tuple(parameter.shape) != row.target_shape:
        raise _error(f"{row.name!r} has shape {tuple(parameter.shape)}; the plan's target has {row.target_shape}")
    for key, value in optimizer.state.get(parameter, {}).items():
        if key in SHAPED_STATES and isinstance(value, Tensor) and value.ndim > 0 and value.shape != parameter.shape:
            raise _error(f"{row.name!r} {tuple(parameter.shape)}: its optimizer state {key!r} has shape "
                            f"{tuple(value.shape)}, from a model of another width")  # fmt: skip
