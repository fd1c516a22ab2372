"""From a table of runs to points: columns found, units read, runs without a result left out, and everything assumed, said."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from mutransfer.errors import InputError
from mutransfer.predict.consistency import check_units
from mutransfer.predict.draft import Draft, assign, measure
from mutransfer.predict.histories import gather_runs
from mutransfer.predict.interleaved import SIZE, refuse_interleaved
from mutransfer.predict.losses import loss_column, read_losses
from mutransfer.predict.mixed import check_losses
from mutransfer.predict.names import known
from mutransfer.predict.points import VARIABLES, Points
from mutransfer.predict.sizes import complete, varies
from mutransfer.predict.sweeps import reduce_lrs
from mutransfer.predict.units import check_loss_unit
from mutransfer.rows.cells import filtered, is_number, number, text, values
from mutransfer.rows.columns import NAMES, RESULTS, listed, plain
from mutransfer.rows.confounded import confounded, usual
from mutransfer.rows.read import is_store, read, read_curves

Array = np.ndarray
EXACT = 6  # digits of a loss that two runs do not share by chance
LEAST = 3  # rows with different values: with fewer there is nothing to fit
PRIMARY = ("params", "tokens", "compute")  # a row without one of these is left out; of the others the column is
MODELS = ("model", "model_kind", "kind", "arch", "architecture")  # names of sizes, as often as not
CATEGORIES = (
    "recipe",
    "parametrization",
    "parameterization",
    "optimizer",
    "optim",
    "schedule",
    "data",
    "dataset",
    "tokenizer",
    "activation",
    "norm",
)


def read_points(
    rows: Any,
    *,
    columns: Mapping[str, str] | None = None,
    loss: str | None = None,
    where: Mapping[str, Any] | None = None,
    loss_unit: str | None = None,
    units: Mapping[str, Any] | None = None,
    steps: bool = False,
    at: str | float | None = "best",
) -> Points:
    """The points of a table. Columns are guessed by their names, or named.

    rows: dicts, columns of arrays, a data frame, the path of a table or of a sweep. columns: variable → column ("params": "my_size"; also seed,
    run, step, status, context, vocab, epochs). loss_unit: nats, bits, bits_per_byte or perplexity, by default what the column's name says.
    units: variable → unit ("params": "M", "compute": "PF-days") where the name does not say it. steps: keep every step of a history, not the last.
    at: which LR of a sweep (`sweeps.reduce_lrs`). Independent of the order of rows and columns. Raises InputError, one line with what to write.
    """
    check_loss_unit(loss_unit)
    given = dict(columns or {})
    if loss is not None:
        given["loss"] = loss
    table = read_curves(rows) if steps and is_store(rows) else read(rows)
    draft = Draft(list(table), {id(row): i for i, row in enumerate(table, 1)}, {})
    names = sorted({name for row in table for name in row})
    if any(name.endswith(("__MIN", "__MAX")) for name in names):
        raise InputError(
            "this is the export of a chart, which has no sizes: export the table of runs, with its config columns, instead"
        )
    draft.rows = filtered(table, names, where)
    draft.columns = assign(draft.rows, names, given, units or {}, draft.notes)
    named_loss = loss_column(draft.rows, names, given.get("loss"), draft.notes)
    draft.columns = {v: c for v, c in draft.columns.items() if v != "loss" and (c.name != named_loss or c.named)}
    history = gather_runs(draft, named_loss, steps) and steps
    measure(draft)
    seed = draft.column("seed")
    draft.seed = [text(row.get(seed)) if seed else "" for row in draft.rows]
    unit = read_losses(draft, named_loss, loss_unit)
    if not history:  # a run has each step once
        _drop_duplicates(draft, named_loss)
    _share(draft)
    check_units(draft)
    _note_small(draft)
    complete(draft)
    _fill_gaps(draft)
    _refuse_confounded(draft, names, named_loss, history)
    refuse_interleaved(draft, names)
    reduce_lrs(draft, at, history)
    _drop_diverged(draft)
    if not history and loss_unit is None:
        check_losses(draft, named_loss)
    return _points(draft, named_loss, unit, history)


def too_few(count: int, parameters: int, law: str = "a law") -> str | None:
    """What to say where `count` different points are fewer than a law with `parameters` parameters needs; None where they suffice."""
    words = {0: "no points", 1: "one point", 2: "two points", 3: "three points"}
    if count > parameters:
        return None
    return f"{words.get(count, f'{count} points')} with different values: {law} with {parameters} parameters needs {parameters + 1} or more; add runs of other sizes"


def _drop_duplicates(draft: Draft, loss: str) -> None:
    """Rows that are the same in everything count once: twice they would make the noise look smaller."""
    seen: set[Any] = set()
    keep = np.ones(len(draft), bool)
    for i, row in enumerate(draft.rows):
        whole = tuple(sorted((name, repr(number(v)) if is_number(v) else str(v).strip()) for name, v in row.items()))
        mine = tuple(sorted((name, float(v[i])) for name, v in draft.values.items() if not math.isnan(v[i])))
        exact = (
            is_number(row.get(loss))
            and math.isfinite(draft.loss[i])
            and len(repr(number(row[loss])).strip("0")) > EXACT
        )
        keys = [whole, *([(mine, draft.seed[i], float(draft.loss[i]))] if exact else [])]
        keep[i] = not any(key in seen for key in keys)
        seen.update(keys)
    twice = np.flatnonzero(~keep)
    if len(twice):
        draft.notes.append(f"rows that are there twice, counted once: {len(twice)} ({draft.labels(twice)})")
        draft.keep(keep)


def _note_small(draft: Draft) -> None:
    """Say that sizes which cannot be in units of one are taken as they stand."""
    for name in ("params", "non_embedding"):
        column = draft.columns.get(name)
        values = draft.values.get(name, np.ones(1))
        if (
            column is not None
            and column.unit is None
            and np.nanmax(values) < 1e5
            and (np.nanmin(values) < 1 or (values % 1 > 0).any())
        ):
            draft.notes.append(f"{name} goes from {np.nanmin(values):.4g} to {np.nanmax(values):.4g} and {column.name} says no unit: taken as it stands, and so must targets be; else write units={{\"{name}\": \"M\"}}")  # fmt: skip


def _share(draft: Draft) -> None:
    """Tokens and compute of a step where the table has those of the whole run."""
    share = draft.values.pop("share", None)
    if share is None:
        return
    run = np.array(draft.run)
    for name in ("tokens", "compute", "epochs"):
        if name in draft.values and not any(varies(draft.values[name][run == one]) for one in set(draft.run)):
            draft.values[name] = draft.values[name] * share
            draft.notes.append(f"{name} is that of the whole run: a step has its share")


def _fill_gaps(draft: Draft) -> None:
    """Leave out rows without a size, tokens or compute; of another variable with gaps, the variable."""
    for name in list(draft.values):
        empty = np.isnan(draft.values[name])
        if not empty.any() or name == "tied":
            continue
        column = draft.columns.get(name)
        named = column is not None and column.named
        sized = name == "compute" and any(s in draft.values and not np.isnan(draft.values[s]).any() for s in SIZE)
        if not named and (name not in PRIMARY or empty.mean() > 0.5 or sized):
            draft.values.pop(name)
            if name in VARIABLES:
                draft.notes.append(f"{name} is missing in {int(empty.sum())} of {len(draft)} rows: not used")
            continue
        draft.notes.append(f"rows without {name}, left out: {int(empty.sum())} ({draft.labels(np.flatnonzero(empty))})")
        draft.keep(~empty)
    if not len(draft):
        raise InputError("no row has both a size and a loss")


def _refuse_confounded(draft: Draft, names: Sequence[str], loss: str, history: bool) -> None:
    """Raise InputError where a hyperparameter varies that is no variable of a law and follows from none."""
    read_here = {column.name for column in draft.columns.values()}
    also = {name for name in names if (said := known(name)) is not None and said.variable in VARIABLES}
    taken = {loss, *read_here, *also, *(name for name in names if plain(name) in (*RESULTS, *NAMES))}
    sizes = [
        draft.columns[v].name for v in (*VARIABLES, "seed", "epochs", "batch_tokens", "context") if v in draft.columns
    ]
    steering = [draft.columns[v].name for v in ("lr", "seed", "batch", "steps") if v in draft.columns]
    rows = [row for row, value in zip(draft.rows, draft.loss, strict=True) if math.isfinite(value)]
    if history:  # one row of each run says what the run was
        rows = list({draft.run[i]: row for i, row in enumerate(draft.rows) if math.isfinite(draft.loss[i])}.values())
    for column in confounded(rows, names, taken, sizes, steering):
        if _is_name(rows, column):
            continue
        one = usual(rows, column)
        raise InputError(
            f"{column} varies too ({listed(sorted(values(rows, column)), 5)}), so these are several series of runs in one table: "
            f'write where={{"{column}": {one!r}}}'
        )
    for column in names:
        seen = sorted(values(rows, column))
        if (
            plain(column) in CATEGORIES
            and column not in taken
            and len(seen) > 1
            and not all(is_number(one) for one in seen)
        ):
            draft.notes.append(
                f"{column} differs between the sizes ({listed(seen, 4)}): their losses need not lie on one curve"
            )
        if plain(column) in ("recipe", "parametrization", "parameterization") and seen in (["sp"], ["standard"]):
            draft.notes.append(f"{column} is {seen[0]}: under the standard parametrization the best LR moves with size, and losses at one LR do not line up")  # fmt: skip


def _is_name(rows: Sequence[Mapping[str, Any]], column: str) -> bool:
    """A column of models' names, or one whose values are all different words."""
    seen = values(list(map(dict, rows)), column)
    return plain(column) in MODELS or (len(seen) == len(rows) and not any(is_number(one) for one in seen))


def _drop_diverged(draft: Draft) -> None:
    gone = ~np.isfinite(draft.loss)
    if gone.any():
        draft.notes.append(
            f"runs without a finite loss (diverged or given up), left out: {int(gone.sum())} ({draft.labels(np.flatnonzero(gone))})"
        )
        draft.keep(~gone)
    if not len(draft):
        raise InputError("every run diverged: no row has a finite loss")


def _points(draft: Draft, loss: str, unit: str, history: bool) -> Points:
    order = _order(draft)
    found = {name: draft.values[name][order] for name in VARIABLES if name in draft.values}
    for name, column in draft.columns.items():
        if column.named and name in found and not varies(found[name]):
            raise InputError(f"{name} ({column.name}) is {found[name][0]:.6g} in every row: a law needs {name} that varies; name another column or leave it out")  # fmt: skip
    variables = {name: value for name, value in found.items() if varies(value)}
    constants = {
        name: float(v[0]) for name, v in draft.values.items() if len(v) and not math.isnan(v[0]) and not varies(v)
    }
    if not variables and len(order) < LEAST:
        raise InputError(too_few(len(order), LEAST) or "")
    if not variables:
        fixed = ", ".join(f"{name} is {v:.6g} in every row" for name, v in constants.items() if name in VARIABLES)
        gaps = [note.removesuffix(": not used") for note in draft.notes if note.endswith(": not used")]
        known_none = "; ".join(gaps) or "no column is known as a size, tokens or compute"
        raise InputError(f"{fixed or known_none}: a law needs one that varies; name its column, such as columns={{\"params\": …}}; there are {listed(draft.rows[0])}")  # fmt: skip
    different = len({tuple(float(f"{v[i]:.9g}") for v in variables.values()) for i in range(len(order))})
    if different < LEAST:
        raise InputError(too_few(different, LEAST) or "")
    names = _run_names(draft, order, history)
    seeds = tuple(draft.seed[i] for i in order)
    _note_repetitions(draft, variables, seeds)
    columns = {name: draft.column(name) or "" for name in variables}
    columns |= {"loss": loss} | {name: str(draft.column(name)) for name in ("seed", "run") if draft.column(name)}
    return Points(
        variables, draft.loss[order], names, seeds, columns, unit, tuple(draft.notes), draft.transfer, constants,
    )  # fmt: skip


def _order(draft: Draft) -> list[int]:
    keys = [name for name in VARIABLES if name in draft.values]
    return sorted(
        range(len(draft)),
        key=lambda i: (*(float(draft.values[k][i]) for k in keys), draft.seed[i], float(draft.loss[i]), draft.run[i]),
    )


def _run_names(draft: Draft, order: Sequence[int], history: bool) -> tuple[str, ...]:
    """The table's names where each stands for one run; else what tells the rows apart, numbered where nothing does."""
    if history:
        return tuple(draft.run[i] for i in order)
    own = [name for name in ("params", "non_embedding", "width", "depth", "lr", "batch") if name in draft.values]
    held = {draft.run[i]: i for i in order}
    one = all(
        draft.run[i] and draft.seed[i] == draft.seed[held[draft.run[i]]]
        and all(draft.values[name][i] == draft.values[name][held[draft.run[i]]] for name in own) for i in order
    )  # fmt: skip
    if one:
        return tuple(draft.run[i] for i in order)
    counts = Counter[str]()
    made = []
    for i in order:
        label = draft.label(i)
        counts[label] += 1
        made.append(label if counts[label] == 1 else f"{label} #{counts[label]}")
    return tuple(made)


def _note_repetitions(draft: Draft, variables: Mapping[str, Array], seeds: Sequence[str]) -> None:
    same = Counter((*(float(f"{v[i]:.9g}") for v in variables.values()), seed) for i, seed in enumerate(seeds))
    several = sum(count for count in same.values() if count > 1)
    if several:
        what = "of the same sizes and seed" if draft.column("seed") else "of the same sizes (no seed column)"
        draft.notes.append(f"{several} rows are {what} with different losses: taken as repetitions")
