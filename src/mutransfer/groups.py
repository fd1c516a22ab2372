"""Param groups and optimizers from a plan: the base's settings times each tensor's ratios, one group per distinct setting."""

from __future__ import annotations

import importlib
import inspect
import math
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
    from mutransfer.plans import Plan, Row

_SETTINGS = ("lr", "weight_decay", "eps")
_OWN_CLASSES: dict[
    str, type
] = {}  # the user's classes seen by this process: one in a function cannot be imported by name


def remember(optimizer: Any) -> str | None:
    """`module:qualname` of a user's own optimizer class (or instance), kept for `Plan.optimizer`; None for torch's."""
    cls = type(optimizer) if hasattr(optimizer, "param_groups") else optimizer
    if not isinstance(cls, type) or cls.__module__.startswith("torch.optim"):
        return None
    path = f"{cls.__module__}:{cls.__qualname__}"
    _OWN_CLASSES[path] = cls
    return path


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
        extra = {key: value for key, value in given.items() if key not in _SETTINGS}
        base = {key: _checked(key, _default(plan, row, key) if given[key] is None else given[key]) for key in _SETTINGS}
        settings = {key: value for key, value in _scaled(plan, row, base, coupled).items() if value is not None}
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
    cls = _class(plan, row.optimizer, required=False)
    parameter = inspect.signature(cls).parameters.get(key) if cls else None
    if parameter is None or parameter.default is inspect.Parameter.empty:
        return None
    return parameter.default


def _scaled(plan: Plan, row: Row, base: Mapping[str, Any], coupled: bool | None) -> dict[str, float | None]:
    """The base's settings times the row's ratios; None where the optimizer has no such setting."""
    ratios, native = row.ratios, _native_factor(plan, row)
    is_coupled = plan.facts[row.optimizer].decay == "coupled" if coupled is None else coupled
    factors = {
        "lr": ratios.lr * native,
        "weight_decay": (ratios.l2 if is_coupled else ratios.decay) / native,
        "eps": ratios.eps,
    }
    return {key: None if base[key] is None or factor is None else base[key] * factor for key, factor in factors.items()}


def _native_factor(plan: Plan, row: Row) -> float:
    """torch's Muon always multiplies by √max(1, rows/columns): divide it out where the plan asks for another scaling."""
    facts = plan.facts[row.optimizer]
    if facts.kind != "matrix" or facts.norm not in ("1", "√(out/in)") or not _is_torch_muon(plan, row.optimizer):
        return 1.0
    rows, columns = (Fraction(size) for size in row.target_shape)
    return root(SQUARED_NORMS[facts.norm](columns, rows) / SQUARED_NORMS["√max(1,out/in)"](columns, rows))


def _is_torch_muon(plan: Plan, name: str) -> bool:
    cls = _class(plan, name, required=False)
    return cls is not None and cls is getattr(torch.optim, "Muon", None)


def _class(plan: Plan, name: str, *, required: bool = True) -> Any:
    """The class that runs this optimizer: the user's own if the plan was made with one, else torch's."""
    path = plan.optimizer_path if name == plan.optimizer_name else None
    found = optimizer_class(name) if path is None else _OWN_CLASSES.get(path) or _imported(path)
    if found is None and required:
        what = f"torch has no {name!r} optimizer" if path is None else f"the optimizer class {path!r} is not importable"
        raise InputError(
            f"{what}: write optimizer = YourClass(plan.groups(model, lr=…)), or plan(…, optimizer=YourClass)"
        )
    return found


def _imported(path: str) -> Any:
    module, _, qualname = path.partition(":")
    try:
        found: Any = importlib.import_module(module)
    except ImportError:
        return None
    for part in qualname.split("."):
        found = getattr(found, part, None)
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
    _check_overrides(overrides)
    used = list(dict.fromkeys(row.optimizer for row in plan.rows))
    classes = {name: _class(plan, name) for name in used}
    accepted = {name: set(inspect.signature(cls).parameters) for name, cls in classes.items()}
    asked = dict(settings) | ({} if weight_decay is None else {"weight_decay": weight_decay})
    for values in (overrides or {}).values():
        asked.update(values)
    for key, value in asked.items():
        if not any(key in names for names in accepted.values()):
            raise InputError(f"{key}={value!r}: {' and '.join(c.__name__ for c in classes.values())} take no {key!r}")
    if "adjust_lr_fn" in asked:
        raise InputError("adjust_lr_fn is part of the plan: say plan(…, optimizer='muon') or 'muon-kimi'")
    own = {name: {k: v for k, v in settings.items() if k in accepted[name] and k != "eps"} for name in used}
    for name in used:
        if _is_torch_muon(plan, name):
            own[name]["adjust_lr_fn"] = "match_rms_adamw" if plan.facts[name].norm.startswith("0.2") else "original"
        if "decoupled_weight_decay" in accepted[name]:
            own[name].setdefault("decoupled_weight_decay", plan.facts[name].decay == "decoupled")
    decoupled = any(values.get("decoupled_weight_decay") for values in own.values())
    made = groups(plan, model, lr, weight_decay, settings.get("eps"), overrides, coupled=False if decoupled else None)
    parts = [
        _made(classes[name], [group for group in made if group["optimizer"] == name], {"lr": lr, **own[name]})
        for name in used
    ]
    return parts[0] if len(parts) == 1 else CombinedOptimizer(parts)


def _made(cls: Any, param_groups: list[dict[str, Any]], settings: Mapping[str, Any]) -> torch.optim.Optimizer:
    try:
        return cls(param_groups, **settings)
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
            for key, due in _scaled(plan, row, group["base"], coupled).items():
                found = group.get(key)
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
        if isinstance(value, Tensor) and value.ndim == parameter.ndim and value.shape != parameter.shape:
            raise _error(f"{row.name!r} {tuple(parameter.shape)}: its optimizer state {key!r} has shape "
                            f"{tuple(value.shape)}, from a model of another width")  # fmt: skip
