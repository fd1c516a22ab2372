"""The optima that a table holds: stated, one row per size, or to be found among its runs; one per size, each with its error."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from mutransfer.errors import InputError
from mutransfer.predict.draft import Draft
from mutransfer.predict.sizes import varies
from mutransfer.predict.tuning import columns_of, middle, read_tuning
from mutransfer.predict.valley import Best, Sweep, along, over
from mutransfer.rows.cells import STOPPED, is_number, number
from mutransfer.rows.columns import plain
from mutransfer.rows.rates import same_lrs

Array = np.ndarray
GRID = 0.15  # octaves: a coarser common step between optima is that of the grid they were chosen from
TITLES = {"lr": "LR", "batch": "batch"}


@dataclass(frozen=True)
class Optima:
    """One optimum per size, in growing order. (n,) arrays: `log2` of it, standard `error` in octaves (0: not known), `side` (valley.Best).

    `variables`: sizes by canonical name; `firm`: residuals smaller than the errors do not show that these are smaller (they come from a grid's step,
    or may be alike at neighbouring sizes); `kind`: how they were found;
    `left_out`: sizes without an optimum, and why; `columns`: what was read where; `also`: variables that a law must have.
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
    also: tuple[str, ...] = ()

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
    draft, groups, losses = read_tuning(rows, of, on or (), columns, loss, where, loss_unit, units)
    tried = draft.values[of]
    if losses and any(varies(tried[rows_]) for rows_ in groups.values()):
        return _found(draft, list(groups.values()), of, on is None)
    if losses and not varies(tried) and len(draft) > 1:
        raise InputError(f"{draft.column(of)} is {tried[0]:.4g} in every run: to find optima, run several at each size; of a table of optima leave out the loss")  # fmt: skip
    if losses:
        draft.notes.append(f"one {TITLES[of]} per size: it is taken as the best one")
    return _stated(draft, groups, of)


def _stated(draft: Draft, groups: Mapping[tuple[float, ...], list[int]], of: str) -> Optima:
    """A table of optima: those of one size are averaged; what is known of their errors is the step of the grid they come from."""
    logs = [np.sort(np.log2(draft.values[of][rows])) for rows in groups.values()]
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
    return Optima(of, middle(draft, list(groups.values())), log2, error, np.zeros(len(log2), int), bool(step), "stated", (), columns_of(draft), tuple(notes))  # fmt: skip


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


def _found(draft: Draft, parts: list[list[int]], of: str, split: bool) -> Optima:
    """A table of runs: the optimum of every size (rows `parts`) from its own. `split`: the law may have the batch as a variable."""
    notes = list(draft.notes)
    other = "batch" if of == "lr" else "lr"
    both = [other in draft.values and varies(draft.values[other][rows]) for rows in parts]
    surface = any(both) and 2 * sum(_spans(draft, rows) for rows in parts) >= sum(both)
    also: tuple[str, ...] = ()
    if any(both) and not surface and of == "lr" and split:
        parts = [part for rows in parts for part in _by_batch(draft, rows)]
        also = ("batch",)
        notes.append("batch varies too, at fewer than three values per size: the law has the batch as a variable")
    elif any(both) and not surface:
        parts = [_best_row(draft, rows, other) for rows in parts]
        notes.append(
            f"{other} varies too, at few values: the best {TITLES[of]} of a size is that at the {TITLES[other]} with the lowest loss"
        )
    same = same_lrs(np.log2(draft.values["lr"]).tolist()) if "lr" in draft.values else {}
    sweeps = [_sweep(draft, rows, of, i, same) for i, rows in enumerate(parts)]
    best = over(sweeps, of) if surface else along(sweeps, of)
    left_out = tuple((_label(draft, rows, also), one.why) for rows, one in zip(parts, best, strict=True) if one.why)
    kept = [i for i, one in enumerate(best) if not one.why]
    variables = {name: value[kept] for name, value in middle(draft, parts).items()}
    chosen: list[Best] = [best[i] for i in kept]
    return Optima(
        of, variables, np.array([b.log2 for b in chosen]), np.array([b.error for b in chosen]), np.array([b.side for b in chosen], int), surface,
        f"surfaces over LR and batch, {len(draft)} runs" if surface else f"curves over {TITLES[of]}, {len(draft)} runs", left_out,
        columns_of(draft), tuple(notes), also,
    )  # fmt: skip


def _by_batch(draft: Draft, rows: Sequence[int]) -> list[list[int]]:
    found: dict[float, list[int]] = defaultdict(list)
    for i in rows:
        found[float(draft.values["batch"][i])].append(i)
    return [found[batch] for batch in sorted(found)]


def _label(draft: Draft, rows: Sequence[int], also: Sequence[str]) -> str:
    names = [n for n in ("params", "non_embedding", "width", "depth", "tokens", "compute", "steps") if n in draft.values][:2]  # fmt: skip
    return ", ".join(f"{name} {draft.values[name][rows].min():.4g}" for name in (*names, *also))


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
