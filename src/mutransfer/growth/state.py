"""What becomes of an optimizer's state when the model grows: one declared rule per optimizer and state key (theory §6).

With `W' = s·dup(W)` and `G' = g·dup(G)`, a running average of Gᵈ becomes gᵈ·dup, a copy of the weights s·dup, a counter itself.
Shampoo's statistics are matrices. With K the growth of the number of entries and Q the normalised copies, QᵀQ = I:

    G'G'ᵀ = g²K·Q(GGᵀ)Qᵀ    L' = g²K·(Q L Qᵀ + eps·(I − QQᵀ))    L'^(−1/2o) = (g²K)^(−1/2o)·(Q L^(−1/2o) Qᵀ + eps^(−1/2o)·(I − QQᵀ))
"""

from __future__ import annotations

import copy
import fnmatch
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from torch import Tensor

from mutransfer.engines import torch_muon
from mutransfer.errors import InputError
from mutransfer.growth.axis import AxisMap
from mutransfer.growth.tensors import TensorGrowth
from mutransfer.growth.weights import grown, grown_moment
from mutransfer.optimizers.classes import known_class
from mutransfer.optimizers.registry import canonical

Declared = Literal[0, 1, 2, "weight", "copy"]
"""What a user may say of a state key: the degree of a moment, a copy of the weights, or taken over as it is."""


@dataclass(frozen=True)
class Rule:
    """One state key: a "moment" of this `degree` (a mean over axis `over`, where given), a "weight", a "copy" (counters and other
    numbers), a "statistic" or "root" (Shampoo's matrices), or what the optimizer writes anew before it reads it ("drop")."""

    kind: Literal["moment", "weight", "copy", "statistic", "root", "drop"]
    degree: int = 0
    over: int | None = None


_M0, _M1, _M2 = (Rule("moment", degree) for degree in range(3))
_COPY, _WEIGHT, _DROP = Rule("copy"), Rule("weight"), Rule("drop")
_ADAM = {"step": _COPY, "exp_avg": _M1, "exp_avg_sq": _M2, "max_exp_avg_sq": _M2}

RULES: dict[str, dict[str, Rule]] = {
    "sgd": {"momentum_buffer": _M1},
    "adam": _ADAM,
    "adamw": _ADAM,
    "radam": _ADAM,
    "nadam": _ADAM | {"mu_product": _COPY},
    "adamax": {"step": _COPY, "exp_avg": _M1, "exp_inf": _M1},
    # its momentum sums G/√v, which has no degree
    "rmsprop": {"step": _COPY, "square_avg": _M2, "grad_avg": _M1, "momentum_buffer": _M0},
    "adagrad": {"step": _COPY, "sum": _M2},
    "adafactor": {
        "step": _COPY, "variance": _M2, "row_var": Rule("moment", 2, over=-1), "col_var": Rule("moment", 2, over=-2),
    },
    "muon": {"momentum_buffer": _M1},
    "lion": {"exp_avg": _M1},
    "sign": {"momentum_buffer": _M1},
    "ademamix": {"exp_avg": _M1, "exp_avg_slow": _M1, "exp_avg_sq": _M2},
    "scion": {"d": _M1},
    "lamb": {"exp_avg": _M1, "exp_avg_sq": _M2, "weight_norm": _DROP, "adam_norm": _DROP, "trust_ratio": _DROP},
    "schedule-free-adamw": {"z": _WEIGHT, "exp_avg_sq": _M2, "max_exp_avg_sq": _M2},
    "shampoo": {"pre_cond_*": Rule("statistic"), "inv_pre_cond_*": Rule("root"), "momentum_buffer": _DROP},
}  # fmt: skip
"""Canonical name of the optimizer → state key (or a pattern of keys) → rule."""

_HEAVYBALL = {
    "step": _COPY, "is_initialized": _COPY, "*exp_avg_sq_[0-9]": _M2, "*exp_avg_[0-9]": _M1, "*exp_avg_fast_[0-9]": _M1,
    "*exp_avg_slow_[0-9]": _M1, "*momentum_[0-9]": _M1, "*_z_[0-9]": _WEIGHT,
}  # fmt: skip
"""heavyball numbers its states by their place in a chain of transformations, and keeps them per view of the tensor."""

_FRESH = "grow with optimizer_state='fresh', which starts its state anew"
REFUSED = {
    "soap": "in its eigenbasis copies are fewer numbers: their step is √(a·b) smaller and their gradient √(a·b) larger than the "
    f"element-wise rule that the plan's lr and eps follow, so no state continues the path; {_FRESH}",
    "sophia": f"its Hessian estimate is of random directions, which copies do not share; {_FRESH}",
}
"""Optimizers for which no rule exists under the plan's ratios, and why."""

_WEIGHTS = (
    "its step follows RMS(W), and copies of weights keep the RMS of their sources where the plan's lr counts on that of a new init: a "
    "hidden matrix takes steps √(fan-in growth) smaller"
)
_BFLOAT = "its matrix products are in bfloat16: the same path within that rounding"
INEXACT = {
    "radam": "its first five steps are plain momentum, of another degree than the rest: exact from the sixth on",
    "lamb": f"{_WEIGHTS}; one eps is added to √V and to the norm of the step, which grow differently",
    "adafactor": f"{_WEIGHTS}; min(lr, 1/√t) leaves the ratios where lr > 1/√t; eps₁ bounds both √V and a mean of G²",
    "scion": _BFLOAT,
}
"""Optimizers whose state has a rule and whose path still leaves the small model's, and why."""


@dataclass(frozen=True)
class Rules:
    """The rules of one optimizer: `name` as messages quote it, `table` by state key."""

    name: str
    table: Mapping[str, Rule]

    def find(self, key: str, tensor: str) -> Rule:
        """The rule of this state key. Raises InputError, with the line that declares it, where there is none."""
        if key in self.table:
            return self.table[key]
        for pattern, rule in self.table.items():
            if fnmatch.fnmatchcase(key, pattern):
                return rule
        raise InputError(
            f"optimizer {self.name} keeps {key!r} of {tensor!r}, and no rule says how it grows: write state_rules={{{key!r}: 1}} (an "
            f"average of G; 2: of G²; 0: of neither; 'weight': a copy of the weights; 'copy': taken over as it is), or {_FRESH}"
        )


def rules_for(optimizer: Any, state_rules: Mapping[str, Declared] | None = None) -> Rules:
    """The rules of an optimizer given as an instance, a class or a name; `state_rules` declares keys and goes before what is known.

    A subclass has its parent's rules. A class that is not known has only the declared ones. Raises InputError where no rule exists
    and none is declared, and for a declaration that is none.
    """
    declared = {key: _declared(key, value) for key, value in (state_rules or {}).items()}
    name, key = identified(optimizer)
    if key in REFUSED and not declared:
        raise InputError(f"the state of {name} cannot grow: {REFUSED[key]}")
    return Rules(name, declared | (_HEAVYBALL if key == "heavyball" else RULES.get(key, {})))


def identified(optimizer: Any) -> tuple[str, str]:
    """(name to quote, key of the rules) of an optimizer given as an instance, a class or a name; key "" where it is not known."""
    if isinstance(optimizer, str):
        return repr(optimizer), _key(optimizer)
    cls = optimizer if isinstance(optimizer, type) else type(optimizer)
    for parent in cls.__mro__:
        known = known_class(parent)
        key = _key(parent.__name__ if known is None else known.facts)
        if key in REFUSED:
            return cls.__name__, key
        if known is not None and known.package == "heavyball":
            return cls.__name__, "heavyball"
        if key in RULES:
            return cls.__name__, key
    return cls.__name__, ""


def inexact_reason(optimizer: Any) -> str:
    """Why the grown model leaves the path of the small one under this optimizer (an instance, class or name); "" where it does not."""
    if isinstance(optimizer, torch.optim.Optimizer) and _past_warmup(optimizer):
        return ""
    _, key = identified(optimizer)
    if torch_muon() in (optimizer, type(optimizer)):
        return _BFLOAT
    return INEXACT.get(key, REFUSED.get(key, ""))


def _past_warmup(optimizer: torch.optim.Optimizer) -> bool:
    steps = [float(state["step"]) for state in optimizer.state.values() if "step" in state]
    return identified(optimizer)[1] == "radam" and bool(steps) and min(steps) >= 5


def _key(name: str) -> str:
    key = canonical(name)
    return "muon" if key.startswith("muon") else key


def _declared(key: str, value: Any) -> Rule:
    known: dict[Any, Rule] = {0: _M0, 1: _M1, 2: _M2, "weight": _WEIGHT, "copy": _COPY}
    if isinstance(value, bool) or not isinstance(value, int | str) or value not in known:
        raise InputError(f"state_rules={{{key!r}: {value!r}}}: write 1, 2 or 0 (the degree in G), 'weight' or 'copy'")
    return known[value]


def grown_state(
    rules: Rules,
    growth: TensorGrowth,
    state: Mapping[Any, Any],
    settings: Mapping[str, Any] | None = None,
    *,
    small: Tensor | None = None,
    big: Tensor | None = None,
) -> dict[Any, Any]:
    """The state of one tensor of the big model, from that of the tensor it copies; nothing is shared with `state`.

    `settings` is the small param group (Shampoo's eps is read there). With both parameters given, moments have the device and dtype
    of `big` as they had those of `small`. A tensor of a new block (`fresh`) has none: its optimizer begins it.
    Raises InputError for a key without a rule and for a state of another shape.
    """
    if growth.fresh:
        return {}
    found: dict[Any, Any] = {}
    for key, value in state.items():
        if isinstance(value, Mapping):  # heavyball: one state per view of the tensor
            found[key] = grown_state(rules, growth, value, settings, small=small, big=big)
            continue
        rule = rules.find(str(key), growth.source)
        if rule.kind == "drop":
            continue
        if rule.kind == "copy" or not isinstance(value, Tensor):
            found[key] = _counter(value, settings or {}, big)
            continue
        made = _grown(rule, growth, str(key), value, settings or {}, rules.name)
        if big is not None:
            made = made.to(big.device, big.dtype if small is not None and made.dtype == small.dtype else None)
        found[key] = made
    return found


def _counter(value: Any, settings: Mapping[str, Any], big: Tensor | None) -> Any:
    """A copy; on the tensor's device only where its optimizer keeps counters there."""
    copied = copy.deepcopy(value)
    on_device = settings.get("capturable") or settings.get("fused")
    if isinstance(copied, Tensor) and big is not None and (on_device or copied.device.type != "cpu"):
        return copied.to(big.device)
    return copied


def _grown(rule: Rule, growth: TensorGrowth, key: str, value: Tensor, settings: Mapping[str, Any], name: str) -> Tensor:
    if rule.kind in ("statistic", "root"):
        axis = int(key.rpartition("_")[2])
        _check(value, (growth.base_shape[axis],) * 2, growth, key, name)
        eps = settings.get("matrix_eps")
        if not isinstance(eps, int | float) or eps <= 0:
            raise InputError(
                f"{key!r} of {growth.source!r} grows by the eps that is in it: matrix_eps={eps!r} of its group is no number above 0"
            )
        return _preconditioner(growth, axis, value, float(eps), power=-1 / (2 * len(growth.maps)) if rule.kind == "root" else 1.0)  # fmt: skip
    if rule.over is not None:
        axis = len(growth.maps) + rule.over
        growth = replace(growth, maps=tuple(AxisMap(1, 1) if i == axis else map_ for i, map_ in enumerate(growth.maps)))
    _check(value, growth.base_shape, growth, key, name)
    return grown(growth, value) if rule.kind == "weight" else grown_moment(growth, value, rule.degree)


def _preconditioner(growth: TensorGrowth, axis: int, matrix: Tensor, eps: float, power: float) -> Tensor:
    """`(g²K)ᵖ·(Q M Qᵀ + epsᵖ·(I − QQᵀ))`: p = 1 for the statistic, −1/2o for its root (head of this file)."""
    map_ = growth.maps[axis]
    index = map_.index().to(matrix.device)
    share = map_.copies().to(matrix).rsqrt()
    copies = matrix.index_select(0, index).index_select(1, index) * share[:, None] * share
    spanned = (index[:, None] == index) * share[:, None] * share  # QQᵀ
    other = torch.eye(len(index), dtype=matrix.dtype, device=matrix.device) - spanned
    entries = growth.fan_in_growth * growth.fan_out_growth
    return (copies + other * eps**power) * (growth.gradient**2 * entries) ** power


def _check(value: Tensor, shape: tuple[int, ...], growth: TensorGrowth, key: str, name: str) -> None:
    if tuple(value.shape) != shape:
        raise InputError(
            f"{name}'s {key!r} of {growth.source!r} {growth.base_shape} has shape {tuple(value.shape)}, where its rule takes {shape}; "
            f"write another in state_rules={{{key!r}: …}}, or {_FRESH}"
        )
