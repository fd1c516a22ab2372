"""Activations that grow or vanish although every tensor's own init and update are right: the user's forward scales with the width."""

from __future__ import annotations

import numpy as np

from mutransfer.check import heads
from mutransfer.check.expect import GROWS, exponent
from mutransfer.check.findings import Finding
from mutransfer.check.slopes import Slope
from mutransfer.check.static import parameter_near
from mutransfer.check.verdict import Judge

GROWTH = 0.35  # of a change: its finite-size crossover is always downwards, so growth needs less proof than decay
VANISH = 0.4  # of a size at the start, where only heads and their like fall
CLEAR = 0.15


def unexplained(judge: Judge, found: list[Finding]) -> list[Finding]:
    """The most upstream module whose output has an exponent that no tensor in it accounts for.

    Where tensors are accused already, only growth at the start that is upstream of all of them is news.
    """
    order = {info.name: info.order for info in judge.infos}
    accused = [order[f.name] for f in found if f.severity == "fail" and f.name in order]
    wrong: dict[str, tuple[str, Slope, float]] = {}
    for label in judge.records.names("size"):
        if (hit := _size(judge, label) or (None if accused else _change(judge, label))) is not None:
            wrong[label] = hit
    leaves = [a for a in wrong if not any(b != a and (a == "(model)" or b.startswith(f"{a}.")) for b in wrong)]
    if not leaves:
        return []
    first = min(leaves, key=lambda a: judge.records.first_use.get("" if a == "(model)" else a.partition("[")[0], 0))
    path = "" if first == "(model)" else first.partition("[")[0]
    what, slope, expected = wrong[first]
    if accused:
        inside = any(f.name.startswith(f"{path}.") for f in found if f.severity == "fail")
        if slope.mean < expected or not path or inside or judge.records.first_use.get(path, 0) > min(accused):
            return []
    low, high = slope.interval(judge.level)
    name = parameter_near(judge.infos, judge.records, first)
    advice = f"look for a factor of the {judge.records.axis} in the forward of {first}"
    return [Finding(name, "forward multiplier", f"{what} of {first}", slope.mean, low, high, expected, advice, "fail")]


def _size(judge: Judge, label: str) -> tuple[str, Slope, float] | None:
    size = judge.slope("size", label)
    if size is None:
        return None
    low, high = size.interval(judge.level)
    down, up = _allowed(judge, label, size)
    if size.mean > up + judge.tolerance and low > up + CLEAR:
        return "the output at the start", size, up
    channels = judge.records.channels.get(label, [])
    if len(channels) != len(judge.records.values):
        return None
    grows = exponent(judge.records.values, np.array(channels, dtype=float)) > GROWS
    if grows and size.mean < down - VANISH and high < down - CLEAR:
        return "the output at the start", size, down
    return None


def _change(judge: Judge, label: str) -> tuple[str, Slope, float] | None:
    steps = judge.records.steps("change", label)
    slopes = [judge.slope("change", label, step) for step in steps]
    if len(slopes) < 2 or slopes[0] is None or slopes[-1] is None:
        return None
    for slope in (slopes[0], slopes[-1]):
        low, _ = slope.interval(judge.level)
        up = _allowed(judge, label, slope)[1]
        if slope.mean <= up + GROWTH or low <= up + CLEAR:
            return None
    return "the change of the output", slopes[-1], 0.0


def _allowed(judge: Judge, label: str, slope: Slope) -> tuple[float, float]:
    """Exponents that the tensors of this module account for (multipliers absorbed in them), or the module's own input."""
    path = "" if label == "(model)" else label.partition("[")[0]
    inside = [info for info in judge.infos if info.name.startswith(f"{path}." if path else "")]
    exponents = [0.0]
    for info in inside:
        start = judge.init_errors(info, info.sites[0] if info.sites else None)
        best = min(start, key=lambda s: abs(s.mean)) if start else None
        if best is not None and not judge.within(best):
            exponents.append(best.mean)
        if info.role == "output":
            exponents.append(-info.a / 2)
    entered = judge.records.first_use.get(path, 0)
    if any(i.role == "output" and not i.head and i.sites and i.order < entered for i in judge.infos):
        exponents.append(-0.5)  # a fixed size before it may start small, and then its own input falls
    for info in judge.infos:
        for site in heads.sites_of(
            judge, info
        ):  # what multiplies the logits later on, also where a shared tensor makes them
            module = judge.records.sites[site].module
            if not path or module == path or module.startswith(f"{path}."):
                exponents += [-outer.mean for outer in heads.outer_multipliers(judge, site)]
    if not inside:
        source = judge.slope("input", label)
        exponents.append(slope.mean if source is None else source.mean)
    return min(exponents), max(exponents)
