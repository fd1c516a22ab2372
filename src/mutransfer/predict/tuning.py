"""A table of tuned sizes on its way to optima: its numbers, and the rows of each size."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from mutransfer.errors import InputError
from mutransfer.predict.consistency import check_units
from mutransfer.predict.draft import Column, Draft, assign, measure
from mutransfer.predict.histories import gather_runs
from mutransfer.predict.interleaved import refuse_interleaved
from mutransfer.predict.losses import loss_column, read_losses
from mutransfer.predict.names import KNOWN, known, loss_columns
from mutransfer.predict.points import VARIABLES
from mutransfer.predict.sizes import complete, varies
from mutransfer.predict.units import check_loss_unit, quantity
from mutransfer.rows.cells import filtered, is_number, text, values
from mutransfer.rows.columns import NAMES, RATES, RESULTS, listed, plain
from mutransfer.rows.confounded import confounded, usual
from mutransfer.rows.read import read

Array = np.ndarray
Groups = Mapping[tuple[float, ...], list[int]]
SIZE = ("params", "non_embedding", "flops_per_token", "width", "depth")
LENGTH = ("tokens", "unique_tokens")
SAME = 0.02  # lengths whose logarithms differ by less are one: tokens are whole numbers of batches
EXACT = 1e-6  # the same for sizes
LENGTHS = 2.0  # compute / (6 × params) that varies by less is one length of training, and attention
MODELS = ("model", "model_kind", "kind", "arch", "architecture")  # names of sizes, as often as not
ROUGH = 1.3  # the same, within one size
_BEST = {"best", "optimal", "optimum", "opt", "star"}


def read_tuning(
    rows: Any, of: str, on: Sequence[str], columns: Mapping[str, str] | None, loss: str | None, where: Mapping[str, Any] | None,
    loss_unit: str | None, units: Mapping[str, Any] | None,
) -> tuple[Draft, Groups, bool]:  # fmt: skip
    """(the table in numbers, the rows of each size in growing order, whether it has losses). Arguments as in `fit_optimum`.

    `draft.loss` is 1 everywhere where the table has none. Raises InputError for a table without the optimum or a size.
    """
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
    compute = draft.columns.pop("compute", None)  # read apart: a run that diverged at once may have none
    measure(draft)
    if compute is not None:
        draft.columns["compute"] = compute
        draft.values["compute"] = _compute(draft, compute)
    seed = draft.column("seed")
    draft.seed = [text(row.get(seed)) if seed else "" for row in draft.rows]
    if named_loss:
        read_losses(draft, named_loss, loss_unit)
    else:
        draft.loss = np.ones(len(draft))
    _drop_twice(draft)
    if compute is not None:
        draft.values["compute"] = np.where(np.isfinite(draft.loss), draft.values["compute"], math.nan)
    check_units(draft)
    _complete(draft)
    if of not in draft.values:
        what = "a learning rate, such as 'lr'" if of == "lr" else "a batch, such as 'batch_size'"
        raise InputError(f"the table has no column for {what}: name one with columns={{\"{of}\": …}}; its columns are {listed(names)}")  # fmt: skip
    _fill_gaps(draft, of, on)
    _length(draft)
    groups = _groups(draft, of, on)
    _refuse_confounded(draft, names, named_loss)
    refuse_interleaved(draft, names)
    return draft, groups, named_loss is not None


def _compute(draft: Draft, column: Column) -> Array:
    """(n,) FLOPs, NaN where a cell has none."""
    cells = [quantity(row.get(column.name), column.name) for row in draft.rows]
    bare = [value * ((column.unit or 1.0) if own is None else 1.0) if value else math.nan for value, own in cells]
    return np.where(np.array(bare) > 0, bare, math.nan)


def _complete(draft: Draft) -> None:
    """What follows from what is there; the tokens from compute only where it tells more than the size does."""
    stated = draft.values.pop("compute", None)
    complete(draft)
    v = draft.values
    if stated is None:
        return
    v["compute"] = np.where(np.isnan(stated), v.get("compute", stated), stated)
    if "params" in v and "tokens" not in v:
        tokens = stated / 6 / v["params"]
        if np.nanmax(tokens) > LENGTHS * np.nanmin(tokens):
            complete(draft)
        elif "steps" not in v:
            draft.notes.append("compute / (6 × params) hardly varies: one length of training is assumed")


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


def _fill_gaps(draft: Draft, of: str, on: Sequence[str]) -> None:
    """Leave out rows without the optimum or a size of the law; forget other variables that have gaps."""
    for name in list(draft.values):
        empty = np.isnan(draft.values[name])
        if not empty.any() or (name == "compute" and not (empty & np.isfinite(draft.loss)).any()):
            continue
        if (name == of or name in on or name in ("params", "tokens", "lr", "batch")) and not empty.all():
            draft.notes.append(f"rows without {name}, left out: {int(empty.sum())} ({draft.labels(np.flatnonzero(empty))})")  # fmt: skip
            draft.keep(~empty)
        else:
            draft.values.pop(name)
    if of not in draft.values or not len(draft):
        raise InputError(f"no row has both a size and a number in {draft.column(of)}")


def _length(draft: Draft) -> None:
    """Batch × steps stands for the tokens where the table has neither them nor a context: their unit changes no exponent."""
    v = draft.values
    if "tokens" in v or not {"batch", "steps"} <= set(v):
        return
    product = v["batch"] * v["steps"]
    if len(set(_levels(product, SAME))) < len(set(_levels(v["steps"], SAME))) or not varies(v["batch"]):
        v["tokens"] = product
        draft.notes.append("tokens = batch × steps, in units of the batch: no column says the context")


def _levels(numbers: Array, same: float) -> list[float]:
    """Each number as the one it stands for: those whose logarithms are at most `same` above the smallest of them are one."""
    found: dict[float, float] = {}
    start = None
    for value in sorted(set(numbers.tolist())):
        if start is None or math.log(value / start) > same:
            start = value
        found[value] = start
    return [found[value] for value in numbers.tolist()]


def _groups(draft: Draft, of: str, on: Sequence[str]) -> Groups:
    names = [name for name in (*SIZE, *LENGTH) if name in draft.values]
    if "tokens" not in names and "steps" in draft.values:
        names.append("steps")
    names += [name for name in on if name not in (*names, of, "compute") and name in draft.values]
    found = _alike(draft, names)
    if "compute" in draft.values and "tokens" not in names and not all(_one(draft, rows) for rows in found.values()):
        empty = np.isnan(draft.values["compute"])
        if empty.any():
            draft.notes.append(f"diverged runs without compute, left out: {int(empty.sum())}")
            draft.keep(~empty)
        found = _alike(draft, [*names, "compute"])
    return found


def _alike(draft: Draft, names: Sequence[str]) -> dict[tuple[float, ...], list[int]]:
    """The rows of each combination of values, in growing order."""
    levels = [_levels(draft.values[name], EXACT if name in SIZE else SAME) for name in names]
    found: dict[tuple[float, ...], list[int]] = defaultdict(list)
    for i in range(len(draft)):
        found[tuple(level[i] for level in levels)].append(i)
    return dict(sorted(found.items()))


def _one(draft: Draft, rows: Sequence[int]) -> bool:
    """Whether the runs of one size have one compute, roughly."""
    compute = draft.values["compute"][list(rows)]
    compute = compute[np.isfinite(compute)]
    return len(compute) < 2 or float(compute.max() / compute.min()) < ROUGH


def _refuse_confounded(draft: Draft, names: Sequence[str], loss: str | None) -> None:
    """Raise InputError where a hyperparameter varies that is no size and follows from none, the LR and the batch included."""
    read_here = {column.name for column in draft.columns.values()}
    also = {name for name in names if (said := known(name)) is not None and said.variable in VARIABLES}
    taken = {str(loss), *read_here, *also, *(name for name in names if plain(name) in (*RESULTS, *NAMES))}
    sources = [draft.columns[v].name for v in (*VARIABLES, "seed", "batch_tokens", "context") if v in draft.columns]
    for column in confounded(draft.rows, names, taken, sources, sources):
        seen = sorted(values(draft.rows, column))
        if plain(column) in MODELS and not all(is_number(one) for one in seen):
            continue
        one = usual(draft.rows, column)
        raise InputError(f'{column} varies too ({listed(seen, 5)}), so the table holds several series of optima: write where={{"{column}": {one!r}}}')  # fmt: skip


def middle(draft: Draft, parts: Sequence[list[int]]) -> dict[str, Array]:
    """(sizes,) every variable's geometric mean over the finished runs of each size (its rows), of those that hardly vary within one."""
    found = {}
    for name in VARIABLES:
        if name not in draft.values:
            continue
        means = []
        for rows in parts:
            done = [i for i in rows if math.isfinite(draft.loss[i])] or rows
            logs = np.sort(np.log(draft.values[name][done]))
            if np.ptp(logs) > (math.log(ROUGH) if name == "compute" else 3 * SAME) or np.isnan(logs).any():
                break
            means.append(float(logs.mean()))
        else:
            found[name] = np.exp(means)
    return found


def columns_of(draft: Draft) -> dict[str, str]:
    return {variable: column.name for variable, column in draft.columns.items() if variable in (*VARIABLES, "seed")}
