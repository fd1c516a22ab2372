"""Param groups and optimizers from a plan: the base's settings times each tensor's ratios, one group per distinct setting."""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Mapping
from fractions import Fraction
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor, nn

from mutransfer import hooks as hook_tools
from mutransfer.combined import CombinedOptimizer
from mutransfer.errors import InputError
from mutransfer.optimizers import SQUARED_NORMS, optimizer_class
from mutransfer.rules import root
from mutransfer.shapes import check_patterns, lookup

if TYPE_CHECKING:
    from mutransfer.plan import Plan, Row

_SETTINGS = ("lr", "weight_decay", "eps")


def groups(
    plan: Plan,
    model: nn.Module,
    lr: float,
    weight_decay: float | None,
    eps: float | None,
    overrides: Mapping[str, Mapping[str, float]] | None,
    *,
    coupled: bool | None = None,
) -> list[dict[str, Any]]:
    """See `Plan.groups`. `coupled` forces how weight decay acts where a class offers both."""
    rows = plan.named(model)
    names = [name for row, _ in rows for name in (row.name, *row.aliases)]
    check_patterns("overrides", overrides, names)
    mixed = len({row.optimizer for row in plan.rows}) > 1
    result: dict[tuple[Any, ...], dict[str, Any]] = {}
    for row, parameter in rows:
        given: dict[str, Any] = {"lr": lr, "weight_decay": weight_decay, "eps": eps}
        if mixed and plan.facts[row.optimizer].kind == "matrix":
            given["eps"] = None  # the user's eps is the element-wise optimizer's; a matrix one adds it to a norm
        for name in (row.name, *row.aliases):
            given.update(cast("Mapping[str, float] | None", lookup(overrides, name)) or {})
        extra = {key: value for key, value in given.items() if key not in _SETTINGS}
        base = {key: _checked(key, _default(plan, row, key) if given[key] is None else given[key]) for key in _SETTINGS}
        settings = {key: value for key, value in _scaled(plan, row, base, coupled).items() if value is not None}
        key = (row.optimizer, *base.values(), *settings.items(), *sorted(extra.items()))
        group = result.setdefault(
            key, {"params": [], **settings, **extra, "names": [], "optimizer": row.optimizer, "base": base}
        )
        group["params"].append(parameter)
        group["names"].append(row.name)
    return list(result.values())


def _checked(key: str, value: Any) -> Any:
    if value is not None and not float(value) >= 0:
        raise InputError(f"{key}={value}: must not be negative")
    return value


def _default(plan: Plan, row: Row, key: str) -> float | None:
    """What the optimizer's own class would take: that value is the base's, and is scaled like any other."""
    cls = _class(plan, row.optimizer, required=False)
    parameter = inspect.signature(cls).parameters.get(key) if cls else None
    if parameter is None or parameter.default is inspect.Parameter.empty:
        return None
    return parameter.default


def _scaled(plan: Plan, row: Row, base: Mapping[str, Any], coupled: bool | None) -> dict[str, Any]:
    facts = plan.facts[row.optimizer]
    is_coupled = facts.decay == "coupled" if coupled is None else coupled
    ratios = row.ratios
    native = _native_factor(plan, row)
    decay = ratios.l2 if is_coupled else ratios.decay
    return {
        "lr": base["lr"] * (ratios.lr * native),
        "weight_decay": None if base["weight_decay"] is None else base["weight_decay"] * (decay / native),
        "eps": None if base["eps"] is None or ratios.eps is None else base["eps"] * ratios.eps,
    }


def _native_factor(plan: Plan, row: Row) -> float:
    """torch's Muon always multiplies by √max(1, rows/columns): divide it out where the plan asks for another scaling."""
    facts = plan.facts[row.optimizer]
    if facts.kind != "matrix" or facts.norm not in ("1", "√(out/in)") or not _is_torch_muon(plan, row.optimizer):
        return 1.0
    rows, columns = (Fraction(size) for size in row.target_shape)
    wanted = SQUARED_NORMS[facts.norm](Fraction(row.fan_in.target), Fraction(row.fan_out.target))
    return root(wanted / SQUARED_NORMS["√max(1,out/in)"](columns, rows))


def _is_torch_muon(plan: Plan, name: str) -> bool:
    cls = _class(plan, name, required=False)
    return cls is not None and cls is getattr(torch.optim, "Muon", None)


def _class(plan: Plan, name: str, *, required: bool = True) -> Any:
    """The class that runs this optimizer: the user's own if the plan was made with one, else torch's."""
    if name == plan.optimizer_name and plan.optimizer_path:
        module, _, qualname = plan.optimizer_path.partition(":")
        found: Any = importlib.import_module(module)
        for part in qualname.split("."):
            found = getattr(found, part, None)
        if found is not None:
            return found
    found = optimizer_class(name)
    if found is None and required:
        raise InputError(f"torch has no {name!r} optimizer: pass your class, plan(…, optimizer=YourClass), "
                         f"or give plan.groups(model, lr=…) to it")  # fmt: skip
    return found


def optimizer(
    plan: Plan,
    model: nn.Module,
    lr: float,
    weight_decay: float | None,
    overrides: Mapping[str, Mapping[str, float]] | None,
    settings: Mapping[str, Any],
) -> torch.optim.Optimizer:
    """See `Plan.optimizer`. Settings go to the class that takes them; `eps` to the element-wise one of a mix."""
    used = list(dict.fromkeys(row.optimizer for row in plan.rows))
    classes = {name: _class(plan, name) for name in used}
    accepted = {name: set(inspect.signature(cls).parameters) for name, cls in classes.items()}
    settings = dict(settings)
    eps = settings.pop("eps", None)
    for key in settings:
        if not any(key in names for names in accepted.values()):
            raise InputError(
                f"{key}={settings[key]!r}: {' and '.join(c.__name__ for c in classes.values())} take no {key!r}"
            )
    coupled = False if settings.get("decoupled_weight_decay") else None
    made = groups(plan, model, lr, weight_decay, eps, overrides, coupled=coupled)
    parts = []
    for name in used:
        own = {key: value for key, value in settings.items() if key in accepted[name]}
        if _is_torch_muon(plan, name):
            own["adjust_lr_fn"] = "match_rms_adamw" if plan.facts[name].norm.startswith("0.2") else "original"
        parts.append(classes[name]([group for group in made if group["optimizer"] == name], lr=lr, **own))
    return parts[0] if len(parts) == 1 else CombinedOptimizer(parts)


def verify(plan: Plan, optimizer: torch.optim.Optimizer, model: nn.Module | None) -> dict[str, float]:
    """See `Plan.verify`."""
    from mutransfer.plan import PlanError

    implied: dict[str, tuple[float, str]] = {}  # setting → (what the group's value implies for every other, by whom)
    for group in optimizer.param_groups:
        if "names" not in group or "base" not in group:
            raise PlanError(
                "this optimizer was not built from plan.groups or plan.optimizer: its groups name no tensors"
            )
        coupled = False if group.get("decoupled_weight_decay") else None
        for name, parameter in zip(group["names"], group["params"], strict=True):
            row = plan[name]
            _check_shapes(row, parameter, optimizer)
            for key, due in _scaled(plan, row, group["base"], coupled).items():
                if not due or key not in group:
                    continue
                factor, found = float(group[key]) / due, float(group[key])
                label = key if key == "lr" else f"{key} ({row.optimizer})"
                known, by = implied.setdefault(label, (factor, name))
                if abs(factor - known) > 1e-5 * max(abs(factor), abs(known)):
                    raise PlanError(
                        f"{key} has left the plan's ratios: {name!r} has {found:.4g} where {by!r} implies {known * due:.4g}; "
                        f"a schedule must multiply each group's own value, and no state of another width may be loaded"
                    )
    if model is not None:
        present = hook_tools.attached(model)
        for hook in plan.hooks:
            if hook not in present:
                raise PlanError(
                    f"module {hook.module!r} must carry ×{hook.factor:g} ({hook.reason}); call plan.attach(model)"
                )
    base_lr = optimizer.param_groups[0]["base"]["lr"]
    return {"lr": float(base_lr) * implied["lr"][0] if "lr" in implied else 0.0}


def _check_shapes(row: Row, parameter: Tensor, optimizer: torch.optim.Optimizer) -> None:
    from mutransfer.plan import PlanError

    if tuple(parameter.shape) != row.target_shape:
        raise PlanError(f"{row.name!r} has shape {tuple(parameter.shape)}; the plan's target has {row.target_shape}")
    for key, value in optimizer.state.get(parameter, {}).items():
        if isinstance(value, Tensor) and value.ndim == parameter.ndim and value.shape != parameter.shape:
            raise PlanError(f"{row.name!r} {tuple(parameter.shape)}: its optimizer state {key!r} has shape "
                            f"{tuple(value.shape)}, from a model of another width")  # fmt: skip
