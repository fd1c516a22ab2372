"""Hyperparameters that vary beside the ones compared: such a table holds several comparisons."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterator, Sequence
from typing import Any

from mutransfer.rows import columns as names
from mutransfer.rows.cells import is_number, text, values
from mutransfer.rows.columns import plain
from mutransfer.rows.read import Row


def confounded(
    rows: Sequence[Row], columns: Sequence[str], taken: Collection[str], sizes: Sequence[str], steering: Sequence[str]
) -> Iterator[str]:
    """The columns of known hyperparameters and sizes that vary and follow from nothing that is compared.

    `taken`: the columns compared; `sizes`: those from which, together, any column may follow; `steering`: ones from which a number may
    (a final LR from the LR, another seed from the seed).
    """
    for column in columns:
        name = plain(column)
        known = name in names.KNOBS or name in names.SIZES
        if column in taken or name in names.RESULTS - set(names.KNOBS) or not known or name in names.NAMES:
            continue
        if len(values(rows, column)) < 2:
            continue
        numeric = all(is_number(row.get(column)) for row in rows)
        if not any(follows(rows, column, other) for other in (sizes, *((one,) for one in steering if numeric))):
            yield column


def follows(rows: Sequence[Row], column: str, others: Sequence[str]) -> bool:
    """Whether `column` is a function of `others`."""
    seen: dict[tuple[str, ...], str] = {}
    return all(
        seen.setdefault(tuple(text(row.get(o)) for o in others), text(row.get(column))) == text(row.get(column))
        for row in rows
    )


def usual(rows: Sequence[Row], column: str) -> Any:
    """The most frequent value of a column, as it stands in the table."""
    counts = Counter(text(row.get(column)) for row in rows)
    most = max(sorted(counts), key=lambda value: counts[value])
    return next(row[column] for row in rows if text(row.get(column)) == most)
