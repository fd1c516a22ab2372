"""The read-outs: judged in units of true logits, wherever their multiplier is written.

A head makes `logits = outer · W · (κ·g·h)` of features h that do not scale: `outer` multiplies its output later on, κ its input on the way
to the product, g is the gain of the norm before it (an absorbed 1/N). All three are read off without noise, and always added:

    init error   = std(W₀) + a + outer + κ + g            (logits ~ width^-a/2 for a random zero-mean head)
    update error = own + (1+p)·(outer + κ + g)
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from mutransfer.check.expect import GROWS, TensorInfo
from mutransfer.check.findings import Finding
from mutransfer.check.slopes import Slope, fit

if TYPE_CHECKING:
    from mutransfer.check.verdict import Judge

FLAT = 0.1  # an exponent of the loss's own gradient below which it does not scale


def sites_of(judge: Judge, info: TensorInfo) -> list[str]:
    """The sites where this tensor is a read-out: fan-in grows and fan-out does not."""
    if info.name in judge.read_outs:
        return judge.read_outs[info.name]
    found = judge.read_outs[info.name] = []
    for site in info.sites:
        fans = np.array(judge.records.fans.get(site, []), dtype=float)
        if len(fans) == len(judge.records.values):
            a, b = (fit(judge.records.values, fans[:, k : k + 1]) for k in (0, 1))
            if a is not None and a.mean > GROWS and (b is None or b.mean <= GROWS):
                found.append(site)
    return found


def outer_multipliers(judge: Judge, site: str) -> list[Slope]:
    """Exponents of what may multiply this site's output later on, read off the gradient that comes back to it.

    The loss's own gradient at the model's output is the reference: where exploding outputs make it grow (a regression) that is no
    multiplier; where it falls, it is either a multiplier inside the loss or a loss without targets, so both readings stand.
    """
    for step in judge.records.steps("gradient at", site):
        if (slope := judge.slope("gradient at", site, step)) is not None:
            loss = judge.slope("gradient of output", "(model)", step)
            if loss is None:
                return [slope]
            return [slope - loss] if loss.mean > -FLAT else [slope, slope - loss]
    return []


def inner_multiplier(judge: Judge, site: str) -> Slope | float:
    """Exponent of what multiplies the features between the trunk and this product: κ and the absorbed gain g together.

    A factor inside the weight's module is the product's operand over the module's input. One before it shows as an input that scales
    while the output of the latest module with weights does not. Where that output scales too, it is the trunk's, unless a norm's gain carries it.
    """
    operand = judge.slope("operand", site)
    if operand is None:
        return 0.0
    place = judge.records.sites[site]
    source = judge.slope("input", place.module or "(model)") if place.owned else None
    inside: Slope | float = 0.0 if source is None else operand - source
    reaching = operand if source is None else source
    before = judge.slope("size", place.after or "(model)")
    if judge.within(reaching):
        return inside
    if before is not None and judge.within(before):
        return reaching - before + inside
    for info in reversed(judge.infos):
        if info.order < place.order and info.role in ("vector", "scalar"):
            gain = judge.slope("weight", info.name)
            if gain is not None and judge.within(reaching - gain):
                return gain + inside
    return inside


def init_errors(judge: Judge, info: TensorInfo, site: str) -> list[Slope]:
    """Errors of a head's init in units of true logits, which should fall like fan-in^-½ wherever the multiplier is."""
    fans = np.array(judge.records.fans[site], dtype=float)
    growth, weight = fit(judge.records.values, fans[:, :1]), judge.slope("weight", info.name)
    if growth is None or weight is None:
        return []
    inner = inner_multiplier(judge, site)
    return [weight + growth.mean + outer + inner for outer in outer_multipliers(judge, site)]


def update_errors(judge: Judge, info: TensorInfo, site: str) -> list[Slope]:
    """Errors of a head's update: its own size times its multipliers; its first-order effect on the loss where those are unknown."""
    plain, outers = judge.update_error(info), outer_multipliers(judge, site)
    if plain is None or not outers:
        return [s for s in [judge.typical("descent", info.name)] if s is not None]
    inner = inner_multiplier(judge, site)
    return [plain + (1 + info.degree) * (outer + inner) for outer in outers]


def judge_head(judge: Judge, info: TensorInfo, site: str) -> list[Finding]:
    """What is wrong with a read-out: its multiplier (or init), or its own learning rate."""
    init = _least(init_errors(judge, info, site))
    update = _least(update_errors(judge, info, site))
    found = []
    if init is not None and (grade := judge.grade(init)) != "ok":
        found.append(judge.finding(info.name, "readout multiplier", "the size of its logits at the start", init, -info.a / 2,
                                   f"multiply its output (or its init std) by {judge.factor(-init.mean)}", grade))  # fmt: skip
    if update is not None and (grade := judge.grade(update)) != "ok":
        same = init is not None and judge.grade(init) == "fail" and judge.within(update - (1 + info.degree) * init)
        if same:
            found.append(judge.finding(info.name, "readout multiplier", "the effect of its own update", update, 0.0,
                                       "the same multiplier corrects its update", grade))  # fmt: skip
        else:
            found.append(judge.update_finding(info, update, grade))
    return found


def judge_tied(judge: Judge, info: TensorInfo, site: str) -> list[Finding]:
    """A tensor shared with the read-out: its update is judged as an embedding's, its logits must still fall."""
    init = _least(init_errors(judge, info, site))
    if init is None or (grade := judge.grade(init)) == "ok":
        return []
    return [judge.finding(info.name, "readout multiplier", "the size of the logits it makes at the start", init, -0.5,
                          f"multiply the read-out's input by {judge.factor(-init.mean)}", grade)]  # fmt: skip


def _least(errors: list[Slope]) -> Slope | None:
    return min(errors, key=lambda s: abs(s.mean)) if errors else None
