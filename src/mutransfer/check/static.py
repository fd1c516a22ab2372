"""Rules that no short run can see in its activations: attention scale, decay, schedules, clipping, sizes that did not grow."""

from __future__ import annotations

import itertools

import numpy as np

from mutransfer.check.expect import GROWS, TensorInfo
from mutransfer.check.findings import Finding
from mutransfer.check.operations import KEY, QUERY
from mutransfer.check.record import Records
from mutransfer.check.slopes import Slope, fit, median
from mutransfer.check.step import NO_GRADIENT
from mutransfer.check.verdict import Judge

EPS_SHARE = 0.3  # of the gradient, from which on eps decides the step
EPS_GROWTH = 0.5  # exponent of that share
EPS_AHEAD = 4.0  # times the largest size: a check of small models is made for larger ones


def attention(judge: Judge) -> list[Finding]:
    """Where the head size d grows, |q|·|k|·scale must fall like 1/d; where it is fixed, the scale must not move.

    1/√d is right at any one size, and no coordinate check of a few steps shows that it is wrong over sizes: logits of aligned queries
    and keys grow like √d only later in training.
    """
    records, found = judge.records, []
    for label, call in records.attention.items():
        sizes = records.heads.get(label, [])
        if len(sizes) != len(records.values):
            continue
        growth = fit(records.values, np.array(sizes, dtype=float)[:, None])
        d = 0.0 if growth is None else growth.mean
        scale, made = _latest(judge, "scale", label), None
        if scale is None:
            continue
        query, key = _query_and_key(records, label, call.query, call.key)
        if d > GROWS:
            q, k = _latest(judge, "query", label), _latest(judge, "key", label)
            total = scale + (q or 0.0 * scale) + (k or 0.0 * scale)
            error, expected, made = (1 / d) * total + 1.0, -1.0, "head size"
        else:
            error, expected = scale, 0.0
        grade = judge.grade(error)
        if grade == "ok":
            judge.verified_attention.update(query + key if made else [])
            continue
        name = (query or key or [label])[0]
        low, high = error.interval(judge.level)
        power = -error.mean
        what = (
            f"the size of its attention's logits at given alignment (in the {made})"
            if made
            else "the scale of its attention"
        )
        d_ratio = sizes[-1] / sizes[0]
        advice = (
            f"use 1/d instead of 1/√d: multiply the logits (or the query's init and learning rate) by √(d_base/d), "
            f"here ×{d_ratio**power:.3g} at d = {sizes[-1]} against {sizes[0]}"
            if made
            else "a fixed head size needs a fixed scale"
        )
        found.append(
            Finding(
                name,
                "attention scale",
                what,
                error.mean + expected,
                low + expected,
                high + expected,
                expected,
                advice,
                grade,
            )
        )
    return found


def _latest(judge: Judge, kind: str, label: str) -> Slope | None:
    """The exponent at step 0, or at the first later step where it exists (a zero-initialised query)."""
    for step in judge.records.steps(kind, label):
        if (slope := judge.slope(kind, label, step)) is not None:
            return slope
    return None


def _query_and_key(records: Records, label: str, query: str | None, key: str | None) -> tuple[list[str], list[str]]:
    prefix = "" if label == "(model)" else f"{label}."
    inside = [name for name in records.optimizer_of if name.startswith(prefix)]
    local = {name: name[len(prefix) :] for name in inside}
    queries = ([query] if query else []) + [n for n in inside if QUERY.search(local[n]) and n != query]
    keys = ([key] if key else []) + [n for n in inside if KEY.search(local[n]) and n != key]
    return queries, keys


def eps(judge: Judge, known: set[str]) -> list[Finding]:
    """An eps that does not follow the gradient takes over at the large sizes: eps/|G_ij| (or eps/‖G‖_F) must not grow up to one.

    An eps that nobody chose (the class's default) is a warning here; where it already bites, the update itself shows it.
    """
    records, found = judge.records, []
    for info in judge.infos:
        facts, value = records.facts.get(info.name), records.get("eps", info.name)
        if (
            facts is None
            or facts.eps_kind not in ("element", "frobenius")
            or value is None
            or info.name in known | judge.cancelled
        ):
            continue
        kind = "gradient touched" if facts.eps_kind == "element" else "gradient norm"
        shares = []
        for step in records.steps(kind, info.name):
            gradient, at = records.get(kind, info.name, step), records.get("eps", info.name, step)
            if gradient is not None and at is not None and np.all(gradient > NO_GRADIENT):
                shares.append(at / gradient)
        slope = median([fit(records.values, share) for share in shares])
        if slope is None or slope.mean <= EPS_GROWTH:
            continue
        share = float(np.median([np.mean(one[-1]) for one in shares]))
        if share * EPS_AHEAD**slope.mean <= EPS_SHARE:
            continue
        advice = (
            f"eps {float(np.nanmax(value)):.2g} is {share:.2g} times its gradient at {records.values[-1]:g}: lower it, "
            "or scale it like the gradient"
        )
        chosen = not np.allclose(
            value[np.isfinite(value)], records.default_eps.get(info.name, 0.0), rtol=1e-6, atol=0.0
        )
        severity = "fail" if chosen else "warn"
        found.append(judge.finding(info.name, "eps", "eps over its gradient", slope, 0.0, advice, severity))
    return found


def decay(judge: Judge) -> list[Finding]:
    """Decoupled decay (and L2 under SGD) must keep lr·wd; L2 under Adam must follow gradient over weight."""
    records, found = judge.records, []
    for info in judge.infos:
        wd, lr = records.get("weight_decay", info.name), records.get("lr", info.name)
        if wd is None or lr is None or not np.any(wd > 0):
            continue
        facts = records.facts.get(info.name)
        chosen = not np.allclose(wd[np.isfinite(wd)], records.default_decay.get(info.name, 0.0))
        slope = fit(records.values, wd * lr)
        expected = 0.0
        if facts is not None and facts.decay == "coupled" and facts.degree == 0:
            gradient, weight = judge.typical("gradient", info.name), judge.slope("weight", info.name)
            slope = fit(records.values, wd)
            if gradient is None or weight is None or slope is None:
                continue
            options = [-info.b - weight.mean, gradient.mean - weight.mean]  # |G_ij| ~ 1/n_out, or as it was measured
            expected = min(options, key=lambda e, measured=slope.mean: abs(measured - e))
            what = "its L2 decay"
        else:
            what = "its decay per step, lr·weight_decay,"
        if slope is None or abs(slope.mean - expected) <= judge.tolerance:
            continue
        advice = f"multiply its weight_decay by {judge.factor(expected - slope.mean)}"
        severity = "fail" if chosen else "warn"
        advice += "" if chosen else " (this is the optimizer's default decay, so only a warning)"
        low, high = slope.interval(judge.level)
        found.append(Finding(info.name, "decay", what, slope.mean, low, high, expected, advice, severity))
    return found


def clipping(judge: Judge) -> list[Finding]:
    """A global clip that bites harder at some sizes scales every degree-1 step by its own exponent.

    It also breaks soon when one tensor's growing norm already makes up most of the norm at the largest size.
    """
    records = judge.records
    slope, factor = judge.typical("clip", ""), records.get("clip", "")
    if slope is None or factor is None or not any(info.degree == 1 for info in judge.infos):
        return []
    norms = {
        n: array for n in records.names("norm before clip") if (array := records.get("norm before clip", n)) is not None
    }
    worst = max(norms, key=lambda n: float(np.nanmean(norms[n][-1])))
    advice = "clip with plan.clip_grad_norm_, which divides each tensor's norm by its expected growth, or raise the threshold"
    if judge.grade(slope) == "fail":
        return [
            judge.finding(
                worst, "clip", "the clipping factor, which this tensor's norm dominates,", slope, 0.0, advice, "fail"
            )
        ]
    share = np.nanmean(norms[worst][-1]) ** 2 / sum(np.nanmean(a[-1]) ** 2 for a in norms.values())
    upper = len(records.values) // 2
    growth = fit(records.values[-upper - 1 :], norms[worst][-upper - 1 :])
    constant = not records.clip_is_callable
    if (
        constant
        and np.all(factor[-upper:] < 0.99)
        and share > 0.5
        and growth is not None
        and judge.grade(growth) == "fail"
        and growth.mean > 0
    ):
        what = f"its gradient's norm, {share:.0%} of the clipped norm at {records.values[-1]:g},"
        return [judge.finding(worst, "clip", what, growth, 0.0, advice, "fail")]
    return []


def schedules(judge: Judge) -> list[Finding]:
    """A schedule that sets absolute learning rates erases the ratios between groups."""
    return [
        Finding(name, "schedule erases the ratios", f"at {judge.records.axis} {size:g}, {words}", 0.0, 0.0, 0.0, 0.0,
                "use a schedule that multiplies every group's own LR, such as LambdaLR", "fail")
        for size, name, words in judge.records.erased[:1]
    ]  # fmt: skip


def fixed_dimensions(judge: Judge) -> list[Finding]:
    """A tensor inside a block whose fan-out stayed fixed although its fan-in grew: often a size the user forgot to scale."""
    infos = [info for info in judge.infos if info.role in ("hidden", "input", "output") and info.sites]
    found = []
    for info, after in itertools.pairwise(infos):
        if info.role == "output" and after.role == "input" and info.block and after.block:
            n = int(info.fan_out[-1])
            found.append(
                Finding(info.name, "a dimension did not grow", f"its fan-out is {n} at every {judge.records.axis}", 0, 0, 0, 0,
                        f"{after.name} takes {n} inputs at every size too: is this bottleneck meant?", "warn")
            )  # fmt: skip
    return found


def diverged(judge: Judge) -> list[Finding]:
    """Runs that became NaN or infinite: an answer if only the larger sizes did."""
    records = judge.records
    if not records.diverged:
        return []
    smallest = {j for (i, j) in records.diverged if i == 0}
    (i, _), (step, module) = min(records.diverged.items(), key=lambda item: (item[1][0], -item[0][0]))
    name = parameter_near(judge.infos, records, module)
    size = records.values[i]
    what = f"NaN or infinite values from step {step} on, first in {module}, at {records.axis} {size:g}"
    if smallest:
        return [
            Finding(
                name,
                "divergence",
                what,
                0,
                0,
                0,
                0,
                "the smallest size diverges too: lower the learning rate",
                "unclear",
            )
        ]
    return [Finding(name, "divergence", what, 0, 0, 0, 0, "the smallest size does not diverge", "fail")]


def parameter_near(infos: list[TensorInfo], records: Records, module: str) -> str:
    """The parameter to name for a module: its own last weight, else the last one used before it."""
    path = "" if module == "(model)" else module.partition("[")[0]
    inside = [info for info in infos if info.sites and info.name.startswith(f"{path}." if path else "")]
    if inside:
        return inside[-1].name
    entered = records.first_use.get(path, 0)
    before = [info for info in infos if info.order <= entered and info.sites]
    return (before[-1] if before else infos[0]).name
