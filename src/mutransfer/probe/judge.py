"""From measurements to findings: each question answered with its evidence, or with the reason why it has no answer."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from mutransfer.optimizers.facts import GRADIENT, Decay, EpsKind, Kind
from mutransfer.probe import decays, floors, habits, measure
from mutransfer.probe.finding import Finding, of
from mutransfer.probe.finding import shown as _n
from mutransfer.probe.measure import EQUIVARIANCES, SCALES, SHAPE, Measure, NormFit, Power, early, late
from mutransfer.probe.subject import STEPS, WEIGHT, Subject

SAME = 0.1
"""Allowed misfit of an identity that holds exactly but for rounding (bfloat16 Newton–Schulz: 0.03)."""
NORM, NOISY_NORM = 0.15, 0.3
"""Allowed misfit (log) of ‖A‖ from its formula: with gradients of rank one; with full and noisy ones."""
Character = Literal["sgd", "scalar", "element", "matrix", "factored", "other"]
_WORDS = {
    "sgd": "linear in G", "scalar": "G times one scalar per tensor", "element": "element by element",
    "matrix": "a matrix function of G", "factored": "by rows and columns", "other": "none of the known",
}  # fmt: skip


@dataclass
class Answers:
    """What the findings say, as far as it could be told."""

    degree: int | None = None
    character: Character = "other"
    norm: str | None = None
    eps_kind: EpsKind | None = None
    decay: Decay = "decoupled"
    weight: int = 0
    first: int = 0
    linear: bool = True

    @property
    def begins(self) -> bool:
        """Whether the first steps move at all, so that they can be compared with later ones."""
        return self.first < 3

    @property
    def kind(self) -> Kind:
        """The kind as the facts name it: anything but SGD and matrix functions runs on any tensor, element by element."""
        return "sgd" if self.character == "sgd" else "matrix" if self.character == "matrix" else "element"


def judge(subject: Subject) -> tuple[Answers, list[Finding]]:
    """All questions in order; later ones use the answers of the earlier."""
    answers, found = Answers(), []
    found.append(_chance(subject))
    found.append(_growth(subject, answers))
    if found[0].reason or found[1].value in ("does not move", "not finite"):  # nothing else can be told
        return answers, found
    found.append(_neighbours(subject))
    found.append(_weight(subject, answers))
    found.append(_lr(subject, answers))
    found.append(_group_lr(subject))
    found.append(_degree(subject, answers))
    found.append(_kind(subject, answers))
    found.append(_later(subject, answers))
    found.append(_norm(subject, answers))
    found.append(_eps(subject, answers))
    found.append(_decay(subject, answers))
    found.append(_vectors(subject, answers))
    return answers, found


def _chance(subject: Subject) -> Finding:
    misfit = habits.chance(subject)
    reason = "" if misfit < 1e-3 else f"the step is random: the same gradients gave steps that differ by {misfit:.0%}"
    return of(
        "chance", "none" if not reason else "random", [misfit], 1e-3, "same input three times, other seeds", reason
    )


def _growth(subject: Subject, answers: Answers) -> Finding:
    grown = habits.growth(subject)
    answers.first = grown.first
    reason = ""
    if grown.words == "does not move":
        reason = f"the weights do not move in {STEPS} steps"
    elif not math.isfinite(grown.total):
        reason = "the step becomes infinite or no number under a constant gradient"
    elif abs(math.log(max(grown.per_step, 1e-300))) > 0.11:
        reason = f"the step is not settled: under a constant gradient it still changes by ×{grown.per_step:.3g} a step"
    elif grown.first >= 8:
        reason = f"the first step that moves is step {grown.first + 1}"
    drift = abs(math.log(grown.per_step)) if grown.per_step > 0 else math.inf
    return of("over the steps", grown.words, [drift], 0.11, "constant gradient", reason)


def _neighbours(subject: Subject) -> Finding:
    misfit = habits.neighbours(subject)
    reason = "" if misfit < SAME else (
        f"the step of a tensor depends on the gradients of others (it changed by {misfit:.0%} beside a larger one)"
    )  # fmt: skip
    return of(
        "other tensors", "do not matter" if not reason else "matter", [misfit], SAME, "alone and beside another", reason
    )


def _lr(subject: Subject, answers: Answers) -> Finding:
    given = subject.settings.get("lr", getattr(subject.parameters.get("lr"), "default", None))
    # at the rate it is made for an adaptive step size shows itself; but there a step that follows W changes what it follows
    usual = (float(given),) if isinstance(given, float | int) and given > 0 and not answers.weight else ()
    law, rates = measure.rate_power(subject, usual)
    linear = all(abs(e) < 0.05 for e in law.exponents)
    answers.linear = linear
    exponents = [_n(1 + e) for e in law.exponents]
    value = "∝ lr" if linear else " and ".join(f"∝ lr^{e}" for e in dict.fromkeys(exponents))
    span = f"{rates[0]:g} and {rates[-1]:g}"
    reason = ""
    if not linear:
        reason = f"the step is not linear in lr: {value} between {span}"
    elif max(law.misfits) >= SAME:
        reason = f"the step changes its direction with lr between {span}"
    return of("learning rate", value, list(law.misfits), SAME, f"lr = {', '.join(f'{lr:g}' for lr in rates)}", reason)


def _group_lr(subject: Subject) -> Finding:
    misfit = habits.group_rate(subject)
    arrived = habits.schedule(subject)
    reason = ""
    if misfit >= SAME:
        reason = "the lr of a param group is not what acts: a plan's rates per tensor would have no effect"
    elif arrived < 0.05:
        reason = "a change of the group's lr has no effect: schedules cannot drive it"
    value = "at once" if abs(arrived - 1) < 0.05 else f"{arrived:.0%} within {STEPS // 2} steps"
    return of("change of lr acts", value, [misfit], SAME, "group lr; halved half way", reason)


def _powers_agree(laws: list[Power]) -> tuple[int | None, list[float]]:
    """The common integer of several laws, if there is one, and every misfit from it."""
    nearest = {law.nearest for law in laws}
    off = [abs(e - (law.nearest or 0)) if math.isfinite(e) else math.inf for law in laws for e in law.exponents]
    off += [m for law in laws for m in law.misfits]
    return (nearest.pop() if len(nearest) == 1 else None), off


def _degree(subject: Subject, answers: Answers) -> Finding:
    first, last = measure.degree(subject, early), measure.degree(subject, late)
    p, off = _powers_agree(last)
    p_early, off_early = _powers_agree(first)
    exponents = sorted({_n(e) for law in last for e in law.exponents})
    answers.degree = p if p in (0, 1) and max(off) < SAME else None
    reason = ""
    if p is None or max(off) >= SAME:
        reason = (
            f"A(tG) is no power t^p·A(G) with a whole p: measured p = {', '.join(exponents)}"
            + ("" if p is None or max(abs(e - p) for law in last for e in law.exponents) > SAME else " but A changes its form")
        )  # fmt: skip
    elif p not in (0, 1):
        reason = f"its degree in G is {p}; rules exist for 0 (normalised) and 1 (like SGD)"
    elif answers.begins and (p_early != p or max(off_early) >= SAME):
        exponents_early = sorted({_n(e) for law in first for e in law.exponents})
        reason = f"it changes its character: degree {', '.join(exponents_early)} in the first steps, {p} later"
    value = str(p) if p is not None and not reason.startswith("A(tG)") else ", ".join(exponents)
    evidence = f"p = {', '.join(exponents)} over G × {SCALES[0]:g} … {SCALES[-1]:g}"
    return of("degree in G", value, off, SAME, evidence, reason)


def _kind(subject: Subject, answers: Answers) -> Finding:
    def character(found: dict[str, float], linear: float) -> Character:
        holds = {name for name in EQUIVARIANCES if found[name] < SAME}
        both = {"rotations", "permuted elements"} <= holds
        if both:
            return "sgd" if answers.degree == 1 and linear < SAME else "scalar"
        if "permuted elements" in holds:
            return "element"
        if holds & {"rotations", "left rotations", "right rotations"}:
            return "matrix"
        return "factored" if "permuted rows and columns" in holds else "other"

    linear = measure.superposition(subject)
    found, first = measure.equivariances(subject, late), measure.equivariances(subject, early)
    answers.character = character(found, linear)
    before = character(first, linear)
    reason = ""
    if found["another W"] >= SAME:
        reason = (
            f"the step depends on the weights beyond their size: it changed by {found['another W']:.0%} under another W"
        )
    elif answers.character == "other":
        reason = "the step is neither element-wise nor a matrix function of G, nor factored by rows and columns"
    elif answers.begins and before not in (answers.character, "other"):
        reason = f"it changes its character: {_WORDS[before]} in the first steps, {_WORDS[answers.character]} later"
    elif answers.degree == 1 and answers.character != "sgd":
        reason = f"degree 1, and yet not linear in G: it is {_WORDS[answers.character]}"
    tests = {
        "sgd": ["rotations", "permuted elements"], "scalar": ["rotations", "permuted elements"],
        "element": ["permuted elements"], "matrix": ["rotations"], "factored": ["permuted rows and columns"], "other": [],
    }[answers.character]  # fmt: skip
    misfits = [found[name] for name in tests] + [found["another W"]]
    if answers.character == "matrix" and found["rotations"] >= SAME:
        misfits = [min(found["left rotations"], found["right rotations"]), found["another W"]]
    told = ", ".join(
        f"{name} {min(found[name], 9.99):.2g}"
        for name in ("rotations", "permuted elements", "permuted rows and columns")
    )
    if answers.character == "sgd":
        misfits.append(linear)
    value = answers.kind if answers.character != "other" else "unknown"
    return of("kind", f"{value}: {_WORDS[answers.character]}", misfits, SAME, f"misfit under {told}", reason)


def _later(subject: Subject, answers: Answers) -> Finding:
    turned, degree = habits.later(subject)
    misfits = [turned, abs(degree - (answers.degree or 0))] if answers.degree is not None else [turned]
    reason = ""
    if not max(misfits) < SAME:
        reason = (
            f"it changes its character: after {habits.LONG} steps of the same gradient its direction has changed by "
            f"{turned:.0%}, its degree is {_n(degree)}"
        )
    value = "the same step" if not reason else "another step"
    return of(
        f"after {habits.LONG} steps",
        value,
        misfits,
        SAME,
        f"direction off by {turned:.2g}, degree {_n(degree)}",
        reason,
    )


def _weight(subject: Subject, answers: Answers) -> Finding:
    law = measure.weight_power(subject, early if answers.begins else late)
    q, off = _powers_agree([law])
    exponents = ", ".join(sorted({_n(e) for e in law.exponents}))
    reason = ""
    if q not in (0, 1) or max(off) >= SAME:
        reason = f"A(G, tW) is no power t^q·A(G, W) with q of 0 or 1: measured q = {exponents}"
    answers.weight = q if q in (0, 1) else 0
    evidence = f"RMS(W) from {WEIGHT * min(measure.WEIGHTS):.2g} to {WEIGHT * max(measure.WEIGHTS):.2g}"
    if answers.weight and (floor := measure.weight_floor(subject)):
        evidence += f"; a floor at RMS(W) ≈ {floor:.1g}"
    return of("power of ‖W‖", exponents if reason else str(q), off, SAME, evidence, reason)


def _norm(subject: Subject, answers: Answers) -> Finding:
    sgd = answers.degree == 1
    measured: Measure = "operator" if answers.kind == "matrix" else "elements"
    at_one = measure.norms(subject, "one", late, "operator", relative=sgd)
    others: dict[str, NormFit | None] = {"full": measure.norms(subject, "full", late, measured, relative=sgd)}
    if not sgd:  # momentum averages noise away, to an extent that is no fact
        others["noisy"] = measure.norms(subject, "noisy", late, measured, relative=False)
    before = measure.norms(subject, "one", early, "operator", relative=sgd) if answers.begins else None
    if at_one is None:
        return of(
            "norm of a step", "not finite", [math.inf], NORM, "", "the step vanishes or is not finite at some shape"
        )
    misfits = [*at_one.misfits]
    share = "‖A‖₂/‖G‖₂" if sgd else "‖A‖₂/RMS(W)" if answers.weight else "‖A‖₂"
    evidence = f"rank one: {share} ∝ {at_one.words}"
    reason = ""
    if max(at_one.misfits) >= NORM:
        reason = f"its norm is none of the known formulas: {share} ∝ {at_one.words}"
    elif sgd and at_one.formula != "1":
        reason = f"it is linear in G, but {share} ∝ {at_one.words} instead of constant"
    for rank, fit in others.items():
        if fit is None:
            reason = reason or f"the step vanishes or is not finite at some shape (gradients: {rank})"
            misfits.append(math.inf)
            continue
        evidence += f"; {rank}: {fit.words}"
        misfits += [value * NORM / NOISY_NORM for value in _against(fit, at_one.formula)]
        if fit.rivals[at_one.formula] >= NOISY_NORM and not reason:
            reason = f"its norm depends on the kind of gradient: {at_one.words} where G has rank one, {fit.words} where it is {rank}"
    if before is not None and not reason and before.rivals[at_one.formula] >= NOISY_NORM:
        reason = f"it changes its character: {share} ∝ {before.words} in the first steps, {at_one.words} later"
    known = max(at_one.misfits) < NORM and (not sgd or at_one.formula == "1")
    answers.norm = (GRADIENT if sgd else at_one.formula) if known else None
    constant = f" × RMS(W) × {at_one.constant / WEIGHT:.3g}" if answers.weight else f" × {at_one.constant:.3g}"
    value = f"{answers.norm}{constant}" if answers.norm else "unknown"
    return of("norm of a step", value, misfits, NORM, evidence, reason)


def _against(fit: NormFit, formula: str) -> list[float]:
    """The misfits of a fit from one formula: only the worst is kept."""
    return list(fit.misfits) if fit.formula == formula else [fit.rivals[formula]]


def _eps(subject: Subject, answers: Answers) -> Finding:
    if answers.degree != 0:
        return of("eps", "none", [], 0.15, "a step linear in G needs none" if answers.degree == 1 else "not looked for")
    default = floors.fall(subject, SHAPE, {})
    acting = floors.floors(subject)
    reason, at = "", None if default is None else 10**default
    if at is not None and at > floors.REAL:
        reason = (
            f"its step is of degree 0 only above |G| ≈ {at:.1g} and linear in G below: real gradients lie there; "
            + (f"give a smaller {acting[0].argument}" if acting else "scale the loss up")
        )
    if not acting:
        value = "none" if at is None else f"none to set; a fixed floor at |G| ≈ {at:.1g}"
        return of(
            "eps", value, [], 0.15, f"arguments tried: {', '.join(floors.eps_arguments(subject)) or 'none'}", reason
        )
    one = acting[0]
    powers = f"|G| at half step ∝ {one.argument}^{_n(one.eps_power)}·(in·out)^{_n(-one.size_power / 2)}"
    answers.eps_kind = one.kind
    if one.lifted > 0.05:
        reason = reason or f"the size of its step above all floors depends on {one.argument}: lr alone does not set it"
    if one.kind is not None:
        value = {"element": "added to an element of G", "frobenius": "added to ‖G‖_F", "outer": "added to G·Gᵀ"}[
            one.kind
        ]
        value = f"{one.kind}: {value}"
    elif one.off < 0.15:
        value = "inside the root: added to the square of an element (no rule scales it: keep it far below)"
    else:
        value = "unknown"
        reason = reason or f"what {one.argument} is added to cannot be told: {powers}"
    if one.argument != "eps":
        value += f" ({one.argument})"
    return of("eps", value, [one.off], 0.15, powers, reason)


def _decay(subject: Subject, answers: Answers) -> Finding:
    found = decays.decay(subject)
    reason = ""
    if found.kind in ("decoupled", "coupled"):
        answers.decay = found.kind
        value = "decoupled: W *= 1 − lr·wd" if found.kind == "decoupled" else "coupled: G + wd·W"
        if found.kind == "decoupled" and abs(found.strength - 1) > 0.05:
            value += f", × {found.strength:.3g}"
    elif found.kind == "independent" and answers.linear:
        value = "independent: W *= 1 − wd"
        reason = (
            "its weight decay does not go with lr (W *= 1 − wd), which facts cannot say: choose its decoupled decay, or probe "
            "and train it with weight_decay=0"
        )
    elif found.kind in ("unknown", "independent"):
        value = f"unknown: ∝ lr^{_n(found.lr_power)}"
        reason = "its weight decay is neither decoupled (W *= 1 − lr·wd) nor coupled (G + wd·W); with weight_decay=0 it is not asked"
    else:
        value = {"none": "weight_decay has no effect", "not asked": "not asked: weight_decay=0"}.get(
            found.kind, "none: there is no weight_decay"
        )
    return of(
        "weight decay",
        value,
        [] if found.kind.startswith("not") else [found.misfit],
        decays.ALLOWED,
        "with and without, G large and small",
        reason,
    )


def _vectors(subject: Subject, answers: Answers) -> Finding:
    found = habits.vectors(subject)
    if not found.taken:
        return of("1-D tensors", "refused: matrices only", [], SAME, found.said)
    same = answers.degree is not None and abs(found.degree - answers.degree) < SAME
    like = same and (answers.kind == "sgd" or (answers.norm == "√(in·out)" and abs(found.length_power) < SAME))
    value = (
        "the same rule"
        if like
        else f"another rule: degree {_n(found.degree)}, RMS of a step ∝ n^{_n(found.length_power)}"
    )
    return of("1-D tensors", value, [], SAME, f"RMS of a step {found.beside_matrix:.3g} × a matrix's")
