"""A verdict in the words of somebody who has to choose a learning rate."""

from __future__ import annotations

import math
import re
from typing import TYPE_CHECKING

from mutransfer.rows import columns as names

if TYPE_CHECKING:
    from mutransfer.verdict.estimate import Estimate
    from mutransfer.verdict.verdict import Verdict

SHOWN = 6  # runs named in words; all of them are in `next_runs`


def words(verdict: Verdict) -> str:
    """One line of verdict, then what to do with it, what it rests on, and what would settle it."""
    name, best = verdict.columns["size"], verdict.optima
    sizes = ", ".join(f"{o.size:g}" for o in best)
    lines = [f"{verdict.status} over {name} {sizes}: {verdict.reasons[0]}"]
    lines += [f"  also: {reason}" for reason in verdict.reasons[1:]]
    lines.append(f"  tune at {name} {best[0].size:g}, use at {name} {best[-1].size:g}: {carried(verdict)}")
    lines.append(f"  best log2 LR: {', '.join(f'{_rate(verdict, i)} at {o.size:g}' for i, o in enumerate(best))}")
    lines.append(f"  drift {signed(verdict.drift.value)} {span(verdict.drift.low, verdict.drift.high)} octaves per doubling of {name}")  # fmt: skip
    lines.append(f"  best losses {', '.join(f'{o.loss.value:.4g}' for o in best)}: {_better(verdict)}")
    lines.append(
        f"  noise of one run {verdict.noise:.2g}{_hides(verdict)}, {_source(verdict)}; intervals at {verdict.level:.0%}"
    )
    if verdict.next_runs:
        shown = "; ".join(
            f"{name} {r['size']:g} lr 2^{r['log2_lr']:.3g} seed {r['seed']}" for r in verdict.next_runs[:SHOWN]
        )
        more = len(verdict.next_runs) - SHOWN
        lines.append(f"  to settle it, run: {shown}" + (f"; and {more} more" if more > 0 else ""))
    lines += [f"  note: {note}" for note in verdict.notes]
    lines = [named(line, verdict.columns["lr"]) for line in lines]
    taken = ", ".join(f"{what} = {column}" for what, column in verdict.columns.items() if column)
    return "\n".join([*lines, f"  columns: {taken}"])


def named(text: str, column: str | None) -> str:
    """The text with the hyperparameter's own name in it where that is not the learning rate."""
    knob = names.knob(column)
    return (
        text
        if knob == "LR"
        else re.sub(r"\bLR\b", knob, text.replace("LRs", "values of LR")).replace(" lr 2^", f" {knob} 2^")
    )


def cost(relative: Estimate) -> str:
    """What the carried LR does, as a verb: "costs 0.13 % [0.02, 0.31] of the loss"; an infinite loss is called a divergence."""
    if math.isinf(relative.low):
        return "makes training diverge"
    if math.isinf(relative.value):
        at_least = f", or costs {100 * relative.low:.2f} % of the loss or more" if relative.low > 0 else ""
        return f"makes training diverge there{at_least}"
    if math.isinf(relative.high):
        return f"costs {100 * relative.value:.2f} % of the loss ({max(0.0, 100 * relative.low):.2f} or more: training may diverge there, or nothing was run there)"
    return f"costs {100 * relative.value:.2f} % {span(100 * relative.low, 100 * relative.high, sign=False)} of the loss"


def carried(verdict: Verdict) -> str:
    """What the smallest size's best LR does at the largest, as a verb, and how that compares with what the size gains."""
    regret = verdict.regrets[-1]
    if math.isinf(regret.relative.low):
        return cost(regret.relative)
    text = cost(regret.relative)
    if regret.share is not None and math.isfinite(regret.share.value):
        share = regret.share.value
        text += ", more than the size gains" if share > 1 else f", {100 * share:.0f} % of what the size gains"
    return text + (" (or more: nothing finished at that LR)" if regret.unknown else "")


def _rate(verdict: Verdict, index: int) -> str:
    o = verdict.optima[index]
    where = f" ({o.edge} edge of the grid)" if o.edge else " (next to divergence)" if o.beside_wall else ""
    return f"{o.log2_lr.value:.2f} {span(o.log2_lr.low, o.log2_lr.high, sign=False)}{where}"


def _better(verdict: Verdict) -> str:
    g = verdict.gain.relative
    word = {
        True: "larger is better",
        False: "larger is worse",
        None: "larger is neither better nor worse beyond the noise",
    }
    return f"{word[verdict.wider_is_better]}: the largest gains {signed(100 * g.value)} % {span(100 * g.low, 100 * g.high)}"


def _hides(verdict: Verdict) -> str:
    shift = verdict.hidden_shift
    return f" (hides {shift:.2f} octaves of LR)" if math.isfinite(shift) else ""


def _source(verdict: Verdict) -> str:
    if verdict.noise_from_seeds:
        return f"from {max(len(o.seeds) for o in verdict.optima)} seeds"
    return "one seed: estimated from what smooth curves through all sizes leave"


def signed(value: float, sign: bool = True) -> str:
    """+0.15, or without its plus; −∞ and ∞ where nothing bounds it."""
    return ("−∞" if value < 0 else "∞") if math.isinf(value) else f"{value:+.2f}" if sign else f"{value:.2f}"


def span(low: float, high: float, sign: bool = True) -> str:
    """[−0.09, +0.10]: an interval in the same way."""
    return f"[{signed(low, sign)}, {signed(high, sign)}]"
