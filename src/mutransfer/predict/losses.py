"""The loss of each row: which column, which unit, and what is refused because it cannot be a loss."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence

import numpy as np

from mutransfer.errors import InputError
from mutransfer.predict.draft import Draft
from mutransfer.predict.names import loss_columns, loss_unit_named
from mutransfer.predict.units import to_nats
from mutransfer.rows.cells import NO_RESULT, NOTHING, is_number, number, status_of
from mutransfer.rows.columns import choose, listed
from mutransfer.rows.read import Row

Array = np.ndarray
LARGEST = 11.0  # nats: a guess among 60,000 tokens; no trained language model is above it in every row


def loss_column(rows: Sequence[Row], names: Sequence[str], given: str | None, notes: list[str]) -> str:
    """The column that the caller names, else the most usual one that holds numbers. Raises InputError where there is none."""
    if given is not None:
        return choose("loss", given, (), names)[0]
    found = loss_columns(names)
    filled = [name for name in found if any(is_number(row.get(name)) for row in rows)]
    if not found:
        raise InputError(f"the table has no column for a loss, such as 'loss' or 'val_loss': name one with loss=; its columns are {listed(names)}")  # fmt: skip
    chosen = (filled or found)[0]
    if len(filled) > 1:
        notes.append(f"the loss is read from {chosen}; the table also has {listed(filled[1:])}")
    return chosen


def read_losses(draft: Draft, column: str, loss_unit: str | None) -> str:
    """Fill `draft.loss` in the scale of `to_nats`, +inf where a run diverged or was given up; leave out rows without a result. Returns the unit.

    Raises InputError for values that no loss has, and for a perplexity that is called a loss.
    """
    state = draft.column("status")
    if state and all(str(row.get(state)).strip().lower() in NO_RESULT for row in draft.rows):
        raise InputError(NOTHING)
    statuses = [status_of(row, state, column) for row in draft.rows]
    missing = [i for i, status in enumerate(statuses) if status is None]
    if missing:
        kinds = Counter(str(draft.rows[i].get(state or "")) or "unfinished" for i in missing)
        said = ", ".join(f"{count} {kind}" for kind, count in sorted(kinds.items()))
        draft.notes.append(f"runs without a result, left out: {said} ({draft.labels(missing)})")
    cells = [number(row.get(column)) if status == "finished" else math.inf for row, status in zip(draft.rows, statuses, strict=True)]  # fmt: skip
    draft.loss = np.array([math.inf if cell is None else cell for cell in cells], float)
    draft.keep(np.array([status is not None for status in statuses], bool))
    finite = np.isfinite(draft.loss)
    if not len(draft):
        raise InputError(NOTHING)
    if not finite.any():
        raise InputError(f"every run diverged: no row has a finite {column}")
    wrong = np.flatnonzero(finite & (draft.loss <= 0))
    if len(wrong):
        raise InputError(f"{column}={draft.loss[wrong[0]]:g} ({draft.place(wrong)}): a loss must be above 0; for a log-likelihood write its negative")  # fmt: skip
    named = loss_unit_named(column)
    if loss_unit is None:
        _refuse_perplexity(draft, column, named)
    unit = loss_unit or named or "nats"
    if unit == "perplexity":
        low = np.flatnonzero(finite & (draft.loss <= 1))
        if len(low):
            raise InputError(f"{column}={draft.loss[low[0]]:g} ({draft.place(low)}): a perplexity must be above 1; is it a loss? Write loss_unit=\"nats\"")  # fmt: skip
    draft.loss = np.where(finite, to_nats(np.where(finite, draft.loss, 2.0), unit), math.inf)
    title = {"bits_per_byte": "bits per byte"}.get(unit, unit)
    if unit != "nats":
        why = ", as its name says" if loss_unit is None else ""
        draft.notes.append(
            f"{column} is in {title}{why}"
            + (f": fitted in nats, predicted in {title}" if unit in ("bits", "perplexity") else "")
        )
    return unit


def _refuse_perplexity(draft: Draft, column: str, named: str | None) -> None:
    if named is not None and named != "nats":
        return
    lowest = float(draft.loss[np.isfinite(draft.loss)].min())
    vocab = draft.values.get("vocab", np.array([math.nan]))
    guess = math.log(np.nanmax(vocab)) if np.isfinite(vocab).any() and np.nanmax(vocab) > 1 else math.inf
    if lowest > min(LARGEST, 1.05 * guess):
        why = f"a guess has {guess:.3g} nats" if guess < LARGEST else "no language model has a loss in nats so high"
        raise InputError(f"{column} is {lowest:.4g} or more in every row: {why}; if it is a perplexity, write loss_unit=\"perplexity\", else \"nats\"")  # fmt: skip
