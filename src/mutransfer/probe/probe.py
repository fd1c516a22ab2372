"""`probe_optimizer`: the facts of an optimizer that nobody has declared, measured on synthetic gradients, or a reason why not."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch

from mutransfer.errors import InputError
from mutransfer.optimizers import GRADIENT, OptimizerFacts, facts_for, optimizer_class
from mutransfer.probe.finding import Finding
from mutransfer.probe.gradients import gradients
from mutransfer.probe.judge import Answers, judge
from mutransfer.probe.measure import SHAPE, weights
from mutransfer.probe.subject import Refused, Subject, refuse_protocols

_COMPARED = ("degree", "norm", "kind", "eps_kind", "decay", "weight")


@dataclass(frozen=True)
class Probe:
    """What was measured of one optimizer. `facts` are for `mt.plan(optimizer=…)`; they exist where nothing speaks against them.

    findings: one per question, with evidence and confidence. reasons: why there are no facts; empty where there are.
    guess: the nearest facts even so, marked uncertain, where every one of them has a value; for reading, not for trust.
    declared: what the registry says of a class of this name, for comparison.
    """

    name: str
    findings: tuple[Finding, ...]
    reasons: tuple[str, ...]
    guess: OptimizerFacts | None
    dtype: str
    declared: OptimizerFacts | None = None

    @property
    def reliable(self) -> bool:
        """Whether the facts can be trusted: every question has one answer that all conditions agree on."""
        return not self.reasons

    @property
    def confidence(self) -> float:
        """The smallest share of agreeing conditions over all questions; 0 where there are no facts."""
        return min((f.confidence for f in self.findings if f.conditions), default=0.0) if self.reliable else 0.0

    @property
    def facts(self) -> OptimizerFacts:
        """The measured facts. Raises InputError with the reasons where they are not reliable."""
        if self.reasons or self.guess is None:
            raise InputError(f"{self.name} has no reliable facts: {'; '.join(self.reasons)}")
        return self.guess

    @property
    def line(self) -> str:
        """The line that declares the facts, as code; raises as `facts` does."""
        facts = self.facts
        shown = ", ".join(
            f"{key}={getattr(facts, key)!r}"
            for key in ("name", "degree", "norm", "kind", "eps_kind", "decay", *(("weight",) if facts.weight else ()))
        )
        return f"mt.register_optimizer({self.name!r}, mt.OptimizerFacts({shown}))"

    @property
    def differences(self) -> tuple[str, ...]:
        """Where the measured facts are not the declared ones, as "fact: measured, declared"; empty where nothing is declared."""
        if self.declared is None or self.guess is None:
            return ()
        pairs = ((key, getattr(self.guess, key), getattr(self.declared, key)) for key in _COMPARED)
        return tuple(f"{key}: {found!r} measured, {said!r} declared" for key, found, said in pairs if found != said)

    def __getitem__(self, name: str) -> Finding:
        """The finding of this name. Raises InputError naming those there are."""
        for finding in self.findings:
            if finding.name == name:
                return finding
        raise InputError(f"no finding {name!r} of {self.name}: one of {', '.join(repr(f.name) for f in self.findings)}")

    def to_dict(self) -> dict[str, Any]:
        """Everything as plain values."""
        facts = None if self.guess is None else vars(self.guess)
        return {
            "name": self.name, "reliable": self.reliable, "confidence": self.confidence, "reasons": list(self.reasons),
            "declared": None if self.declared is None else vars(self.declared), "differences": list(self.differences),
            "facts": facts if self.reliable else None, "guess": facts, "dtype": self.dtype,
            "line": self.line if self.reliable else None,
            "findings": [{**vars(f), "confidence": f.confidence} for f in self.findings],
        }  # fmt: skip

    def __str__(self) -> str:
        from mutransfer.probe.words import render

        return render(self)


def probe_optimizer(cls: Callable[..., Any] | str, /, group: Mapping[str, Any] | None = None, **settings: Any) -> Probe:
    """Run an optimizer on synthetic gradients and infer its facts: degree, norm, kind, eps, decay, dependence on ‖W‖.

    cls: the class (or a function that builds it from params and settings), or a name the registry knows. settings: what
    you will train with; lr and weight_decay are varied by the probe whatever you give. group: settings of the param
    group that the constructor does not take. About 150 runs of up to 16 steps on matrices of 12 to 64 rows and columns,
    in float64 where the optimizer takes it, on torch's default device; gradients of rank one, full rank, and noisy.

    Each fact is the one identity that defines it: A(tG) = t^p·A(G); A(PGQ) = P·A(G)·Q for rotations (matrix function) or
    A(πG) = πA(G) for permuted elements; ‖A‖₂ against each formula of `optimizers.SQUARED_NORMS` over eight shapes. The
    answers hold for the steps that were run: what changes after hundreds of steps is not seen.

    Raises InputError for what cannot be probed at all: needs a closure, a Hessian, two passes, a model; or fails.
    """
    subject = _subject(cls, dict(settings), dict(group or {}))
    refuse_protocols(subject)
    _find_dtype(subject)
    answers, findings = judge(subject)
    reasons = tuple(f.reason for f in findings if f.reason)
    declared = _declared(subject)
    if isinstance(declared, str):
        reasons, declared = (*reasons, declared), None
    guess = _facts(subject, answers, not reasons)
    if not reasons and guess is None:  # no finding may stay silent where there are no facts
        reasons = ("its facts are not all known",)
    return Probe(subject.name, tuple(findings), reasons, guess, _short(subject.dtype), declared)


def _subject(cls: Any, settings: dict[str, Any], group: dict[str, Any]) -> Subject:
    if isinstance(cls, str):
        found = optimizer_class(cls)
        if found is None:
            raise InputError(f"optimizer {cls!r}: no class here runs that name; give the class itself")
        return Subject(found, cls, settings, group)
    if not inspect.isclass(cls) and hasattr(cls, "param_groups"):
        raise InputError(
            f"give the class {type(cls).__name__} and its settings, not an instance: every run builds a fresh one"
        )
    if isinstance(cls, functools.partial):
        return _subject(cls.func, {**cls.keywords, **settings}, group)
    if not callable(cls):
        raise InputError(f"probe_optimizer({cls!r}): give an optimizer class, such as torch.optim.AdamW, or a name")
    if inspect.isclass(cls) and issubclass(cls, torch.nn.Module):
        raise InputError(f"{cls.__name__} is a model, not an optimizer")
    return Subject(cls, getattr(cls, "__name__", type(cls).__name__), settings, group)


def _declared(subject: Subject) -> OptimizerFacts | str | None:
    """The facts that the registry has of this very class; the text with which it refuses the class; None for an unknown one."""
    if not inspect.isclass(subject.cls):
        return None
    try:
        return facts_for(subject.cls)
    except InputError as error:
        return str(error) if "cannot be transferred by rule" in str(error) else None


def _find_dtype(subject: Subject) -> None:
    """float64 where the optimizer takes it, else float32. Raises its error in float32 if it takes neither."""
    try:
        subject.run(gradients(SHAPE, "full", 3), weights(SHAPE), steps=3)
    except Refused:
        subject.dtype = torch.float32
        subject.run(gradients(SHAPE, "full", 3), weights(SHAPE), steps=3)


def _facts(subject: Subject, answers: Answers, reliable: bool) -> OptimizerFacts | None:
    if (
        answers.degree is None
        or answers.norm is None
        or answers.character == "other"
        or (answers.norm == GRADIENT) != (answers.degree == 1)
    ):
        return None
    return OptimizerFacts(
        name=subject.name.lower(), degree=answers.degree, norm=answers.norm, kind=answers.kind,
        eps_kind=answers.eps_kind, decay=answers.decay, certain=reliable, weight=answers.weight,
        source="measured by mt.probe_optimizer",
    )  # fmt: skip


def _short(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
