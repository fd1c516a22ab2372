"""The optima that a table holds: stated, one row per size, or to be found among its runs; one per size, each with its error."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from mutransfer.errors import InputError
from mutransfer.predict.consistency import check_units
from mutransfer.predict.draft import Draft, assign, measure
from mutransfer.predict.histories import gather_runs
from mutransfer.predict.losses import loss_column, read_losses
from mutransfer.predict.names import KNOWN, known, loss_columns
from mutransfer.predict.points import VARIABLES
from mutransfer.predict.sizes import complete, varies
from mutransfer.predict.units import check_loss_unit
from mutransfer.predict.valley import Best, Sweep, along, over
from mutransfer.rows.cells import STOPPED, filtered, is_number, number, text, values
from mutransfer.rows.columns import NAMES, RATES, RESULTS, listed, plain
from mutransfer.rows.confounded import confounded, usual
from mutransfer.rows.rates import same_lrs
from mutransfer.rows.read import read

Array = np.ndarray
SIZE = ("params", "non_embedding", "flops_per_token", "width", "depth")
LENGTH = ("tokens", "unique_tokens")
SAME = 0.02  # sizes whose logarithms differ by less are one size: tokens are whole numbers of batches
GRID = 0.15  # octaves: a coarser common step between optima is that of the grid they were chosen from
_BEST = {"best", "optimal", "optimum", "opt", "star"}
TITLES = {"lr": "LR", "batch": "batch"}


@dataclass(frozen=True)
class Optima:
    """One optimum per size, in growing order. (n,) arrays: `log2` of it, standard `error` in octaves (0: not known), `side` (valley.Best).

    `variables`: sizes by canonical name; `firm`: residuals smaller than the errors do not show that these are smaller (they come from a grid's step,
    or may be alike at neighbouring sizes); `kind`: how they were found;
    `left_out`: sizes without an optimum, and why; `columns`: what was read where.
    """

    of: str
    variables: Mapping[str, Array]
    log2: Array
    error: Array
    side: Array
    firm: bool
    kind: str
    left_out: tuple[tuple[str, str], ...]
    columns: Mapping[str, str]
    notes: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.log2)

    def label(self, i: int, names: Sequence[str]) -> str:
        """A size by what it holds: "params 4.6e+07, tokens 1.28e+08"."""
        return ", ".join(f"{name} {self.variables[name][i]:.4g}" for name in names)


def read_optima(
    rows: Any,
    of: str,
    on: Sequence[str] | None,
    columns: Mapping[str, str] | None,
    loss: str | None,
    where: Mapping[str, Any] | None,
    loss_unit: str | None,
    units: Mapping[str, Any] | None,
) -> Optima:
    """The optima of a table, arguments as in `fit_optimum`. Raises InputError for a table that has none."""
    draft, names, named_loss = _read(rows, of, columns, loss, where, loss_unit, units)
    if of not in draft.values:
        what = "a learning rate, such as 'lr'" if of == "lr" else "a batch, such as 'batch_size'"
        raise InputError(f"the table has no column for {what}: name one with columns={{\"{of}\": …}}; its columns are {listed(names)}")  # fmt: skip
    _fill_gaps(draft, of, on)
    _length(draft)
    groups = _groups(draft, of, on or ())
    _refuse_confounded(draft, names, named_loss)
    swept = any(varies(draft.values[of][rows]) for rows in groups.values())
    return _found(draft, groups, of) if named_loss and swept else _stated(draft, groups, of)


def _read(
    rows: Any, of: str, columns: Mapping[str, str] | None, loss: str | None, where: Mapping[str, Any] | None, loss_unit: str | None,
    units: Mapping[str, Any] | None,
) -> tuple[Draft, list[str], str | None]:  # fmt: skip
    check_loss_unit(loss_unit)
    table = read(rows)
    draft = Draft(list(table), {id(row): i for i, row in enumerate(table, 1)}, {})
    names = sorted({name for row in table for name in row})
    draft.rows = filtered(table, names, where)
    given = dict(columns or {}) | ({"loss": loss} if loss is not None else {})
    for variable, usual_names in (("lr", RATES), ("batch", KNOWN["batch"])):
        best = [name for name in names if _is_best(name, usual_names)]
        if variable not in given and best and not any(plain(name) in usual_names for name in names):
            given[variable] = best[0]
    draft.columns = assign(draft.rows, names, given, units or {}, draft.notes)
    named = given.get("loss")
    named_loss = loss_column(draft.rows, names, named, draft.notes) if named or loss_columns(names) else None
    draft.columns = {v: c for v, c in draft.columns.items() if v != "loss" and (c.name != named_loss or c.named)}
    if named_loss:
        gather_runs(draft, named_loss, False)
    else:
        draft.columns.pop("step", None)
        draft.run = [""] * len(draft)
    draft.columns.pop("share", None)
    measure(draft)
    seed = draft.column("seed")
    draft.seed = [text(row.get(seed)) if seed else "" for row in draft.rows]
    if named_loss:
        read_losses(draft, named_loss, loss_unit)
    else:
        draft.loss = np.ones(len(draft))
    _drop_twice(draft)
    check_units(draft)
    complete(draft)
    return draft, names, named_loss


def _is_best(name: str, usual_names: Sequence[str]) -> bool:
    said = plain(name).split("_")
    return bool(_BEST & set(said)) and "_".join(word for word in said if word not in _BEST) in usual_names


def _drop_twice(draft: Draft) -> None:
    """Rows that are the same in every cell count once."""
    seen: set[Any] = set()
    keep = np.ones(len(draft), bool)
    for i, row in enumerate(draft.rows):
        whole = tuple(sorted((name, text(value)) for name, value in row.items()))
        keep[i] = whole not in seen
        seen.add(whole)
    if not keep.all():
        draft.notes.append(f"rows that are there twice, counted once: {int((~keep).sum())}")
        draft.keep(keep)


def _fill_gaps(draft: Draft, of: str, on: Sequence[str] | None) -> None:
    """Leave out rows without the optimum or a size of the law; forget other variables that have gaps."""
    for name in list(draft.values):
        empty = np.isnan(draft.values[name])
        if not empty.any():
            continue
        if name == of or name in (on or ()) or name in ("params", "tokens", "lr", "batch"):
            if empty.all():
                draft.values.pop(name)
                continue
            draft.notes.append(f"rows without {name}, left out: {int(empty.sum())} ({draft.labels(np.flatnonzero(empty))})")  # fmt: skip
            draft.keep(~empty)
        else:
            draft.values.pop(name)
    if of not in draft.values or not len(draft):
        raise InputError(f"no row has both a size and a {TITLES[of]}")


def _length(draft: Draft) -> None:
    """Batch × steps stands for the tokens where the table has neither them nor a context: their unit changes no exponent."""
    v = draft.values
    if "tokens" in v or not {"batch", "steps"} <= set(v):
        return
    product = v["batch"] * v["steps"]
    if len(set(_levels(product))) < len(set(_levels(v["steps"]))) or not varies(v["batch"]):
        v["tokens"] = product
        draft.notes.append("tokens = batch × steps, in units of the batch: no column says the context")


def _levels(numbers: Array) -> list[float]:
    """Each number as the one it stands for: those within 2 % of the smallest of them are one."""
    found: dict[float, float] = {}
    start = None
    for value in sorted(set(numbers.tolist())):
        if start is None or math.log(value / start) > SAME:
            start = value
        found[value] = start
    return [found[value] for value in numbers.tolist()]


def _groups(draft: Draft, of: str, on: Sequence[str]) -> dict[tuple[float, ...], list[int]]:
    """The rows of each size and length of training, in growing order."""
    names = [name for name in (*SIZE, *LENGTH) if name in draft.values]
    if "tokens" not in names:
        names += [name for name in ("compute", "steps") if name in draft.values]
    names += [name for name in on if name not in names and name != of and name in draft.values]
    levels = [_levels(draft.values[name]) for name in names]
    found: dict[tuple[float, ...], list[int]] = defaultdict(list)
    for i in range(len(draft)):
        found[tuple(level[i] for level in levels)].append(i)
    return dict(sorted(found.items()))


def _refuse_confounded(draft: Draft, names: Sequence[str], loss: str | None) -> None:
    """Raise InputError where a hyperparameter varies that is no size and follows from none, the LR and the batch included."""
    read_here = {column.name for column in draft.columns.values()}
    also = {name for name in names if (said := known(name)) is not None and said.variable in VARIABLES}
    taken = {str(loss), *read_here, *also, *(name for name in names if plain(name) in (*RESULTS, *NAMES))}
    sources = [draft.columns[v].name for v in (*VARIABLES, "seed", "batch_tokens", "context") if v in draft.columns]
    for column in confounded(draft.rows, names, taken, sources, sources):
        seen = sorted(values(draft.rows, column))
        if plain(column) in ("model", "kind", "arch", "architecture") and not all(is_number(one) for one in seen):
            continue
        one = usual(draft.rows, column)
        raise InputError(f'{column} varies too ({listed(seen, 5)}), so the table holds several series of optima: write where={{"{column}": {one!r}}}')  # fmt: skip


def _middle(draft: Draft, groups: Mapping[tuple[float, ...], list[int]]) -> dict[str, Array]:
    """Every variable's geometric mean per size, of those that hardly vary within one."""
    found = {}
    for name in VARIABLES:
        if name in draft.values:
            logs = [np.log(draft.values[name][rows]) for rows in groups.values()]
            if all(np.ptp(one) < 3 * SAME for one in logs):
                found[name] = np.exp([one.mean() for one in logs])
    return found


def _stated(draft: Draft, groups: Mapping[tuple[float, ...], list[int]], of: str) -> Optima:
    """A table of optima: those of one size are averaged; what is known of their errors is the step of the grid they come from."""
    logs = [np.log2(draft.values[of][rows]) for rows in groups.values()]
    count = np.array([len(one) for one in logs], float)
    log2 = np.array([one.mean() for one in logs])
    inside = math.sqrt(sum(float(((one - one.mean()) ** 2).sum()) for one in logs) / max(1.0, float((count - 1).sum())))
    notes = list(draft.notes)
    if (count > 1).any():
        notes.append(
            f"several optima of one size are averaged: {int(count.sum())} rows, {len(count)} sizes, {inside:.2g} octaves apart"
        )
    step = grid_step(np.concatenate(logs))
    if step and varies(np.exp2(log2)):
        notes.append(
            f"the optima come from a grid of steps of {2**step:.3g}: each is known to ±{step / 2:.2g} octaves at best"
        )
        _crowded(log2, step, of, notes)
    elif step:
        notes.append(f"the best {TITLES[of]} is the same in every row: the grid it comes from is not known, steps of {2**step:.3g} are assumed")  # fmt: skip
    error = np.full(len(log2), max(step / math.sqrt(12), inside)) / np.sqrt(count)
    low, high = (_interval_end(draft, of, end) for end in ("low", "high"))
    if low is not None and high is not None:
        own = np.array([np.mean(np.log2(high[rows] / low[rows])) for rows in groups.values()]) / (2 * 1.645)
        error = np.maximum(error, own)
        notes.append(f"{of}_low and {of}_high are taken as the optimum's 90 % interval")
    return Optima(of, _middle(draft, groups), log2, error, np.zeros(len(log2), int), bool(step), "stated", (), _columns(draft), tuple(notes))  # fmt: skip


def _interval_end(draft: Draft, of: str, end: str) -> Array | None:
    """(n,) the column lr_low or lr_high, where every row has one."""
    name = next((c for c in draft.rows[0] if plain(c) in (f"{of}_{end}", f"best_{of}_{end}")), None)
    if name is None or not all(is_number(row.get(name)) for row in draft.rows):
        return None
    found = np.array([number(row.get(name)) for row in draft.rows], float)
    return found if np.isfinite(found).all() and (found > 0).all() else None


def grid_step(log2: Array) -> float:
    """The common step of the grid that optima (n,) were chosen from, in octaves; 0 where they lie on none, 1 where all are the same."""
    different: list[float] = []
    for value in sorted(log2.tolist()):
        if not different or value - different[-1] > 0.04:
            different.append(value)
    if len(different) == 1:
        return 1.0 if len(log2) > 1 else 0.0
    gaps = np.diff(different)
    step = float(gaps.min())
    multiple = np.abs(gaps / step - np.round(gaps / step)) * step <= max(0.05, 0.1 * step)
    repeated = len(different) <= 0.75 * len(log2)
    return step if step >= GRID and multiple.all() and (repeated or len(different) >= 6) else 0.0


def _crowded(log2: Array, step: float, of: str, notes: list[str]) -> None:
    for end, value in (("lowest", log2.min()), ("highest", log2.max())):
        here = int((np.abs(log2 - value) < step / 4).sum())
        if here >= max(3, 0.2 * len(log2)):
            notes.append(f"{here} of {len(log2)} sizes have the {end} {TITLES[of]} of the table, {2**value:.3g}: if the grid ended there, their optima may lie beyond, and the law is too flat")  # fmt: skip


def _found(draft: Draft, groups: Mapping[tuple[float, ...], list[int]], of: str) -> Optima:
    """A table of runs: the optimum of every size from its own."""
    notes = list(draft.notes)
    other = "batch" if of == "lr" else "lr"
    both = [other in draft.values and varies(draft.values[other][rows]) for rows in groups.values()]
    surface = other in draft.values and sum(_spans(draft, rows) for rows in groups.values()) * 2 >= max(1, sum(both)) and any(both)  # fmt: skip
    parts = list(groups.values())
    if any(both) and not surface:
        parts = [_best_row(draft, rows, other) for rows in parts]
        notes.append(
            f"{other} varies too, at few values: at each size the {TITLES[of]} is judged at the {TITLES[other]} with the lowest loss"
        )
    same = same_lrs(np.log2(draft.values["lr"]).tolist()) if "lr" in draft.values else {}
    sweeps = [_sweep(draft, rows, of, i, same) for i, rows in enumerate(parts)]
    best = over(sweeps, of) if surface else along(sweeps, of)
    labels = [_label(draft, rows) for rows in parts]
    left_out = tuple((label, one.why) for label, one in zip(labels, best, strict=True) if one.why)
    kept = [i for i, one in enumerate(best) if not one.why]
    variables = {name: value[kept] for name, value in _middle(draft, groups).items()}
    chosen: list[Best] = [best[i] for i in kept]
    return Optima(
        of, variables, np.array([b.log2 for b in chosen]), np.array([b.error for b in chosen]), np.array([b.side for b in chosen], int), surface,
        f"surfaces over LR and batch, {len(draft)} runs" if surface else f"curves over {TITLES[of]}, {len(draft)} runs", left_out,
        _columns(draft), tuple(notes),
    )  # fmt: skip


def _columns(draft: Draft) -> dict[str, str]:
    return {variable: column.name for variable, column in draft.columns.items() if variable in (*VARIABLES, "seed")}


def _label(draft: Draft, rows: Sequence[int]) -> str:
    names = [n for n in ("params", "non_embedding", "width", "depth", "tokens", "compute", "steps") if n in draft.values][:2]  # fmt: skip
    return ", ".join(f"{name} {draft.values[name][rows[0]]:.4g}" for name in names)


def _spans(draft: Draft, rows: Sequence[int]) -> bool:
    """Whether a size has three batches or more with three LRs or more."""
    lrs: dict[float, set[float]] = defaultdict(set)
    for i in rows:
        lrs[float(draft.values["batch"][i])].add(float(draft.values["lr"][i]))
    return sum(len(one) >= 3 for one in lrs.values()) >= 3


def _best_row(draft: Draft, rows: Sequence[int], other: str) -> list[int]:
    """The rows with the value of `other` that has the lowest loss."""
    best = min(rows, key=lambda i: (draft.loss[i], draft.values[other][i]))
    return [i for i in rows if draft.values[other][i] == draft.values[other][best]]


def _sweep(draft: Draft, rows: Sequence[int], of: str, place: int, same: Mapping[float, float]) -> Sweep:
    """The runs of one size; `same`: log2 LRs to those they stand for. Repetitions without a seed must not be paired across LRs by accident."""
    x = [same[float(np.log2(draft.values["lr"][i]))] if same else 0.0 for i in rows]
    b = [float(np.log2(draft.values["batch"][i])) if "batch" in draft.values else 0.0 for i in rows]
    order = sorted(range(len(rows)), key=lambda k: (x[k], b[k], draft.seed[rows[k]], draft.loss[rows[k]]))
    at = x if of == "lr" else b
    keys = [(at[k], draft.seed[rows[k]]) for k in order]
    repeated = len(set(keys)) < len(keys)
    seeds: list[str] = []
    seen: dict[tuple[float, str], int] = defaultdict(int)
    for key in keys:
        seen[key] += 1
        seeds.append(f"{place}/{key[0]:g}/{key[1]}/{seen[key]}" if repeated else key[1])
    state = draft.column("status") or ""
    stopped = [str(draft.rows[rows[k]].get(state, "")).strip().lower() in STOPPED for k in order]
    loss = [float(draft.loss[rows[k]]) for k in order]
    return Sweep(np.array([x[k] for k in order]), np.array([b[k] for k in order]), np.array(loss), np.array(stopped, bool), tuple(seeds))  # fmt: skip
