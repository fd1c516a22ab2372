"""The declared facts by canonical name, and how an optimizer that the user gives is recognised."""

from __future__ import annotations

import difflib
import functools
from dataclasses import replace
from typing import Any

from mutransfer.errors import InputError
from mutransfer.optimizers.classes import known_class
from mutransfer.optimizers.facts import GRADIENT, Decay, EpsKind, OptimizerFacts


def _element(
    name: str, decay: Decay, source: str, eps: EpsKind | None = "element", *, certain: bool = True
) -> OptimizerFacts:
    return OptimizerFacts(name, 0, "√(in·out)", "element", eps, decay, certain, source)


def _muon(norm: str, source: str) -> OptimizerFacts:
    scaling = "UVᵀ" if norm == "1" else f"{norm}·UVᵀ"
    return OptimizerFacts(f"muon {scaling}", 0, norm, "matrix", "frobenius", "decoupled", True, source)


_ADAM = "μP Table 8 (2203.03466); eps: 2310.17813"
_RMS = "the step is RMS(W)·(Adam's): "
REGISTRY: dict[str, OptimizerFacts] = {
    "sgd": OptimizerFacts("sgd", 1, GRADIENT, "sgd", None, "coupled", True, "μP Table 8 (2203.03466)"),
    "adam": _element("adam", "coupled", _ADAM),
    "adamw": _element("adamw", "decoupled", _ADAM),
    "nadam": _element("nadam", "coupled", _ADAM),
    "radam": _element("radam", "coupled", "after its first steps Adam's; those are plain momentum", certain=False),
    "adamax": _element("adamax", "coupled", _ADAM),
    "rmsprop": _element("rmsprop", "coupled", _ADAM),
    "adagrad": _element("adagrad", "coupled", _ADAM),
    "ademamix": _element("ademamix", "decoupled", "two averages over Adam's denominator: 2409.03137"),
    "schedule-free-adamw": _element("schedule-free-adamw", "decoupled", "Adam's step on averaged iterates: 2405.15682"),
    "lion": _element("lion", "decoupled", "sign of an average: 2302.06675", None),
    "sign": _element("sign", "decoupled", "sign of the gradient: 1802.04434", None),
    "sophia": _element(
        "sophia", "decoupled", "2305.14342: a sign where it clips, else a Newton step, and how much of it clips moves with ρ, "
        "whose rule over width is not settled", None, certain=False,
    ),
    "lamb": replace(_element("lamb", "decoupled", f"{_RMS}1904.00962"), weight=1),
    "adafactor": replace(_element("adafactor", "decoupled", f"{_RMS}1804.04235"), weight=1, floor=True),
    "muon-uvt": _muon("1", "2310.17813"),
    "muon": _muon("√max(1,out/in)", "torch.optim.Muon, adjust_lr_fn='original'"),
    "muon-spectral": _muon("√(out/in)", "2310.17813; 2502.16982 calls it otherwise"),
    "muon-kimi": _muon("0.2√max(in,out)", "torch.optim.Muon, adjust_lr_fn='match_rms_adamw' (2502.16982)"),
    "scion": OptimizerFacts(
        "scion √(out/in)·UVᵀ", 0, "√(out/in)", "matrix", None, "decoupled", True, "spectral LMO, unconstrained: 2502.07529"
    ),
    "shampoo": OptimizerFacts(
        "shampoo ¼,¼", 0, "1", "matrix", "outer", "decoupled", True, "1802.09568; as UVᵀ: 2409.20325"
    ),
    "soap": OptimizerFacts(
        "soap", 0, "√(in·out)", "matrix", "element", "decoupled", False,
        "2409.11321: Adam in Shampoo's eigenbasis. Measured: √in + √out on a gradient that is noise, nearly √(in·out) on those of "
        "small batches; under μP optima of such optimizers still drift at finite width (2512.05620)",
    ),
}  # fmt: skip
"""Declared facts by canonical name."""

ALIASES = {
    "muon:uvᵀ": "muon-uvt",
    "muon:1": "muon-uvt",
    "muon:√max(1,out/in)": "muon",
    "muon:sqrt(max(1,out/in))": "muon",
    "muon:√(out/in)": "muon-spectral",
    "muon:sqrt(out/in)": "muon-spectral",
    "muon:0.2√max(in,out)": "muon-kimi",
    "muon:0.2*sqrt(max(in,out))": "muon-kimi",
    "signsgd": "sign",
    "sparseadam": "adam",
    "adamwschedulefree": "schedule-free-adamw",
    "schedulefreeadamw": "schedule-free-adamw",
    "sfadamw": "schedule-free-adamw",
    "sophiah": "sophia",
    "sophiag": "sophia",
}

_REFUSED = {
    "adadelta": "its step size is bootstrapped from eps and does not follow lr alone",
    "lbfgs": "a line search over all tensors at once has no per-tensor learning rate",
    "rprop": "its per-element step sizes adapt away from lr",
    "asgd": "its lr decays by lambd·lr, which couples decay and rate",
}


def canonical(name: str) -> str:
    """The canonical name behind an alias or a class name; the name itself in lower case where there is none."""
    key = name.lower().replace(" ", "")
    return ALIASES.get(key, key)


def register_optimizer(name: str, facts: OptimizerFacts) -> None:
    """Declare the facts of an optimizer class under its (case-insensitive) class name.

    Raises InputError when the name is taken by different facts.
    """
    if not isinstance(name, str) or not name.strip() or not isinstance(facts, OptimizerFacts):
        raise InputError(
            f"register_optimizer({name!r}, {facts!r}): write the class name and its facts, such as "
            f"register_optimizer('Tiger', mt.OptimizerFacts(name='tiger', degree=0, …))"
        )
    key = name.lower()
    if key in REGISTRY and REGISTRY[key] != facts:
        raise InputError(f"optimizer {name!r} is already declared as {REGISTRY[key].name!r}; choose another name")
    REGISTRY[key] = facts


def facts_for(optimizer: Any) -> OptimizerFacts:
    """The declared facts of an optimizer given as a name, a class, an instance, or facts themselves.

    A class of a known package has the facts of that package's code, not of its name alone (`classes.py`). An instance also
    tells which variant it is: torch's Muon by `adjust_lr_fn`, Adam by `decoupled_weight_decay`, others by `weight_decouple`.
    Raises InputError for an optimizer without declared facts, with the line that declares it.
    """
    if isinstance(optimizer, OptimizerFacts):
        return optimizer
    cls, settings = None, {}
    if isinstance(optimizer, str):
        name = optimizer
    elif isinstance(optimizer, type):
        cls, name = optimizer, optimizer.__name__
    elif hasattr(optimizer, "param_groups"):
        cls, name, settings = type(optimizer), type(optimizer).__name__, optimizer.param_groups[0]
    elif isinstance(optimizer, functools.partial):
        keywords = ", ".join(f"{key}={value!r}" for key, value in optimizer.keywords.items())
        given = getattr(optimizer.func, "__name__", "the class")
        raise InputError(
            f"optimizer is a functools.partial: give {given}, and its settings to plan.optimizer(model, lr=…, {keywords})"
        )
    else:
        raise InputError(f"optimizer={optimizer!r}: give a name such as 'adamw', an optimizer class, or OptimizerFacts")
    if not name.strip():
        raise InputError(f"optimizer={name!r}: name an optimizer, such as 'adamw', 'sgd' or 'muon'")
    known = known_class(cls) if cls is not None else None
    key = canonical(name) if known is None else known.facts
    if known is not None and known.refused:
        raise InputError(f"optimizer {known.package}.{known.name} cannot be transferred by rule: {known.refused}")
    if key == "muon" and settings.get("adjust_lr_fn") == "match_rms_adamw":
        key = "muon-kimi"
    if key == "muon" and "scale" in settings:  # our Muon names its scaling
        key = ALIASES.get(f"muon:{str(settings['scale']).lower()}", key)
    if key in _REFUSED:
        raise InputError(f"optimizer {name!r} cannot be transferred by rule: {_REFUSED[key]}")
    if key not in REGISTRY:
        raise InputError(_unknown(name, key))
    if known is None and cls is not None and REGISTRY[key].weight and key in _BUILT_IN_WEIGHT:
        raise InputError(
            f"{cls.__module__}.{name}: classes of this name differ in how a step follows ‖W‖; say optimizer={key!r}, or give "
            f"its facts: mt.OptimizerFacts(…), which mt.probe_optimizer({name}) measures"
        )
    facts = REGISTRY[key]
    if known is not None:
        facts = known.facts_of(facts, optimizer)
    if (
        (known is None or known.package == "torch")
        and settings.get("decoupled_weight_decay")
        and facts.decay == "coupled"
    ):
        facts = replace(facts, decay="decoupled")
    return facts


_BUILT_IN_WEIGHT = {name for name, facts in REGISTRY.items() if facts.weight}


def _unknown(name: str, key: str) -> str:
    close = difflib.get_close_matches(key, REGISTRY, n=1)
    hint = f"did you mean {close[0]!r}? otherwise " if close else ""
    return (
        f"optimizer {name!r} has no declared facts: {hint}write mt.register_optimizer({name!r}, mt.OptimizerFacts("
        f"name={name!r}, degree=0, norm='√(in·out)', kind='element', eps_kind='element', decay='decoupled')) with its own, "
        f"which mt.probe_optimizer of its class measures"
    )
