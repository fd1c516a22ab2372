"""From a table to runs: size, log2 LR, seed and loss of each, and everything that was assumed, said."""

from __future__ import annotations

import math
import re
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from mutransfer.errors import InputError
from mutransfer.verdict import columns as names
from mutransfer.verdict.columns import choose, listed, plain
from mutransfer.verdict.read import Row

DONE = {"finished", "completed", "complete", "success", "succeeded", "done", "ok", ""}
DIVERGED = {"diverged", "nan", "inf", "exploded", "divergence"}
STOPPED = {"stopped", "pruned", "hopeless", "early_stopped"}
NO_RESULT = {"failed", "crashed", "running", "killed", "queued", "pending", "preempted", "preempting", "error", "cancelled", "canceled", "timeout", "started"}  # fmt: skip
NOTHING = "no run of the table has a result: every one failed or is unfinished"
LARGEST_LOSS = 50.0  # nats per token: above this it is a perplexity or an accuracy in percent
SHORT = 0.9  # a history that ends before this share of the others' last step did not finish


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


def number(value: Any) -> float | None:
    """A float from numbers and text ("1e-3", "2^-8", "2**-8", "NaN"); None for empty. Raises ValueError for other text."""
    if value is None or (
        isinstance(value, str) and value.strip().lower() in ("", "none", "null", "n/a", "na", "-", "–")
    ):
        return None
    if isinstance(value, str):
        text = value.strip().replace("−", "-")
        power = re.fullmatch(r"\(?2(?:\^|\*\*)\(?([-+]?[\d./]+)\)?\)?", text)
        if power:
            top, _, bottom = power[1].partition("/")
            return 2.0 ** (float(top) / float(bottom or 1))
        return float(text.replace("Infinity", "inf"))
    if isinstance(value, bool):
        raise ValueError(value)
    return float(value)


def matches(value: Any, wanted: Any) -> bool:
    """Whether a cell is the wanted value, as a number or as text."""
    try:
        return number(value) == number(wanted)
    except (ValueError, TypeError):
        return str(value).strip() == str(wanted).strip()


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
    rows = _filtered(rows, columns, where)
    state = next(iter(choose("status", None, names.STATES, columns)), None)
    if state and all(str(row.get(state)).strip().lower() in NO_RESULT for row in rows):
        raise InputError(NOTHING)
    lr_column = _one("lr", choose("lr", lr, names.RATES, columns), columns, "a learning rate, such as 'lr'")
    size_column = _size(rows, choose("size", size, names.SIZES, columns), columns, lr_column)
    loss_column = _loss(rows, choose("loss", loss, names.LOSSES, columns), columns, loss is None, notes)
    seeds = choose("seed", seed, names.SEEDS, columns)
    seed_column = seeds[0] if seeds else None
    key = [column for column in (size_column, lr_column, seed_column) if column]
    rows = _last_steps(rows, columns, key, loss_column, state, notes)
    counted, left_out = [], Counter[str]()
    for row in rows:
        status = _status(row, state, loss_column)
        if status is None:
            left_out[str(row.get(state or "", "")) or "unfinished"] += 1
        else:
            counted.append((row, status))
    if left_out:
        said = ", ".join(f"{count} {kind}" for kind, count in sorted(left_out.items()))
        notes.append(f"runs without a result, not counted: {said}")
    if not counted:
        raise InputError(NOTHING)
    refuse_confounded([row for row, _ in counted], columns, size_column, lr_column, seed_column)
    to_log2 = _scale(lr_column, [_number(row, lr_column) for row, _ in counted], notes)
    runs: dict[tuple[float, float, str], Run] = {}
    anonymous: Counter[tuple[float, float]] = Counter()
    lrs = _clusters([to_log2(_number(row, lr_column)) for row, _ in counted])
    for row, status in sorted(counted, key=lambda pair: _sort_key(pair[0], loss_column)):
        width, x = _number(row, size_column), lrs[to_log2(_number(row, lr_column))]
        if not width > 0 or not math.isfinite(width):
            raise InputError(f"{size_column}={row.get(size_column)!r}: a size must be a number above 0")
        value = number(row.get(loss_column)) if status == "finished" else math.inf
        if seed_column is None:
            anonymous[width, x] += 1
            who = f"{width:g}/{x:g}/{anonymous[width, x]}" if anonymous[width, x] > 1 else "0"
        else:
            who = _seed_text(row.get(seed_column))
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


def _filtered(rows: Sequence[Row], columns: list[str], where: Mapping[str, Any] | None) -> list[Row]:
    kept = list(rows)
    for name, wanted in (where or {}).items():
        column = choose("where", name, (), columns)[0]
        seen = sorted({str(row.get(column)) for row in kept})
        kept = [row for row in kept if matches(row.get(column), wanted)]
        if not kept:
            raise InputError(f"where {column}={wanted!r}: no row has it; its values are {listed(seen)}")
    return kept


def _one(what: str, found: list[str], columns: list[str], need: str) -> str:
    if not found:
        raise InputError(
            f"the table has no column for {need}: name one with {what}=; its columns are {listed(columns)}"
        )
    return found[0]


def _values(rows: Sequence[Row], column: str) -> set[str]:
    return {_seed_text(row.get(column)) for row in rows} - {""}


def _size(rows: Sequence[Row], found: list[str], columns: list[str], lr_column: str) -> str:
    found = [column for column in found if column != lr_column]
    need = "a size, such as 'width', 'n_embd' or 'depth'"
    first = _one("size", found, columns, need)
    varying = [column for column in found if len(_values(rows, column)) > 1]
    if not varying:
        value = next(iter(_values(rows, first)), "nothing")
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
        filled = [c for c in found if any(_is_number(row.get(c)) for row in rows)]
        chosen = filled[0] if filled else chosen
        others = [column for column in filled if column != chosen]
        if others:
            notes.append(f"judged by {chosen}; the table also has {listed(others)}")
    return chosen


def _is_number(value: Any) -> bool:
    try:
        return number(value) is not None
    except (ValueError, TypeError):
        return False


def _number(row: Row, column: str) -> float:
    value = row.get(column)
    try:
        found = number(value)
    except (ValueError, TypeError):
        write = _decimal_point(value)
        raise InputError(f"{column}={value!r} is not a number" + (f"; {write}" if write else "")) from None
    if found is None or math.isnan(found):
        raise InputError(f"a row has no {column}: {str({k: v for k, v in row.items() if v not in (None, '')})[:120]}")
    return found


def _decimal_point(value: Any) -> str:
    """What to write instead of "3,08"."""
    found = re.fullmatch(r"\s*([-+]?\d+),(\d+(?:[eE][-+]?\d+)?)\s*", value) if isinstance(value, str) else None
    return f"write a decimal point, {found[1]}.{found[2]}" if found else ""


def _seed_text(value: Any) -> str:
    try:
        found = number(value)
    except (ValueError, TypeError):
        return str(value).strip()
    return "" if found is None else f"{found:g}" if abs(found) < 1e6 else repr(found)


def _status(row: Row, state: str | None, loss_column: str) -> str | None:
    """finished, diverged, stopped, or None where there is no result."""
    said = str(row.get(state) or "").strip().lower() if state else ""
    raw = row.get(loss_column)
    try:
        value = number(raw)
    except (ValueError, TypeError):
        if str(raw).strip().lower() in DIVERGED:
            value = math.nan
        else:
            write = _decimal_point(raw) or "write nan for a run that diverged"
            raise InputError(f"{loss_column}={raw!r} is not a number; {write}") from None
    if said in DIVERGED or (value is not None and not math.isfinite(value)):
        return "diverged"
    if said in NO_RESULT:
        return None
    if said in STOPPED:
        return "stopped"
    if said not in DONE:
        raise InputError(
            f"{state}={row.get(state or '')!r} is unknown: write finished, diverged (a result), stopped (given up) or failed (no result)"
        )
    return "diverged" if value is None else "finished"


def _last_steps(
    rows: list[Row], columns: list[str], key: list[str], loss: str, state: str | None, notes: list[str]
) -> list[Row]:
    """The last step with a loss of each run where the table is a history; histories that end early have no result."""
    step = next((c for name in names.STEPS for c in columns if plain(c) == name), None)
    if step is None or len(_values(rows, step)) < 2:
        return rows
    name = next((c for n in names.NAMES for c in columns if plain(c) == n and len(_values(rows, c)) > 1), None)
    groups: dict[tuple[str, ...], list[Row]] = defaultdict(list)
    for row in rows:
        groups[tuple(_seed_text(row.get(c)) for c in [*key, *([name] if name else [])])].append(row)
    end = max(_number(row, step) for row in rows)
    if len(groups) == len(rows):
        early = [row for row in rows if _number(row, step) < SHORT * end and _is_finite(row.get(loss))]
        if early and state is None:
            notes.append(f"{len(early)} runs end before {step} {SHORT * end:g} with a finite loss: if they diverged, write nan as their loss")  # fmt: skip
        return rows
    notes.append(
        f"a history of {len(rows)} rows: the last {step} with a {loss} of each of its {len(groups)} runs is taken"
    )
    kept, short = [], 0
    for group in groups.values():
        ordered = sorted(group, key=lambda row: _number(row, step))
        told = [row for row in ordered if str(row.get(loss) if row.get(loss) is not None else "").strip()]
        last = (told or ordered)[-1]
        if state is None and _is_finite(last.get(loss)) and _number(ordered[-1], step) < SHORT * end:
            short += 1
        else:
            kept.append(last)
    if short:
        notes.append(f"{short} runs end before {step} {SHORT * end:g} with a finite loss: not counted. If they diverged, write nan as their loss")  # fmt: skip
    return kept


def _is_finite(value: Any) -> bool:
    return _is_number(value) and math.isfinite(number(value) or 0.0)


def _scale(column: str, values: list[float], notes: list[str]) -> Callable[[float], float]:
    """How the LR column becomes log2 LR: it is an LR, or said (or seen) to be a logarithm."""
    name = plain(column)
    if "log10" in name:
        notes.append(f"{column} is taken as log10 of the LR")
        return lambda v: v * math.log2(10)
    if "log2" in name:
        return lambda v: v
    if name.startswith("ln_"):
        notes.append(f"{column} is taken as the natural logarithm of the LR")
        return lambda v: v * math.log2(math.e)
    low, high = min(values), max(values)
    if low > 0 and math.isfinite(high):
        return math.log2
    if high <= 0 and low < -7:
        notes.append(f"{column} goes from {low:g} to {high:g}: taken as log2 of the LR")
        return lambda v: v
    if high < 0:
        raise InputError(
            f"{column} goes from {low:g} to {high:g}: log2 or log10? Rename the column log2_lr or log10_lr"
        )
    wrong = next(v for v in values if not (v > 0 and math.isfinite(v)))
    raise InputError(f"{column}={wrong:g}: a learning rate must be above 0; leave such rows out")


def _clusters(values: list[float]) -> dict[float, float]:
    """Each log2 LR to the one it stands for: values written with few digits (0.00098 for 2^-10) are the same LR."""
    found: dict[float, float] = {}
    start = None
    for value in sorted(set(values)):
        if start is None or value - start > 0.04:
            start = value
        found[value] = start
    return found


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
    value = number(row.get(loss_column)) if _is_number(row.get(loss_column)) else None
    return (math.inf if value is None or math.isnan(value) else value, str(sorted(row.items(), key=lambda kv: kv[0])))


def refuse_confounded(rows: Sequence[Row], columns: list[str], size: str, lr: str, seed: str | None) -> None:
    """Raise InputError where a hyperparameter varies that is neither the size, the LR nor the seed, nor follows from one of them."""
    taken = {size, lr, seed}
    for column in columns:
        name = plain(column)
        known = name in names.KNOBS or name in names.SIZES
        if column in taken or name in names.RESULTS - set(names.KNOBS) or not known:
            continue
        values = _values(rows, column)
        if len(values) < 2:
            continue
        numeric = all(_is_number(row.get(column)) for row in rows)
        follows = [c for c in (size, *([lr, seed] if numeric else [])) if c and _follows(rows, column, c)]
        if follows or name in names.NAMES:
            continue
        one = _example(rows, column)
        raise InputError(
            f"{column} varies too ({listed(sorted(values), 5)}), so these are several comparisons in one table: "
            f'write where={{"{column}": {one!r}}}, or transfer_verdicts(rows, by="{column}") for each'
        )


def _example(rows: Sequence[Row], column: str) -> Any:
    counts = Counter(_seed_text(row.get(column)) for row in rows)
    text = max(sorted(counts), key=lambda value: counts[value])
    return next(row[column] for row in rows if _seed_text(row.get(column)) == text)


def _follows(rows: Sequence[Row], column: str, other: str) -> bool:
    """Whether `column` is a function of `other`."""
    seen: dict[str, str] = {}
    return all(seen.setdefault(_seed_text(r.get(other)), _seed_text(r.get(column))) == _seed_text(r.get(column)) for r in rows)  # fmt: skip


def _twice(rows: Sequence[Row], columns: list[str], run: Run, earlier: Run, size: str, lr: str, seed: str | None, loss: str) -> str:  # fmt: skip
    same = [r for r in rows if matches(r.get(size), run.size) and (seed is None or _seed_text(r.get(seed)) == run.seed)]
    taken = {size, lr, seed, loss}
    differ = [c for c in columns if c not in taken and len(_values(same, c)) > 1 and plain(c) not in names.RESULTS]
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
