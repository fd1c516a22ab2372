"""The depth rules: tensors matched across depths by their place in a block, relative updates, and the residual stream.

In a net of L residual blocks each block may add at most about L^-½ of the stream at the start: L^-e with e = ½, or e = 1 (CompleteP).
Then every matrix in a block must be updated like ‖ΔW‖/‖W₀‖ ~ L^(e−1) (theory §1, §3), in any gauge. Under SGD the update follows a
gradient that other tensors may have spoilt; freed from that (expected: ‖G‖·‖W₀‖ ~ L^-e) only the tensor's own rate is left.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

import numpy as np

from mutransfer.check.expect import TensorInfo
from mutransfer.check.findings import Finding
from mutransfer.check.record import Records
from mutransfer.check.slopes import Slope, fit, median
from mutransfer.check.verdict import Judge
from mutransfer.errors import InputError

CLEAR = 0.15
DESCENT = 0.75  # below this Σ⟨G, ΔW⟩ over a handful of depths says nothing


@dataclass
class Stacks:
    """Names with the numbers of the stacks that get deeper replaced by `*`."""

    paths: set[str]

    def fold(self, name: str) -> str:
        """`blocks.3.attn.out.weight` → `blocks.*.attn.out.weight`."""
        parts, done = name.split("."), []
        for part in parts:
            done.append("*" if part.isdigit() and ".".join(done) in self.paths else part)
        return ".".join(done)


def stacks_of(records: Records) -> Stacks | None:
    """The numbered stacks whose length differs between the sizes; None when none does (a width axis).

    Raises InputError when shapes grow too: one axis is width or depth; both together are a grid.
    """
    names = [{n: tuple(p.shape) for n, p in model.named_parameters()} for model in records.models]
    if all(set(n) == set(names[0]) for n in names):
        return None
    for name, shape in names[0].items():
        if any(n.get(name, shape) != shape for n in names):
            raise InputError(
                f"{name!r} changes its shape and the number of layers changes too: an exponent belongs to one of them; check both on "
                "their grid with sizes={'width': [32, 64, 128], 'depth': [2, 4, 8]}"
            )
    paths: set[str] = set()
    for _ in range(4):  # nested stacks are found from the outside in
        counts = [_children(n, Stacks(paths)) for n in names]
        more = {path for path in counts[0] if len({tuple(sorted(c.get(path, ()))) for c in counts}) > 1}
        if more <= paths:
            break
        paths |= more
    return Stacks(paths)


def _children(names: dict[str, tuple[int, ...]], stacks: Stacks) -> dict[str, set[str]]:
    found: dict[str, set[str]] = {}
    for name in names:
        parts, done = name.split("."), []
        for part in parts:
            prefix = ".".join(done)
            if part.isdigit():
                found.setdefault(prefix, set()).add(part)
            done.append("*" if part.isdigit() and prefix in stacks.paths else part)
    return found


def gather(records: Records, kind: str, stacks: Stacks, step: int, how: str) -> dict[str, np.ndarray]:
    """(sizes, seeds) of one kind per folded name: the sum or the root mean square over the blocks of each size."""
    found: dict[str, np.ndarray] = {}
    counts: dict[str, np.ndarray] = {}
    for (k, name, at), array in records.data.items():
        if k != kind or at != step:
            continue
        folded = stacks.fold(name)
        with np.errstate(over="ignore"):  # sizes of a run that explodes
            found[folded] = found.get(folded, 0.0) + np.nan_to_num(array if how == "sum" else array**2)
        counts[folded] = counts.get(folded, 0.0) + np.isfinite(array)
    for name, count in counts.items():
        missing = count == 0
        with np.errstate(invalid="ignore", divide="ignore"):
            found[name] = found[name] if how == "sum" else np.sqrt(found[name] / count)
        found[name] = np.where(missing, np.nan, found[name])
    return found


@dataclass
class Stack:
    """One stack of blocks that gets deeper: what each block adds to its stream at the start."""

    name: str  # folded, such as "blocks.*"
    slope: Slope | None  # exponent of |contribution| / |first input|; None where it is zero or there is no stream
    residual: bool

    @property
    def exponent(self) -> float | None:
        """e: 1 or ½, whichever is nearer; None where the blocks add nothing at the start."""
        if self.slope is None or not self.residual:
            return None
        return 1.0 if self.slope.mean < -0.75 else 0.5


class DepthJudge:
    """Findings along a depth axis."""

    def __init__(self, judge: Judge, stacks: Stacks) -> None:
        self.judge, self.records, self.stacks = judge, judge.records, stacks

    def judge_all(self) -> list[Finding]:
        """Block contributions first; with those right, every tensor's relative update; then growth that neither explains."""
        measured = self._measure()
        found = self._contributions(measured)
        found += self._updates(measured, blame=not found)
        if not any(f.severity == "fail" for f in found):
            found += self._descent()
        order = {info.name: info.order for info in self.judge.infos}
        found.sort(key=lambda f: (f.rule != "branch multiplier", order.get(f.name, 0.0)))
        return found if any(f.severity == "fail" for f in found) else found + self._stream()

    def _real(self, folded: str) -> str:
        """A parameter of the shallowest model for a folded name: the one in its first block."""
        return next((n for n, _ in self.records.models[0].named_parameters() if self.stacks.fold(n) == folded), folded)

    def branch_ends(self, folded: str) -> list[str]:
        """The last weights of a block's branches: of every child that holds several products, else of the block."""
        sites = sorted(self.records.sites.values(), key=lambda s: s.order)
        inside = [s for s in sites if self.stacks.fold(s.param).startswith(f"{folded}.")]
        if not inside:
            return []
        first = re.match(re.escape(folded).replace(r"\*", r"\d+"), inside[0].param)
        block = first.group(0) if first else ""
        branches: dict[str, list[str]] = {}
        for site in inside:
            if site.param.startswith(f"{block}."):
                branches.setdefault(site.param[len(block) + 1 :].partition(".")[0], []).append(site.param)
        ends = [params[-1] for params in branches.values() if len(params) > 1]
        last = [s.param for s in inside if s.param.startswith(f"{block}.")][-1]
        return ends if last in ends or not ends else [*ends, last]

    def _measure(self) -> list[Stack]:
        kinds = ("contribution", "stream before", "stream after")
        added, before, after = (gather(self.records, kind, self.stacks, 0, "rms") for kind in kinds)
        found = []
        for name, array in added.items():
            if not name.endswith(".*") or name.rpartition(".")[0] not in self.stacks.paths:
                continue
            first = self._first_input(name)
            there = np.all(np.isfinite(array), axis=1)  # a single block adds to nothing that follows
            if first is None or there.sum() < 2:
                continue
            sizes = [v for v, ok in zip(self.records.values, there, strict=True) if ok]
            slope = fit(sizes, (array / first)[there])
            found.append(Stack(name, slope, _adds(array[there], before[name][there], after[name][there])))
        return found

    def _contributions(self, measured: list[Stack]) -> list[Finding]:
        found: list[Finding] = []
        for stack in measured:
            if stack.slope is None or not stack.residual:
                continue
            error = stack.slope + 0.5
            if error.mean <= self.judge.tolerance or self.judge.grade(error) != "fail":
                continue
            low, high = stack.slope.interval(self.judge.level)
            advice = f"multiply it by depth^-1 (or depth^-½ for branches of one matrix): ÷{self.judge.ratio:.3g} at the deepest"
            for end in self.branch_ends(stack.name):
                found.append(Finding(end, "branch multiplier", f"what each {stack.name} adds to the stream at the start",
                                     stack.slope.mean, low, high, -1.0, advice, "fail"))  # fmt: skip
        return found

    def _first_input(self, folded: str) -> np.ndarray | None:
        candidates = [n for n in self.records.names("input") if self.stacks.fold(n) == folded]
        if not candidates:
            return None
        return self.records.get("input", min(candidates, key=lambda n: self.records.first_use.get(n, 1 << 30)))

    def _updates(self, measured: list[Stack], blame: bool) -> list[Finding]:
        """‖ΔW‖/‖W₀‖ of every matrix and gain with a size of its own, against L^(e−1) in a block and L^0 outside of the stacks."""
        weight = gather(self.records, "weight", self.stacks, 0, "rms")
        steps = sorted({step for kind, _, step in self.records.data if kind == "update"})
        updates = {step: gather(self.records, "update", self.stacks, step, "rms") for step in steps}
        gradients = {step: gather(self.records, "gradient", self.stacks, step, "rms") for step in steps}
        infos = {self.stacks.fold(info.name): info for info in self.judge.infos}
        found: list[Finding] = []
        for name, start in weight.items():
            info = infos.get(name)
            if info is None or not self._relative(info, start):
                continue
            slopes = []
            for step in steps:
                moved, gradient = updates[step].get(name), gradients[step].get(name)
                relative = None if moved is None else fit(self.records.values, moved / start)
                pull = None if gradient is None else fit(self.records.values, gradient * start)
                if relative is not None and (info.degree == 0 or pull is not None):
                    slopes.append(relative if info.degree == 0 or pull is None else relative - pull)
            slope = median(slopes[:1] if info.degree else slopes)
            if slope is None:
                continue
            low, high = self._expected(name, info, measured)
            error = slope - float(np.clip(slope.mean, low, high))
            if (grade := self.judge.grade(error)) == "ok":
                continue
            expected = low if error.mean < 0 else high
            what = f"{name}'s update relative to its size" + (", freed from its gradient," if info.degree else "")
            advice = f"multiply its learning rate by {self.judge.factor(-error.mean)}"
            found.append(self.judge.finding(self._real(name), "learning rate over depth", what, error, expected, advice,
                                            grade if blame else "note"))  # fmt: skip
        return found

    def _relative(self, info: TensorInfo, start: np.ndarray) -> bool:
        """Whether this tensor has a size of its own to be compared with: a matrix or a gain that does not start at zero."""
        multiplies = len(info.shape) > 1 or not info.name.endswith("bias")
        return multiplies and fit(self.records.values, start) is not None

    def _expected(self, name: str, info: TensorInfo, measured: list[Stack]) -> tuple[float, float]:
        """The range of the exponent of ‖ΔW‖/‖W₀‖, divided by ‖G‖·‖W₀‖ for degree 1: (e−1) + p·e, where e may be unknown.

        Published rules for e = ½ leave a gain's rate alone or scale it like a matrix's: both are accepted.
        """
        if "*" not in name:
            return 0.0, 0.0
        e = next((stack.exponent for stack in measured if name.startswith(f"{stack.name}.")), None)
        ends = (e, e) if e is not None and len(info.shape) > 1 else (0.5, 1.0)
        return ends[0] - 1 + info.degree * ends[0], ends[1] - 1 + info.degree * ends[1]

    def _stream(self) -> list[Finding]:
        """The stream after all blocks, or the logits, whose size or change grows with depth although every tensor is right."""
        last = max(self.records.steps("size", "(model)") or [0])
        bound = self.judge.tolerance + CLEAR
        for name in (*self._outside(), "(model)"):
            for kind, steps in (("size", (0,)), ("change", (1, last))):
                slopes = [self.judge.slope(kind, name, step) for step in steps]
                if any(s is None or s.mean <= bound or s.interval(self.judge.level)[0] <= CLEAR for s in slopes):
                    continue
                slope = median(slopes)
                inside = [s for s in self.records.sites.values() if "*" in self.stacks.fold(s.param)]
                if slope is not None and inside:
                    low, high = slope.interval(self.judge.level)
                    what = "its output at the start" if kind == "size" else "the change of its output"
                    return [Finding(inside[-1].param, "branch multiplier", f"in {name}, {what}", slope.mean, low, high, 0.0,
                                    "what the blocks add together must not grow with depth", "fail")]  # fmt: skip
        return []

    def _outside(self) -> list[str]:
        """Modules after the stacks, in order: what they see is the stream."""
        use = self.records.first_use
        last = max((at for name, at in use.items() if "*" in self.stacks.fold(name)), default=0)
        after = [
            n
            for n in self.records.names("size")
            if "*" not in self.stacks.fold(n) and use.get(n.partition("[")[0], 0) > last
        ]
        return sorted(after, key=lambda n: use[n.partition("[")[0]])

    def _descent(self) -> list[Finding]:
        """Σ over blocks of ⟨G, ΔW⟩ must not depend on depth; it settles slowly, so only a large exponent counts.

        It is the only word on biases and on what starts at zero.
        """
        steps = sorted({step for kind, _, step in self.records.data if kind == "descent"})
        per_step = [gather(self.records, "descent", self.stacks, step, "sum") for step in steps]
        weight = gather(self.records, "weight", self.stacks, 0, "rms")
        infos = {self.stacks.fold(info.name): info for info in self.judge.infos}
        found: list[Finding] = []
        for name in per_step[0] if per_step else ():
            slope = median([fit(self.records.values, g.get(name)) for g in per_step])
            info, start = infos.get(name), weight.get(name)
            if (
                slope is None
                or "*" not in name
                or info is None
                or info.name in self.judge.cancelled
                or (start is not None and self._relative(info, start))
            ):
                continue
            low, high = slope.interval(self.judge.level)
            if abs(slope.mean) <= DESCENT or (low < DESCENT - CLEAR and high > CLEAR - DESCENT):
                continue
            advice = f"multiply its learning rate by {self.judge.factor(-slope.mean)}"
            found.append(self.judge.finding(self._real(name), "learning rate over depth",
                                            f"the joint effect of {name}'s updates on the loss", slope, 0.0, advice, "fail"))  # fmt: skip
        return found


def _adds(added: np.ndarray, before: np.ndarray, after: np.ndarray) -> bool:
    """Whether these blocks add to a stream: out = in + branch makes |out|² ≥ |in|² while a plain layer forgets its input.

    A plain layer y of x has |y − x|² ≈ |x|² + |y|²; a residual one has |y − x|² ≈ |y|² − |x|².
    """
    plain = np.abs(added**2 - (before**2 + after**2))
    residual = np.abs(added**2 - np.abs(after**2 - before**2))
    return bool(np.nanmean(residual) < np.nanmean(plain))
