"""A loss prediction as a section of a page; and what a sweep's runs say of a larger model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from mutransfer.errors import InputError
from mutransfer.predict import telling
from mutransfer.predict.names import known
from mutransfer.predict.outcome import Outcome, foretell, leave_out_table, named, percent
from mutransfer.predict.sizes import SIZES
from mutransfer.report.html import Section, Table
from mutransfer.report.judged import Judged, sweep_row

if TYPE_CHECKING:
    from mutransfer.report.runs import Layout

LEAST = 5  # sizes from which a law is tried in a sweep's report
GROUPS = 6  # of a sweep, for which it is
FURTHER = 2.0  # times the largest size


def prediction_section(outcome: Outcome, title: str = "What will the big model reach?", picture: bytes | None = None) -> Section:  # fmt: skip
    """The answer, the law, what it rests on, how it did on what was hidden; tables and the picture."""
    law = outcome.law
    status = "FAIL" if outcome.failed else "INCONCLUSIVE" if outcome.unjudged else "HOLDS" if outcome.revealed else ""
    said = [*_answers(outcome), *(f"{text[:1].upper()}{text[1:]}." for text in (outcome.failed, outcome.unjudged) if text)]  # fmt: skip
    said += [f"The law is {law.formula} over {' and '.join(law.variables)} ({law.fit.law.source}), fitted to {len(law.points)} runs. {_noise(outcome)}"]  # fmt: skip
    if law.backtest is not None:
        said.append(_backtest(outcome))
    if outcome.revealed:
        hidden = f" ({outcome.hold_out})" if outcome.hold_out else ""
        said.append(f"Held out{hidden} before anything was chosen: {outcome.score}.")
    if outcome.dropped is not None:
        said.append(f"Of the fitted places {outcome.leans_on}.")
    said += [f"Warning: {text}." for text in law.warnings]
    tables = [_targets(outcome), _held_out(outcome), _dropped(outcome), _parameters(outcome)]
    alt = f"Loss against {law.variables[0]}: runs, fitted law with its interval, held-out runs and predictions"
    return Section(
        title, verdict=status, paragraphs=tuple(_minus(text) for text in said), pictures=() if picture is None else ((picture, alt),),
        tables=tuple(table for table in tables if table.rows), fixed=law.words(), folded="the law in words, with all that was assumed",
    )  # fmt: skip


def _answers(outcome: Outcome) -> list[str]:
    """A sentence per target, of many the first ones."""
    said = []
    for one in outcome.predictions[:3]:
        far = telling.beyond(outcome.law, one)
        text = telling.predicted(outcome.law, one)
        said.append(f"At {text}." + (f" That is {far}." if far else ""))
    return said


def _rows(outcome: Outcome) -> str:
    return "sizes" if any(len(rows) > 1 for rows in outcome.law.fit.rows) else "runs"


def _noise(outcome: Outcome) -> str:
    fit = outcome.law.fit
    source = f"{fit.dof} degrees of freedom, with {fit.repeats.dof} of repetitions" if fit.repeats.dof else "one run per size: judged by what the law leaves"  # fmt: skip
    return f"One run scatters about it by {100 * fit.sigma:.2g} % of the loss ({source})."


def _backtest(outcome: Outcome) -> str:
    law, test = outcome.law, outcome.law.backtest
    assert test is not None
    text = f"Fitted on the smallest {', '.join(str(len(f.fitted)) for f in test.folds)} of its {_rows(outcome)} it predicts the rest of them with an error of {100 * test.error:.2g} %, where noise alone explains {100 * test.expected:.2g} %."
    tried = [c for c in law.tried if c.test is not None]
    if len(tried) > 1:
        text += f" By that error the size variable was chosen: {', '.join(f'{c.size} {100 * c.error:.2g} %' for c in tried)}; taken: {law.variables[0]}."  # fmt: skip
    return text


def _targets(outcome: Outcome) -> Table:
    names = outcome.law.variables
    rows = [
        (*(f"{one.at[name]:.4g}" for name in names), f"{one.loss:.4f}", f"[{one.low:.4f}, {one.high:.4f}]", _minus(f"±{100 * one.half_width:.2g} %"),
         f"[{one.bootstrap[0]:.4f}, {one.bootstrap[1]:.4f}]", f"{one.reach:.2g}")
        for one in outcome.predictions
    ]  # fmt: skip
    columns = (*names, "loss", f"interval at {outcome.level:.0%}", "half width", "by the bootstrap", "beyond the runs, in spans of them")  # fmt: skip
    return Table(columns, tuple(rows), "Predicted", frozenset(columns))


def _held_out(outcome: Outcome) -> Table:
    names = outcome.law.variables
    rows = [
        (*(f"{one.at[name]:.4g}" for name in names), str(len(one.losses)), f"{one.loss:.4f}", f"{one.prediction.loss:.4f}",
         f"[{one.prediction.low:.4f}, {one.prediction.high:.4f}]", _minus(percent(one.error)), "yes" if one.inside else "no")
        for one in outcome.revealed
    ]  # fmt: skip
    columns = (*names, "runs", "loss", "predicted", f"interval at {outcome.level:.0%}", "error", "inside")
    folded = len(rows) > 20
    return Table(columns, tuple(rows), "Held out, predicted, revealed", frozenset(columns[:-1]), folded)


def _dropped(outcome: Outcome) -> Table:
    if outcome.dropped is None:
        return Table((), ())
    head, rows = leave_out_table(outcome.dropped)
    title = outcome.dropped_title
    caption = f"Drop one: {title}"
    return Table(tuple(head), tuple(tuple(map(_minus, row)) for row in rows), caption, frozenset(head[1:]))


def _parameters(outcome: Outcome) -> Table:
    rows = [
        (name, _minus(f"{e.value:.4g}"), _minus(f"[{e.low:.4g}, {e.high:.4g}]"))
        for name, e in outcome.law.estimates(outcome.level).items()
    ]
    columns = ("parameter", "value", f"interval at {outcome.level:.0%}")
    return Table(columns, tuple(rows), outcome.law.formula, frozenset(columns[1:]))


def _minus(text: str) -> str:
    """A minus sign before numbers, and no line break before per cent."""
    text = text.replace(" %", "\N{NO-BREAK SPACE}%")
    return "".join("−" if c == "-" and text[i + 1 : i + 2].isdigit() and not text[i - 1 : i].isalnum() else c for i, c in enumerate(text))  # fmt: skip


@dataclass(frozen=True)
class Foretold:
    """What the groups of one comparison say of a larger size: outcomes by label, and why a group has none."""

    judged: Judged
    target: float
    outcomes: Mapping[str, Outcome]
    refused: Mapping[str, str]


def foretold(layout: Layout, judged: Sequence[Judged]) -> list[Foretold]:
    """A law per group with a verdict on five sizes or more, over the comparison's axis, at each size's best LR; the target is twice the largest size."""
    found = []
    for one in judged:
        axis = one.comparison.axis
        said = known(axis) if axis else None
        groups = [label for label, verdict in one.verdicts.items() if len(verdict.optima) >= LEAST][:GROUPS]
        if said is None or said.variable not in SIZES or not groups:
            continue
        largest = max(verdict.optima[-1].size for verdict in one.verdicts.values())
        outcomes, refused = {}, {}
        for label in groups:
            rows = [sweep_row(layout, axis, run) for run in one.comparison.groups[label]]
            try:
                outcomes[label] = foretell(
                    rows, columns={said.variable: axis}, loss=layout.metric, targets=({said.variable: FURTHER * largest},)
                )  # fmt: skip
            except InputError as error:
                refused[label] = str(error)
        found.append(Foretold(one, FURTHER * largest, outcomes, refused))
    return found


def sweep_section(found: Foretold, picture: bytes | None, several: bool) -> Section:
    """What a larger model will reach, a row per group; which losses were fitted, and why a group has no law."""
    axis = found.judged.comparison.axis
    where = f" {found.judged.comparison.where}" if several else ""
    said = [
        f"A law fitted to the loss at each size's best learning rate, continued to {axis} {found.target:g}, twice the largest that was run: what is predicted is "
        "for a model that is tuned in the same way, or whose best learning rate is that of the smaller ones (see the verdicts).",
        *(f"{label}: no law can be fitted: {reason}." for label, reason in found.refused.items()),
    ]  # fmt: skip
    rows = []
    for label, one in found.outcomes.items():
        p, test = one.predictions[0], one.law.backtest
        remark = one.unjudged or telling.beyond(one.law, p) or ""
        rows.append((label, f"{p.loss:.4f}", f"[{p.low:.4f}, {p.high:.4f}]", _minus(f"±{100 * p.half_width:.2g} %"),
                     "–" if test is None else _minus(f"{100 * test.error:.2g} %"), named(one.dropped.ranked[0].at or {}) if one.dropped else "–", remark))  # fmt: skip
    columns = (
        "",
        f"loss at {axis} {found.target:g}",
        "interval at 90%",
        "half width",
        "backtest error",
        "leans most on",
        "remark",
    )
    alt = f"Loss against {axis}, the fitted law with its interval and what it predicts"
    return Section(
        f"What a larger model will reach{where}", paragraphs=tuple(map(_minus, said)), pictures=() if picture is None else ((picture, alt),),
        tables=(Table(columns, tuple(rows), "Predicted", frozenset(columns[1:5])),) if rows else (),
    )  # fmt: skip
