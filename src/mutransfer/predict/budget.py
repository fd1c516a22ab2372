"""What to do with a budget, from one table of runs: the best size and tokens, what a loss costs, and the runs that would tell more."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from mutransfer.errors import InputError
from mutransfer.predict import telling
from mutransfer.predict.costs import FACTOR
from mutransfer.predict.forecast import LossLaw, fit_loss
from mutransfer.predict.frontier import Frontier, Optimum, frontier
from mutransfer.predict.isoflop import IsoFlop, isoflop
from mutransfer.predict.planning import NextRuns, next_runs
from mutransfer.predict.points import Points
from mutransfer.predict.sizes import SIZES, varies
from mutransfer.predict.target import Reaching, size_for
from mutransfer.verdict.estimate import Estimate

REACHED, UNDECIDED = 0, 3
TELLING = 0.4  # an interval of an exponent that is wider says nothing: without any data it lies between 0 and 1
DECADES = (1.0, 10.0, 100.0)  # budgets shown where none is given, times the power of ten above the largest fitted run


@dataclass(frozen=True)
class Budgets:
    """Whatever was asked of a table: the `law`, its `frontier` with `optima` at the budgets, `curves` (isoFLOP), the run `reaching` a loss, the `runs` to make next; None where not asked."""

    law: LossLaw | None
    frontier: Frontier | None
    optima: tuple[Optimum, ...]
    curves: IsoFlop | None
    reaching: Reaching | None
    runs: NextRuns | None

    @property
    def exit_code(self) -> int:
        """3 where a loss is asked for that is not reachable, or perhaps not; else 0."""
        return UNDECIDED if self.reaching is not None and self.reaching.status != "REACHABLE" else REACHED

    def words(self) -> str:
        """All of it, a paragraph each."""
        parts = []
        if self.law is not None:
            parts.append(self.law.words())
        if self.frontier is not None:
            parts.append(frontier_words(self.frontier, self.optima))
        if self.curves is not None:
            parts.append(self.curves.words())
        if self.frontier is not None and self.curves is not None:
            parts.append(agreement(self.curves, self.frontier))
        if self.reaching is not None:
            parts.append(self.reaching.words())
        if self.runs is not None:
            parts.append(self.runs.words())
        return "\n\n".join(parts)

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON types."""
        found = None
        if self.frontier is not None:
            found = {
                **self.frontier.to_dict(),
                "optima": [o.to_dict() for o in self.optima],
                "warnings": list(self.frontier.warnings(self.optima)),
            }
        return {
            "law": None if self.law is None else self.law.to_dict(), "frontier": found,
            "isoflop": None if self.curves is None else self.curves.to_dict(),
            "target_loss": None if self.reaching is None else self.reaching.to_dict(),
            "next_runs": None if self.runs is None else self.runs.to_dict(),
        }  # fmt: skip


def plan_budget(
    points: Points,
    *,
    law: str | None = None,
    size: str | None = None,
    computes: Sequence[float] = (),
    loss: float | None = None,
    narrow: Mapping[str, float] | None = None,
    spend: float | None = None,
    runs: int | None = None,
    each: float | None = None,
    exponent: float | None = None,
    unique_tokens: float | None = None,
    curves: bool | None = None,
    level: float = 0.9,
) -> Budgets:
    """All that is asked: budgets (`computes`, FLOPs), a `loss` to reach, a target whose interval is to `narrow` for a budget (`spend`, `runs`, `each`).

    Where nothing is asked, the frontier at the next decades of compute. `curves`: isoFLOP curves, by default where the table has them. Raises InputError.
    """
    asked = bool(computes) or loss is not None or narrow is not None
    if narrow is None and (spend is not None or runs is not None or each is not None):
        raise InputError("a budget for runs says nothing without a target: write narrow= too, such as params=7e10 tokens=1.4e12")  # fmt: skip
    fitted = _fitted(points, law, size, narrow, tolerant=bool(curves) and not asked and law is None)
    front, optima = None, ()
    able = fitted is not None and "tokens" in fitted.variables and any(name in FACTOR for name in fitted.variables)
    if fitted is not None and (computes or (able and (loss is not None or not asked))):
        front = frontier(fitted, unique_tokens=unique_tokens, level=level)
        if not computes and not asked:
            top = 10.0 ** math.ceil(math.log10(front.computes[1]))
            computes = [top * f for f in DECADES]
        optima = front.table(list(computes))
    elif unique_tokens is not None and fitted is not None and not able:
        raise InputError(f"unique_tokens={unique_tokens:g} says nothing to a law over {' and '.join(fitted.variables)}")
    elif not asked and not curves:
        have = " and ".join(fitted.variables) if fitted is not None else "nothing"
        raise InputError(
            f"the law is over {have}, so it has no compute-optimal frontier: ask for a loss (target loss) or for the runs to make next (narrow)"
        )
    wide = _curves(points, front, size, curves, level) if curves or (curves is None and front is not None) else None
    reaching = None
    if loss is not None and fitted is not None:
        reaching = size_for(fitted, loss, unique_tokens=unique_tokens, level=level)
    following = None
    if narrow is not None and fitted is not None:
        following = next_runs(fitted, narrow, spend=spend, runs=runs, each=each, exponent=exponent, level=level)
    return Budgets(fitted, front, optima, wide, reaching, following)


def _fitted(points: Points, law: str | None, size: str | None, narrow: Mapping[str, float] | None, tolerant: bool) -> LossLaw | None:  # fmt: skip
    """The law: its size is that of the target to be narrowed, else one whose FLOPs are known where tokens vary."""
    among: str | list[str] | None = size
    if size is None:
        said = [name for name in SIZES if narrow is not None and name in narrow]
        tokens = "tokens" in points.variables and varies(points.variables["tokens"])
        counted = [name for name in FACTOR if tokens and narrow is None and name in points.variables]
        among = said or counted or None
    try:
        return fit_loss(points, law, size=among)
    except InputError:
        if not tolerant:
            raise
        return None


def _curves(points: Points, front: Frontier | None, size: str | None, wanted: bool | None, level: float) -> IsoFlop | None:  # fmt: skip
    try:
        return isoflop(points, size=size or (front.size if front is not None else None), level=level)
    except InputError:
        if wanted:
            raise
        return None


def frontier_words(front: Frontier, optima: Sequence[Optimum]) -> str:
    """The exponents, a line per budget, and why not to believe them."""
    a, b = (front.exponents[k].shown(3) for k in "ab")
    limit = "" if front.unique_tokens is None else f", {front.unique_tokens:.3g} distinct tokens"
    lines = [f"compute-optimal, {front.formula}{limit} ({front.level:.0%} intervals)"]
    free = "" if front.unique_tokens is None else " while tokens are not limited"
    lines.append(f"  N_opt ∝ C^a, a {a}; D_opt ∝ C^b, b {b}{free}")
    head = ["FLOPs", front.size, "tokens", "tokens per N", "loss of a run"]
    if front.unique_tokens is not None:
        head.append("epochs")
    rows = [head]
    for o in optima:
        rows.append([f"{o.compute:.3g}", _shown(o.size), _shown(o.tokens), _shown(o.ratio), _loss(o.loss)])
        if o.epochs is not None:
            rows[-1].append(_shown(o.epochs))
    if optima:
        widths = [max(len(row[i]) for row in rows) for i in range(len(head))]
        lines += ["  " + "  ".join(cell.ljust(w) for cell, w in zip(row, widths, strict=True)).rstrip() for row in rows]
    lines += [f"  warning: {text}" for text in front.warnings(optima)]
    return "\n".join(lines)


def agreement(curves: IsoFlop, front: Frontier) -> str:
    """Whether the isoFLOP minima (approach 2) and the law (approach 3) give the same exponent."""
    two, three = curves.exponents["a"], front.exponents["a"]
    gap = abs(two.value - three.value)
    reach = math.hypot(*((e.high - e.low) / 2 for e in (two, three)))
    said = (
        "the curves tell too little to compare"
        if two.high - two.low > TELLING
        else "they agree"
        if gap <= reach
        else "they differ by more than their intervals explain: the law's shape or some minima are off, and the frontier far away with them"
    )
    return f"exponent a of N_opt ∝ C^a: {two.shown(3)} by isoFLOP curves, {three.shown(3)} by the law; {said}"


def warnings(found: Budgets) -> tuple[str, ...]:
    """Of the law and of the frontier."""
    said = telling.warnings(found.law) if found.law is not None else ()
    return (*said, *(found.frontier.warnings(found.optima) if found.frontier is not None else ()))


def _shown(e: Estimate) -> str:
    return f"{e.value:.3g} [{e.low:.3g}, {e.high:.3g}]"


def _loss(e: Estimate) -> str:
    return f"{e.value:.4g} [{e.low:.4g}, {e.high:.4g}]"
