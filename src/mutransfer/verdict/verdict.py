"""`transfer_verdict`: from a table of runs to HOLDS, DRIFTS or INCONCLUSIVE, with everything it rests on."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from mutransfer.errors import InputError
from mutransfer.rows.cells import number
from mutransfer.rows.columns import choose, knob, listed
from mutransfer.rows.read import read
from mutransfer.verdict.bootstrap import replicate
from mutransfer.verdict.cells import gather
from mutransfer.verdict.decide import MARGIN, Evidence, decide
from mutransfer.verdict.estimate import Estimate
from mutransfer.verdict.table import Runs, prepare
from mutransfer.verdict.transfer import Gain, Optimum, Regret, bent, drift, gains, optima, regrets
from mutransfer.verdict.words import named


@dataclass(frozen=True)
class Verdict:
    """Whether the smallest size's best LR is the best one of the larger sizes. `status` is "HOLDS", "DRIFTS" or "INCONCLUSIVE"."""

    status: str
    reasons: tuple[str, ...]
    optima: tuple[Optimum, ...]  # one per size, in growing order
    drift: Estimate  # octaves of LR per doubling of size
    regrets: tuple[Regret, ...]  # one per size above the base
    gains: tuple[Gain, ...]  # from each size to the next, each at its own optimum
    gain: Gain  # from the smallest to the largest
    noise: float  # standard deviation of one run's loss, the seeds' common level taken out
    noise_from_seeds: bool  # False: one seed, the noise is what smooth curves leave
    next_runs: tuple[dict[str, Any], ...]  # size, lr, log2_lr, seed: what would settle an INCONCLUSIVE
    columns: dict[str, str | None]
    notes: tuple[str, ...]
    level: float
    tolerance: float

    @property
    def ok(self) -> bool:
        """Whether the status is HOLDS."""
        return self.status == "HOLDS"

    @property
    def regret(self) -> Estimate:
        """Of the largest size, relative to its loss."""
        return self.regrets[-1].relative

    @property
    def wider_is_better(self) -> bool | None:
        """Whether the largest size beats the smallest, each at its best LR; None where the noise hides it."""
        sure = (1 + self.level) / 2
        return True if self.gain.better >= sure else False if self.gain.better <= 1 - sure else None

    @property
    def hidden_shift(self) -> float:
        """The change of log2 LR about the optimum of the largest size that costs less than one run's noise."""
        best = self.optima[-1]
        near = sorted(best.points, key=lambda p: abs(p[0] - best.log2_lr.value))[:5]
        x, y = (np.array(v) for v in zip(*[p for p in near if np.isfinite(p[1])], strict=True))
        if len(x) < 3:
            return float("inf")
        bend = float(np.polyfit(x - best.log2_lr.value, y, 2)[0])
        return float(np.sqrt(self.noise / bend)) if bend > 0 else float("inf")

    def words(self) -> str:
        """The verdict in a few lines."""
        from mutransfer.verdict.words import words

        return words(self)

    def __str__(self) -> str:
        return self.words()

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON types; None where a number is unknown or unbounded."""
        return {
            "status": self.status, "ok": self.ok, "reasons": list(self.reasons), "optima": [o.to_dict() for o in self.optima],
            "drift": self.drift.to_dict(), "regret": self.regret.to_dict(), "regrets": [r.to_dict() for r in self.regrets],
            "gain": self.gain.to_dict(), "gains": [g.to_dict() for g in self.gains], "wider_is_better": self.wider_is_better,
            "noise": self.noise, "noise_from_seeds": self.noise_from_seeds,
            "hidden_shift": self.hidden_shift if np.isfinite(self.hidden_shift) else None,
            "next_runs": list(self.next_runs), "columns": dict(self.columns), "notes": list(self.notes), "level": self.level,
            "tolerance": self.tolerance, "words": self.words(),
        }  # fmt: skip

    def figure(self, path: str | os.PathLike[str]) -> Path:
        """Draw loss against log2 LR per size into a PNG, SVG or PDF file. Raises InputError for another ending or a bad place."""
        from mutransfer.verdict.figure import save_curves

        return save_curves({"": self}, path)


def transfer_verdict(
    rows: Any,
    *,
    size: str | None = None,
    lr: str | None = None,
    loss: str | None = None,
    seed: str | None = None,
    where: Mapping[str, Any] | None = None,
    level: float = 0.9,
    tolerance: float = 0.01,
) -> Verdict:
    """Does the LR (or another hyperparameter, named by `lr`) tuned at the smallest size serve the larger ones? One row per run.

    rows: dicts, a data frame, the path of a table or of a sweep; columns size (width, depth, …), lr, seed (optional) and loss are found by their
    names, or named; lr="noise" judges that column. A diverged run (status, nan, inf, no loss) is a wall. `level`: of all intervals. `tolerance`: the relative regret that is
    acceptable. Independent of the order of rows; deterministic. Raises InputError for a table that cannot be judged.
    """
    _check(level, tolerance)
    return judge(prepare(read(rows), size, lr, loss, seed, where), level, tolerance)


def transfer_verdicts(
    rows: Any,
    by: str,
    *,
    size: str | None = None,
    lr: str | None = None,
    loss: str | None = None,
    seed: str | None = None,
    where: Mapping[str, Any] | None = None,
    level: float = 0.9,
    tolerance: float = 0.01,
) -> dict[str, Verdict]:
    """One verdict per value of column `by`, such as the recipe; arguments as in `transfer_verdict`."""
    _check(level, tolerance)
    table = read(rows)
    column = choose("by", by, (), list(dict.fromkeys(name for row in table for name in row)))[0]
    values = sorted({_text(row.get(column)) for row in table} - {""}, key=_order)
    if not values:
        raise InputError(f"by={by!r}: the column is empty")
    made = {}
    for value in values:
        chosen = [row for row in table if _text(row.get(column)) == value]
        chosen = [{name: item for name, item in row.items() if name != column} for row in chosen]
        try:
            made[value] = judge(prepare(chosen, size, lr, loss, seed, where), level, tolerance)
        except InputError as error:
            raise InputError(f"{column}={value} (of {listed(values)}): {error}") from None
    return made


def judge(runs: Runs, level: float, tolerance: float) -> Verdict:
    """The verdict on prepared runs."""
    sizes = gather(runs.runs, explodes=knob(runs.columns["lr"]) == "LR")
    name = str(runs.columns["size"])
    dead = [cells.size for cells in sizes if not cells.finite.any()]
    if dead:
        raise InputError(f"no LR has a finite loss at {name} {listed(f'{s:g}' for s in dead)}: run lower LRs there, or leave that size out")  # fmt: skip
    found = replicate(sizes)
    slope, _, _ = drift(found, level)
    margin = MARGIN * tolerance
    last = len(sizes) - 1
    steps = gains(found, level, margin, [(i, i + 1) for i in range(last)])
    overall = gains(found, level, margin, [(0, last)])[0]
    best, lost = optima(found, level), regrets(found, level, tolerance)
    evidence = Evidence(found, best, slope.low, slope.high, lost, steps, overall, tolerance, level, name)
    status, reasons, wanted = decide(evidence)
    notes = list(runs.notes)
    if bent(found, level):
        notes.append("the optimum does not move in a straight line with log2 size: the drift is its average")
    lonely = any(_lonely_wall(cells) for cells in sizes)
    if lonely:
        notes.append("a run diverged at an LR below others that did not: look at that run")
    return Verdict(
        status, tuple(named(reason, runs.columns["lr"]) for reason in reasons), best, slope, lost, steps, overall, found.sigma, found.noise.dof > 0,
        tuple(wanted), dict(runs.columns), tuple(named(note, runs.columns["lr"]) for note in notes), level, tolerance,
    )  # fmt: skip


def _lonely_wall(cells: Any) -> bool:
    finite = np.flatnonzero(cells.finite)
    return bool(np.any(cells.wall[finite[0] : finite[-1]]))


def _check(level: float, tolerance: float) -> None:
    if not 0.5 <= level <= 0.99:
        raise InputError(f"level={level!r}: write a level between 0.5 and 0.99, such as 0.9")
    if not 0 < tolerance <= 0.5:
        raise InputError(f"tolerance={tolerance!r}: write a share of the loss between 0 and 0.5, such as 0.01")


def _text(value: Any) -> str:
    try:
        found = number(value)
    except (ValueError, TypeError):
        return str(value).strip()
    return "" if found is None else f"{found:g}"


def _order(text: str) -> tuple[int, float, str]:
    try:
        return 0, float(text), text
    except ValueError:
        return 1, 0.0, text
