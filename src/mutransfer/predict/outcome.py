"""A law with all that was asked of it: targets predicted, held-out runs revealed, places left out; in words, as JSON types, as an exit code."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from mutransfer.errors import InputError
from mutransfer.predict import telling
from mutransfer.predict.asked import ask, places
from mutransfer.predict.backtest import growth
from mutransfer.predict.forecast import PROFILED, LossLaw, Prediction, fit_loss
from mutransfer.predict.holdout import UNLIKELY, DropOne, Left, Revealed, chance_outside, drop_one, reveal, split
from mutransfer.predict.points import Points
from mutransfer.predict.reading import read_points
from mutransfer.verdict.words import signed

Array = np.ndarray
HOLDS, FAILS, UNJUDGED = 0, 1, 3
WATCHED = 5  # places whose errors have a column of their own
ALL, SHOWN = 12, 8  # places left out that are shown: all of a few, the first of many
REVEALED = 16  # held-out places that are shown, the largest of many
TOLD = 0.05  # a fall of the loss that chance gives this often is none


@dataclass(frozen=True)
class Outcome:
    """`law` with its `predictions` of the targets, the held-out places `revealed` (`hold_out`: how they were chosen), and `dropped`: the law without each place."""

    law: LossLaw
    predictions: tuple[Prediction, ...]
    revealed: tuple[Revealed, ...]
    dropped: DropOne | None
    level: float
    hold_out: str | None = None
    notes: tuple[str, ...] = ()

    @cached_property
    def unjudged(self) -> str | None:
        """Why nothing can be judged by this law, or None."""
        transfer = self.law.points.transfer
        if transfer in ("DRIFTS", "INCONCLUSIVE"):
            return f"the verdict of the sweep is {transfer}: its losses need not continue to a larger size"
        return flat(self.law)

    @property
    def failed(self) -> str | None:
        """Why the intervals are wrong: more held-out places outside than chance allows; or None."""
        if not self.revealed:
            return None
        outside = sum(not one.inside for one in self.revealed)
        chance = chance_outside(self.revealed, self.level)
        if chance > UNLIKELY:
            return None
        return f"{outside} of {len(self.revealed)} held-out places lie outside their intervals at {self.level:.0%}, which chance does in {100 * chance:.2g} % of cases"

    @property
    def exit_code(self) -> int:
        """0; 1 where the held-out losses contradict the intervals; 3 where nothing can be judged."""
        return FAILS if self.failed else UNJUDGED if self.unjudged else HOLDS

    def words(self) -> str:
        """The law, what it predicts, how it did on what was hidden, and what it leans on."""
        parts = [self.law.words(), *(f"  note: {note}" for note in self.notes)]
        if self.predictions:
            parts += ["", *self.predicted()]
        if self.revealed:
            parts += ["", *self.held_out()]
        if self.dropped is not None:
            parts += ["", *self.leaning()]
        if self.failed or self.unjudged:
            parts += ["", *([f"does not hold: {self.failed}"] if self.failed else [])]
            parts += [f"nothing can be judged: {self.unjudged}"] if self.unjudged else []
        return "\n".join(parts)

    def predicted(self) -> list[str]:
        """One line per target, and a warning where it is far."""
        lines = []
        for one in self.predictions:
            far = telling.beyond(self.law, one)
            lines += [telling.predicted(self.law, one), *([f"  warning: {far}"] if far else [])]
        return lines

    def held_out(self) -> list[str]:
        """A table of the held-out places: loss, prediction, error."""
        names = self.law.variables
        runs = any(len(one.losses) > 1 for one in self.revealed)
        head = [*names, "loss", *(["runs"] if runs else []), f"predicted [{self.level:.0%}]", "error", ""]
        shown = self.revealed[-REVEALED:]
        rows = [
            [*(f"{one.at[name]:.4g}" for name in names), f"{one.loss:.4f}", *([str(len(one.losses))] if runs else []),
             f"{one.prediction.loss:.4f} [{one.prediction.low:.4f}, {one.prediction.high:.4f}]", percent(one.error), "inside" if one.inside else "OUTSIDE"]
            for one in shown
        ]  # fmt: skip
        more = len(self.revealed) - len(shown)
        rest = [f"  and {more} smaller ones"] if more else []
        return [self.held_out_title, *aligned([head, *rows], left=len(head) - 1), *rest, f"  {self.score}"]

    @property
    def held_out_title(self) -> str:
        """What was hidden, and from what it was predicted."""
        what = f" ({self.hold_out})" if self.hold_out else ""
        many = " (intervals by the bootstrap)" if len(self.revealed) > PROFILED else ""
        return f"held out{what}, predicted from the other {len(self.law.points)} runs{many}:"

    @property
    def score(self) -> str:
        """How many inside, and how large the errors."""
        inside = sum(one.inside for one in self.revealed)
        rms = math.sqrt(sum(one.error**2 for one in self.revealed) / len(self.revealed))
        worst = max(self.revealed, key=lambda one: abs(one.error))
        text = f"{inside} of {len(self.revealed)} inside; root mean square error {100 * rms:.2g} %"
        return text + (f", worst {percent(worst.error)} at {named(worst.at)}" if len(self.revealed) > 1 else "")

    def leaning(self) -> list[str]:
        """The law without each place that matters, and the one that matters most; that one alone where nothing was asked."""
        dropped = self.dropped
        if dropped is None:
            return []
        if not self.revealed and not self.predictions:
            return [f"drop one: {self.leans_on}"]
        head, rows = leave_out_table(dropped)
        return [f"drop one: {self.dropped_title}", *aligned([head, *rows], left=0), f"  {self.leans_on}"]

    @property
    def dropped_title(self) -> str:
        """What the columns of the leave-out table are."""
        dropped = self.dropped
        if dropped is None:
            return ""
        what = [*(["errors of held-out places"] if self.revealed else []), *(["predictions"] if self.predictions or not self.revealed else [])]  # fmt: skip
        shown = len(shown_rows(dropped))
        few = shown < dropped.places
        which = f"the {shown} of {dropped.places} places that matter most" if few else "each fitted place"
        return f"{', '.join(what)} and parameters when {which} {'are' if few else 'is'} left out, one at a time"

    @property
    def leans_on(self) -> str:
        """The place without which most would be another."""
        dropped = self.dropped
        if dropped is None:
            return ""
        most = dropped.ranked[0]
        shifts, whole, errors = dropped.shift(most), dropped.errors(dropped.whole), dropped.errors(most)
        said = []
        for known in (True, False):
            watched = [i for i in range(len(shifts)) if (whole[i] is not None) == known]
            if not watched:
                continue
            i = max(watched, key=lambda j: abs(shifts[j]))
            before, after, where = whole[i], errors[i], named(dropped.watched[i])
            said.append(
                f"the error at {where} goes from {percent(before)} to {percent(after)}" if before is not None and after is not None
                else f"the loss predicted at {where} goes from {dropped.whole.losses[i]:.4f} to {most.losses[i]:.4f} ({percent(shifts[i])})"
            )  # fmt: skip
        return f"{named(most.at or {})} matters most: without it {', and '.join(said)}"

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON types."""
        return {
            "law": self.law.to_dict(), "loss_unit": self.law.unit, "columns": dict(self.law.points.columns), "level": self.level,
            "predictions": [{**one.to_dict(), "warning": telling.beyond(self.law, one)} for one in self.predictions],
            "hold_out": self.hold_out, "held_out": [one.to_dict() for one in self.revealed],
            "drop_one": None if self.dropped is None else self.dropped.to_dict(),
            "failed": self.failed, "unjudged": self.unjudged, "notes": list(self.notes), "exit_code": self.exit_code,
        }  # fmt: skip


def foretell(
    rows: Any,
    law: str | None = None,
    *,
    over: Sequence[str] | None = None,
    size: Sequence[str] | None = None,
    hold_out: str | None = None,
    targets: Sequence[Mapping[str, float]] = (),
    level: float = 0.9,
    interval: str = "profile",
    **reading: Any,
) -> Outcome:
    """Hide what `hold_out` names (see `split`), choose and fit a law on the rest, predict the hidden places and the targets, leave each place out.

    rows, law, over, size, interval, reading: as for `fit_loss`. The size variable is one that the targets give. Raises InputError.
    """
    if not 0.5 <= level <= 0.99:
        raise InputError(f"level={level!r}: write a level between 0.5 and 0.99, such as 0.9")
    points = rows if isinstance(rows, Points) else read_points(rows, **reading)
    asked = ask(points, targets, law, over, size)
    fitted, hidden = points, None
    if hold_out is not None:
        fitted, hidden = split(points, hold_out, law, asked.over, asked.among)
    try:
        found = fit_loss(fitted, law, over=asked.over, size=asked.among, interval=interval)
    except InputError as error:
        if hidden is None:
            raise
        raise InputError(f"hold-out {hold_out!r} leaves {len(fitted)} of {len(points)} runs to fit: {error}") from None
    at = places(asked, found.variables, fitted)
    predictions = found.predict_many(at, level)
    revealed = () if hidden is None else reveal(found, hidden, level)
    dropped = drop_one(found, revealed, predictions)
    return Outcome(found, predictions, revealed, dropped, level, hold_out, asked.notes)


def flat(law: LossLaw) -> str | None:
    """Why the loss cannot be said to fall: it does not, or by no more than chance gives; else None. F test of the law against a constant."""
    from scipy.stats import f as f_distribution

    fit = law.fit
    level = fit.log_loss(fit.x)
    grown = growth(fit, fit.x)
    names = " or ".join(law.variables)
    if level[int(np.argmin(grown))] - level[int(np.argmax(grown))] < 1e-4:
        return f"the loss does not fall with {names}"
    about = float(((fit.y - fit.y.mean()) ** 2).sum())
    left = float((fit.residuals**2).sum())
    ratio = ((about - left) / max(fit.law.count - 1, 1)) / max(left / fit.dof, 1e-300)
    if ratio <= 0 or float(f_distribution.sf(ratio, fit.law.count - 1, fit.dof)) > TOLD:
        return f"the loss does not fall with {names} by more than noise explains"
    return None


def leave_out_table(dropped: DropOne) -> tuple[list[str], list[list[str]]]:
    """(head, rows) of texts: errors (or predictions, where no loss is known) at the watched places, and the parameters."""
    watched = list(range(len(dropped.watched)))
    several = len(watched) > WATCHED
    known = [i for i in watched if dropped.actual[i] is not None]
    columns = [*watched[: WATCHED - 1], watched[-1]] if several and not known else watched
    columns = known[-1:] + [i for i in watched if i not in known][-2:] if several and known else columns
    names = list(dropped.watched[0])
    head = ["without", *(["all, rms"] if several and known else [])]
    head += [f"at {'/'.join(f'{dropped.watched[i][n]:.4g}' for n in names)}" for i in columns]
    head += list(dropped.whole.parameters)

    def row(title: str, left: Left) -> list[str]:
        errors = dropped.errors(left)
        cells = [title]
        if several and known:
            cells.append(f"{100 * math.sqrt(sum((errors[i] or 0.0) ** 2 for i in known) / len(known)):.2f} %")
        for i in columns:
            error = errors[i]
            cells.append(f"{left.losses[i]:.4f}" if error is None else percent(error))
        return [*cells, *(f"{value:.4g}" for value in left.parameters.values())]

    rows = [row("nothing", dropped.whole), *(row(named(left.at or {}), left) for left in shown_rows(dropped))]
    return head, rows


def shown_rows(dropped: DropOne) -> tuple[Left, ...]:
    """All of a few places, else those that matter most, from small to large."""
    most = {id(left) for left in dropped.ranked[: ALL if len(dropped.rows) <= ALL else SHOWN]}
    return tuple(left for left in dropped.rows if id(left) in most)


def named(at: Mapping[str, float]) -> str:
    """params 1.5e+09, tokens 3e+10."""
    return ", ".join(f"{name} {value:.4g}" for name, value in at.items())


def percent(share: float) -> str:
    """+0.29 %."""
    return f"{signed(100 * share)} %"


def aligned(rows: Sequence[Sequence[str]], left: int) -> list[str]:
    """Lines of a table of texts; numbers to the right, column `left` to the left."""
    wide = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    return [
        ("  " + "  ".join(cell.ljust(w) if i == left else cell.rjust(w) for i, (cell, w) in enumerate(zip(row, wide, strict=True)))).rstrip()
        for row in rows
    ]  # fmt: skip
