"""The classes that run the optimizers: torch's, else a package's, imported when asked for; and how each package's code differs.

One name means different things in two packages: Lamb clamps ‖W‖ in one and drops its trust ratio in another, Adafactor's decay is
multiplied by RMS(W) outside torch, Shampoo calls its eps `matrix_eps`. What is said here was read in the package's source.
"""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import torch

from mutransfer.errors import InputError

if TYPE_CHECKING:
    from mutransfer.optimizers.facts import OptimizerFacts

INSTALL = "pip install 'mutransfer[optimizers]'"
FLOOR = 1e-3
"""The base's lower bound of RMS(W) in Adafactor (eps₂ of 1804.04235, torch's default)."""

EPS = {"adafactor": 1e-18, "shampoo": 1e-12}
"""The base's eps where a class's own default is too large to be one.

torch's Adafactor clamps √V at eps₁, and the mean of G² at eps₁ too: at its default (1.2e-7 in float32) an element of 3e-4. 1e-18 has a
square that float32 still holds. Shampoo adds its 1e-6 to G·Gᵀ, which the gradient of a query projection never reaches at the start;
its singular value decomposition then meets the same number many times and may fail.
"""

COUPLED_OR_NOT = frozenset(("sgd", "adam", "adamw", "nadam", "radam", "adamax", "rmsprop", "adagrad"))
"""Optimizers whose `decoupled_weight_decay` is torch's flag; Lion's of the same name elsewhere takes lr out of the decay."""

SHAPED_STATES = frozenset((
    "exp_avg", "exp_avg_sq", "max_exp_avg_sq", "exp_avg_slow", "momentum", "momentum_buffer", "square_avg", "grad_avg",
    "acc_delta", "sum", "z", "d", "hessian_moment",
))  # fmt: skip
"""States that have the shape of their tensor. Factored or preconditioning ones have another."""


@dataclass(frozen=True)
class Known:
    """One class of one package: the canonical name of its facts, and the settings under which it follows them.

    `fixed` goes into every param group; another value is refused. `at_zero` goes into the groups of tensors that start at zero.
    `decouple` is the flag that chooses decoupled decay. `eps` is the name (and default) of eps where it is not `eps`. `changes` are
    facts in which this package differs from the canonical ones; `refused` is why the class cannot be transferred by rule.
    """

    package: str
    name: str
    facts: str
    fixed: Mapping[str, Any] = field(default_factory=dict)
    at_zero: Mapping[str, Any] = field(default_factory=dict)
    decouple: str | None = None
    eps: str = "eps"
    changes: Mapping[str, Any] = field(default_factory=dict)
    refused: str = ""

    def facts_of(self, facts: OptimizerFacts, optimizer: Any) -> OptimizerFacts:
        """The canonical facts as this class (or instance, by its first group) follows them. Raises InputError where it does not."""
        facts = replace(facts, **self.changes)
        if isinstance(optimizer, type):
            return facts
        group = optimizer.param_groups[0]
        self.check(group)
        if self.decouple is not None and group.get(self.decouple) is False:
            facts = replace(facts, decay="coupled")
        return facts

    def check(self, given: Mapping[str, Any]) -> None:
        """Raise InputError for a setting under which the class does not do what its facts say."""
        for key, value in self.fixed.items():
            if key in given and given[key] != value:
                raise InputError(
                    f"{key}={given[key]!r}: {self.package}'s {self.name} is known for {key}={value!r} only; leave it out"
                )


_PO = "pytorch_optimizer"
_DECAY = {"fixed_decay": False}
_RELATIVE = "its decay is multiplied by RMS(W) and its default step ignores lr; say optimizer='adafactor', which is torch.optim.Adafactor"
KNOWN: tuple[Known, ...] = (
    Known("torch", "Adafactor", "adafactor"),
    Known("mutransfer", "Lamb", "lamb", _DECAY | {"weight_decouple": True, "adam_debias": True, "rectify": False},
          {"adam": True}),
    Known(_PO, "Lion", "lion", _DECAY, decouple="weight_decouple"),
    Known(_PO, "SignSGD", "sign", decouple="weight_decouple"),
    Known(_PO, "AdEMAMix", "ademamix", _DECAY, decouple="weight_decouple"),
    Known(_PO, "ScheduleFreeAdamW", "schedule-free-adamw", {"decoupling_c": 0, "ams_bound": False}),
    Known("schedulefree", "AdamWScheduleFree", "schedule-free-adamw"),
    Known(_PO, "SophiaH", "sophia", _DECAY, decouple="weight_decouple"),
    Known(_PO, "Shampoo", "shampoo", _DECAY | {"momentum": 0.0}, decouple="weight_decouple", eps="matrix_eps"),
    Known(_PO, "SOAP", "soap", {"normalize_gradient": False}),
    Known(_PO, "SCION", "scion", {"norm_type": 1, "constraint": False}, decouple="weight_decouple"),
    Known(_PO, "Lamb", "lamb", refused="it clamps ‖W‖_F at 10, so that the step of a large tensor does not follow its weights; "
          "say optimizer='lamb', which runs this class without the clamp"),
    Known(_PO, "AdaFactor", "adafactor", refused=_RELATIVE),
    Known("transformers", "Adafactor", "adafactor", refused=_RELATIVE),
    Known(_PO, "ScalableShampoo", "shampoo", refused="grafting gives its steps the norm of another optimizer (SGD, AdaGrad), "
          "and its matrices work from step 25 on; say optimizer='shampoo'"),
    Known(_PO, "Muon", "muon", refused="one class holds Muon and AdamW with learning rates of its own; say optimizer='muon'"),
    Known("heavyball", "SGD", "sgd"),
    Known("heavyball", "AdamW", "adamw"),
    Known("heavyball", "NAdam", "nadam", refused="its weight_decay makes weights grow (3.2.1); say optimizer='nadam'"),
    Known("heavyball", "RMSprop", "rmsprop", changes={"decay": "decoupled"}),
    Known("heavyball", "AdEMAMix", "ademamix"),
    Known("heavyball", "SFAdamW", "schedule-free-adamw"),
    Known("heavyball", "Muon", "muon"),
    Known("heavyball", "SOAP", "soap"),
    Known("heavyball", "Scion", "scion", refused="its first step replaces the weights by its own initialisation; "
          "say optimizer='scion'"),
)  # fmt: skip
"""What the source of each class says (pytorch-optimizer 4.1, schedulefree 1.4, heavyball 3.2, torch 2.13; transformers 4 was not run)."""

_BY_CLASS = {(known.package, known.name): known for known in KNOWN}

RUNNERS: dict[str, tuple[str, str, str]] = {
    "lion": ("pytorch_optimizer", "pytorch_optimizer", "Lion"),
    "sign": ("pytorch_optimizer", "pytorch_optimizer", "SignSGD"),
    "ademamix": ("pytorch_optimizer", "pytorch_optimizer", "AdEMAMix"),
    "sophia": ("pytorch_optimizer", "pytorch_optimizer", "SophiaH"),
    "shampoo": ("pytorch_optimizer", "pytorch_optimizer", "Shampoo"),
    "soap": ("pytorch_optimizer", "pytorch_optimizer", "SOAP"),
    "scion": ("pytorch_optimizer", "pytorch_optimizer", "SCION"),
    "lamb": ("pytorch_optimizer", "mutransfer.optimizers.lamb", "Lamb"),
    "schedule-free-adamw": ("schedulefree", "schedulefree", "AdamWScheduleFree"),
}
"""Canonical name → (package that must be installed, module, class) where torch has no class."""


def known_class(cls: type) -> Known | None:
    """What is known of this very class, by its package and name; None for a class of any other origin."""
    return _BY_CLASS.get((cls.__module__.partition(".")[0], cls.__name__))


def optimizer_class(name: str, *, required: bool = True) -> type[torch.optim.Optimizer] | None:
    """The class that runs the optimizer of this canonical or class name: torch's, else a package's; None where none is known.

    Muon's is torch's (None before 2.9). Raises InputError with the pip command for a package that is not installed, unless
    `required` is False, which gives None.
    """
    from mutransfer.optimizers.registry import canonical

    key = canonical(name)
    if key.startswith("muon"):
        return getattr(torch.optim, "Muon", None)
    for attribute, value in vars(torch.optim).items():
        if attribute.lower() == key and inspect.isclass(value) and issubclass(value, torch.optim.Optimizer):
            return value
    if key not in RUNNERS:
        return None
    package, module, attribute = RUNNERS[key]
    try:
        return getattr(importlib.import_module(module), attribute)
    except ImportError as error:
        if not required:
            return None
        raise InputError(f"optimizer {name!r} is run by the package {package}: {INSTALL}") from error


def default_setting(cls: Any, key: str) -> Any:
    """What the class takes for lr, weight_decay or eps when nobody says otherwise; None where it has no such setting.

    Two defaults of eps are replaced because they bite at ordinary gradients, where the step then is no longer normalised: see EPS.
    """
    known = None if cls is None else known_class(cls)
    if key == "eps" and known is not None and known.facts in EPS:
        return EPS[known.facts]
    name = known.eps if known is not None and key == "eps" else key
    parameter = None if cls is None else inspect.signature(cls).parameters.get(name)
    return None if parameter is None or parameter.default is inspect.Parameter.empty else parameter.default


def worded(cls: Any, facts: OptimizerFacts, settings: Mapping[str, Any], std: float, zeros: bool) -> dict[str, Any]:
    """A param group's settings in the class's own words, with those that its facts need.

    `std` is the ratio of the tensor's init, `zeros` whether it starts at zero. Adafactor's eps is (eps₁, eps₂) with eps₂ = 1e-3·std,
    so that the lower bound of RMS(W) follows RMS(W).
    """
    known = None if cls is None else known_class(cls)
    if known is None:
        return dict(settings)
    words = {known.eps if key == "eps" else key: value for key, value in settings.items()}
    if known.facts == "adafactor" and "eps" in words:
        words["eps"] = (words["eps"], FLOOR * std)
    words |= known.fixed
    if known.decouple is not None:
        words[known.decouple] = facts.decay == "decoupled"
    if zeros:
        words |= known.at_zero
    return words


def read_setting(group: Mapping[str, Any], key: str) -> Any:
    """The inverse of `worded` for one number of a param group."""
    value = group.get("eps", group.get("matrix_eps")) if key == "eps" else group.get(key)
    return value[0] if isinstance(value, tuple) else value


def check_settings(cls: Any, facts: OptimizerFacts, asked: Mapping[str, Any]) -> None:
    """Raise InputError for a setting that the class's facts do not hold for, naming it and what to write."""
    known = known_class(cls) if isinstance(cls, type) else None
    if known is None:
        return
    known.check(asked)
    if known.decouple is not None and known.decouple in asked and asked[known.decouple] != (facts.decay == "decoupled"):
        raise InputError(
            f"{known.decouple}={asked[known.decouple]!r}: the plan's decay is {facts.decay}; leave it out, or plan with an instance "
            f"of {known.name} that has it"
        )


def run_settings(cls: type, betas: tuple[float, float], momentum: float) -> dict[str, Any]:
    """A run's betas and momentum as this class takes them: a third beta keeps its default, SCION's momentum is 1 − momentum."""
    parameters, known = inspect.signature(cls).parameters, known_class(cls)
    found: dict[str, Any] = {}
    if "betas" in parameters:
        found["betas"] = (*betas, *tuple(parameters["betas"].default)[2:])
    if "momentum" in parameters and not (known is not None and "momentum" in known.fixed):
        found["momentum"] = 1 - momentum if cls.__name__ == "SCION" else momentum
    return found


def check_run(name: str, schedule: str) -> None:
    """Raise InputError for an optimizer that a plain training loop cannot run, or not under this schedule."""
    from mutransfer.optimizers.registry import canonical

    key = canonical(name)
    if key == "sophia":
        raise InputError(
            f"optimizer={name!r} needs a Hessian estimate (backward with create_graph=True), which this loop does not make: give "
            f"another, such as 'lion', or write your own loop around plan.optimizer"
        )
    if key == "schedule-free-adamw" and schedule != "constant":
        raise InputError(
            f"schedule={schedule!r}: optimizer {name!r} averages its iterates instead of lowering the rate; give schedule='constant'"
        )


def ready(optimizer: Any) -> Any:
    """The optimizer, with averaged iterates (schedule-free) switched to training: its step refuses to run before."""
    if callable(switch := getattr(optimizer, "train", None)):
        switch()
    return optimizer
