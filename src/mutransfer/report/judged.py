"""The verdict on every group of a comparison, and its sentences and tables."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from mutransfer.errors import InputError
from mutransfer.report.html import Answer, Table
from mutransfer.report.runs import Comparison, Layout, Run
from mutransfer.sweep.shown import shown_lr
from mutransfer.verdict.words import carried

if TYPE_CHECKING:
    from mutransfer.verdict import Estimate, Optimum, Verdict

_MOST_RUNS = 6  # groups of runs named in a sentence


@dataclass(frozen=True)
class Judged:
    """A comparison with the verdict of every group, or why there is none."""

    comparison: Comparison
    verdicts: Mapping[str, Verdict]
    refused: Mapping[str, str]


@dataclass(frozen=True)
class Along:
    """All comparisons along one axis: groups and verdicts by title ("μP, depth 2"), and the titles that stand in one row."""

    axis: str
    groups: Mapping[str, tuple[Run, ...]]
    verdicts: Mapping[str, Verdict]
    rows: tuple[tuple[str, ...], ...]


def along(layout: Layout, judged: Sequence[Judged]) -> list[Along]:
    """One per axis. In a row: groups that differ by the recipe alone; one group at several values of the other size."""
    found = []
    alone = len({layout.family(label) for label in layout.labels}) == len(layout.labels)
    for axis in dict.fromkeys(one.comparison.axis for one in judged):
        groups: dict[str, tuple[Run, ...]] = {}
        verdicts: dict[str, Verdict] = {}
        rows: dict[tuple[str, str], list[str]] = {}
        for one in judged:
            if one.comparison.axis != axis:
                continue
            for label, runs in one.comparison.groups.items():
                title = ", ".join(filter(None, (label, one.comparison.held)))
                groups[title] = runs
                if label in one.verdicts:
                    verdicts[title] = one.verdicts[label]
                    row = ("", "") if alone else (one.comparison.held, layout.family(label))
                    rows.setdefault(row, []).append(title)
        found.append(Along(axis, groups, verdicts, tuple(map(tuple, rows.values()))))
    return found


def judge(layout: Layout, comparison: Comparison) -> Judged:
    """One verdict per group; a group that cannot be judged (one size, one LR) has the reason instead."""
    from mutransfer.verdict import transfer_verdict

    verdicts, refused = {}, {}
    for label, runs in comparison.groups.items():
        if layout.lr is None or not comparison.axis:
            refused[label] = f"the runs have no {'learning rate' if layout.lr is None else 'size'}"
            continue
        mixed = [name for name in comparison.mixed if len({repr(run.fields.get(name)) for run in runs}) > 1]
        if mixed:
            refused[label] = f"{', '.join(mixed)} varies among these runs: write --by {' '.join((*layout.by, *mixed))}"
            continue
        rows = [sweep_row(layout, comparison.axis, run) for run in runs]
        try:
            verdicts[label] = transfer_verdict(
                rows, size=comparison.axis, lr=layout.lr, loss=layout.metric, seed=layout.seed
            )
        except InputError as error:
            refused[label] = str(error)
    return Judged(comparison, verdicts, refused)


def sweep_row(layout: Layout, axis: str, run: Run) -> dict[str, Any]:
    """A run as verdicts and laws take it: size, LR, seed, status and the metric."""
    assert layout.lr is not None
    row = {axis: run.fields.get(axis), layout.lr: run.fields.get(layout.lr), "status": run.status}
    if layout.seed is not None:
        row[layout.seed] = run.fields.get(layout.seed)
    return {**row, layout.metric: run.metric(layout.metric)}


def answers(judged: Judged, several: bool) -> list[Answer]:
    """One per group: what was decided, and what to do."""
    found = []
    for label in judged.comparison.groups:
        title = f"{label}, {judged.comparison.where}" if several else label
        if label in judged.verdicts:
            verdict = judged.verdicts[label]
            found.append(Answer(title, verdict.status, tuple(sentences(verdict))))
        else:
            found.append(Answer(title, "", (f"No verdict: {judged.refused[label]}.",)))
    return found


def sentences(verdict: Verdict) -> list[str]:
    """The reasons; tune here, use there; drift; what would settle it; what was assumed."""
    axis, best = str(verdict.columns["size"]), verdict.optima
    said = [f"{_sentence('; '.join(verdict.reasons))}"]
    said.append(f"Tune at {axis} {best[0].size:g}, use at {axis} {best[-1].size:g}: {carried(verdict)}.")
    gain = verdict.gain.relative
    word = {True: "better than", False: "worse than", None: "neither better nor worse, beyond the noise, than"}
    said.append(
        f"The best learning rate moves by {span(verdict.drift, signed=True)} octaves per doubling of {axis}; each at its own best, "
        f"{axis} {best[-1].size:g} is {word[verdict.wider_is_better]} {best[0].size:g}, by {percent(gain, signed=True)} of the loss."
    )
    if verdict.next_runs:
        said.append(f"To settle it, run {wanted_runs(verdict)}.")
    hidden = f", which hides {verdict.hidden_shift:.2f} octaves" if math.isfinite(verdict.hidden_shift) else ""
    source = "over the seeds" if verdict.noise_from_seeds else "one seed: estimated from what smooth curves leave"
    said.append(f"Noise of one run: {verdict.noise:.2g} ({source}){hidden}. Intervals at {verdict.level:.0%}.")
    return [*said, *(_sentence(note) for note in verdict.notes)]


def wanted_runs(verdict: Verdict) -> str:
    """The runs that would settle it, gathered: "width 256: lr 2^-8, 2^-7, seeds 2, 3"."""
    seeds: dict[tuple[float, float], list[Any]] = {}
    for run in verdict.next_runs:
        seeds.setdefault((run["size"], run["lr"]), []).append(run["seed"])
    lrs: dict[tuple[float, tuple[Any, ...]], list[float]] = {}
    for (size, lr), found in seeds.items():
        lrs.setdefault((size, tuple(sorted(found, key=str))), []).append(lr)
    axis = verdict.columns["size"]
    parts = [
        f"{axis} {size:g}: lr {', '.join(map(shown_lr, sorted(rates)))}, seed {', '.join(map(str, found))}"
        for (size, found), rates in sorted(lrs.items(), key=lambda item: item[0][0])
    ]
    more = len(parts) - _MOST_RUNS
    return "; ".join(parts[:_MOST_RUNS]) + (f"; and more at {more} sizes" if more > 0 else "")


def optima_table(found: Along) -> Table:
    """Every size's best LR and the loss there."""
    axis, rows = found.axis, []
    for label, verdict in found.verdicts.items():
        for best in verdict.optima:
            remarks = [
                f"{best.edge}est LR of the grid" if best.edge else "",
                "next to divergence" if best.beside_wall else "",
                "two minima" if best.bimodal else "",
                _walls(best),
            ]
            seeds = len(best.seeds) if verdict.columns["seed"] else ""
            rows.append((label, f"{best.size:g}", span(best.log2_lr), span(best.loss, 4), f"{len(best.points)}", f"{seeds}",
                         ", ".join(filter(None, remarks))))  # fmt: skip
    columns = ("", axis, "best log2 LR", "loss there", "LRs", "seeds", "remarks")
    return Table(columns, tuple(rows), "Optimum of every size, with intervals", frozenset((axis, "LRs", "seeds")))


def regret_table(found: Along) -> Table:
    """What the base's best LR costs at the larger sizes."""
    axis, rows = found.axis, []
    for label, verdict in found.verdicts.items():
        base = verdict.optima[0]
        for regret, best in zip(verdict.regrets, verdict.optima[1:], strict=True):
            gained = (base.loss.value - best.loss.value) / base.loss.value
            share = "–" if regret.share is None else percent(regret.share, digits=0)
            cost = percent(regret.relative)
            rows.append((label, f"{regret.size:g}", f"2^{base.log2_lr.value:.2f}", cost, share, f"{100 * gained:+.2f} %".replace("-", "−")))  # fmt: skip
    columns = ("", axis, "LR carried over", "costs, of the loss", "of what the size gains", "gained over the smallest")
    caption = "Regret: loss at the smallest size's best LR, minus loss at the size's own best"
    return Table(columns, tuple(rows), caption, frozenset((axis, "gained over the smallest")))


def span(estimate: Estimate, digits: int = 2, signed: bool = False) -> str:
    """−1.02 [−1.11, −0.94]."""
    return _interval(estimate, digits, signed, 1.0, "")


def percent(estimate: Estimate, signed: bool = False, digits: int = 2) -> str:
    """0.13 % [0.02, 0.31]; "diverges" where it is infinite."""
    if math.isinf(estimate.value):
        return "diverges" if math.isinf(estimate.low) else f"diverges, or {100 * estimate.low:.{digits}f} % or more"
    if math.isinf(estimate.high):
        return f"{100 * estimate.value:.{digits}f} % ({100 * estimate.low:.{digits}f} or more)".replace("-", "−")
    return _interval(estimate, digits, signed, 100.0, " %")


def _interval(estimate: Estimate, digits: int, signed: bool, scale: float, unit: str) -> str:
    def text(value: float) -> str:
        if math.isinf(value):
            return "−∞" if value < 0 else "∞"
        return f"{scale * value:{'+' if signed else ''}.{digits}f}".replace("-", "−")

    return f"{text(estimate.value)}{unit} [{text(estimate.low)}, {text(estimate.high)}]"


def _walls(best: Optimum) -> str:
    """Where runs diverged."""
    if not best.walls:
        return ""
    above = [y for x, y in best.points if x >= min(best.walls)]
    if len(best.walls) > 1 and not any(map(math.isfinite, above)):
        return f"diverged from {_power(min(best.walls))} up"
    return f"diverged at {', '.join(map(_power, best.walls))}"


def _power(log2_lr: float) -> str:
    return f"2^{log2_lr:.4g}"


def _sentence(text: str) -> str:
    return text[:1].upper() + text[1:] + ("" if text.endswith(".") else ".")


def joined(parts: Sequence[str]) -> str:
    """a, b and c."""
    return ", ".join(parts[:-1]) + (" and " if len(parts) > 1 else "") + parts[-1] if parts else ""
