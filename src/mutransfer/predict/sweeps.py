"""Rows with several learning rates per size: the sweep's verdict consulted, and one loss per size and seed taken."""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from typing import Any

import numpy as np

from mutransfer.errors import InputError
from mutransfer.predict.draft import Draft
from mutransfer.rows.rates import same_lrs

Array = np.ndarray
Setting = tuple[float, float]  # learning rate and batch

_SIZE = ("params", "non_embedding", "flops_per_token", "width", "depth")
_LENGTH = ("tokens", "unique_tokens", "compute")
_WARNINGS = {
    "DRIFTS": "the best LR drifts with size (the loss basins are not aligned): losses at one LR for all sizes do not line up, and their extrapolation has no ground",
    "INCONCLUSIVE": "whether the best LR is the same at every size (the loss basins are aligned) cannot be told from this sweep: losses at one LR need not line up, and their extrapolation has no ground yet",
}  # fmt: skip
_TUNED = "the losses taken are those of each size's own best LR: what is predicted is for a model tuned in the same way, at an LR that is not known yet"


def reduce_lrs(draft: Draft, at: str | float | None, history: bool = False) -> None:
    """Where the LR varies within a size, keep the rows of one LR per size; every seed's loss at that LR stays a row.

    `at`: "best" the LR (and batch, where it is swept too) with the lowest mean loss at each size, "shared" the one that is best at the smallest
    size, for all; a number: that LR, to 1 %; None: every row stays. A loss of +inf is a wall. Sets `draft.transfer` to the verdict's status.
    `history`: the rows are steps of runs, which are kept or left out whole, by their last loss. Raises InputError for an unknown `at`.
    """
    if not (
        at is None or at in ("best", "shared") or (isinstance(at, (int, float)) and not isinstance(at, bool) and at > 0)
    ):
        raise InputError(f'at={at!r}: write "best", "shared" or a learning rate')
    if "lr" not in draft.values:
        if isinstance(at, (int, float)):
            raise InputError(f'at={at:g}: the table has no column for the LR; name one with columns={{"lr": …}}')
        return
    runs = _whole_runs(draft) if history else draft
    kept = _kept(runs, at)
    draft.transfer = runs.transfer
    if history:
        names = {runs.run[i] for i in kept}
        draft.keep(np.array([name in names for name in draft.run], bool))
    else:
        mask = np.zeros(len(draft), bool)
        mask[kept] = True
        draft.keep(mask)


def _whole_runs(draft: Draft) -> Draft:
    """The last row of each run, its LR the highest of the run."""
    last: dict[str, int] = {}
    for i in np.argsort(draft.values["steps"], kind="stable"):
        last[draft.run[int(i)]] = int(i)
    runs = Draft(
        list(draft.rows),
        draft.number,
        draft.columns,
        dict(draft.values),
        draft.loss,
        list(draft.seed),
        list(draft.run),
        draft.notes,
    )
    peak: dict[str, float] = defaultdict(float)
    for name, lr in zip(draft.run, draft.values["lr"], strict=True):
        peak[name] = max(peak[name], float(lr))
    runs.values["lr"] = np.array([peak[name] for name in draft.run])
    mask = np.zeros(len(draft), bool)
    mask[list(last.values())] = True
    runs.keep(mask)
    return runs


def _kept(draft: Draft, at: str | float | None) -> list[int]:
    """The rows to keep."""
    lrs = same_lrs([math.log2(lr) for lr in draft.values["lr"]])
    batch = draft.values.get("batch", np.zeros(len(draft)))
    setting = [(lrs[math.log2(lr)], float(b)) for lr, b in zip(draft.values["lr"], batch, strict=True)]
    sizes = _sizes(draft)
    everything = list(range(len(draft)))
    swept = any(len({setting[i][0] for i in rows}) > 1 for rows in sizes.values())
    if swept:
        _consult(draft, at)
    if isinstance(at, (int, float)):
        kept = _at(draft, float(at))
        if len(kept) < len(draft):
            draft.notes.append(f"several LRs: the runs with LR {float(at):g} are taken")
        return kept
    if at is None or not swept:
        return everything
    if at == "best":
        chosen = {key: _best(draft, rows, setting) for key, rows in sizes.items()}
        grids = {key: sorted({setting[i][0] for i in rows}) for key, rows in sizes.items()}
        edges = [key for key, grid in grids.items() if len(grid) > 2 and chosen[key][0] in (grid[0], grid[-1])]
        at_edge = f"; at {len(edges)} of them it is at the edge of the grid" if edges else ""
        draft.notes.append(
            f"a sweep of LRs: at each of {len(sizes)} sizes the LR with the lowest mean loss is taken{at_edge}"
        )
    else:
        shared = _best(draft, next(iter(sizes.values())), setting)
        chosen = dict.fromkeys(sizes, shared)
        draft.notes.append(
            f"a sweep of LRs: LR {2 ** shared[0]:.4g}, the best one at the smallest size, is taken at every size"
        )
    kept = [i for key, rows in sizes.items() for i in rows if _same(setting[i], chosen[key], batch)]
    have = {i for i in kept if math.isfinite(draft.loss[i])}
    without = [rows[0] for rows in sizes.values() if not have & set(rows)]
    if without and at == "shared":
        draft.notes.append(
            f"sizes without a finite loss at that LR, left out: {len(without)} ({draft.labels(without)})"
        )
    return kept


def _same(one: Setting, wanted: Setting, batch: Array) -> bool:
    """The batch counts only where it was swept with the LR at the size, which it was not where the table has one batch."""
    return one == wanted or (one[0] == wanted[0] and bool(np.ptp(batch) == 0))


def _sizes(draft: Draft) -> dict[tuple[float, ...], list[int]]:
    """The rows of each size (and length of training), in growing order."""
    names = [name for name in (*_SIZE, *_LENGTH) if name in draft.values]
    if "tokens" not in names:
        names += [name for name in ("steps", "batch") if name in draft.values]
    found: dict[tuple[float, ...], list[int]] = defaultdict(list)
    for i in range(len(draft)):
        found[tuple(float(f"{draft.values[name][i]:.9g}") for name in names)].append(i)
    return dict(sorted(found.items()))


def _best(draft: Draft, rows: list[int], setting: list[Setting]) -> Setting:
    """The setting with the lowest mean loss among those with at least half as many runs as any, none of which diverged."""
    losses: dict[Setting, list[float]] = defaultdict(list)
    for i in rows:
        losses[setting[i]].append(float(draft.loss[i]))
    most = max(len(one) for one in losses.values())
    mean = {key: sum(one) / len(one) for key, one in losses.items()}
    return min((key for key in mean if 2 * len(losses[key]) >= most), key=lambda key: (mean[key], key))


def _at(draft: Draft, at: float) -> list[int]:
    near = np.flatnonzero(np.abs(draft.values["lr"] / at - 1) <= 0.01)
    if not len(near):
        grid = sorted({f"{lr:.4g}" for lr in draft.values["lr"]}, key=float)
        raise InputError(f"at={at:g}: no run has that LR; the table has {', '.join(grid[:12])}")
    return [int(i) for i in near]


def _consult(draft: Draft, at: str | float | None) -> None:
    """Ask the transfer verdict about the largest comparable part of the sweep: one length of training, sizes that vary."""
    from mutransfer.verdict import transfer_verdict

    size = next((n for n in _SIZE if n in draft.values and len(set(draft.values[n].tolist())) > 1), None)
    if size is None:
        draft.notes.append("the LR is swept at one size: whether its optimum transfers is not known")
        return
    named = {"seed": draft.seed} if any(draft.seed) else {}
    table: list[dict[str, Any]] = [
        {"size": float(draft.values[size][i]), "lr": float(draft.values["lr"][i]), "loss": float(draft.loss[i]), **{k: v[i] for k, v in named.items()}}
        for i in _comparable(draft, size)
    ]  # fmt: skip
    try:
        verdict = transfer_verdict(table, size="size")
    except InputError as error:
        draft.notes.append(f"the verdict of the sweep over {size} cannot be made: {error}")
        return
    draft.transfer = verdict.status
    draft.notes.append(f"the verdict of the sweep over {size}: {verdict.status}, {verdict.reasons[0]}")
    if verdict.status in _WARNINGS:
        draft.notes.append(_WARNINGS[verdict.status])
        if at == "best":
            draft.notes.append(_TUNED)


def _comparable(draft: Draft, size: str) -> list[int]:
    """The rows that differ in size, LR and seed alone: those of the commonest length of training and of the other sizes."""
    others = [n for n in (*_SIZE, "tokens", "steps", "batch") if n in draft.values and n != size]
    free = [n for n in others if not _function(draft.values[n], draft.values[size])]
    held = [tuple(float(f"{draft.values[n][i]:.9g}") for n in free) for i in range(len(draft))]
    groups = Counter(held)
    common = min(groups, key=lambda key: (-groups[key], key))
    return [i for i, key in enumerate(held) if key == common]


def _function(values: Array, of: Array) -> bool:
    seen: dict[float, float] = {}
    return all(abs(seen.setdefault(float(x), float(y)) / float(y) - 1) < 1e-6 for x, y in zip(of, values, strict=True))
