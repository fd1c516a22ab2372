"""What an optimizer must declare: three facts about its raw update `A = opt(G)`, where a step is `W ← W − lr·A`.

| fact       | meaning                                                                     |
|------------|-----------------------------------------------------------------------------|
| `degree`   | p in `A(tG) = tᵖ A(G)`: 1 for SGD, 0 for anything that normalises            |
| `norm`     | size ‖A‖₂ of a raw step as a formula of the tensor's fans                    |
| `eps_kind` | what eps is added to: an element of G, its Frobenius norm, or G·Gᵀ ("outer") |

Every ratio in `rules.py` follows from these (Yang–Simon–Bernstein 2310.17813 §; width and depth: 2603.00541).
Names of Muon's scalings clash between libraries, so here the formula is the name.
"""

from __future__ import annotations

import difflib
import functools
import inspect
from collections.abc import Callable
from dataclasses import dataclass, replace
from fractions import Fraction
from typing import Any, Literal, get_args

import torch

from mutransfer.errors import InputError

Kind = Literal["sgd", "element", "matrix"]
EpsKind = Literal["element", "frobenius", "outer"]
Decay = Literal["decoupled", "coupled"]

GRADIENT = "‖G‖₂"
"""The raw step is as large as the gradient: SGD."""

SQUARED_NORMS: dict[str, Callable[[Fraction, Fraction], Fraction]] = {
    "√(in·out)": lambda n_in, n_out: n_in * n_out,
    "1": lambda n_in, n_out: Fraction(1),
    "√max(1,out/in)": lambda n_in, n_out: max(Fraction(1), n_out / n_in),
    "√(out/in)": lambda n_in, n_out: n_out / n_in,
    "0.2√max(in,out)": lambda n_in, n_out: max(n_in, n_out) / 25,
}
"""‖A‖₂² of a raw step by the formula of ‖A‖₂: (fan_in, fan_out) → squared operator norm, exact."""


@dataclass(frozen=True)
class OptimizerFacts:
    """The facts that decide every ratio of a tensor under one optimizer (theory: "What an optimizer must declare").

    `decay` says how the class's own `weight_decay` acts: "decoupled" is `W *= 1 − lr·wd`, "coupled" adds `wd·W` to G.
    `certain` is False where published rules conflict or the update changes its character while training.
    """

    name: str
    degree: int
    norm: str
    kind: Kind
    eps_kind: EpsKind | None
    decay: Decay
    certain: bool = True
    source: str = ""

    def __post_init__(self) -> None:
        if self.degree not in (0, 1):
            raise InputError(f"degree={self.degree!r} of optimizer {self.name!r}: 0 (normalised) or 1 (like SGD)")
        if self.norm != GRADIENT and self.norm not in SQUARED_NORMS:
            raise InputError(
                f"norm={self.norm!r} of optimizer {self.name!r}: one of {GRADIENT!r}, {_quoted(SQUARED_NORMS)}"
            )
        for key, known in (
            ("kind", get_args(Kind)),
            ("eps_kind", (*get_args(EpsKind), None)),
            ("decay", get_args(Decay)),
        ):
            if getattr(self, key) not in known:
                raise InputError(f"{key}={getattr(self, key)!r} of optimizer {self.name!r}: one of {_quoted(known)}")
        if (self.norm == GRADIENT) != (self.degree == 1):
            raise InputError(f"optimizer {self.name!r}: norm {GRADIENT!r} and degree 1 belong together")

    @property
    def matrix_only(self) -> bool:
        """Whether the update is a matrix function of G, so that embeddings, heads and vectors need another optimizer."""
        return self.kind == "matrix"


def _quoted(names: Any) -> str:
    return ", ".join(repr(name) for name in names)


def _element(name: str, decay: Decay, source: str, eps: EpsKind | None = "element") -> OptimizerFacts:
    return OptimizerFacts(name, 0, "√(in·out)", "element", eps, decay, True, source)


def _muon(norm: str, source: str) -> OptimizerFacts:
    scaling = "UVᵀ" if norm == "1" else f"{norm}·UVᵀ"
    return OptimizerFacts(f"muon {scaling}", 0, norm, "matrix", "frobenius", "decoupled", True, source)


_ADAM = "μP Table 8 (2203.03466); eps: 2310.17813"
REGISTRY: dict[str, OptimizerFacts] = {
    "sgd": OptimizerFacts("sgd", 1, GRADIENT, "sgd", None, "coupled", True, "μP Table 8 (2203.03466)"),
    "adam": _element("adam", "coupled", _ADAM),
    "adamw": _element("adamw", "decoupled", _ADAM),
    "nadam": _element("nadam", "coupled", _ADAM),
    "radam": replace(
        _element("radam", "coupled", "after its first steps Adam's; those are plain momentum"), certain=False
    ),
    "adamax": _element("adamax", "coupled", _ADAM),
    "rmsprop": _element("rmsprop", "coupled", _ADAM),
    "adagrad": _element("adagrad", "coupled", _ADAM),
    "lion": _element("lion", "decoupled", "sign of an average: 2302.06675", None),
    "sign": _element("sign", "decoupled", "sign of the gradient: 1802.04434", None),
    "muon-uvt": _muon("1", "2310.17813"),
    "muon": _muon("√max(1,out/in)", "torch.optim.Muon, adjust_lr_fn='original'"),
    "muon-spectral": _muon("√(out/in)", "2310.17813; 2502.16982 calls it otherwise"),
    "muon-kimi": _muon("0.2√max(in,out)", "torch.optim.Muon, adjust_lr_fn='match_rms_adamw' (2502.16982)"),
    "shampoo": OptimizerFacts(
        "shampoo ¼,¼", 0, "1", "matrix", "outer", "decoupled", True, "1802.09568; as UVᵀ: 2409.20325"
    ),
}
"""Declared facts by canonical name."""

_ALIASES = {
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
}

_REFUSED = {
    "adafactor": "its step is lr·max(eps₂, RMS(W))·A: it depends on ‖W‖ with a floor and on min(lr, 1/√t), which the "
    "three facts cannot describe; use AdamW, or register facts for a variant without parameter scaling",
    "adadelta": "its step size is bootstrapped from eps and does not follow lr alone",
    "lbfgs": "a line search over all tensors at once has no per-tensor learning rate",
    "rprop": "its per-element step sizes adapt away from lr",
    "asgd": "its lr decays by lambd·lr, which couples decay and rate",
}


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

    An instance (or one param group's settings) also tells which variant it is: torch's Muon by `adjust_lr_fn`, Adam by
    `decoupled_weight_decay`. Raises InputError for an optimizer without declared facts, with the line that declares it.
    """
    if isinstance(optimizer, OptimizerFacts):
        return optimizer
    settings: dict[str, Any] = {}
    if isinstance(optimizer, str):
        name = optimizer
    elif isinstance(optimizer, type):
        name = optimizer.__name__
    elif hasattr(optimizer, "param_groups"):
        name, settings = type(optimizer).__name__, optimizer.param_groups[0]
    elif isinstance(optimizer, functools.partial):
        keywords = ", ".join(f"{key}={value!r}" for key, value in optimizer.keywords.items())
        cls = getattr(optimizer.func, "__name__", "the class")
        raise InputError(
            f"optimizer is a functools.partial: give {cls}, and its settings to plan.optimizer(model, lr=…, {keywords})"
        )
    else:
        raise InputError(f"optimizer={optimizer!r}: give a name such as 'adamw', an optimizer class, or OptimizerFacts")
    key = name.lower().replace(" ", "")
    if not key:
        raise InputError(f"optimizer={name!r}: name an optimizer, such as 'adamw', 'sgd' or 'muon'")
    key = _ALIASES.get(key, key)
    if key == "muon" and settings.get("adjust_lr_fn") == "match_rms_adamw":
        key = "muon-kimi"
    if key in _REFUSED:
        raise InputError(f"optimizer {name!r} cannot be transferred by rule: {_REFUSED[key]}")
    if key not in REGISTRY:
        close = difflib.get_close_matches(key, REGISTRY, n=1)
        hint = f"did you mean {close[0]!r}? otherwise " if close else ""
        raise InputError(
            f"optimizer {name!r} has no declared facts: {hint}write mt.register_optimizer({name!r}, mt.OptimizerFacts("
            f"name={name!r}, degree=0, norm='√(in·out)', kind='element', eps_kind='element', decay='decoupled')) with its own"
        )
    facts = REGISTRY[key]
    if settings.get("decoupled_weight_decay") and facts.decay == "coupled":
        facts = OptimizerFacts(**{**facts.__dict__, "decay": "decoupled"})
    return facts


def optimizer_class(name: str) -> type[torch.optim.Optimizer] | None:
    """The torch class that runs the optimizer of this canonical or class name; None where torch has none."""
    key = _ALIASES.get(name.lower(), name.lower())
    if key.startswith("muon"):
        return getattr(torch.optim, "Muon", None)
    for attribute, value in vars(torch.optim).items():
        if attribute.lower() == key and inspect.isclass(value) and issubclass(value, torch.optim.Optimizer):
            return value
    return None
