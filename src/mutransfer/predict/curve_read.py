"""Learning curves of one model from a table: (step, lr, loss) of each run, and the learning rate of every update."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from mutransfer.errors import InputError
from mutransfer.predict.names import loss_columns, loss_unit_named
from mutransfer.predict.schedules import SETTINGS, SHAPES, Schedule, of_config, of_list, of_points
from mutransfer.predict.units import check_loss_unit, to_nats
from mutransfer.rows.cells import filtered, is_finite, is_number, number, number_in, text, values
from mutransfer.rows.columns import KNOBS, NAMES, RATES, SEEDS, SIZES, STEPS, choose, listed, plain
from mutransfer.rows.read import Row, is_store, read, read_curves

Array = np.ndarray
LEAST = 12  # rows of one run below which there is no curve to speak of
DENSE = 40  # rows with which a column of losses is taken before one with more
SCHEDULED = ("scheduled_lr", "current_lr", "step_lr")
_TIMING = {"warmup", "warmup_steps", "steps", "max_steps", "max_iters", "epochs", "schedule", "lr_schedule", "scheduler", "decay", "tokens"}  # fmt: skip
READABLE = ("run", "step", "lr")
HIGHEST = 20.0  # nats


@dataclass(frozen=True)
class Run:
    """One run. step (n,) whole numbers that grow, loss (n,) in nats; `schedule`: the LR of every update as far as it is known, or None.

    `branch`: (run, step) of which it is the continuation from that step on; its own rows are those after it.
    """

    name: str
    step: Array
    loss: Array
    schedule: Schedule | None
    branch: tuple[str, int] | None = None

    def __len__(self) -> int:
        return len(self.step)

    def until(self, step: float) -> Run:
        """The rows up to a step."""
        kept = self.step <= step
        return replace(self, step=self.step[kept], loss=self.loss[kept])


@dataclass(frozen=True)
class Curves:
    """The runs of a table. `unit`: of its losses, as read; `columns`: what was read where."""

    runs: tuple[Run, ...]
    unit: str
    columns: Mapping[str, str]
    notes: tuple[str, ...]


def read_runs(
    rows: Any,
    *,
    columns: Mapping[str, str] | None = None,
    loss: str | None = None,
    where: Mapping[str, Any] | None = None,
    loss_unit: str | None = None,
    run: str | None = None,
    schedule: Any = None,
) -> Curves:
    """The curves of a table, a sweep's folder, dicts or columns. `schedule`: that of every run, instead of the table's. Raises InputError, one line."""
    check_loss_unit(loss_unit)
    for name in columns or {}:
        if name not in (*READABLE, "loss"):
            raise InputError(f"columns {name!r}: write one of {', '.join((*READABLE, 'loss'))}")
    given = {**(columns or {}), **({"loss": loss} if loss is not None else {})}
    table = _table(rows)
    names = sorted({name for row in table for name in row})
    table = filtered(table, names, where)
    notes: list[str] = []
    step = _column("step", given, STEPS, table, names)
    if step is None:
        raise InputError(f"the table has no column of steps: name it, columns={{\"step\": …}}; its columns are {listed(names)}")  # fmt: skip
    groups, told = _groups(table, names, step, given)
    if run is not None:
        if run not in groups:
            raise InputError(f"run={run!r}: the table has no such run; its runs are {listed(groups)}")
        groups = {run: groups[run]}
    rate = _column("lr", given, (*SCHEDULED, *RATES), table, names)
    column = _loss_column(groups, names, given, step, notes)
    unit = loss_unit or loss_unit_named(column) or "nats"
    _refuse_models(groups, names, {step, column, rate, told})
    found = [_run(name, group, step, rate, column, unit, schedule, notes) for name, group in groups.items()]
    found = [one for one in found if len(one)]
    if not found:
        raise InputError(f"no run has a finite {column}")
    if rate and "log" in plain(rate):
        raise InputError(f'{rate} is a logarithm: write the learning rate itself, columns={{"lr": …}}')
    where_read = {"step": step, "loss": column, **({"lr": rate} if rate else {}), **({"run": told} if told else {})}
    return Curves(_branches(found, notes), unit, where_read, tuple(dict.fromkeys(notes)))


def read_schedule(value: Any) -> tuple[Schedule, Run | None]:
    """A schedule from a list, settings, a run's config, or a table with step and lr; and that table's curve, where it has losses."""
    if isinstance(value, Schedule):
        return value, None
    if (isinstance(value, Mapping) and "schedule" in value) or hasattr(value, "__dataclass_fields__"):
        return of_config(value), None
    if isinstance(value, (str,)) and value in SHAPES:
        raise InputError(f'schedule={value!r}: write its settings too, {{"schedule": {value!r}, "steps": 24000, "lr": 3e-4, "warmup": 2000}}')  # fmt: skip
    if isinstance(value, (list, tuple, np.ndarray)) and not any(isinstance(v, Mapping) for v in value):
        return of_list(value), None
    table = _table(value)
    names = sorted({name for row in table for name in row})
    if loss_columns(names):
        curves = read_runs(value)
        first = next(iter(curves.runs))
        if len(curves.runs) > 1:
            raise InputError(f"schedule: the table has {len(curves.runs)} runs ({listed(r.name for r in curves.runs)}); give a table of one")  # fmt: skip
        if first.schedule is None:
            raise InputError("schedule: the table has no learning rate")
        return first.schedule, first
    step, rate = _column("step", {}, STEPS, table, names), _column("lr", {}, (*SCHEDULED, *RATES), table, names)
    if step is None or rate is None:
        raise InputError(f"schedule: the table needs a step and an lr; its columns are {listed(names)}")
    ordered = sorted(table, key=lambda row: number_in(row, step))
    steps, rates = (np.array([number_in(row, c) for row in ordered]) for c in (step, rate))
    return of_points(steps, rates, rate)[0], None


def _table(rows: Any) -> list[Row]:
    return read_curves(rows) if is_store(rows) else read(rows)


def _column(what: str, given: Mapping[str, str], known: Sequence[str], rows: Sequence[Row], names: Sequence[str]) -> str | None:  # fmt: skip
    found = choose(what, given.get(what), known, names)
    if what in given:
        return found[0]
    return next((name for name in found if any(is_number(row.get(name)) for row in rows)), None)


def _groups(rows: Sequence[Row], names: Sequence[str], step: str, given: Mapping[str, str]) -> tuple[dict[str, list[Row]], str | None]:  # fmt: skip
    """The rows of each run by name, and the column that names them."""
    own = choose("run", given.get("run"), NAMES, names)
    seeds = [name for name in choose("seed", None, SEEDS, names)]
    knobs = [name for name in names if plain(name) in KNOBS and plain(name) != "tokens"]
    tries = [[name] for name in own if len(values(rows, name)) > 1] or [[]]
    if "run" not in given:
        tries += [[*seeds, *knobs], [*seeds, *knobs, *(n for n in names if plain(n) in RATES)]]
    for key in tries:
        found: dict[str, list[Row]] = defaultdict(list)
        for row in rows:
            found[" ".join(f"{name}={text(row.get(name))}" if len(key) > 1 else text(row.get(name)) for name in key)].append(row)  # fmt: skip
        if all(len({text(row.get(step)) for row in group}) == len(group) for group in found.values()):
            break
    else:
        raise InputError(f"two rows of one run have the same {step}: name the column that tells runs apart, columns={{\"run\": …}} (columns: {listed(names)})")  # fmt: skip
    if len(key) == 1 and plain(key[0]) == "key":  # a store's own names say nothing
        found = _named(found, [*seeds, *knobs, *(n for n in names if plain(n) in (*RATES, *SIZES))])
    alone = next((text(rows[0].get(name)) for name in own if plain(name) != "key"), "") if len(found) == 1 else ""
    ordered = {
        name or alone or "run": sorted(group, key=lambda row: number_in(row, step))
        for name, group in sorted(found.items())
    }
    return ordered, key[0] if len(key) == 1 else None


def _named(groups: Mapping[str, list[Row]], columns: Sequence[str]) -> dict[str, list[Row]]:
    """Runs by what tells them apart, where that is enough."""
    told = [c for c in dict.fromkeys(columns) if len({text(group[0].get(c)) for group in groups.values()}) > 1]
    made = {" ".join(f"{c}={text(group[0].get(c))}" for c in told): group for group in groups.values()}
    return made if len(made) == len(groups) else dict(groups)


def _loss_column(groups: Mapping[str, list[Row]], names: Sequence[str], given: Mapping[str, str], step: str, notes: list[str]) -> str:  # fmt: skip
    """The one named, else the most usual one that changes along the runs and is logged often."""
    if "loss" in given:
        return choose("loss", given["loss"], (), names)[0]
    found = [name for name in loss_columns(names) if name != step]
    counts = {}
    for name in found:
        many = [len(values(group, name)) for group in groups.values()]
        counts[name] = min(many) if min(many) > 1 else 0
    best = max(counts.values(), default=0)
    chosen = (
        found[0]
        if len(found) == 1
        else next((name for name in found if counts[name] >= min(DENSE, best) and best > 1), None)
    )
    if chosen is None:
        raise InputError(f"the table has no loss that changes from step to step: name it with loss=; its columns are {listed(names)}")  # fmt: skip
    others = [name for name in found if name != chosen and counts[name] > 1]
    if others:
        notes.append(f"the loss is read from {chosen}; the table also has {listed(others)}")
    return chosen


def _refuse_models(groups: Mapping[str, list[Row]], names: Sequence[str], taken: set[str | None]) -> None:
    """One law is of one model: raise InputError where runs differ in more than their schedule and seed."""
    if len(groups) < 2:
        return
    for name in names:
        known = plain(name)
        if name in taken or known in _TIMING or known not in (*SIZES, *KNOBS):
            continue
        seen = [values(group, name) for group in groups.values()]
        if all(len(one) < 2 for one in seen) and len(set().union(*seen)) > 1:
            one = sorted(set().union(*seen))[0]
            raise InputError(f"{name} differs between the runs ({listed(sorted(set().union(*seen)), 5)}), and a curve's law is of one model: write where={{\"{name}\": {one!r}}}, or run=")  # fmt: skip


def _run(
    name: str, group: list[Row], step: str, rate: str | None, column: str, unit: str, schedule: Any, notes: list[str]
) -> Run:
    said = [row for row in group if str(row.get(column) if row.get(column) is not None else "").strip()]
    kept: list[Row] = []
    for row in said:
        if is_number(row.get(column)) and not is_finite(row.get(column)):
            notes.append(f"{name}: the loss is not finite at {step} {number_in(row, step):g}; rows from there on are left out")  # fmt: skip
            break
        kept.append(row)
    steps = np.array([number_in(row, step) for row in kept])
    losses = np.array([number_in(row, column) for row in kept])
    wrong = np.flatnonzero((losses <= 0) | ((losses <= 1) & (unit == "perplexity")))
    if len(wrong):
        raise InputError(f"{column}={losses[wrong[0]]:g} at {step} {steps[wrong[0]]:g}: a loss must be above {1 if unit == 'perplexity' else 0}")  # fmt: skip
    broken = np.flatnonzero((steps < 0) | (np.abs(steps - np.round(steps)) > 1e-6))
    if len(broken):
        raise InputError(f"{step}={steps[broken[0]]:g}: write whole numbers of updates, not below 0")
    losses = np.asarray(to_nats(losses, unit)) if len(losses) else losses
    if len(losses) and unit == "nats" and losses.min() > HIGHEST:
        raise InputError(f'{column} is {losses.min():.4g} or more in every row: no language model has a loss in nats so high; if it is a perplexity, write loss_unit="perplexity"')  # fmt: skip
    after = steps >= 1
    steps, losses, kept = steps[after], losses[after], [row for row, ok in zip(kept, after, strict=True) if ok]
    if not len(steps):
        return Run(name, steps, losses, None)
    made = read_schedule(schedule)[0] if schedule is not None else _schedule(name, group, step, rate, notes)
    if made is not None and len(made) < steps[-1]:
        if schedule is not None:
            raise InputError(f"schedule has {len(made)} updates and {name} goes to step {steps[-1]:g}: write one LR per update")  # fmt: skip
        made = made.extended(int(steps[-1]))
    return Run(name, np.round(steps), losses, made)


def _schedule(name: str, group: list[Row], step: str, rate: str | None, notes: list[str]) -> Schedule | None:
    """From the settings of the run where the table has them all and they agree with the LR that was logged; else from the logged LR."""
    settings = {}
    for key in ("schedule", "steps", *SETTINGS):
        column = next((c for c in group[0] if plain(c) == key), None)
        seen = values(group, column) if column else set()
        if column and len(seen) == 1:
            settings[key] = group[0][column] if key == "schedule" else number(next(iter(seen)))
    logged = [row for row in group if rate and is_number(row.get(rate)) and number_in(row, step) >= 1]
    steps = np.array([number_in(row, step) for row in logged])
    rates = np.array([number_in(row, rate) for row in logged]) if rate else np.empty(0)
    if {"schedule", "steps", "lr", "warmup"} <= settings.keys() and settings["schedule"] in SHAPES:
        made = of_config(settings)
        constant = len(set(rates.tolist())) < 2  # the run's own LR, in every row
        at = np.minimum(steps, len(made)).astype(int) - 1
        if constant or np.allclose(made.lr[at], rates, rtol=1e-2, atol=1e-3 * made.lr.max()):
            return made
    if not len(rates):
        return None
    made, said = of_points(steps, rates, rate or "lr")
    if said:
        notes.append(f"{name}: {said}" if name != "run" else said)
    if len(rates) > 1 and len(set(rates.tolist())) == 1:
        notes.append(f"{rate} is {rates[0]:g} in every row: taken as constant; if it is the highest of a schedule, give the schedule")  # fmt: skip
    return made


def _branches(runs: list[Run], notes: list[str]) -> tuple[Run, ...]:
    """Runs whose first rows are those of another one are continuations of it: rows that are there twice count once."""
    out: list[Run] = []
    for run in runs:
        best: tuple[str, int] | None = None
        for other in out:
            common, mine, theirs = np.intersect1d(run.step, other.step, return_indices=True)
            if not len(common):
                continue
            same = run.loss[mine] == other.loss[theirs]
            length = len(same) if same.all() else int(np.argmin(same))
            if length >= 5 and (best is None or common[length - 1] > best[1]):
                best = (other.name, int(common[length - 1]))
        if best is None:
            out.append(run)
            continue
        notes.append(f"{run.name} is the same as {best[0]} up to step {best[1]}: those rows count once")
        kept = run.step > best[1]
        out.append(replace(run, step=run.step[kept], loss=run.loss[kept], branch=best))
    return tuple(out)


def thinned(step: Array, loss: Array, most: int) -> tuple[Array, Array, Array, float]:
    """At most `most` rows: means of neighbours, equally spaced in √step. Returns steps, losses, how many rows each one is the mean of, and the
    variance of one row within its mean, relative (0 where none was averaged)."""
    if len(step) <= most:
        return step, loss, np.ones(len(step)), 0.0
    root = np.sqrt(step)
    place = np.minimum(((root - root[0]) / (root[-1] - root[0]) * most).astype(int), most - 1)
    _, place = np.unique(place, return_inverse=True)
    count = np.bincount(place).astype(float)
    mean_step, mean = np.bincount(place, step) / count, np.bincount(place, loss) / count
    level = np.interp(step, mean_step, mean)
    left = (loss - level) / level
    several = count > 2
    within = left - (np.bincount(place, left) / count)[place]
    squares = np.bincount(place, within**2)
    late = several & (np.arange(len(count)) >= len(count) // 2)
    variance = float(squares[late].sum() / max((count[late] - 1).sum(), 1)) if late.any() else 0.0
    return np.round(mean_step), mean, count, variance if math.isfinite(variance) else 0.0
