"""The values of cells: numbers as people write them, the status of a run, rows chosen by what they hold."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

from mutransfer.errors import InputError
from mutransfer.rows.columns import choose, listed
from mutransfer.rows.read import Row

DONE = {"finished", "completed", "complete", "success", "succeeded", "done", "ok", ""}
DIVERGED = {"diverged", "nan", "inf", "exploded", "divergence"}
STOPPED = {"stopped", "pruned", "hopeless", "early_stopped"}
NO_RESULT = {"failed", "crashed", "running", "killed", "queued", "pending", "preempted", "preempting", "error", "cancelled", "canceled", "timeout", "started"}  # fmt: skip
NOTHING = "no run of the table has a result: every one failed or is unfinished"


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


def is_number(value: Any) -> bool:
    """Whether the cell holds a number, NaN and infinity included."""
    try:
        return number(value) is not None
    except (ValueError, TypeError):
        return False


def is_finite(value: Any) -> bool:
    """Whether the cell holds a finite number."""
    return is_number(value) and math.isfinite(number(value) or 0.0)


def number_in(row: Row, column: str) -> float:
    """The number in a row's column, infinity included. Raises InputError where there is none."""
    value = row.get(column)
    try:
        found = number(value)
    except (ValueError, TypeError):
        write = decimal_point(value)
        raise InputError(f"{column}={value!r} is not a number" + (f"; {write}" if write else "")) from None
    if found is None or math.isnan(found):
        raise InputError(f"a row has no {column}: {str({k: v for k, v in row.items() if v not in (None, '')})[:120]}")
    return found


def decimal_point(value: Any) -> str:
    """What to write instead of "3,08"; nothing for another cell."""
    found = re.fullmatch(r"\s*([-+]?\d+),(\d+(?:[eE][-+]?\d+)?)\s*", value) if isinstance(value, str) else None
    return f"write a decimal point, {found[1]}.{found[2]}" if found else ""


def text(value: Any) -> str:
    """A cell as the text by which values are the same: 1, 1.0 and "1" are one value; nothing for an empty cell."""
    try:
        found = number(value)
    except (ValueError, TypeError):
        return str(value).strip()
    return "" if found is None else f"{found:g}" if abs(found) < 1e6 else repr(found)


def values(rows: Sequence[Row], column: str) -> set[str]:
    """The different values of a column, empty cells left out."""
    return {text(row.get(column)) for row in rows} - {""}


def matches(value: Any, wanted: Any) -> bool:
    """Whether a cell is the wanted value, as a number or as text."""
    try:
        return number(value) == number(wanted)
    except (ValueError, TypeError):
        return str(value).strip() == str(wanted).strip()


def filtered(rows: Sequence[Row], columns: Sequence[str], where: Mapping[str, Any] | None) -> list[Row]:
    """The rows with these values. Raises InputError for an unknown column, and where no row has them."""
    kept = list(rows)
    for name, wanted in (where or {}).items():
        column = choose("where", name, (), columns)[0]
        seen = sorted({str(row.get(column)) for row in kept})
        kept = [row for row in kept if matches(row.get(column), wanted)]
        if not kept:
            raise InputError(f"where {column}={wanted!r}: no row has it; its values are {listed(seen)}")
    return kept


def status_of(row: Row, state: str | None, loss: str) -> str | None:
    """finished, diverged, stopped, or None where there is no result. `state`, `loss`: columns. Raises InputError for an unknown status."""
    said = str(row.get(state) or "").strip().lower() if state else ""
    raw = row.get(loss)
    try:
        value = number(raw)
    except (ValueError, TypeError):
        if str(raw).strip().lower() in DIVERGED:
            value = math.nan
        else:
            write = decimal_point(raw) or "write nan for a run that diverged"
            raise InputError(f"{loss}={raw!r} is not a number; {write}") from None
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
