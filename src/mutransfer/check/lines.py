"""The verdict on a grid: every line judged as a check of its own, and each accusation weighed against all the runs.

A grid of 3 × 3 has six lines, so that an accusation that is chance once in twenty lines would be made on every fourth grid. One that
rests on noisy exponents therefore stands only if the mean over the lines of its direction makes it too, or the joint fit finds that this
tensor's rule is no product, or a second line makes it, or it holds at the level divided by the number of lines (Bonferroni). The last two
are not enough for the size of an activation, which crosses over slowly, and alike in runs that share their seed.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from mutransfer.check import depth
from mutransfer.check.coordinate import judge
from mutransfer.check.expect import TensorInfo
from mutransfer.check.findings import Finding
from mutransfer.check.grid import Degrees, Place, merged
from mutransfer.check.grid_report import GridReport, Line
from mutransfer.check.joint import Joint
from mutransfer.check.points import LEAST, Grid
from mutransfer.check.record import Records
from mutransfer.check.report import CheckReport
from mutransfer.check.verdict import Judge

NOISY = (
    "init", "learning rate", "learning rate over depth", "readout multiplier", "branch multiplier", "forward multiplier",
    "attention scale", "eps", "clip", "noise",
)  # fmt: skip
OPEN = ("fail", "unclear")
MOST = 0.5  # of a stack's blocks: from there on one finding stands for all
Key = tuple[int, str, str]  # axis, folded tensor, rule


def judge_grid(
    grid: Grid, cells: dict[Place, Records], degrees: Degrees, tolerance: float = 0.25, level: float = 0.9
) -> GridReport:
    """The verdict on what was recorded; pure arithmetic."""
    stacks, lines = _stacks(grid, cells), []
    for along in (0, 1):
        for at in range(len(grid.values[1 - along])):
            places = grid.line(along, at)
            if len(places) >= LEAST:  # two points leave nothing to tell noise by
                report = judge(merged(grid, cells, places, along), degrees, tolerance, level)
                lines.append(
                    Line(
                        along,
                        at,
                        grid.axes[along],
                        grid.axes[1 - along],
                        grid.values[1 - along][at],
                        report,
                        report.verdict,
                    )
                )
    places = sorted(cells)
    flat = merged(grid, cells, places, 0)
    flat.axis = " × ".join(grid.axes)
    joint = Joint(grid, flat, places, stacks)
    infos = tuple({info.name: info for line in lines for info in line.report.tensors}.values())
    order = _order(infos, stacks)
    small = min(len(values) for values in grid.values) < LEAST
    products = [] if small else joint.findings(Judge(flat, list(infos), tolerance, level), order)
    firm, pooled = _firm(lines, degrees, tolerance, level), _pooled(grid, lines, degrees, tolerance, level)
    found, standing = _Evidence(grid, lines, stacks, order, firm, pooled, products).weighed()
    lines = [replace(line, verdict=_weighed(line, standing.get(k))) for k, line in enumerate(lines)]
    verdict, why = _verdict(grid, lines, found)
    return GridReport(verdict, why, tuple(found), flat, infos, tolerance, level, grid, tuple(lines), joint)


def _stacks(grid: Grid, cells: dict[Place, Records]) -> depth.Stacks:
    """Every stack of blocks that gets deeper along either axis."""
    paths: set[str] = set()
    for along in (0, 1):
        longest = max((grid.line(along, at) for at in range(len(grid.values[1 - along]))), key=len)
        stacks = depth.stacks_of(merged(grid, cells, longest, along))
        paths |= set() if stacks is None else stacks.paths
    return depth.Stacks(paths)


def _order(infos: Sequence[TensorInfo], stacks: depth.Stacks) -> dict[str, float]:
    """The first place in the order of execution, by folded name."""
    found: dict[str, float] = {}
    for info in infos:
        name = stacks.fold(info.name)
        found[name] = min(found.get(name, np.inf), info.order)
    return found


def _firm(lines: list[Line], degrees: Degrees, tolerance: float, level: float) -> dict[int, set[tuple[str, str]]]:
    """What each line accuses at the level that holds for all lines at once: number of the line → (tensor, rule)."""
    strict = 1 - (1 - level) / len(lines) if lines else level
    found = {}
    for k, line in enumerate(lines):
        if line.report.verdict == "FAIL":
            again = judge(line.report.raw, degrees, tolerance, strict)
            found[k] = {(f.name, f.rule) for f in again.findings if f.severity == "fail"}
    return found


def _pooled(grid: Grid, lines: list[Line], degrees: Degrees, tolerance: float, level: float) -> dict[int, CheckReport]:
    """One check per axis of the geometric mean over its whole lines, so that every exponent is the mean over them, seed by seed.

    Runs of one seed share their draws, so that lines are no seeds of their own.
    """
    found = {}
    for along in (0, 1):
        whole = [
            x.report.raw for x in lines if x.along == along and len(x.report.raw.values) == len(grid.values[along])
        ]
        if len(whole) < 2 or any(raw.diverged for raw in whole):
            continue
        mean = replace(whole[0], data={})
        for key, array in whole[0].data.items():
            each = np.stack([raw.data.get(key, np.full_like(array, np.nan)) for raw in whole])
            with np.errstate(invalid="ignore", divide="ignore"):
                mean.data[key] = np.exp(np.mean(np.log(each), axis=0))
        found[along] = judge(mean, degrees, tolerance, level)
    return found


@dataclass
class _Evidence:
    """Accusations of lines, weighed against all runs and merged into one finding per tensor, rule and axis."""

    grid: Grid
    lines: list[Line]
    stacks: depth.Stacks
    order: dict[str, float]
    firm: dict[int, set[tuple[str, str]]]
    pooled: dict[int, CheckReport]
    products: list[Finding]

    def weighed(self) -> tuple[list[Finding], dict[int, set[str]]]:
        """What stands, what noise explains (as notes), what only all lines together or the joint fit show; and what stands of each line.

        First what already holds along the first edges of the grid, most upstream first; then what shows in its interior alone.
        """
        pool = {self._key(along, f): f for along, r in self.pooled.items() for f in r.findings if f.severity in OPEN}
        members: list[tuple[int, Finding, float]] = []  # with the share of a stack's blocks that are accused alike
        stands: set[str] = set()
        standing: dict[int, set[str]] = {}
        for k, line in enumerate(self.lines):
            blocks = Counter(self.stacks.fold(info.name) for info in line.report.tensors)
            deeper = depth.stacks_of(line.report.raw) is not None  # then one block stands for all of its stack
            accused = Counter(self._key(line.along, f) for f in line.report.findings)
            for f in line.report.findings:
                key = self._key(line.along, f)
                if f.severity in OPEN and self._noise(k, f, key in pool):
                    f = replace(f, severity="note", advice="all lines together do not bear it out: noise")
                if f.severity in OPEN:
                    stands.add(key[1])
                    standing.setdefault(k, set()).add(f.severity)
                members.append((k, f, 1.0 if deeper else accused[key] / blocks[key[1]]))
        few = {self._key(self.lines[k].along, f) for k, f, share in members if share < MOST}
        groups: dict[tuple[Key, str], list[tuple[int, Finding, float]]] = {}
        for k, f, share in members:
            key = self._key(self.lines[k].along, f)
            groups.setdefault(((key[0], f.name if key in few else key[1], f.rule), f.severity), []).append(
                (k, f, share)
            )
        placed = [
            (all(self.lines[k].at > 0 for k, *_ in group), self._merged(key, group, pool.get(key)))
            for (key, _), group in groups.items()
        ]
        placed += [
            (False, replace(f, axis=self.grid.axes[key[0]], where=f"over every {self.grid.axes[1 - key[0]]} together"))
            for key, f in pool.items()
            if f.rule in NOISY and key[1] not in stands
        ]
        named = {(self.stacks.fold(f.name), f.what) for _, f in placed if f.severity == "fail"}
        placed += [(True, f) for f in self.products if (self.stacks.fold(f.name), f.what) not in named]
        placed.sort(key=lambda one: (one[0], self.order.get(self.stacks.fold(one[1].name), np.inf)))
        return [f for _, f in placed], standing

    def _key(self, along: int, f: Finding) -> Key:
        return along, self.stacks.fold(f.name), f.rule

    def _noise(self, k: int, f: Finding, pooled: bool) -> bool:
        """Whether this accusation of line k is one that the other runs do not bear out."""
        line, name = self.lines[k], self.stacks.fold(f.name)
        if f.rule not in NOISY or line.along not in self.pooled or pooled:
            return False
        if any(p.severity == "fail" and self.stacks.fold(p.name) == name for p in self.products):
            return False
        if f.severity == "unclear" or f.rule == "forward multiplier":
            return True
        others = (g for j, other in enumerate(self.lines) if j != k for g in other.report.findings)
        again = any(g.severity == "fail" and g.rule == f.rule and self.stacks.fold(g.name) == name for g in others)
        return not again and (f.name, f.rule) not in self.firm.get(k, ())

    def _merged(self, key: Key, group: list[tuple[int, Finding, float]], pooled: Finding | None) -> Finding:
        """One finding, with the mean exponent of the lines that make it, or of all lines pooled where all of them do."""
        along = key[0]
        other = self.grid.axes[1 - along]
        there = [line.value for line in self.lines if line.along == along]
        at = sorted({self.lines[k].value for k, *_ in group})
        where = f"at every {other}" if len(at) == len(there) > 1 else f"at {other} {', '.join(map(str, at))}"
        if absent := [str(value) for value in there if value not in at]:
            where += f" (not at {', '.join(absent)})"
        if len({f.name for _, f, _ in group}) > 1:
            where = f"{'in every block' if min(share for *_, share in group) >= 1 else 'in most blocks'} {where}"
        first = min(
            (f for _, f, _ in group), key=lambda f: (self.order.get(self.stacks.fold(f.name), 0.0), len(f.name), f.name)
        )
        measured = [f for _, f, _ in group if f.slope != f.expected]
        if not measured:
            return replace(first, axis=self.grid.axes[along], where=where if first.severity == "fail" else "")
        worst = max(measured, key=lambda f: abs(f.slope - f.expected))
        slope, low, high = (
            float(np.mean([f.slope for f in measured])),
            min(f.low for f in measured),
            max(f.high for f in measured),
        )
        if pooled is not None and len(at) == len(there):
            slope, low, high = pooled.slope, pooled.low, pooled.high
        return replace(
            worst, name=first.name, what=worst.what.replace(worst.name, first.name), slope=slope, low=low, high=high,
            axis=self.grid.axes[along], where=where,
        )  # fmt: skip


def _weighed(line: Line, standing: set[str] | None) -> str:
    """A line's verdict from what stands of it; its own where that rests on no finding."""
    if standing:
        return "FAIL" if "fail" in standing else "INCONCLUSIVE"
    return "PASS" if any(f.severity in OPEN for f in line.report.findings) else line.report.verdict


def _verdict(grid: Grid, lines: list[Line], found: list[Finding]) -> tuple[str, str]:
    if any(f.severity == "fail" for f in found):
        return "FAIL", ""
    if missing := grid.missing():
        return "INCONCLUSIVE", missing
    for line in lines:
        if line.verdict == "INCONCLUSIVE":
            return "INCONCLUSIVE", f"{line.words()}: {line.report.why}"
    if any(f.severity == "unclear" for f in found):
        return "INCONCLUSIVE", "some exponents are too noisy to tell: run more seeds, or a wider span of sizes"
    return "PASS", ""
