"""Laws of the optimal learning rate and batch: lr* = k·N^a·D^b, with intervals, a backtest and what to use at a target size."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from mutransfer.errors import InputError
from mutransfer.predict.exponents import Relation, choose, enough, full_rank, logs, names_of
from mutransfer.predict.optima import TITLES, Optima, read_optima
from mutransfer.predict.points import VARIABLES
from mutransfer.predict.regression import Regression, regress
from mutransfer.predict.units import quantity
from mutransfer.verdict.estimate import Estimate

Array = np.ndarray
STILL = 0.15  # octaves per doubling of size: the drift that the verdict counts as none
HEAVY = 0.6  # leverage from which an exponent rests on one size
SHARE_HELD = 0.25  # of the sizes, held out by default
MISSED = 0.4  # of the held-out sizes outside their intervals: more is no chance
SOURCES = {
    "lr": "lr* = k·N^a·D^b: Li et al. 2503.04715 (Step Law), eq. 1; lr* = k·C^a: DeepSeek LLM 2401.02954, §3.1",
    "batch": "batch* = k·D^b: Li et al. 2503.04715 (Step Law), eq. 1; batch* = k·C^a: DeepSeek LLM 2401.02954, §3.1",
}


@dataclass(frozen=True)
class OptimumPrediction(Estimate):
    """The optimum at a size that was not fitted; `low` and `high` include the scatter of single sizes about the law.

    `at`: the size; `decades`: how far beyond the fitted sizes it lies, in the variable that is farthest; `notes`: what to know before using it.
    """

    level: float
    at: Mapping[str, float]
    decades: float
    notes: tuple[str, ...]

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON types."""
        return {**super().to_dict(), "level": self.level, "at": dict(self.at), "decades": self.decades, "notes": list(self.notes)}  # fmt: skip


@dataclass(frozen=True)
class HeldOut:
    """One size that was hidden, and what the law of the smaller ones said; `octaves`: predicted above (+) or below (−) the actual."""

    label: str
    actual: float
    predicted: Estimate
    octaves: float

    @property
    def inside(self) -> bool:
        """Whether the interval (its own error included) holds the actual optimum."""
        return self.predicted.low <= self.actual <= self.predicted.high

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON types."""
        return {"label": self.label, "actual": self.actual, "predicted": self.predicted.to_dict(), "octaves": self.octaves, "inside": self.inside}  # fmt: skip


@dataclass(frozen=True)
class OptimumLaw:
    """A fitted law of the best LR or batch: `of`* = k·Π variable^exponent.

    `on`: its variables; `constant`: k, for variables and LR in units of one; `exponents`: octaves of the optimum per doubling of a variable;
    `scatter`: standard deviation of single sizes about the law in octaves, measurement errors taken out; `optima`: what was fitted;
    `held_out`: the largest sizes, predicted from the smaller ones; `relation`: how a variable that the law leaves out follows one in it;
    `outliers`, `heavy`: sizes that do not fit, and sizes on which an exponent rests.
    """

    of: str
    on: tuple[str, ...]
    constant: Estimate
    exponents: Mapping[str, Estimate]
    scatter: float
    level: float
    optima: Optima
    held_out: tuple[HeldOut, ...]
    relation: Relation | None
    outliers: tuple[str, ...]
    heavy: tuple[str, ...]
    notes: tuple[str, ...]
    regression: Regression

    @property
    def source(self) -> str:
        """Where the form was published."""
        return SOURCES[self.of]

    @property
    def formula(self) -> str:
        """`lr* = 1.79·params^-0.713·tokens^0.307`."""
        return f"{self.of}* = {self.constant.value:.4g}" + "".join(f"·{n}^{round(e.value, 4) + 0.0:.3g}" for n, e in self.exponents.items())  # fmt: skip

    @cached_property
    def dropped(self) -> tuple[tuple[str, Mapping[str, float]], ...]:
        """(size, the exponents without it), for every size with an optimum, where enough are left."""
        return _dropped(self.optima, self.on)

    @property
    def measured(self) -> int:
        """How many sizes have an optimum inside their grid."""
        return int((self.optima.side == 0).sum())

    def movement(self, name: str) -> bool | None:
        """Whether the optimum moves with a variable; False where it surely does not by more than 0.15 octaves per doubling, None where neither is told."""
        e = self.exponents[name]
        if e.low > 0 or e.high < 0:
            return True
        return False if max(-e.low, e.high) <= STILL else None

    def predict(self, level: float | None = None, **at: float | str) -> OptimumPrediction:
        """The optimum at `params=1.4e9, tokens=3e10` (absolute numbers, or "1.4B"). Raises InputError for a variable that lacks or is unknown."""
        level = self.level if level is None else check_level(level)
        given = {name: _positive(name, value) for name, value in at.items()}
        sizes = _complete(given, self.on)
        x = self._row([sizes[name] for name in self.on])
        value, low, high = self.regression.interval(x, level, error=0.0)
        decades, notes = self._distance(sizes)
        if self.relation is not None:
            notes += self.relation.departure(given)
        estimate = Estimate(*(2.0**v for v in (value, low, high)))
        return OptimumPrediction(estimate.value, estimate.low, estimate.high, level, sizes, decades, tuple(notes))

    def words(self, **at: float | str) -> str:
        """The law in a few lines; with a size (`params=1.4e9`), what to use there."""
        from mutransfer.predict.advice import words

        return words(self, at)

    def __str__(self) -> str:
        return self.words()

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON types."""
        from mutransfer.predict.advice import plain

        return plain(self)

    def _row(self, sizes: Sequence[float]) -> Array:
        return np.concatenate([[1.0], np.log2(sizes) - self._centre])

    @cached_property
    def _centre(self) -> Array:
        return logs(self.optima, self.on).mean(0)

    def _distance(self, sizes: Mapping[str, float]) -> tuple[float, list[str]]:
        """(decades beyond the fitted sizes in the farthest variable, what to say of it)."""
        farthest, notes = 0.0, []
        for name in self.on:
            fitted = self.optima.variables[name][self.optima.side == 0]
            low, high, value = float(fitted.min()), float(fitted.max()), sizes[name]
            away, end = max((math.log10(value / high), "above the largest"), (math.log10(low / value), "below the smallest"))  # fmt: skip
            farthest = max(farthest, away)
            if away > 0.01:
                span = math.log10(high / low)
                far = ", farther than they span themselves: the law is a guess there" if away > span + 0.05 else ""
                notes.append(f"{name} {value:.4g} is {away:.1f} decades {end} fitted (they span {span:.1f}){far}")
        return farthest, notes


def fit_optimum(
    rows: Any,
    of: str = "lr",
    on: str | Sequence[str] | None = None,
    *,
    level: float = 0.9,
    hold_out: int | str | None = None,
    columns: Mapping[str, str] | None = None,
    loss: str | None = None,
    where: Mapping[str, Any] | None = None,
    loss_unit: str | None = None,
    units: Mapping[str, Any] | None = None,
) -> OptimumLaw:
    """Fit `of`* = k·Π on^exponent to the optima of a table, `of` "lr" or "batch".

    rows: a table of optima (one row per size, as published) or of runs (size, tokens, lr, batch, loss; diverged runs are walls), from which each
    size's optimum is found first; kinds of tables, columns, where and units as in `read_points`. on: variables of the law, by default the size
    and the tokens, those that vary. hold_out: how many of the largest sizes the backtest hides ("largest:3", 3, 0), by default a quarter.
    Deterministic; independent of the order of rows. Raises InputError for a table that has too few optima, or cannot tell the exponents apart.
    """
    check_level(level)
    if of not in TITLES:
        raise InputError(f'of={of!r}: write "lr" or "batch"')
    wanted = names_of(on, of)
    optima = read_optima(rows, of, wanted, columns, loss, where, loss_unit, units)
    chosen, relation, notes = choose(optima, wanted)
    held = _count(hold_out)
    enough(optima, chosen, wanted)
    fit = _fit(optima, chosen, np.ones(len(optima), bool))
    centre = logs(optima, chosen).mean(0)
    constant = Estimate(*(_exp2(v) for v in fit.interval(np.concatenate([[1.0], -centre]), level)))
    exponents = {name: Estimate(*fit.interval(np.eye(len(chosen) + 1)[i + 1], level)) for i, name in enumerate(chosen)}
    backtest, said = _backtest(optima, chosen, held, level)
    measured = optima.side == 0
    label = [optima.label(i, chosen) for i in range(len(optima))]
    heavy = (fit.leverage > max(HEAVY, 2 * (len(chosen) + 1) / measured.sum())) & measured
    return OptimumLaw(
        of, chosen, constant, exponents, fit.scatter, level, optima, backtest, relation,
        tuple(label[i] for i in np.flatnonzero(fit.outliers)), tuple(label[i] for i in np.flatnonzero(heavy)),
        (*_of_use(optima.notes, chosen), *notes, *said, *_bounds(optima, fit, chosen, level)), fit,
    )  # fmt: skip


def check_level(level: float) -> float:
    """The level of an interval. Raises InputError outside 0.5 … 0.99."""
    if not isinstance(level, (int, float)) or not 0.5 <= level <= 0.99:
        raise InputError(f"level={level!r}: write a level between 0.5 and 0.99, such as 0.9")
    return float(level)


def _count(hold_out: int | str | None) -> int | None:
    if hold_out is None:
        return None
    found = re.fullmatch(r"(?:largest:)?(\d+)", str(hold_out).strip())
    if found is None or isinstance(hold_out, bool):
        raise InputError(f'hold_out={hold_out!r}: write "largest:3", 3, or 0 for none')
    return int(found[1])


def _design(optima: Optima, on: Sequence[str]) -> Array:
    """(n, 1 + variables) a one, and log2 of the sizes about their mean."""
    x = logs(optima, on)
    return np.column_stack([np.ones(len(x)), x - x.mean(0)])


def _fit(optima: Optima, on: Sequence[str], mask: Array) -> Regression:
    """The regression of the sizes in `mask`, centred at the mean of all; optima at an edge enter by their side."""
    x = _design(optima, on)[mask]
    side = optima.side[mask]
    error = optima.error[mask]
    if side.any():  # an edge's own error says how wide a part of the valley was seen, not how well
        error = np.where(side == 0, error, np.median(error[side == 0]))
    return regress(x, optima.log2[mask], error, side, optima.firm)


def _backtest(optima: Optima, on: Sequence[str], held: int | None, level: float) -> tuple[tuple[HeldOut, ...], list[str]]:  # fmt: skip
    """Hide the largest sizes (by the product of the variables), fit the smaller ones, predict."""
    measured = optima.side == 0
    extent = logs(optima, on).sum(1)
    order = [int(i) for i in np.argsort(extent, kind="stable") if measured[i]]
    most = len(order) - len(on) - 2
    if held is None:
        count = max(min(max(1, round(SHARE_HELD * len(order))), most), 0)
    elif held > most:
        raise InputError(
            f"hold_out={held}: {len(order)} sizes have an optimum and the law needs {len(on) + 2}; hold out {max(most, 0)} or fewer"
        )
    else:
        count = held
    hidden, mask = order, measured
    while count > 0:
        hidden = order[-count:]
        mask = extent < extent[hidden].min() - 1e-9
        known = mask & measured
        if known.sum() >= len(on) + 2 and full_rank(logs(optima, on)[known]):
            break
        count -= 1
    if count <= 0:
        return (), [] if held == 0 else ["too few sizes to hide the largest ones: the law is not backtested"]
    fit = _fit(optima, on, mask)
    rows = _design(optima, on)
    made = []
    for i in hidden:
        value, low, high = fit.interval(rows[i], level, error=float(optima.error[i]))
        made.append(HeldOut(optima.label(i, on), _exp2(optima.log2[i]), Estimate(_exp2(value), _exp2(low), _exp2(high)), float(value - optima.log2[i])))  # fmt: skip
    missed = sum(not one.inside for one in made)
    if missed >= 2 and missed > MISSED * len(made):
        return tuple(made), [f"{missed} of the {len(made)} largest sizes lie outside what the smaller ones predict: the law does not hold there, do not extrapolate it"]  # fmt: skip
    return tuple(made), []


def _dropped(optima: Optima, on: Sequence[str]) -> tuple[tuple[str, Mapping[str, float]], ...]:
    """The exponents without each measured size, where enough are left."""
    measured = optima.side == 0
    made = []
    for i in np.flatnonzero(measured):
        mask = np.arange(len(optima)) != i
        known = mask & measured
        if known.sum() >= len(on) + 2 and full_rank(logs(optima, on)[known]):
            beta = _fit(optima, on, mask).beta
            made.append((optima.label(int(i), on), {name: float(beta[k + 1]) for k, name in enumerate(on)}))
    return tuple(made)


def _of_use(notes: Sequence[str], on: Sequence[str]) -> list[str]:
    """The notes, without those that derive a variable that the law does not have."""
    derived = {f"{name} =": name for name in ("compute", "non_embedding", "flops_per_token", "unique_tokens", "params")}
    return [
        note for note in notes if not any(note.startswith(start) and name not in on for start, name in derived.items())
    ]


def _bounds(optima: Optima, fit: Regression, on: Sequence[str], level: float) -> list[str]:
    """What to say of sizes whose optimum lies beyond what was run, and of those without one."""
    said = []
    for side, end in ((-1, "lowest"), (1, "highest")):
        here = np.flatnonzero(optima.side == side)
        if not len(here):
            continue
        rows = _design(optima, on)
        against = [i for i in here if (fit.interval(rows[i], level, error=0.0)[1 if side < 0 else 2] - optima.log2[i]) * side < 0]  # fmt: skip
        names = "; ".join(optima.label(int(i), on) for i in here[:4]) + (f" … ({len(here)} in all)" if len(here) > 4 else "")  # fmt: skip
        said.append(
            f"the best {TITLES[optima.of]} is the {end} that was run at {names}: not taken as an optimum, only as a bound of it"
        )
        if against:
            said.append(
                f"at {optima.label(int(against[0]), on)} the law predicts an optimum inside the grid, where there was none"
            )
    if optima.left_out:
        label, why = optima.left_out[0]
        more = f", and {len(optima.left_out) - 1} more" if len(optima.left_out) > 1 else ""
        said.append(f"sizes without an optimum, left out: {label} ({why}){more}")
    return said


def _exp2(value: float) -> float:
    """2^value, infinite or 0 beyond what a float holds."""
    return 0.0 if value < -1070 else math.inf if value > 1020 else float(2.0**value)


def _positive(name: str, value: float | str) -> float:
    found = quantity(value, name)[0] if isinstance(value, str) else value
    if isinstance(found, bool) or not isinstance(found, (int, float)) or not 0 < found < math.inf:
        raise InputError(f"{name}={value!r}: write a number above 0, such as 1.4e9")
    return float(found)


def _complete(given: Mapping[str, float], on: Sequence[str]) -> dict[str, float]:
    """The law's variables from those given: C = 6·N·D where the law is in compute. Raises InputError for a missing or unknown one."""
    unknown = next((n for n in given if n not in VARIABLES), None)
    if unknown is not None:
        raise InputError(f"{unknown}={given[unknown]:g} is no variable: the law is in {', '.join(on)}")
    sizes = dict(given)
    if "compute" in on and "compute" not in sizes and {"params", "tokens"} <= set(sizes):
        sizes["compute"] = 6 * sizes["params"] * sizes["tokens"]
    missing = [name for name in on if name not in sizes]
    if missing:
        raise InputError(f"the law is in {', '.join(on)}: write {', '.join(f'{name}=…' for name in missing)} too")
    return {name: sizes[name] for name in on}
