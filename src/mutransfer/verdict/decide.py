"""HOLDS, DRIFTS or INCONCLUSIVE: the rules, in one place, and which runs would settle it.

Both decisions need 95 % of the replicates (at level 0.9); what is neither proved nor refuted is INCONCLUSIVE.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from mutransfer.verdict.bootstrap import Draws, Replicates
from mutransfer.verdict.transfer import Gain, Optimum, Regret
from mutransfer.verdict.words import cost, signed

BAND = 0.15  # octaves per doubling of size: the drift that counts as none
COSTS = 0.5  # drift beyond the band decides only if the regret exceeds this share of the tolerance
SHARE = 0.5  # of what the size gains: losing more than this is losing the point of the larger model
MARGIN = 0.25  # of the tolerance: larger may be worse by so much and count as equal
NEEDED = 4  # finite LRs per size: three points always lie on a parabola
MOST_SEEDS = 8  # asked for at once


@dataclass(frozen=True)
class Evidence:
    """Everything a decision looks at."""

    found: Replicates
    optima: tuple[Optimum, ...]
    drift_low: float  # interval of the drift
    drift_high: float
    regrets: tuple[Regret, ...]
    steps: tuple[Gain, ...]
    overall: Gain
    tolerance: float
    level: float
    size_name: str

    @property
    def sure(self) -> float:
        """The share of replicates that decides."""
        return (1 + self.level) / 2


def decide(evidence: Evidence) -> tuple[str, list[str], list[dict[str, Any]]]:
    """(status, reasons, runs that would settle it)."""
    against = accusations(evidence)
    if against:
        return "DRIFTS", against, []
    doubts, wanted = doubt(evidence)
    if doubts:
        return "INCONCLUSIVE", doubts, wanted
    last = evidence.regrets[-1]
    better = f"larger is {'better' if evidence.overall.better >= evidence.sure else 'not worse'}"
    return "HOLDS", [f"the base's LR costs at most {_percent(max(r.relative.high for r in evidence.regrets))} of the loss at any size "
                     f"({100 * last.relative.value:.2f} % at {evidence.size_name} {last.size:g}), and {better} at the optimum"], []  # fmt: skip


def accusations(e: Evidence) -> list[str]:
    """What is proved against transfer."""
    found = []
    several = 1 - (1 - e.sure) / max(1, len(e.regrets) - 1)  # sizes other than the largest share one error
    for i, regret in enumerate(e.regrets):
        last = i == len(e.regrets) - 1
        sure = e.sure if last else several
        at = f"at {e.size_name} {regret.size:g}"
        if regret.above >= sure:
            found.append(f"the base's best LR {cost(regret.relative)} {at}")
        elif (
            regret.share is not None
            and regret.share.low > SHARE
            and regret.relative.low > MARGIN * e.tolerance
            and last
        ):
            found.append(f"the base's best LR costs more than {SHARE:.0%} of what {e.size_name} {regret.size:g} gains")
    outside = e.drift_low > BAND or e.drift_high < -BAND
    if outside and not found and e.regrets[-1].relative.low > COSTS * e.tolerance:
        found.append(f"the best LR moves by {signed(e.drift_low)} to {signed(e.drift_high)} octaves per doubling, which {cost(e.regrets[-1].relative)} at {e.size_name} {e.regrets[-1].size:g}")  # fmt: skip
    share = (1 - e.sure) / max(1, len(e.steps))
    for step in (e.overall, *e.steps):
        limit = 1 - e.sure if step is e.overall else share
        if step.worse >= 1 - limit and not _beyond(e, step):
            found.append(f"{e.size_name} {step.end:g} is worse than {step.start:g} at its own best LR by {_percent(-step.relative.value)} of the loss")  # fmt: skip
            break
    return found


def _beyond(e: Evidence, step: Gain) -> bool:
    """Whether the larger size's optimum may lie beyond its grid, so that it may be better than it looks."""
    index = [o.size for o in e.optima].index(step.end)
    one = e.found.sizes[index]
    return e.optima[index].edge is not None or bool(np.mean(one.at_low | one.at_high) > 1 - e.sure)


def doubt(e: Evidence) -> tuple[list[str], list[dict[str, Any]]]:
    """What stands between the runs and HOLDS, and the runs that would remove it."""
    reasons: list[str] = []
    wanted: list[dict[str, Any]] = []
    base, last = e.found.sizes[0], e.found.sizes[-1]
    spacing = _spacing(e.found.sizes)
    for optimum, one in zip(e.optima, e.found.sizes, strict=True):
        name = f"{e.size_name} {one.cells.size:g}"
        finite = int(one.cells.finite.sum())
        if finite < NEEDED:
            reasons.append(f"{name} has {finite} LRs with a loss: {NEEDED} or more are needed around its optimum")
            wanted += _around(one, spacing, _missing(one, optimum.log2_lr.value, spacing))
        elif optimum.edge:
            reasons.append(f"the best LR at {name} is the {'lowest' if optimum.edge == 'low' else 'highest'} that was run: the optimum may lie beyond")  # fmt: skip
            wanted += _past(one, optimum.edge, spacing)
        else:
            for hit, edge in ((one.at_low, "low"), (one.at_high, "high")):
                if np.mean(hit) > 1 - e.sure:
                    reasons.append(f"the optimum at {name} may lie beyond the {'lowest' if edge == 'low' else 'highest'} LR that was run")  # fmt: skip
                    wanted += _past(one, edge, spacing)
        if optimum.bimodal:
            reasons.append(f"the curve at {name} has two minima with a rise between them beyond the noise")
            wanted += _around(one, spacing, list(one.cells.x[one.cells.finite]), fresh=1)
    if not reasons and e.found.noise.dof <= 0 and sum(max(0, len(d.local.x) - 3) for d in e.found.sizes) < 3:
        reasons.append("one seed and few LRs: the noise cannot be told")
        for one in e.found.sizes:
            wanted += _around(one, spacing, _near(one, spacing), fresh=1)
    for regret, one in zip(e.regrets, e.found.sizes[1:], strict=True):
        if regret.unknown and not reasons:
            reasons.append(
                f"nothing finished at {e.size_name} {regret.size:g} where the base's optimum 2^{base.best_x:.1f} lies"
            )
            wanted += _around(one, spacing, [base.best_x])
        elif regret.below < e.sure and not regret.unknown and not (reasons and math.isinf(regret.relative.high)):
            reasons.append(f"the base's LR {cost(regret.relative)} at {e.size_name} {regret.size:g}: not surely below {_percent(e.tolerance)}")  # fmt: skip
            fresh = _seeds_wanted(regret.relative.value, regret.relative.high, e.tolerance, one)
            for size in (base, one):
                wanted += _around(size, spacing, _near(size, spacing), fresh=fresh)
    lost = e.regrets[-1].share
    if not reasons and lost is not None and lost.high > 1:
        reasons.append(f"the cost of the base's LR may be all that {e.size_name} {e.regrets[-1].size:g} gains")
        for size in (base, last):
            wanted += _around(size, spacing, _near(size, spacing), fresh=2)
    for step in (e.overall, *e.steps):
        # from the smallest to the largest it must surely not get worse; of a single step it is enough that it more likely does not
        doubtful = step.worse > 1 - e.sure if step is e.overall else step.worse > 0.5
        if doubtful:
            reasons.append(
                f"whether {e.size_name} {step.end:g} is better than {step.start:g} is within the noise: {_gain(step)}"
            )
            for one in e.found.sizes:
                if one.cells.size in (step.start, step.end):
                    wanted += _around(one, spacing, [one.cells.x[int(np.argmin(np.abs(one.cells.x - one.best_x)))]],
                                      fresh=_seeds_wanted(0.0, -step.relative.low, e.tolerance / 2, one))  # fmt: skip
            break
    unique = {(run["size"], round(run["log2_lr"], 4), str(run["seed"])): run for run in wanted}
    return reasons, [unique[key] for key in sorted(unique)]


def _spacing(sizes: Sequence[Draws]) -> float:
    gaps = np.concatenate([np.diff(one.cells.x) for one in sizes if len(one.cells.x) > 1] or [np.ones(1)])
    return float(np.median(gaps))


def _near(one: Draws, spacing: float) -> list[float]:
    """The three grid points about the optimum."""
    order = np.argsort(np.abs(one.cells.x - one.best_x), kind="stable")
    return sorted(float(v) for v in one.cells.x[order[:3]])


def _missing(one: Draws, at: float, spacing: float) -> list[float]:
    """Points at half the spacing about the best, where nothing finished."""
    grid = [at + k * spacing / 2 for k in (-4, -3, -2, -1, 1, 2)]
    known = one.cells.x[one.cells.finite]
    below = one.cells.x[one.cells.wall & (one.cells.x > at)].min(initial=math.inf)
    return [x for x in grid if np.min(np.abs(known - x), initial=math.inf) > spacing / 4 and x < below - 1e-9]


def _past(one: Draws, edge: str, spacing: float) -> list[dict[str, Any]]:
    end = one.cells.x[0] - spacing * np.arange(1, 3) if edge == "low" else one.cells.x[-1] + spacing * np.arange(1, 3)
    return _around(one, spacing, [float(v) for v in end])


def _around(one: Draws, spacing: float, lrs: Sequence[float], fresh: int = 0) -> list[dict[str, Any]]:
    """Rows to run: at `lrs`, with the seeds that this size has, or `fresh` new ones."""
    named = [_number(seed) for seed in one.cells.seeds if "/" not in seed] or [0]
    seeds: list[Any] = named
    if fresh:
        start = max((s for s in named if isinstance(s, int)), default=-1) + 1
        seeds = list(range(start, start + fresh))
    return [
        {"size": one.cells.size, "lr": float(2.0**x), "log2_lr": float(x), "seed": seed} for x in lrs for seed in seeds
    ]


def _number(seed: str) -> int | str:
    try:
        return int(float(seed))
    except ValueError:
        return seed


def _seeds_wanted(value: float, high: float, tolerance: float, one: Draws) -> int:
    """New seeds that would bring the upper end below the tolerance, if the estimate stays: the interval shrinks like 1/√seeds."""
    have = max(1, len({seed for seed in one.cells.seeds if "/" not in seed}))
    room = max(tolerance - value, 0.25 * tolerance)
    if not math.isfinite(high):
        return 1
    need = have * (max(high - value, 0) / room) ** 2
    return int(min(MOST_SEEDS, max(1, math.ceil(need - have))))


def _percent(share: float) -> str:
    return f"{100 * max(share, 1e-4):.2g} %" if math.isfinite(share) else "all"


def _gain(step: Gain) -> str:
    g = step.relative
    return f"{100 * g.value:+.2f} % [{100 * g.low:+.2f}, {100 * g.high:+.2f}]"
