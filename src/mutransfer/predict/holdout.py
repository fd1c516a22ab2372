"""Hold-outs: hide the largest runs before anything is chosen, predict them, reveal them; and leave each fitted place out in turn."""

from __future__ import annotations

import difflib
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from mutransfer.errors import InputError
from mutransfer.predict.backtest import growth
from mutransfer.predict.choose import expected
from mutransfer.predict.fit import Fit
from mutransfer.predict.noise import SAME, cells
from mutransfer.predict.points import Points
from mutransfer.predict.solve import Problem, refine
from mutransfer.predict.units import from_nats, quantity

if TYPE_CHECKING:
    from mutransfer.predict.forecast import LossLaw, Prediction

Array = np.ndarray
UNLIKELY = 0.05  # more places outside than this chance allows: the intervals are wrong
SEARCHED = 30  # up to so many places each is left out with a search of its own, of more …
REFINED = 60  # … those with the largest influence, from the fit and its rivals
_COMPARISON = re.compile(r"\s*([A-Za-z_]\w*)\s*(>=|<=|>|<|==?)\s*(.+)")
_LARGEST = re.compile(r"\s*largest\s*:\s*(.+?)\s*(%?)\s*")


def split(
    points: Points, spec: str, law: str | None = None, over: Sequence[str] | None = None, among: Sequence[str] | None = None
) -> tuple[Points, Points]:  # fmt: skip
    """(fitted, hidden): "largest:3" the three largest places, "largest:20%", or a comparison, "params>1e9", "width>=1024", "tokens>3B".

    Places are those of the law that will be taken (`law`, `over`, `among` as for `choose`); all repetitions of a place go together. The largest
    are those of the largest size, or of the largest compute where the law is over size and tokens. No loss is looked at, and the size variable
    is to be chosen on the fitted ones alone. Raises InputError for a spec that hides nothing, or all, or leaves a variable constant.
    """
    variables = expected(points, law, over, among)
    unknown = [name for name in variables if name not in points.variables]
    if not variables or unknown:
        raise InputError(f"hold-out {spec!r}: the table has no {listed_or(unknown or ['size', 'tokens', 'compute'])} to tell the largest runs by")  # fmt: skip
    x = np.log(np.stack([points.variables[name] for name in variables]))
    place = cells(x)
    hidden = np.isin(place, _hidden_places(spec, x, place, variables)) if "largest" in spec else _compared(points, spec)
    hidden = np.isin(place, np.unique(place[hidden]))  # a place is hidden whole
    if not hidden.any():
        raise InputError(f"hold-out {spec!r}: no run is there; {_ranges(points)}")
    if hidden.all():
        raise InputError(f"hold-out {spec!r} hides every run, and leaves none to fit; {_ranges(points)}")
    for name, values in points.variables.items():
        left, out = values[~hidden], values[hidden]
        if name in variables and _constant(left) and not _constant(values):
            raise InputError(
                f"hold-out {spec!r}: {name} is {left[0]:.4g} in every run that is left to fit, so that no law says what the hidden ones, with {name} up to {out.max():.4g}, will reach"
            )
    return points.select(~hidden), points.select(hidden)


def listed_or(names: Sequence[str]) -> str:
    """a, b or c."""
    return " or ".join(filter(None, (", ".join(names[:-1]), names[-1])))


def _hidden_places(spec: str, x: Array, place: Array, variables: Sequence[str]) -> Array:
    """The ids of the largest places."""
    found = _LARGEST.fullmatch(spec)
    count = int(place.max()) + 1
    wanted = math.nan
    if found is not None:
        try:
            wanted = float(found[1]) * (count / 100 if found[2] else 1)
        except ValueError:
            wanted = math.nan
    whole = found is not None and bool(found[2])
    if not wanted > 0 or not math.isfinite(wanted) or (not whole and wanted % 1):
        raise InputError(f"hold-out {spec!r}: write largest:3 for the three largest sizes, largest:20%, or a comparison such as params>1e9")  # fmt: skip
    many = max(1, round(wanted))
    if many >= count:
        raise InputError(f"hold-out {spec!r} hides {min(many, count)} of {count} places, and leaves none to fit: write a smaller number")  # fmt: skip
    counted = [i for i, name in enumerate(variables) if name != "unique_tokens"]
    # equal compute up to rounding is equal: of such places the larger model is the larger one
    total = [round(float(x[counted][:, place == c].mean(1).sum()) / SAME) for c in range(count)]
    size = [float(x[0, place == c].mean()) for c in range(count)]
    return np.array(sorted(range(count), key=lambda c: (total[c], size[c]))[-many:])


def _compared(points: Points, spec: str) -> Array:
    """The rows (n,) for which a comparison is true."""
    found = _COMPARISON.fullmatch(spec)
    if found is None:
        raise InputError(f"hold-out {spec!r}: write largest:3, largest:20%, or a comparison such as params>1e9")
    name, sign, text = found.groups()
    if name not in points.variables:
        raise InputError(f"hold-out {spec!r}: {_no_variable(points, name)}")
    try:
        value = quantity(text, name)[0]
    except InputError:
        value = None
    if value is None or not value > 0 or not math.isfinite(value):
        raise InputError(f"hold-out {spec!r}: {text.strip()!r} is not a number above 0; write {name}{sign}1e9 or {name}{sign}1B, in units of one")  # fmt: skip
    v = points.variables[name]
    same = np.abs(np.log(v / value)) <= SAME
    larger = (v > value) & ~same
    return {">": larger, ">=": larger | same, "<": ~larger & ~same, "<=": ~larger, "=": same, "==": same}[sign]


def _no_variable(points: Points, name: str) -> str:
    if name in points.constants:
        return f"{name} is {points.constants[name]:.4g} in every run"
    of = next((variable for variable, column in points.columns.items() if column == name), None)
    if of in points.variables:
        return f"column {name} is read as {of}: write {of}, in units of one"
    close = difflib.get_close_matches(name, list(points.variables), n=1)
    return f"there is no variable {name!r}; " + (f"did you mean {close[0]!r}?" if close else f"write one of {', '.join(points.variables)}")  # fmt: skip


def _ranges(points: Points) -> str:
    said = [f"{name} goes from {v.min():.4g} to {v.max():.4g}" for name, v in list(points.variables.items())[:3]]
    return ", ".join(said)


def _constant(values: Array) -> bool:
    return bool(values.max() <= values.min() * 1.001)


@dataclass(frozen=True)
class Revealed:
    """One hidden place: what was predicted of it, and the losses of its runs, in the table's unit."""

    prediction: Prediction
    losses: tuple[float, ...]

    @property
    def at(self) -> Mapping[str, float]:
        """The law's variables there."""
        return self.prediction.at

    @property
    def loss(self) -> float:
        """The mean of the runs."""
        return math.fsum(self.losses) / len(self.losses)

    @property
    def error(self) -> float:
        """(predicted − actual)/actual: above 0 where the run was better than predicted."""
        return self.prediction.loss / self.loss - 1

    @property
    def inside(self) -> bool:
        """Whether the actual loss lies in the interval."""
        return self.prediction.holds(self.loss)

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON types."""
        return {
            "at": dict(self.at), "actual": self.loss, "losses": list(self.losses), "predicted": self.prediction.to_dict(),
            "error": self.error, "inside": self.inside,
        }  # fmt: skip


def reveal(law: LossLaw, hidden: Points, level: float = 0.9) -> tuple[Revealed, ...]:
    """Every hidden place beside its prediction, from small to large. Raises InputError where the hidden runs lack a variable of the law."""
    x = np.log(np.stack([hidden.variables[name] for name in law.variables]))
    place = cells(x)
    order = np.argsort(growth(law.fit, law.fit.normalise(np.exp(x))), kind="stable")
    places = list(dict.fromkeys(int(place[i]) for i in order))
    at = [{name: float(hidden.variables[name][place == c].mean()) for name in law.variables} for c in places]
    losses = [tuple(float(v) for v in from_nats(hidden.loss[place == c], law.unit)) for c in places]
    return tuple(Revealed(p, one) for p, one in zip(law.predict_many(at, level), losses, strict=True))


def chance_outside(revealed: Sequence[Revealed], level: float) -> float:
    """How often as many of the hidden places, or more, lie outside where each does with chance 1 − level."""
    outside, n, p = sum(not one.inside for one in revealed), len(revealed), 1 - level
    return math.fsum(math.comb(n, k) * p**k * (1 - p) ** (n - k) for k in range(outside, n + 1))


@dataclass(frozen=True)
class Left:
    """The law without one place (`at`; None: without none). `losses`: predicted at the watched places, in the table's unit; `parameters`: as published."""

    at: Mapping[str, float] | None
    losses: tuple[float, ...]
    parameters: Mapping[str, float]


@dataclass(frozen=True)
class DropOne:
    """The law with each fitted place left out in turn. `watched`: where it is asked what it predicts; `actual`: the loss there, None where none is known.

    `places`: how many were fitted, of which `rows` were left out (all, or of many those with the largest influence), from small to large.
    """

    whole: Left
    rows: tuple[Left, ...]
    watched: tuple[Mapping[str, float], ...]
    actual: tuple[float | None, ...]
    places: int

    def errors(self, left: Left) -> tuple[float | None, ...]:
        """(predicted − actual)/actual at each watched place; None where no actual loss is known."""
        return tuple(
            None if loss is None else value / loss - 1 for value, loss in zip(left.losses, self.actual, strict=True)
        )

    def shift(self, left: Left) -> tuple[float, ...]:
        """How far the predictions move, relative to those with nothing left out."""
        return tuple(b / a - 1 for a, b in zip(self.whole.losses, left.losses, strict=True))

    @property
    def ranked(self) -> tuple[Left, ...]:
        """The rows, those first that move a prediction most."""
        return tuple(sorted(self.rows, key=lambda left: -max(map(abs, self.shift(left)))))

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON types."""
        return {
            "watched": [dict(at) for at in self.watched], "actual": list(self.actual), "places": self.places,
            "rows": [
                {"without": None if left.at is None else dict(left.at), "losses": list(left.losses), "errors": list(self.errors(left)),
                 "shifts": list(self.shift(left)), "parameters": dict(left.parameters)}
                for left in (self.whole, *self.rows)
            ],
        }  # fmt: skip


def drop_one(law: LossLaw, revealed: Sequence[Revealed] = (), predictions: Sequence[Prediction] = ()) -> DropOne | None:
    """Leave each fitted place out in turn and fit again: how predictions and parameters move. None where nothing can be left out.

    Watched are the hidden places, then the targets; without either the largest fitted place.
    """
    fitted = law.fit
    place = cells(fitted.x)
    grown = growth(fitted, fitted.x)
    watched = [one.at for one in revealed] + [one.at for one in predictions]
    actual: list[float | None] = [*(one.loss for one in revealed), *(None for _ in predictions)]
    if not watched:
        watched.append(_at(fitted, place == place[int(np.argmax(grown))]))
        actual.append(None)
    x = fitted.normalise(np.array([[one[name] for one in watched] for name in law.variables]))

    def left(at: Mapping[str, float] | None, u: Array) -> Left:
        losses = from_nats(np.exp(fitted.log_loss(x, u)), law.unit)
        return Left(at, tuple(float(v) for v in losses), {name: float(value) for name, value in fitted.raw(u).items()})

    places = sorted(set(place.tolist()), key=lambda c: float(grown[place == c].mean()))
    chosen = [c for c in places if _holds(fitted, place != c)]
    if len(chosen) > REFINED:
        cook = fitted.residuals**2 * fitted.leverage / np.maximum(1 - fitted.leverage, 1e-3) ** 2
        influence = np.bincount(place, cook)
        most = set(sorted(chosen, key=lambda c: -influence[c])[:REFINED])
        chosen = [c for c in chosen if c in most]
    again = fitted.refit if len(places) <= SEARCHED else lambda keep: _refined(fitted, keep)
    rows = tuple(left(_at(fitted, place == c), again(place != c)) for c in chosen)
    return DropOne(left(None, fitted.u), rows, tuple(watched), tuple(actual), len(places)) if rows else None


def _at(fitted: Fit, rows: Array) -> dict[str, float]:
    """The law's variables at a place, given by its fitted rows (n,)."""
    own = [i for row in np.flatnonzero(rows) for i in fitted.rows[row]]
    return {name: float(fitted.points.variables[name][own].mean()) for name in fitted.law.variables}


def _holds(fitted: Fit, keep: Array) -> bool:
    """Whether the rows that are kept still hold the law."""
    x = fitted.x[:, keep]
    return len(set(cells(x).tolist())) >= fitted.law.count and bool(np.all(np.ptp(x, axis=1) > 1e-3))


def _refined(fitted: Fit, keep: Array) -> Array:
    """u (p,) on the rows kept, from the fit and its best restarts: of many rows one moves it little."""
    count = int(keep.sum())
    problem = Problem(fitted.law, fitted.x[:, keep], np.full(count, fitted.delta), np.ones(count))
    found = refine(problem, fitted.y[keep], np.concatenate([fitted.u[None], fitted.restarts.u[:3]]), 200)
    return found.u[int(np.argmin(found.objective))]
