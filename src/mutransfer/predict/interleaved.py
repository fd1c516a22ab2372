"""Words (a norm, an optimizer) that differ between sizes: two series in one table, unless each has sizes of its own."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

from mutransfer.errors import InputError
from mutransfer.predict.draft import Draft
from mutransfer.rows.cells import is_number
from mutransfer.rows.columns import KNOBS, NAMES, listed, plain

SIZE = ("params", "non_embedding", "flops_per_token", "width", "depth")
MODELS = ("model", "model_kind", "kind", "arch", "architecture")  # names of sizes, as often as not


def refuse_interleaved(draft: Draft, names: Sequence[str]) -> None:
    """Raise InputError where a word differs between sizes that lie among one another: it follows from the size by its bytes only."""
    size = next((name for name in SIZE if name in draft.values), None)
    for column in names:
        # "none" is a norm, not an empty cell
        words = ["" if row.get(column) is None else str(row.get(column)).strip() for row in draft.rows]
        seen = sorted(set(words) - {""})
        word = plain(column) in KNOBS and plain(column) not in (*MODELS, *NAMES)
        if size is None or not word or len(seen) < 2 or any(is_number(one) and one.lower() != "none" for one in seen):
            continue
        each = [draft.values[size][[word == one for word in words]] for one in seen]
        ranges = sorted((float(v.min()), float(v.max())) for v in each)
        if any(before[1] >= after[0] for before, after in pairwise(ranges)):
            raise InputError(f'{column} varies too ({listed(seen, 5)}), so the table holds several series of runs: write where={{"{column}": {seen[0]!r}}}')  # fmt: skip
        draft.notes.append(
            f"{column} differs between the sizes ({listed(seen, 4)}): their losses need not lie on one law"
        )
