"""A table that holds several steps of each run: the last one with a loss is the run's."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

from mutransfer.rows import columns as names
from mutransfer.rows.cells import is_finite, number_in, text, values
from mutransfer.rows.columns import plain
from mutransfer.rows.read import Row

SHORT = 0.9  # a history that ends before this share of the others' last step did not finish


def last_steps(
    rows: list[Row], columns: Sequence[str], key: Sequence[str], loss: str, state: str | None, notes: list[str]
) -> list[Row]:
    """The last step with a loss of each run where the table is a history; histories that end early have no result.

    `key`: the columns by which runs differ; `state`: the column of their status, if any; what was done is added to `notes`.
    """
    step = next((c for name in names.STEPS for c in columns if plain(c) == name), None)
    if step is None or len(values(rows, step)) < 2:
        return rows
    name = next((c for n in names.NAMES for c in columns if plain(c) == n and len(values(rows, c)) > 1), None)
    groups: dict[tuple[str, ...], list[Row]] = defaultdict(list)
    for row in rows:
        groups[tuple(text(row.get(c)) for c in [*key, *([name] if name else [])])].append(row)
    end = max(number_in(row, step) for row in rows)
    if len(groups) == len(rows):
        early = [row for row in rows if number_in(row, step) < SHORT * end and is_finite(row.get(loss))]
        if early and state is None:
            notes.append(f"{len(early)} runs end before {step} {SHORT * end:g} with a finite loss: if they diverged, write nan as their loss")  # fmt: skip
        return rows
    notes.append(
        f"a history of {len(rows)} rows: the last {step} with a {loss} of each of its {len(groups)} runs is taken"
    )
    kept, short = [], 0
    for group in groups.values():
        ordered = sorted(group, key=lambda row: number_in(row, step))
        told = [row for row in ordered if str(row.get(loss) if row.get(loss) is not None else "").strip()]
        last = (told or ordered)[-1]
        if state is None and is_finite(last.get(loss)) and number_in(ordered[-1], step) < SHORT * end:
            short += 1
        else:
            kept.append(last)
    if short:
        notes.append(f"{short} runs end before {step} {SHORT * end:g} with a finite loss: not counted. If they diverged, write nan as their loss")  # fmt: skip
    return kept
