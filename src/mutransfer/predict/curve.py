"""`fit_curve`: from the steps of a run so far to its loss at a later step, or under another learning rate schedule."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from mutransfer.errors import InputError
from mutransfer.predict import curve_words
from mutransfer.predict.curve_backtest import CurveBacktest, Target, curve_backtest, mixture
from mutransfer.predict.curve_fit import Posterior, sample
from mutransfer.predict.curve_laws import CurveForm, curve_law
from mutransfer.predict.curve_read import LEAST, Curves, Run, read_runs, read_schedule
from mutransfer.predict.curve_rows import Rows, area_of, gather, start_of, table_of
from mutransfer.predict.intervals import student
from mutransfer.predict.schedules import Schedule
from mutransfer.predict.units import from_nats
from mutransfer.verdict.estimate import Estimate

Array = np.ndarray
FOLDS = 3  # degrees of freedom of a misfit seen in a backtest, as in `forecast`
ANOTHER = 0.5  # reach of another schedule, at least
FALLS = curve_words.FALLS


@dataclass(frozen=True)
class CurvePrediction:
    """The loss that is logged at `step`: between `low` and `high` at `level`, noise of one logged row included; law_low, law_high: the law without it.

    `continued`: whether it is a fitted run that goes on, whose last residual is known.
    """

    step: int
    loss: float
    low: float
    high: float
    level: float
    law_low: float
    law_high: float
    run: str
    continued: bool

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
            "step": self.step, "loss": self.loss, "low": self.low, "high": self.high, "level": self.level, "law_low": self.law_low,
            "law_high": self.law_high, "run": self.run, "continued": self.continued,
        }  # fmt: skip


@dataclass(frozen=True)
class Band:
    """Predictions at many steps (m,), in the table's unit; `centre` is the median; shared: the share of their variance that neighbours have in common."""

    step: Array
    centre: Array
    low: Array
    high: Array
    law_low: Array
    law_high: Array
    shared: Array


@dataclass(frozen=True)
class Revealed:
    """Known losses that were not fitted: step, loss (h,) as in the table, and the band there. tail: the mean error of the last tenth, relative."""

    name: str
    step: Array
    loss: Array
    band: Band
    level: float

    @property
    def errors(self) -> Array:
        """(h,): loss over prediction, less 1."""
        return self.loss / self.band.centre - 1

    @property
    def inside(self) -> float:
        """The share of losses in the interval."""
        return float(np.mean((self.loss >= self.band.low) & (self.loss <= self.band.high)))

    @property
    def tail(self) -> float:
        """Mean error of the last tenth."""
        return float(self.errors[-max(1, len(self.step) // 10) :].mean())

    @property
    def holds(self) -> bool:
        """Whether no more of them lie outside than the level allows: 1 − level of them, and what chance adds to that (one in twenty).

        Errors of neighbours go together, so h losses are worth 1/(r + (1 − r)/h), r the share of variance that they have in common.
        """
        r = float(np.mean(self.band.shared))
        worth = 1 / (r + (1 - r) / len(self.step))
        return 1 - self.inside <= 1 - self.level + 1.64 * math.sqrt(self.level * (1 - self.level) / worth)


@dataclass(frozen=True)
class CurveLaw:
    """A law fitted to the steps up to `until` of one run or several. `predict` is what it is for; `parameters`, `backtest`, `warnings` and `words()` say
    how far to believe it. `curves`: all that was read; `runs`: their numbers are those of `rows.run`; `start`: the first step fitted."""

    form: CurveForm
    curves: Curves
    rows: Rows
    posterior: Posterior
    backtest: CurveBacktest | None
    start: float
    until: float
    peak: float
    spikes: int

    @property
    def runs(self) -> tuple[Run, ...]:
        """The runs of the table."""
        return self.curves.runs

    @property
    def unit(self) -> str:
        """Of losses."""
        return self.curves.unit

    def run(self, name: str | None = None) -> Run:
        """The run of that name; the first one by default. Raises InputError."""
        if name is None:
            return self.runs[0]
        found = next((run for run in self.runs if run.name == name), None)
        if found is None:
            raise InputError(f"run={name!r}: the runs are {', '.join(run.name for run in self.runs)}")
        return found

    def predict(self, step: float | str | None = None, schedule: Any = None, run: str | None = None, level: float = 0.9) -> CurvePrediction:  # fmt: skip
        """The loss at a step, by default the last one whose LR is known.

        schedule: the table's own (default), one LR per update, settings such as {"schedule": "cosine", "steps": 24000, "lr": 3e-4, "warmup": 2000}, a
        RunConfig, or a table with step and lr. Where it agrees with the LR of `run` up to the last fitted step, that run goes on; else it is
        another run of the same model. Raises InputError.
        """
        made = self.path(schedule, run)
        at = self.check_step(step, made)
        band = self.band(np.array([at]), schedule if made is None else made, run, level)
        return CurvePrediction(
            at, float(band.centre[0]), float(band.low[0]), float(band.high[0]), level, float(band.law_low[0]), float(band.law_high[0]),
            self.run(run).name, self.origin(made, self.run(run)) is not None,
        )  # fmt: skip

    def path(self, schedule: Any, run: str | None) -> Schedule | None:
        """The LR of every update that a prediction is for; None where the law needs none and none is known."""
        if schedule is None:
            return self.run(run).schedule
        made = read_schedule(schedule)[0]
        if not self.form.nodes and made.falls() > FALLS:
            raise InputError(f"law={self.form.name!r} knows no learning rate, and this schedule's falls: fit with law='annealing', which needs the LR of the fitted steps")  # fmt: skip
        return made

    def check_step(self, step: float | str | None, schedule: Schedule | None) -> int:
        """A step that can be predicted. Raises InputError."""
        if step is None:
            return len(schedule) if schedule is not None else int(max(run.step[-1] for run in self.runs))
        try:
            at = float(step)
        except (TypeError, ValueError):
            at = math.nan
        if not (math.isfinite(at) and at >= 1 and at == round(at)):
            raise InputError(f"step={step!r}: write a number of updates, such as 24000")
        if at < self.start:
            raise InputError(
                f"step={at:g}: the law holds from step {self.start:g} on, after warm-up and the first transient"
            )
        if self.form.nodes and (schedule is None or at > len(schedule)):
            known = 0 if schedule is None else len(schedule)
            raise InputError(f"step={at:g}: the LR is known up to step {known}; give the schedule beyond, such as a list with one LR per update or its settings")  # fmt: skip
        return int(at)

    def band(self, steps: Array, schedule: Any = None, run: str | None = None, level: float = 0.9) -> Band:
        """Predictions at steps (m,), in the table's unit."""
        if not isinstance(level, (int, float)) or not 0.5 <= level <= 0.99:
            raise InputError(f"level={level!r}: write a level between 0.5 and 0.99, such as 0.9")
        one, made = self.run(run), self.path(schedule, run)
        origin = self.origin(made, one)
        last = self.rows.step[self.posterior.ends[origin]] if origin is not None else 0.0
        target = Target(
            area_of(self.form, made, steps, self.peak) / self.rows.area.max(),
            table_of(self.form, made, steps, self.peak), steps - last, origin,
        )  # fmt: skip
        seen = mixture(self.rows, self.posterior, target, self.rows.within)
        tail = (1 - level) / 2
        centre, low, high = (seen.quantile(q) for q in (0.5, tail, 1 - tail))
        law_low, law_high = np.quantile(seen.law, [tail, 1 - tail], axis=0)
        reach = np.maximum(steps - self.rows.step.max(), 0.0) / max(float(np.ptp(self.rows.step)), 1.0)
        reach = np.maximum(reach, ANOTHER) if origin is None else reach
        misfit = (
            student(level, FOLDS) * self.backtest.misfit_at(reach) * centre if self.backtest else np.zeros(len(steps))
        )

        def widened(end: Array, sign: float) -> Array:
            side = centre + sign * np.hypot(np.maximum(sign * (end - centre), 0.0), misfit)
            return np.asarray(from_nats(np.maximum(side, 1e-3 * centre), self.unit))

        shared = 1 - seen.white / (seen.spread**2 + (misfit / 2) ** 2)
        middle = np.asarray(from_nats(centre, self.unit))
        ends = widened(low, -1.0), widened(high, 1.0), widened(law_low, -1.0), widened(law_high, 1.0)
        return Band(np.asarray(steps), middle, *ends, np.clip(shared, 0.0, 1.0))

    def origin(self, schedule: Schedule | None, run: Run) -> int | None:
        """The number of the end after which `run` goes on under this schedule; None where it is another run."""
        number, ends = self.runs.index(run), self.posterior.ends
        same = next((i for i, end in enumerate(ends) if self.rows.run[end] == number), None)
        if same is None and run.branch is not None:  # it leaves its parent after the last fitted step
            return self.origin(schedule, self.run(run.branch[0])) if run.branch[1] >= self.until else None
        if same is None or schedule is None or run.schedule is None:
            return same
        return same if schedule.same_until(run.schedule) >= self.rows.step[ends[same]] else None

    def revealed(self, level: float = 0.9, to: float | None = None) -> tuple[Revealed, ...]:
        """Every run's losses after `until` (and up to `to`), beside their predictions."""
        found = []
        for run in self.runs:
            if not self.form.nodes or run.schedule is not None:
                found.append(self.reveal(run, after=self.until, to=to, level=level, run=run.name))
        return tuple(one for one in found if one is not None)

    def reveal(self, known: Run, schedule: Any = None, after: float = 0.0, to: float | None = None, level: float = 0.9, run: str | None = None) -> Revealed | None:  # fmt: skip
        """The losses of a curve beside their predictions; None where it has none to predict."""
        use = (known.step > after) & (known.step >= self.start) & (known.step <= (math.inf if to is None else to))
        if not use.any():
            return None
        step, loss = known.step[use], np.asarray(from_nats(known.loss[use], self.unit))
        return Revealed(known.name, step, loss, self.band(step, schedule, run, level), level)

    @cached_property
    def parameters(self) -> dict[str, Estimate]:
        """The published parameters, for the LR as it is in the table, with 90 % intervals; losses in nats."""
        k, z = self.posterior.coefficients, self.posterior.z
        alpha = np.exp(z[:, 0])
        drawn = {
            "L0": k[:, 0],
            "A": k[:, 1] * (self.rows.area.max() * (self.peak if self.form.nodes else 1.0)) ** alpha,
            "α": alpha,
        }
        drawn |= self.form.raw(k[:, 2], z[:, 1:], self.peak)
        return {name: Estimate(*(float(q) for q in np.quantile(v, [0.5, 0.05, 0.95]))) for name, v in drawn.items()}

    @property
    def worth(self) -> float:
        """How many independent rows the fitted ones are worth: n·(1 − ρ)/(1 + ρ), ρ the correlation of neighbours."""
        rho = min(max(self.posterior.lag, 0.0), 0.9999)
        return len(self.rows) * (1 - rho) / (1 + rho)

    @cached_property
    def warnings(self) -> tuple[str, ...]:
        """Why not to believe it, one sentence each."""
        return curve_words.warnings(self)

    def words(self) -> str:
        """The law, its parameters, noise, backtest, and what is wrong with it."""
        return curve_words.words(self)

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON types."""
        return curve_words.to_dict(self)


def fit_curve(
    rows: Any,
    law: str | None = None,
    *,
    schedule: Any = None,
    fit_until: float | str | None = None,
    fit_from: float | None = None,
    run: str | None = None,
    columns: Mapping[str, str] | None = None,
    loss: str | None = None,
    where: Mapping[str, Any] | None = None,
    loss_unit: str | None = None,
    seed: int = 0,
) -> CurveLaw:
    """Fit a law of the learning curve to the steps of one run, or of several of one model, that share its parameters.

    rows: a history with step, lr and loss (dicts, columns, a data frame, the path of a table or a sweep). law: "annealing", "multi-power" or "power";
    by default annealing where the LR is known, else power. schedule: the LR of every update, instead of the table's. fit_until: the last
    step fitted, or a share such as "60%"; all by default. fit_from: the first; by default after the warm-up and the first tenth. run: one of
    the table's. columns: "run", "step", "lr" → column. Same rows and seed, same result. Raises InputError, one line.
    """
    curves = read_runs(rows, columns=columns, loss=loss, where=where, loss_unit=loss_unit, run=run, schedule=schedule)
    last = max(float(one.step[-1]) for one in curves.runs)
    until = until_step(fit_until, last)
    runs = curves.runs
    form = curve_law(law or _usual(runs))
    if form.nodes and any(one.schedule is None for one in runs):
        raise InputError(f"law={form.name!r} needs the learning rate of every step: name its column, columns={{\"lr\": …}}, or give schedule=")  # fmt: skip
    peak = max((float(one.schedule.lr.max()) for one in runs if one.schedule is not None), default=1.0)
    start = float(start_of(runs, until) if fit_from is None else fit_from)
    gathered, spikes = gather(form, runs, start, until, peak)
    if len(gathered) < LEAST:
        raise InputError(f"{len(gathered)} rows from step {start:g} (after warm-up and the first tenth) to {until:g}: a curve's law needs {LEAST} or more; log more often or fit until later")  # fmt: skip
    ends = [int(np.flatnonzero(gathered.run == r)[-1]) for r in np.unique(gathered.run)]
    posterior = sample(gathered.evidence(ends), seed)
    test = curve_backtest(gathered, tuple(one.name for one in runs), seed)
    return CurveLaw(form, curves, gathered, posterior, test, start, until, peak, spikes)


def until_step(value: float | str | None, last: float) -> float:
    """The last step fitted: a step, or a share of the table's last one. Raises InputError."""
    if value is None:
        return last
    said = str(value).strip()
    try:
        found = float(said.removesuffix("%")) * (last / 100 if said.endswith("%") else 1.0)
    except ValueError:
        found = math.nan
    if not (math.isfinite(found) and found > 0):
        raise InputError(
            f"fit_until={value!r}: write a step, such as 12000, or a share of the table's last step, such as 60%"
        )
    return min(found, last)


def _usual(runs: Sequence[Run]) -> str:
    """Annealing where the LR is known, else a power law."""
    return "annealing" if all(run.schedule is not None for run in runs) else "power"
