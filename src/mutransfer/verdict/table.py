"""From a table to runs: size, log2 LR, seed and loss of each, and everything that was assumed, said."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from mutransfer.errors import InputError
from mutransfer.rows import columns as names
from mutransfer.rows.cells import (
    NO_RESULT,
    NOTHING,
    filtered,
    is_number,
    matches,
    number,
    number_in,
    status_of,
    text,
    values,
)
from mutransfer.rows.columns import choose, listed, plain
from mutransfer.rows.confounded import confounded, usual
from mutransfer.rows.history import last_steps
from mutransfer.rows.rates import same_lrs, to_log2_lr
from mutransfer.rows.read import Row

LARGEST_LOSS = 50.0  # nats per token: above this it is a perplexity or an accuracy in percent


@dataclass(frozen=True)
class Run:
    """One run that says something. `loss` is +inf where `status` is "diverged" or "stopped" (given up as hopeless: worse than the best)."""

    size: float
    log2_lr: float
    seed: str
    loss: float
    status: str


@dataclass(frozen=True)
class Runs:
    """All of them, in canonical order; which column is what; what was left out or assumed."""

    runs: tuple[Run, ...]
    columns: dict[str, str | None]
    notes: tuple[str, ...]


def prepare(
    rows: Sequence[Row],
    size: str | None = None,
    lr: str | None = None,
    loss: str | None = None,
    seed: str | None = None,
    where: Mapping[str, Any] | None = None,
) -> Runs:
    """The runs of a table. Columns are guessed from their names unless named. Raises InputError with what to write."""
    notes: list[str] = []
    columns = list(dict.fromkeys(name for row in rows for name in row))
    rows = filtered(rows, columns, where)
    state = next(iter(choose("status", None, names.STATES, columns)), None)
    if state and all(str(row.get(state)).strip().lower() in NO_RESULT for row in rows):
        raise InputError(NOTHING)
    lr_column = _one("lr", choose("lr", lr, names.RATES, columns), columns, "a learning rate, such as 'lr'")
    size_column = _size(rows, choose("size", size, names.SIZES, columns), columns, lr_column)
    loss_column = _loss(rows, choose("loss", loss, names.LOSSES, columns), columns, loss is None, notes)
    seeds = choose("seed", seed, names.SEEDS, columns)
    seed_column = seeds[0] if seeds else None
    key = [column for column in (size_column, lr_column, seed_column) if column]
    rows = last_steps(rows, columns, key, loss_column, state, notes)
    counted, left_out = [], Counter[str]()
    for row in rows:
        status = status_of(row, state, loss_column)
        if status is None:
            left_out[str(row.get(state or "", "")) or "unfinished"] += 1
        else:
            counted.append((row, status))
    if left_out:
        said = ", ".join(f"{count} {kind}" for kind, count in sorted(left_out.items()))
        notes.append(f"runs without a result, not counted: {said}")
    if not counted:
        raise InputError(NOTHING)
    if names.knob(lr_column) != "LR":
        zero = [pair for pair in counted if number(pair[0].get(lr_column)) == 0]
        if 0 < len(zero) < len(counted):
            notes.append(f"{len(zero)} runs with {lr_column} 0 have no place on its logarithmic axis: not counted")
            counted = [pair for pair in counted if pair not in zero]
    refuse_confounded([row for row, _ in counted], columns, size_column, lr_column, seed_column)
    to_log2 = to_log2_lr(lr_column, [number_in(row, lr_column) for row, _ in counted], notes)
    runs: dict[tuple[float, float, str], Run] = {}
    anonymous: Counter[tuple[float, float]] = Counter()
    lrs = same_lrs([to_log2(number_in(row, lr_column)) for row, _ in counted])
    for row, status in sorted(counted, key=lambda pair: _sort_key(pair[0], loss_column)):
        width, x = number_in(row, size_column), lrs[to_log2(number_in(row, lr_column))]
        if not width > 0 or not math.isfinite(width):
            raise InputError(f"{size_column}={row.get(size_column)!r}: a size must be a number above 0")
        value = number(row.get(loss_column)) if status == "finished" else math.inf
        if seed_column is None:
            anonymous[width, x] += 1
            who = f"{width:g}/{x:g}/{anonymous[width, x]}" if anonymous[width, x] > 1 else "0"
        else:
            who = text(row.get(seed_column))
        run = Run(width, x, who, math.inf if value is None else value, status)
        earlier = runs.get((width, x, who))
        if earlier is not None and (earlier.loss, earlier.status) != (run.loss, run.status):
            raise InputError(_twice(rows, columns, run, earlier, size_column, lr_column, seed_column, loss_column))
        runs[width, x, who] = run
    if seed_column is None:
        notes.append("no seed column: rows of the same size and LR are taken as independent repetitions" if max(anonymous.values()) > 1
                     else "no seed column: one run per size and LR")  # fmt: skip
        runs = _unpaired(runs, anonymous)
    ordered = tuple(runs[key] for key in sorted(runs, key=lambda k: (k[0], k[1], k[2])))
    _require(ordered, size_column, lr_column)
    best = min(run.loss for run in ordered)
    if re.search(r"perplexity|(^|_)ppl(_|$)", plain(loss_column)):
        notes.append(f"{loss_column} is judged as it stands: regret is a share of the perplexity. The tolerance is meant for a loss in nats, its logarithm")  # fmt: skip
    elif best > LARGEST_LOSS:
        notes.append(f"{loss_column} is above {LARGEST_LOSS:g} everywhere (best {best:g}): perplexity or accuracy? The verdict is made for a loss in nats")  # fmt: skip
    elif best <= 0:
        raise InputError(f"{loss_column} has the value {best:g}: regret is relative to the loss, which must be above 0; name another column with loss=")  # fmt: skip
    return Runs(ordered, {"size": size_column, "lr": lr_column, "seed": seed_column, "loss": loss_column}, tuple(notes))


def _one(what: str, found: list[str], columns: list[str], need: str) -> str:
    if not found:
        raise InputError(
            f"the table has no column for {need}: name one with {what}=; its columns are {listed(columns)}"
        )
    return found[0]


def _size(rows: Sequence[Row], found: list[str], columns: list[str], lr_column: str) -> str:
    found = [column for column in found if column != lr_column]
    need = "a size, such as 'width', 'n_embd' or 'depth'"
    first = _one("size", found, columns, need)
    varying = [column for column in found if len(values(rows, column)) > 1]
    if not varying:
        value = next(iter(values(rows, first)), "nothing")
        raise InputError(f"{first} is {value} in every row: two sizes or more are needed to compare")
    return varying[0]


def _loss(rows: Sequence[Row], found: list[str], columns: list[str], guessed: bool, notes: list[str]) -> str:
    if not found:  # "train/loss" under an unknown prefix
        found = [
            column
            for column in columns
            if re.search(r"(^|_)(loss|nll|cross_entropy|bpb|bits_per_byte)$", plain(column))
        ]
    chosen = _one("loss", found, columns, "a loss, such as 'loss', 'train_loss' or 'val_loss'")
    if guessed:
        filled = [c for c in found if any(is_number(row.get(c)) for row in rows)]
        chosen = filled[0] if filled else chosen
        others = [column for column in filled if column != chosen]
        if others:
            notes.append(f"judged by {chosen}; the table also has {listed(others)}")
    return chosen


def _unpaired(runs: dict[tuple[float, float, str], Run], anonymous: Counter[tuple[float, float]]) -> dict[tuple[float, float, str], Run]:  # fmt: skip
    """Repetitions without a name must not be paired by accident: every one gets its own seed where there are several."""
    if max(anonymous.values()) <= 1:
        return runs
    made = {}
    for (width, x, who), run in runs.items():
        own = f"{width:g}/{x:g}/{who.rpartition('/')[2]}"
        made[width, x, own] = Run(run.size, run.log2_lr, own, run.loss, run.status)
    return made


def _sort_key(row: Row, loss_column: str) -> tuple[float, str]:
    value = number(row.get(loss_column)) if is_number(row.get(loss_column)) else None
    return (math.inf if value is None or math.isnan(value) else value, str(sorted(row.items(), key=lambda kv: kv[0])))


def refuse_confounded(rows: Sequence[Row], columns: list[str], size: str, lr: str, seed: str | None) -> None:
    """Raise InputError where a hyperparameter varies that is neither the size, the LR nor the seed, nor follows from one of them."""
    steering = [lr, seed] if seed else [lr]
    for column in confounded(rows, columns, {size, *steering}, [size], steering):
        one = usual(rows, column)
        raise InputError(
            f"{column} varies too ({listed(sorted(values(rows, column)), 5)}), so these are several comparisons in one table: "
            f'write where={{"{column}": {one!r}}}, or transfer_verdicts(rows, by="{column}") for each'
        )


def _twice(rows: Sequence[Row], columns: list[str], run: Run, earlier: Run, size: str, lr: str, seed: str | None, loss: str) -> str:  # fmt: skip
    same = [r for r in rows if matches(r.get(size), run.size) and (seed is None or text(r.get(seed)) == run.seed)]
    taken = {size, lr, seed, loss}
    differ = [c for c in columns if c not in taken and len(values(same, c)) > 1 and plain(c) not in names.RESULTS]
    hint = (
        f"write where={{...}} for one of the columns that differ ({listed(differ, 5)})"
        if differ
        else "leave one of them out"
    )
    return (
        f"two runs of {size} {run.size:g}, log2 {lr} {run.log2_lr:.3g}, seed {run.seed} have different {loss} "
        f"({earlier.loss:g} and {run.loss:g}): {hint}"
    )


def _require(runs: Sequence[Run], size: str, lr: str) -> None:
    sizes = sorted({run.size for run in runs})
    if len(sizes) < 2:
        raise InputError(
            f"{size} is {sizes[0]:g} in every run that has a result: two sizes or more are needed to compare"
        )
    if len({run.log2_lr for run in runs}) < 2:
        raise InputError(f"{lr} is the same in every run: two LRs or more are needed (five or more for a verdict)")
    if not any(math.isfinite(run.loss) for run in runs):
        raise InputError("every run diverged: lower the learning rates and run again")
