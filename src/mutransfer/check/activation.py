"""Activations that grow or vanish although every tensor's own init and update are right: the user's forward scales with the width."""

from __future__ import annotations

from mutransfer.check import heads
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
        if (
            (slope.mean < expected and "relative" not in what)
            or not path
            or inside
            or judge.records.first_use.get(path, 0) > min(accused)
        ):
            return []
    low, high = slope.interval(judge.level)
    name = parameter_near(judge.infos, judge.records, first)
    advice = f"look for a factor of the {judge.records.axis} in the forward of {first}"
    return [Finding(name, "forward multiplier", f"{what} of {first}", slope.mean, low, high, expected, advice, "fail")]


def _size(judge: Judge, label: str) -> tuple[str, Slope, float] | None:
    size = judge.slope("size", label)
    if size is None:
        return None
    factor = _own_factor(judge, label, size)
    if factor is not None:
        return "the output relative to the input at the start", factor, 0.0
    low, high = size.interval(judge.level)
    down, up = _allowed(judge, label, size)
    if size.mean > up + judge.tolerance and low > up + CLEAR:
        return "the output at the start", size, up
    if judge.grows(label) and size.mean < down - VANISH and high < down - CLEAR:
        return "the output at the start", size, down
    return None


def _own_factor(judge: Judge, label: str, size: Slope) -> Slope | None:
    """The exponent by which a module without weights scales an input that is right; None where it does not.

    Both are seen on the same draw, so that this is exact. What sits right before a read-out is its multiplier.
    """
    source = judge.slope("input", label)
    inside = any(info.name.startswith(f"{label}.") for info in judge.infos)
    if label == "(model)" or inside or source is None or not judge.within(source):
        return None
    ratio = size - source
    entered = judge.records.first_use.get(label.partition("[")[0], 0)
    for info in judge.infos:
        for site in heads.sites_of(judge, info):
            place = judge.records.sites[site]
            if judge.records.first_use.get(place.after, 0) < entered < place.order or entered > place.order:
                return None
    return ratio if judge.grade(ratio) == "fail" and judge.grows(label) else None


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
    entered = judge.records.first_use.get(path, 0)
    for info in inside:
        start = judge.init_errors(info, info.sites[0] if info.sites else None)
        best = min(start, key=lambda s: abs(s.mean)) if start else None
        if best is not None and not judge.within(best):
            exponents.append(best.mean)
        if info.role == "output":
            exponents.append(-info.a / 2)
    if any(i.role == "output" and not i.head and i.sites and i.order < entered for i in judge.infos):
        exponents.append(-0.5)  # a fixed size before it may start small, and then its own input falls
    for info in judge.infos:
        for site in heads.sites_of(
            judge, info
        ):  # what multiplies the logits later on, also where a shared tensor makes them
            place = judge.records.sites[site]
            module = place.module
            if judge.records.first_use.get(place.after, 0) < entered < place.order:
                inner = heads.inner_multiplier(judge, site)
                exponents.append(inner.mean if isinstance(inner, Slope) else inner)
            if not path or module == path or module.startswith(f"{path}."):
                exponents += [-outer.mean for outer in heads.outer_multipliers(judge, site)]
    if not inside:
        source = judge.slope("input", label)
        exponents.append(slope.mean if source is None else source.mean)
    return min(exponents), max(exponents)
