"""Several rows of one run: a history of steps, of which the last one is the run's, or all of them for the laws of a learning curve."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence

import numpy as np

from mutransfer.errors import InputError
from mutransfer.predict.draft import Column, Draft
from mutransfer.rows.cells import is_finite, is_number, number, number_in, text, values
from mutransfer.rows.columns import KNOBS, listed, plain
from mutransfer.rows.history import SHORT

_WITH_TIME = (
    "lr",
    "tokens",
    "compute",
    "unique_tokens",
    "epochs",
)  # a logger may write how far they have got: keys only where nothing else tells
OFF = 1e-6  # an LR of 0 at a step, as a share of the run's highest: points are above 0


def gather_runs(draft: Draft, loss: str, steps: bool) -> bool:
    """Where the table is a history, keep the last step of each run, or (`steps`) all of them; `draft.run` is the name of each row's run.

    An LR that is written step by step becomes the run's highest (without `steps`). With `steps`, `draft.values["share"]` (n,) is the share of its
    run that a row has seen. Returns whether it is a history. Must be called before the numbers are read. Raises InputError where two rows of
    a run have the same step.
    """
    name, step = draft.column("run"), draft.column("step")
    draft.run = [text(row.get(name)) if name else "" for row in draft.rows]
    if step is None or len(values(draft.rows, step)) < 2:
        draft.columns.pop("step", None)
        return False
    groups, named = _groups(draft, step, name)
    if len(groups) == len(draft.rows):  # one row per run: the step is how long each one was trained
        draft.columns.setdefault("steps", draft.columns.pop("step"))
        return False
    planned = draft.column("steps")
    ends = [max(number_in(draft.rows[i], step) for i in group) for group in groups]
    usual = _usual(ends)
    kept: list[int] = []
    shares: list[float] = []
    short: list[int] = []
    for order, (group, end) in enumerate(zip(groups, ends, strict=True), 1):
        told = sorted((i for i in group if text(draft.rows[i].get(loss))), key=lambda i: number_in(draft.rows[i], step))
        if not told:
            continue
        last = told[-1]
        plan = number(draft.rows[last].get(planned)) if planned and planned != step else None
        wanted = plan if plan is not None else usual if ends.count(end) == 1 else end
        if draft.column("status") is None and end < SHORT * wanted and is_finite(draft.rows[last].get(loss)):
            short.append(last)
            continue
        _settle_lr(draft, group, steps)
        for i in told if steps else [last]:
            reached = number_in(draft.rows[i], step)
            if reached > 0 or not steps:
                kept.append(i)
                shares.append(reached / max(plan or end, reached))
                draft.run[i] = draft.run[i] if named else f"run {order}" if steps else ""
    if short:
        one = "1 run ends" if len(short) == 1 else f"{len(short)} runs end"
        draft.notes.append(f"{one} before {SHORT:.0%} of the steps with a finite loss, left out ({draft.labels(short)}): if it diverged, write nan as its loss")  # fmt: skip
    said = "every step" if steps else f"the last {step} with a {loss}"
    draft.notes.append(f"a history of {len(draft.rows)} rows: {said} of each of its {len(groups)} runs is taken")
    draft.rows, draft.run = [draft.rows[i] for i in kept], [draft.run[i] for i in kept]
    if steps:
        draft.values["share"] = np.array(shares)
    column = draft.columns.pop("step")
    draft.columns["steps"] = Column(column.name, column.unit, column.named)
    return True


def _usual(ends: Sequence[float]) -> float:
    """The step at which at least half of the runs end, 0 where there is none."""
    end, count = Counter(ends).most_common(1)[0]
    return end if count >= max(2, len(ends) / 2) else 0.0


def _settle_lr(draft: Draft, group: Sequence[int], steps: bool) -> None:
    """An LR that changes in the run: its highest for the run, or, step by step, never 0."""
    column = draft.column("lr")
    if column is None or "log" in plain(column) or len(values([draft.rows[i] for i in group], column)) < 2:
        return
    told = [i for i in group if is_number(draft.rows[i].get(column))]
    peak = max(number_in(draft.rows[i], column) for i in told)
    for i in told:
        old = draft.rows[i]
        lr = max(number_in(old, column), OFF * peak) if steps else peak
        draft.rows[i] = {**old, column: lr}
        draft.number[id(draft.rows[i])] = draft.number[id(old)]


def _groups(draft: Draft, step: str, name: str | None) -> tuple[list[list[int]], bool]:
    """The rows of each run, in an order that does not depend on the table's; whether it is the name that tells them apart."""
    own = [c.name for v, c in draft.columns.items() if v not in (*_WITH_TIME, "step", "run", "status")]
    taken = {column.name for column in draft.columns.values()}
    own += sorted({c for row in draft.rows for c in row if c not in taken and plain(c) in KNOBS})
    moving = [draft.columns[v].name for v in _WITH_TIME if v in draft.columns]
    keys = [[name]] if name else []
    keys += [own, *([*own, one] for one in moving), [*own, *moving]]
    steps = [text(row.get(step)) for row in draft.rows]
    twice: list[int] = []
    for key in keys:
        found: dict[tuple[str, ...], list[int]] = defaultdict(list)
        for i, row in enumerate(draft.rows):
            found[tuple(text(row.get(column)) for column in key)].append(i)
        twice = next((g for g in found.values() if len({steps[i] for i in g}) < len(g)), [])
        if not twice:
            return [found[one] for one in sorted(found)], key == [name]
    raise InputError(f"{draft.place(twice)}: two rows of one run have the same {step}; name the column that tells runs apart: columns={{\"run\": …}} (columns: {listed(draft.rows[0])})")  # fmt: skip
