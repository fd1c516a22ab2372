"""The depth rules: tensors matched across depths by their place in a block, sums over blocks, and the residual stream.

In a net of L residual blocks each block may add at most about L^-½ of the stream at the start (that is α = ½; CompleteP's α = 1 adds
L^-1), and all blocks together must change the loss by the same amount in one step: Σ_k ⟨G_k, ΔW_k⟩ ~ L^0 (theory §1, §3).
"""

from __future__ import annotations

import re
from dataclasses import dataclass

import numpy as np

from mutransfer.check.findings import Finding
from mutransfer.check.record import Records
from mutransfer.check.slopes import Slope, fit, median
from mutransfer.check.verdict import Judge
from mutransfer.errors import InputError

CLEAR = 0.15


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

    Raises InputError when shapes grow too: width and depth must be varied one at a time.
    """
    names = [{n: tuple(p.shape) for n, p in model.named_parameters()} for model in records.models]
    if all(set(n) == set(names[0]) for n in names):
        return None
    for name, shape in names[0].items():
        if any(n.get(name, shape) != shape for n in names):
            raise InputError(
                f"{name!r} changes its shape and the number of layers changes too: vary width or depth, not both"
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
        value = np.nan_to_num(array if how == "sum" else array**2)
        found[folded] = found.get(folded, 0.0) + value
        counts[folded] = counts.get(folded, 0.0) + np.isfinite(array)
    for name, count in counts.items():
        missing = count == 0
        with np.errstate(invalid="ignore", divide="ignore"):
            found[name] = found[name] if how == "sum" else np.sqrt(found[name] / count)
        found[name] = np.where(missing, np.nan, found[name])
    return found


class DepthJudge:
    """Findings along a depth axis."""

    def __init__(self, judge: Judge, stacks: Stacks) -> None:
        self.judge, self.records, self.stacks = judge, judge.records, stacks

    def judge_all(self) -> list[Finding]:
        """Block contributions first; with those right, every tensor's share of the descent; then growth that neither explains."""
        found = self._contributions()
        found += self._descent(blame=not found)
        return found if any(f.severity == "fail" for f in found) else found + self._stream()

    def _real(self, folded: str) -> str:
        """A parameter of the shallowest model for a folded name: the one in its first block."""
        return next((n for n, _ in self.records.models[0].named_parameters() if self.stacks.fold(n) == folded), folded)

    def _branch_ends(self, folded: str) -> list[str]:
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

    def _contributions(self) -> list[Finding]:
        added = gather(self.records, "contribution", self.stacks, 0, "rms")
        entering = gather(self.records, "input", self.stacks, 0, "rms")
        found: list[Finding] = []
        for name, array in added.items():
            if not name.endswith(".*") or name.rpartition(".")[0] not in self.stacks.paths:
                continue
            first = self._first_input(name)
            reference = entering.get(name) if first is None else first
            if reference is None or not self._is_residual(name, array, entering.get(name)):
                continue
            slope = fit(self.records.values, array / reference)
            if slope is None:  # a block that adds nothing at the start
                continue
            error = slope + 0.5
            if error.mean <= self.judge.tolerance or self.judge.grade(error) != "fail":
                continue
            low, high = slope.interval(self.judge.level)
            advice = f"multiply it by depth^-1 (or depth^-½ for branches of one matrix): ÷{self.judge.ratio:.3g} at the deepest"
            for end in self._branch_ends(name):
                found.append(Finding(end, "branch multiplier", f"what each {name} adds to the stream at the start", slope.mean,
                                     low, high, -1.0, advice, "fail"))  # fmt: skip
        return found

    def _first_input(self, folded: str) -> np.ndarray | None:
        candidates = [n for n in self.records.names("input") if self.stacks.fold(n) == folded]
        if not candidates:
            return None
        return self.records.get("input", min(candidates, key=lambda n: self.records.first_use.get(n, 1 << 30)))

    def _is_residual(self, name: str, added: np.ndarray, entering: np.ndarray | None) -> bool:
        """Whether these blocks add to a stream: out = in + branch makes |out|² ≥ |in|² while a plain layer forgets its input.

        A plain layer y of x has |y − x|² ≈ |x|² + |y|²; a residual one has |y − x|² ≈ |y|² − |x|².
        """
        leaving = gather(self.records, "size", self.stacks, 0, "rms").get(name)
        if leaving is None or entering is None:
            return False
        gap_plain = np.abs(added**2 - (entering**2 + leaving**2))
        gap_residual = np.abs(added**2 - np.abs(leaving**2 - entering**2))
        return bool(np.nanmean(gap_residual) < np.nanmean(gap_plain))

    def _stream(self) -> list[Finding]:
        """Modules whose size, or whose change after the first and the last step, grows with depth."""
        wrong: list[tuple[int, str, str, Slope]] = []
        last = max(self.records.steps("size", "(model)") or [0])
        for kind, steps in (("size", (0,)), ("change", (1, last))):
            gathered = [gather(self.records, kind, self.stacks, step, "rms") for step in steps]
            for name in gathered[0]:
                slopes = [fit(self.records.values, g.get(name)) for g in gathered]
                if all(
                    s is not None and s.mean > self.judge.tolerance and s.interval(self.judge.level)[0] > CLEAR
                    for s in slopes
                ):
                    path = "" if name == "(model)" else name.partition("[")[0]
                    use = [v for n, v in self.records.first_use.items() if self.stacks.fold(n) == path]
                    slope = median(slopes)
                    if slope is not None:
                        what = "its output at the start" if kind == "size" else "the change of its output"
                        wrong.append((min(use, default=0), name, what, slope))
        if not wrong:
            return []
        _, name, what, slope = max(wrong, key=lambda w: (w[1].count(".") > 0, -w[0]))
        path = "" if name == "(model)" else name.partition("[")[0]
        inside = [
            s for s in self.records.sites.values() if self.stacks.fold(s.param).startswith(f"{path}." if path else "")
        ]
        before = [s for s in self.records.sites.values() if s.order <= min((w[0] for w in wrong), default=0)]
        chosen = inside or before or list(self.records.sites.values())
        param = chosen[-1].param if chosen else name
        low, high = slope.interval(self.judge.level)
        return [Finding(param, "branch multiplier", f"in {name}, {what}", slope.mean, low, high, 0.0,
                        "what the blocks add together must not grow with depth", "fail")]  # fmt: skip

    def _descent(self, blame: bool) -> list[Finding]:
        """Σ over blocks of ⟨G, ΔW⟩ must not depend on depth, tensor by tensor."""
        steps = sorted({step for kind, _, step in self.records.data if kind == "descent"})
        per_step = [gather(self.records, "descent", self.stacks, step, "sum") for step in steps]
        updates = [gather(self.records, "update", self.stacks, step, "rms") for step in steps]
        found: list[Finding] = []
        for name in per_step[0] if per_step else ():
            slope = median([fit(self.records.values, g.get(name)) for g in per_step])
            moved = median([fit(self.records.values, g.get(name)) for g in updates])
            if slope is None or moved is None or self.judge.grade(slope) == "ok" or "*" not in name:
                continue
            advice = f"multiply its learning rate by {self.judge.factor(-slope.mean)}"
            grade = self.judge.grade(slope) if blame else "note"
            found.append(self.judge.finding(self._real(name), "learning rate over depth",
                                            f"the joint effect of {name}'s updates on the loss", slope, 0.0, advice, grade))  # fmt: skip
        order = {info.name: info.order for info in self.judge.infos}
        return sorted(found, key=lambda f: order.get(f.name, 0.0))
