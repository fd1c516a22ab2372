"""`fit_loss`: from a table of runs to a law that predicts, with intervals, what a larger run will reach."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import numpy as np

from mutransfer.errors import InputError
from mutransfer.predict import telling
from mutransfer.predict.backtest import Backtest, reach
from mutransfer.predict.choose import Candidate, choose
from mutransfer.predict.fit import Fit
from mutransfer.predict.intervals import (
    Draws,
    bootstrap,
    bootstrap_interval,
    parameter_interval,
    profile_interval,
    student,
)
from mutransfer.predict.points import VARIABLES, Points, completed
from mutransfer.predict.reading import read_points
from mutransfer.predict.units import from_nats
from mutransfer.verdict.estimate import Estimate

Array = np.ndarray
INTERVALS = ("profile", "bootstrap")
PROFILED = 12  # intervals by profile take a third of a second each
FOLDS = 3  # degrees of freedom of a misfit seen in a backtest


@dataclass(frozen=True)
class Prediction:
    """What one run at `at` will reach. `low`, `high`: between which it lies at `level`: noise of the run, error of the fit and the law's own misfit.

    `bootstrap`: the same interval by the bootstrap; `law_low`, `law_high`: of the law itself, without the run's noise; `reach`: how
    far beyond the fitted runs, in spans of them (0 inside).
    """

    at: Mapping[str, float]
    loss: float
    low: float
    high: float
    level: float
    law_low: float
    law_high: float
    bootstrap: tuple[float, float]
    reach: float

    @property
    def half_width(self) -> float:
        """Half of the interval, as a share of the loss."""
        return (self.high - self.low) / 2 / self.loss

    def holds(self, loss: float) -> bool:
        """Whether a loss lies in the interval."""
        return bool(self.low <= loss <= self.high)

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON types."""
        return {
            "at": dict(self.at), "loss": self.loss, "low": self.low, "high": self.high, "level": self.level, "law_low": self.law_low,
            "law_high": self.law_high, "bootstrap": list(self.bootstrap), "reach": self.reach,
        }  # fmt: skip


@dataclass(frozen=True)
class LossLaw:
    """A fitted law. `predict` is what it is for; `parameters`, `backtest`, `warnings` and `words()` say how far to believe it."""

    fit: Fit
    backtest: Backtest | None
    tried: tuple[Candidate, ...]
    interval: str = "profile"
    seed: int = 0
    _cache: dict[Any, Any] = field(default_factory=dict, repr=False, compare=False)

    @property
    def points(self) -> Points:
        """What was fitted."""
        return self.fit.points

    @property
    def variables(self) -> tuple[str, ...]:
        """The law's variables, the size first."""
        return self.fit.law.variables

    @property
    def unit(self) -> str:
        """Of the loss."""
        return self.points.loss_unit

    @property
    def formula(self) -> str:
        """The law, as published."""
        return self.fit.law.formula

    @cached_property
    def draws(self) -> Draws:
        """A thousand refits on bootstrap tables."""
        return bootstrap(self.fit, seed=self.seed)

    @cached_property
    def parameters(self) -> dict[str, Estimate]:
        """The published parameters for values in units of one, each with its 90 % interval."""
        return self.estimates(0.9)

    def estimates(self, level: float) -> dict[str, Estimate]:
        """The parameters with intervals at `level`: by profile where one is fitted itself (exponents, irreducible loss), else by the bootstrap."""
        values, drawn = self.fit.raw(), self.fit.raw(self.draws.u)
        tail = (1 - level) / 2
        out = {}
        profiled = self._profiled(level)
        for name, value in values.items():
            low, high = profiled.get(name) or tuple(float(q) for q in np.quantile(drawn[name], [tail, 1 - tail]))
            out[name] = Estimate(float(value), low, high)
        return out

    def _profiled(self, level: float) -> dict[str, tuple[float, float]]:
        """Intervals of the published parameters that are one fitted number."""
        found: dict[str, tuple[float, float]] = {}
        for name, index in self.fit.law.own.items():
            ends = []
            for end in parameter_interval(self.fit, index, level):
                u = self.fit.core.copy()
                u[index] = end
                ends.append(float(self.fit.raw(u)[name]))
            found[name] = (min(ends), max(ends))
        return found

    def predict(self, level: float = 0.9, **at: float) -> Prediction:
        """The loss of a run with these sizes, such as params=1.4e9, tokens=3e10: numbers in units of one. Raises InputError for what is missing.

        compute stands in for params or tokens (C = 6·N·D).
        """
        _check_level(level)
        values = self._place(at)
        x = self.fit.normalise(np.array([[values[name]] for name in self.variables]))
        centre = float(self.fit.log_loss(x)[0])
        core = float(self.fit.log_loss(x, self.fit.core)[0])
        far = float(reach(self.fit, x)[0])
        guides = self.draws.u[:: max(1, len(self.draws.u) // 200)]
        t = student(level, self.fit.dof)
        misfit = 0.0
        if self.backtest is not None:
            # the folds overlap: what they say of the misfit is worth a few independent ones
            misfit = student(level, FOLDS) * float(self.backtest.misfit_at(np.array(far)))
        low, high = profile_interval(self.fit, x[:, 0], level, guides)
        run, levels = t * self.fit.sigma, t * self.fit.repeats.spread
        ends = {
            # to first order a new run's interval is that of the law and that of its noise, in quadrature
            noise: tuple(
                core
                + sign
                * np.sqrt(max(half**2 - (0.0 if noise else run**2), 0.0) + misfit**2 + (levels**2 if noise else 0.0))
                for sign, half in ((-1, core - low), (1, high - core))
            )
            for noise in (True, False)
        }
        low, high = (float(v[0]) for v in bootstrap_interval(self.fit, self.draws, x, level))
        drawn = (core - np.sqrt((core - low) ** 2 + misfit**2), core + np.sqrt((high - core) ** 2 + misfit**2))
        main = ends[True] if self.interval == "profile" else drawn
        loss, a, b, law_low, law_high, boot_low, boot_high = (
            float(from_nats(float(np.exp(v)), self.unit))
            for v in (centre, min(main[0], centre), max(main[1], centre), min(ends[False][0], centre), max(ends[False][1], centre), *drawn)
        )  # fmt: skip
        return Prediction(values, loss, a, b, level, law_low, law_high, (boot_low, boot_high), far)

    def predict_many(self, at: Sequence[Mapping[str, float]], level: float = 0.9) -> tuple[Prediction, ...]:
        """Many runs at once; of more than `PROFILED` the intervals are those of the bootstrap, which cost nothing more."""
        if len(at) <= PROFILED:
            return tuple(self.predict(level, **one) for one in at)
        _check_level(level)
        places = [self._place(one) for one in at]
        x = self.fit.normalise(np.array([[one[name] for one in places] for name in self.variables]))
        centre, core, far = self.fit.log_loss(x), self.fit.log_loss(x, self.fit.core), reach(self.fit, x)
        misfit = 0.0 if self.backtest is None else student(level, FOLDS) * self.backtest.misfit_at(far)
        without = replace(self.draws, noise=np.zeros_like(self.draws.noise))
        ends = []
        for draws in (self.draws, without):
            low, high = bootstrap_interval(self.fit, draws, x, level)
            ends += [core - np.sqrt((core - low) ** 2 + misfit**2), core + np.sqrt((high - core) ** 2 + misfit**2)]
        low, high, law_low, law_high = (from_nats(np.exp(v), self.unit) for v in ends)
        loss = from_nats(np.exp(centre), self.unit)
        low, law_low, high, law_high = (f(v, loss) for f, v in ((np.minimum, low), (np.minimum, law_low), (np.maximum, high), (np.maximum, law_high)))  # fmt: skip
        return tuple(
            Prediction(one, float(loss[i]), float(low[i]), float(high[i]), level, float(law_low[i]), float(law_high[i]), (float(low[i]), float(high[i])), float(far[i]))
            for i, one in enumerate(places)
        )  # fmt: skip

    def curve(self, values: Mapping[str, Array]) -> Array:
        """The law's loss at many places at once: arrays of equal length, one per variable."""
        x = self.fit.normalise(np.stack([np.asarray(values[name], float) for name in self.variables]))
        return np.asarray(from_nats(np.exp(self.fit.log_loss(x)), self.unit))

    def _place(self, at: Mapping[str, float]) -> dict[str, float]:
        """The law's variables at a target."""
        given: dict[str, float] = {}
        for name, value in at.items():
            if name not in VARIABLES:
                raise InputError(f"predict({name}=…): there is no such variable; write {_asked(self.variables)}")
            if (
                isinstance(value, bool)
                or not isinstance(value, (int, float, np.integer, np.floating))
                or not 0 < float(value) < float("inf")
            ):
                raise InputError(
                    f"predict({name}={value!r}): write a number above 0, in units of one, such as {name}=1.4e9"
                )
            given[name] = float(value)
        known = completed(given)
        if "unique_tokens" in self.variables and "tokens" in known:
            known.setdefault("unique_tokens", known["tokens"])  # nothing repeated unless it is said
        missing = [name for name in self.variables if name not in known]
        if missing:
            raise InputError(
                f"the law is over {' and '.join(self.variables)}, and {' and '.join(missing)} is not given: write {_asked(self.variables)}"
            )
        unused = [name for name in given if name not in self.variables and not (name == "compute" and len(given) < 3)]
        if unused:
            raise InputError(
                f"the law is over {' and '.join(self.variables)}: {unused[0]}={given[unused[0]]:g} says nothing to it; leave it out, or fit over it"
            )
        return {name: known[name] for name in self.variables}

    @cached_property
    def warnings(self) -> tuple[str, ...]:
        """Why not to believe it, one sentence each; nothing where there is no reason."""
        return telling.warnings(self)

    def words(self) -> str:
        """The law, its parameters, how it was chosen, its backtest, and what is wrong with it."""
        return telling.words(self)

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON types."""
        return telling.to_dict(self)


def fit_loss(
    rows: Any,
    law: str | None = None,
    *,
    over: Sequence[str] | None = None,
    size: str | Sequence[str] | None = None,
    interval: str = "profile",
    delta: float | None = None,
    seed: int = 0,
    **reading: Any,
) -> LossLaw:
    """Fit a law of the loss to a table of runs: L = a·N^b + c where sizes vary, E + A/N^α + B/D^β where tokens do, too.

    rows: as `read_points` takes them (dicts, arrays by name, a data frame, the path of a table or a sweep), or `Points`.
    law: a name of `laws.LAWS`, by default what varies in the table decides. over: its variables; by default the size is chosen among `size`
    (all that the table has) by backtest inside the fitted points. interval: "profile" or "bootstrap". delta: Huber's threshold in log
    loss. `reading`: columns=, loss=, where=, loss_unit=, units=, at= of `read_points`. Same rows, same result: whatever their order and units.
    Raises InputError, one line.
    """
    if interval not in INTERVALS:
        raise InputError(f"interval={interval!r}: write {' or '.join(INTERVALS)}")
    if delta is not None and not (isinstance(delta, (int, float)) and 0 < delta < 10):
        raise InputError(f"delta={delta!r}: write Huber's threshold in log loss, such as 1e-3")
    points = rows if isinstance(rows, Points) else read_points(rows, **reading)
    among = (size,) if isinstance(size, str) else tuple(size) if size is not None else None
    for name in among or ():
        if name not in VARIABLES:
            raise InputError(
                f"size={name!r}: write one of {', '.join(VARIABLES)}; which column it is, columns={{{name!r}: …}} says"
            )
    if isinstance(over, str):
        over = (over,)
    taken, tried = choose(points, law, over, among, delta)
    assert taken.fit is not None
    return LossLaw(taken.fit, taken.test, tried, interval, seed)


def _check_level(level: float) -> None:
    if not isinstance(level, (int, float)) or not 0.5 <= level <= 0.99:
        raise InputError(f"level={level!r}: write a level between 0.5 and 0.99, such as 0.9")


def _asked(variables: Sequence[str]) -> str:
    return f"predict({', '.join(f'{name}=…' for name in variables)})"
