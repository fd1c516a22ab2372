"""Batch size and training length: how the base's settings change when the target's batch or run is longer. An option, never silent.

Symbols, ratios target / base: `m_B` the batch, `m_D` the tokens (or rows) of the whole run; steps grow by m_D/m_B. Below the
critical batch, training follows a stochastic differential equation, of which one step covers some time. With

    T = the time of a step, target / base

every setting follows from T (how, by optimizer: `step_rules.py`):

    lr         √T for a normalised step (Adam, sign, Muon), T for a gradient step (SGD)
    1 − β      T, for every average: its memory is the same number of tokens
    eps        1/√T beside an element or a norm of G, 1/T beside its square
    decay      decoupled: lr·decay follows T. Coupled L2 is part of the loss and stays

The three rules differ in what a longer run is:

| rule          | T       | lr·decay | a longer run                                                                                   |
|---------------|---------|----------|------------------------------------------------------------------------------------------------|
| `completed-p` | m_B/m_D | m_B/m_D  | is the same run in finer steps with less noise (2512.22382)                                     |
| `sde`         | m_B     | m_B      | is the same run, continued (2205.10287)                                                         |
| `ema`         | m_B     | m_B/m_D  | as `sde`, but weights are averages over the same share of the run: 1/(lr·decay·steps) (2405.13698) |

All three are uncertain: published rules conflict (`UNCERTAIN`). Derivations and measurements: docs/duration.md.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from mutransfer.errors import InputError
from mutransfer.optimizers import OptimizerFacts
from mutransfer.step_rules import StepRule, step_rule

RULES = ("completed-p", "sde", "ema")

UNCERTAIN = (
    "batch: lr ∝ √m_B below the critical batch (2205.10287), saturating (1812.06162) or falling (2405.14578) above it, or β₂ first "
    "(2507.07101); tokens: lr ∝ m_D^-½ (2512.22382), about m_D^-0.3 (2409.19913), or unchanged; decay ∝ m_B/m_D at a fixed "
    "lr (2405.13698), or a power law of tokens per parameter (2505.13738)"
)
"""Where published rules conflict; printed with every plan that uses one."""


@dataclass(frozen=True)
class Duration:
    """Batch and tokens of the base and of the target, the rule between them, and how each of the plan's optimizers follows it.

    Frozen data of a plan. Only ratios count: `batch` may be in rows or tokens, `tokens` in tokens, rows or epochs.
    """

    rule: str
    batch: tuple[float, float]
    tokens: tuple[float, float]
    optimizers: dict[str, StepRule]

    def __post_init__(self) -> None:
        if self.rule not in RULES:
            raise InputError(f"duration={self.rule!r}: one of {', '.join(map(repr, RULES))}")
        for name in ("batch", "tokens"):
            object.__setattr__(self, name, _pair(name, getattr(self, name)))

    @classmethod
    def of(
        cls, rule: str | None, batch: Any, tokens: Any, steps: Any, facts: Mapping[str, OptimizerFacts]
    ) -> Duration | None:
        """The duration that `mt.plan` was asked for; None where nothing was. A longer run is given by tokens or by steps.

        Raises InputError for a batch or a length without a rule, a rule without either, both tokens and steps, and an
        optimizer that the rules do not cover.
        """
        given = {name: v for name, v in (("batch", batch), ("tokens", tokens), ("steps", steps)) if v is not None}
        if rule is None:
            if given:
                name, value = next(iter(given.items()))
                raise InputError(
                    f"{name}={value!r} needs a rule, which you must choose (published ones conflict): write "
                    f"duration='completed-p', 'sde' or 'ema', or leave out {name}"
                )
            return None
        if rule not in RULES:
            raise InputError(f"duration={rule!r}: one of {', '.join(map(repr, RULES))}")
        if not given:
            raise InputError(f"duration={rule!r} needs base and target: batch=(256, 2048), tokens=(1e9, 2e10) or both")
        if tokens is not None and steps is not None:
            raise InputError(f"tokens={tokens!r} and steps={steps!r}: give one, the other follows from the batch")
        rows = (1.0, 1.0) if batch is None else _pair("batch", batch)
        length = (1.0, 1.0) if tokens is None else _pair("tokens", tokens)
        if steps is not None:
            short, long = _pair("steps", steps)
            length = rows[0] * short, rows[1] * long
        return cls(rule, rows, length, {name: step_rule(rule, name, found) for name, found in facts.items()})

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Duration:
        """From a plan's JSON. Raises KeyError, TypeError or InputError where it is none."""
        optimizers = {str(name): StepRule(**rule) for name, rule in data["optimizers"].items()}
        return cls(data["rule"], data["batch"], data["tokens"], optimizers)

    # ---------------------------------------------------------------- ratios

    @property
    def batch_ratio(self) -> float:
        """m_B."""
        return self.batch[1] / self.batch[0]

    @property
    def tokens_ratio(self) -> float:
        """m_D."""
        return self.tokens[1] / self.tokens[0]

    @property
    def steps_ratio(self) -> float:
        """m_D/m_B: what a warm-up counted in steps is multiplied by."""
        return self.tokens_ratio / self.batch_ratio

    @property
    def time(self) -> float:
        """T: m_B/m_D under `completed-p`, else m_B."""
        return self.batch_ratio / self.tokens_ratio if self.rule == "completed-p" else self.batch_ratio

    @property
    def decay_time(self) -> float:
        """What lr·decay follows: m_B under `sde`, else m_B/m_D."""
        return self.batch_ratio if self.rule == "sde" else self.batch_ratio / self.tokens_ratio

    @property
    def identity(self) -> bool:
        """Whether no setting changes."""
        return self.time == 1.0 and self.decay_time == 1.0

    # ---------------------------------------------------------------- applying

    def factors(self, optimizer: str, base: Mapping[str, Any], coupled: bool) -> dict[str, float]:
        """The factors of lr, weight_decay and eps, beside those of size, of a group with these base settings.

        Raises InputError where `ema` meets an L2 term that a normalised step swallows.
        """
        rule = self.optimizers[optimizer]
        lr = self.time ** (rule.lr + (1.0 if rule.summed is not None and base.get(rule.summed) else 0.0))
        decay = self.decay_time / (self.time if coupled else lr)
        if coupled and decay != 1.0 and rule.lr != 1.0 and base.get("weight_decay"):
            raise InputError(
                f"weight_decay={base['weight_decay']!r} of {optimizer!r} is an L2 term in the gradient, and "
                f"duration={self.rule!r} speaks of decoupled decay: use 'adamw', or duration='completed-p'"
            )
        return {"lr": lr, "weight_decay": decay, "eps": self.time**rule.eps}

    def base_memories(
        self, optimizer: str, given: Mapping[str, Any], parameters: Mapping[str, inspect.Parameter] | None
    ) -> dict[str, Any]:
        """The base's memories: as given, else the defaults of the class with these `parameters` (None: not known).

        Raises InputError where the class takes no such setting, or where nobody says its value.
        """
        found = {}
        for name in self.optimizers[optimizer].memories:
            known = (parameters or {}).get(name)
            if known is None and parameters is not None:
                raise InputError(
                    f"duration={self.rule!r} changes {name!r} of {optimizer!r}, and its class takes no {name!r}: say what it follows "
                    f"instead, such as mutransfer.step_rules.register_rule('ItsClass', StepRule(lr=0.5, eps=-0.5))"
                )
            value = given.get(name)
            if value is None and known is not None and known.default is not known.empty:
                value = known.default
            if value is None:
                example = "(0.9, 0.95)" if name == "betas" else "0.9"
                raise InputError(
                    f"duration={self.rule!r} changes {name!r} of {optimizer!r}, whose value at the base is not known: write "
                    f"plan.groups(model, lr=…, {name}={example})"
                )
            found[name] = _checked(name, value)
        return found

    def remembered(self, optimizer: str, base: Mapping[str, Any]) -> dict[str, Any]:
        """The target's memories from the base's: 1 − T·(1 − β), of each where there are several. 0, no memory, stays 0.

        Raises InputError where that is below 0: no average is shorter than one step.
        """
        found = {}
        for name in self.optimizers[optimizer].memories:
            if name in base:
                follow = [self._follow(name, base[name], beta) for beta in _betas(base[name])]
                found[name] = tuple(follow) if isinstance(base[name], tuple) else follow[0]
        return found

    def _follow(self, name: str, value: Any, beta: float) -> float:
        if beta == 0.0 or self.time == 1.0:
            return beta
        follows = 1.0 - self.time * (1.0 - beta)
        if follows < 0.0:
            raise InputError(
                f"{name}={value!r}: 1 − T·(1 − {beta:g}) = {follows:.4g} is below 0 at T={self.time:.4g} (batch ×{self.batch_ratio:.4g}, "
                f"tokens ×{self.tokens_ratio:.4g}, {self.rule}); T may be at most {1 / (1 - beta):.4g}: take a larger base batch, or "
                f"tune the base with {name} closer to 1"
            )
        return follows

    def departure(self, optimizer: str, group: Mapping[str, Any]) -> str | None:
        """How a group's memories differ from what the rule gives for its base; None where they do not."""
        for key, due in self.remembered(optimizer, group["base"]).items():
            found = group.get(key)
            have, want = _betas(found), _betas(due)
            if len(have) != len(want) or not all(
                isinstance(h, int | float) and abs(h - w) <= 1e-6 for h, w in zip(have, want, strict=True)
            ):
                return (
                    f"{key} {found!r} where {self.rule} gives {due!r}: a schedule must not set {key}, and no state of another batch "
                    f"or length may be loaded"
                )
        return None

    # ---------------------------------------------------------------- printing

    def lines(self, number: Callable[[float], str]) -> list[str]:
        """The table's lines: the ratios, T, and for every optimizer each factor with its formula and source."""
        batch, tokens = (f"{low:g} → {high:g}" for low, high in (self.batch, self.tokens))
        formula = "m_B/m_D" if self.rule == "completed-p" else "m_B"
        out = [
            f"duration: {self.rule}, an option (uncertain: published rules conflict): batch {batch} (m_B={number(self.batch_ratio)}), "
            f"tokens {tokens} (m_D={number(self.tokens_ratio)}), steps and warm-up ×{number(self.steps_ratio)}, time of a step "
            f"T={formula}={number(self.time)}; on top of the columns above:"
        ]
        for name, rule in self.optimizers.items():
            doubt = "" if rule.certain else "; uncertain"
            out.append(f"    {name}: {', '.join(self._words(rule, number))} ({rule.source}{doubt})")
        return [*out, f"    conflicts: {UNCERTAIN}"]

    def _words(self, rule: StepRule, number: Callable[[float], str]) -> list[str]:
        lr = self.time**rule.lr
        decay = "m_B/m_D" if self.rule == "ema" else "T"
        words = [f"lr ×{_power(rule.lr)}={number(lr)}"]
        if rule.summed is not None:
            words.append(f"with {rule.summed} ×{_power(rule.lr + 1)}={number(lr * self.time)}")
        words += [f"1−{'β of betas' if name == 'betas' else name} ×T={number(self.time)}" for name in rule.memories]
        if rule.eps:
            words.append(f"eps ×{_power(rule.eps)}={number(self.time**rule.eps)}")
        return [*words, f"lr·decoupled decay ×{decay}={number(self.decay_time)}"]


def given_memories(
    duration: Duration | None, facts: Mapping[str, OptimizerFacts], memories: Mapping[str, Any]
) -> dict[str, Mapping[str, Any]]:
    """What `Plan.groups` was given, by optimizer. Raises InputError for a setting that no optimizer's rule changes."""
    known = {name for rule in duration.optimizers.values() for name in rule.memories} if duration is not None else set()
    for name, value in memories.items():
        if name not in known:
            why = "the plan has no duration" if duration is None else f"duration={duration.rule!r} does not change it"
            raise InputError(f"groups({name}={value!r}): {why}; give {name} to your optimizer class, or in overrides")
    return {name: memories for name in facts}


def class_memories(duration: Duration, optimizer: Any) -> str | None:
    """What is wrong where the user gave betas to the optimizer's class, whose groups override it; None where nothing is."""
    parameters = inspect.signature(type(optimizer)).parameters
    for name in {name for rule in duration.optimizers.values() for name in rule.memories}:
        value = optimizer.defaults.get(name)
        usual = parameters[name].default if name in parameters else None
        bases = [group["base"][name] for group in optimizer.param_groups if name in group["base"]]
        if value is None or not bases or any(_betas(value) == _betas(known) for known in (usual, *bases)):
            continue
        return (
            f"{name}={value!r} was given to {type(optimizer).__name__} and acts nowhere, since every group has its own: write "
            f"plan.groups(model, lr=…, {name}={value!r})"
        )
    return None


def _power(exponent: float) -> str:
    names = {0.0: "1", 0.5: "√T", 1.0: "T", 1.5: "T^1.5", 2.0: "T²", -0.5: "1/√T", -1.0: "1/T"}
    return names.get(exponent, f"T^{exponent:g}")


def _pair(name: str, value: Any) -> tuple[float, float]:
    pair = tuple(value) if isinstance(value, list | tuple) else ()
    if len(pair) != 2 or not all(
        isinstance(size, int | float) and not isinstance(size, bool) and 0 < size < math.inf for size in pair
    ):
        example = {"batch": "(256, 2048)", "tokens": "(1e9, 2e10)", "steps": "(1000, 10000)"}[name]
        raise InputError(f"{name}={value!r}: write base and target, two numbers above 0, such as {name}={example}")
    return float(pair[0]), float(pair[1])


def _betas(value: Any) -> tuple[Any, ...]:
    return tuple(value) if isinstance(value, list | tuple) else (value,)


def _checked(name: str, value: Any) -> Any:
    several = isinstance(value, list | tuple)
    if not _betas(value) or not all(
        isinstance(b, int | float) and not isinstance(b, bool) and 0 <= b < 1 for b in _betas(value)
    ):
        example = "(0.9, 0.95)" if several or name == "betas" else "0.9"
        raise InputError(f"{name}={value!r}: write numbers in [0, 1), such as {name}={example}")
    return _betas(value) if several else value
