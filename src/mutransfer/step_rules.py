"""How each optimizer's settings follow the time T that a step covers (see `duration.py`): a table by name, each entry with its source.

With noise of a gradient ∝ 1/√batch and its mean fixed, a normalised step takes lr·√T, a gradient step lr·T, and an average keeps
its memory in tokens as 1 − β → T·(1 − β). eps stands beside what it is added to: an element or a norm of G ∝ 1/√T, a square ∝ 1/T.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from mutransfer.errors import InputError
from mutransfer.optimizers import OptimizerFacts


@dataclass(frozen=True)
class StepRule:
    """How one optimizer's settings follow T: lr·T^`lr`, eps·T^`eps`, 1 − β → T·(1 − β) for every setting named in `memories`.

    `summed` names a momentum that adds gradients up (torch's SGD, RMSprop) instead of averaging them: where it is not 0 its gain
    1/(1 − μ) falls to 1/T of its own, so that lr takes one more factor T. `certain` is False where the rule is derived only in
    part; `source` says from what.
    """

    lr: float
    eps: float
    memories: tuple[str, ...] = ()
    summed: str | None = None
    certain: bool = True
    source: str = ""

    def __post_init__(self) -> None:
        if isinstance(self.memories, list):  # from JSON
            object.__setattr__(self, "memories", tuple(self.memories))
        if self.summed is not None and self.summed not in self.memories:
            raise InputError(
                f"StepRule(summed={self.summed!r}): a summed momentum is one of memories={self.memories!r}"
            )


_ADAM = StepRule(0.5, -0.5, ("betas",), source="2205.10287")
_MATRIX = StepRule(
    0.5, -0.5, certain=False,
    source="√T where noise dominates the gradient and momentum, kept as it is, is short against learning; not proven",
)  # fmt: skip
STEP_RULES: dict[str, StepRule] = {
    "sgd": StepRule(1.0, 0.0, ("momentum",), "momentum", source="1511.06251; the linear rule of 1706.02677"),
    "adam": _ADAM,
    "adamw": _ADAM,
    "rmsprop": StepRule(0.5, -0.5, ("alpha", "momentum"), "momentum", source="2205.10287"),
    "adagrad": StepRule(0.0, -1.0, certain=False, source="√(sum of squares) ∝ 1/T already; lr_decay counts steps"),
    "radam": replace(_ADAM, certain=False, source="Adam's after its first steps"),
    "nadam": replace(_ADAM, certain=False, source="Adam's; momentum_decay counts steps and is kept"),
    "adamax": replace(_ADAM, certain=False, source="Adam's; a maximum over noise grows slowly with the number of steps"),
    "ademamix": replace(_ADAM, certain=False, source="Adam's with three memories; warm-ups of alpha and β₃ count steps"),
    "soap": replace(_ADAM, certain=False, source="Adam's, in a basis that turns every so many steps, which are kept"),
    "sign": StepRule(0.5, 0.0, certain=False, source="2411.15958; certain without momentum, with one (kept) as Lion"),
    "lion": StepRule(
        0.5, 0.0, certain=False,
        source="√T where its memory, kept as it is, is short against learning: a sign forgets how large an average is, so "
        "that no betas give the same equation",
    ),
    "lamb": StepRule(0.5, -0.5, certain=False, source="the square-root rule of 1904.00962, betas kept"),
    "scion": _MATRIX,
    "shampoo": StepRule(0.0, -2.0, certain=False, source="as Adagrad: a sum of G·Gᵀ ∝ 1/T² already; averaged ones differ"),
}  # fmt: skip
"""The rule by canonical optimizer name; every Muon follows `scion`."""

_REFUSED = {
    "adafactor": "its memory is 1 − step^beta2_decay, which counts steps",
    "sophia": "its Hessian estimate and its clipping count steps and batches in ways that no published rule covers",
    "schedule-free-adamw": "it averages the weights over all steps, in place of the schedule that a length would set",
}


def register_rule(name: str, like: str | StepRule) -> None:
    """Declare how an optimizer class (by its name, case-insensitive) follows batch and length: as another does, or by a StepRule.

    Raises InputError for an unknown `like`, or a name that has another rule.
    """
    rule = STEP_RULES.get(like.lower()) if isinstance(like, str) else like
    if not isinstance(name, str) or not name.strip() or not isinstance(rule, StepRule):
        raise InputError(
            f"register_rule({name!r}, like={like!r}): like is a StepRule or one of {', '.join(STEP_RULES)}"
        )
    key = name.lower()
    if key in _REFUSED or STEP_RULES.get(key, rule) != rule:
        raise InputError(f"register_rule({name!r}): {name!r} is taken; choose another name")
    STEP_RULES[key] = rule


def step_rule(duration: str, name: str, facts: OptimizerFacts) -> StepRule:
    """The rule of the optimizer of this name and these facts. Raises InputError, with the line to write, where there is none."""
    for key in (name.lower(), facts.name.lower()):
        if key in _REFUSED:
            raise InputError(
                f"duration={duration!r} has no rule for {name!r}: {_REFUSED[key]}; leave out duration, or use 'adamw'"
            )
        if key in STEP_RULES:
            return STEP_RULES[key]
    if facts.name.startswith("muon "):
        return _MATRIX
    raise InputError(
        f"duration={duration!r} has no rule for the optimizer {name!r}: say which one it follows, such as "
        f"mutransfer.step_rules.register_rule({name!r}, like='adamw'), or leave out duration"
    )
