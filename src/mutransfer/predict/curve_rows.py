"""The rows of all runs that a curve's law is fitted to: thinned, without the transient and spikes, and who follows whom."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from mutransfer.predict.correlated import Chain
from mutransfer.predict.curve_fit import Evidence
from mutransfer.predict.curve_laws import CurveForm
from mutransfer.predict.curve_read import Run, thinned
from mutransfer.predict.schedules import Schedule

Array = np.ndarray
MOST, LEAST_EACH = 200, 40  # rows fitted, of all runs and of one
WINDOW, WILD = 11, 8.0  # a spike: this many deviations off the median of its neighbours
TRANSIENT = 0.1  # of the fitted steps


@dataclass(frozen=True)
class Rows:
    """All (n,): run (its number), step, loss, count (logged rows that each is the mean of), parent and gap as in `Chain`; area S in units of the
    peak LR; table (nodes…, n) φ. within: relative variance of one logged row about its mean."""

    form: CurveForm
    run: Array
    step: Array
    loss: Array
    count: Array
    parent: Array
    gap: Array
    area: Array
    table: Array
    within: float

    def __len__(self) -> int:
        return len(self.step)

    def take(self, kept: Array) -> Rows:
        """The rows for which `kept` (n,) is true. A row whose parent is gone starts anew."""
        index = np.flatnonzero(kept)
        place = np.full(len(self) + 1, -1)
        place[index] = np.arange(len(index))
        parent = place[self.parent[index]]
        return replace(
            self, run=self.run[index], step=self.step[index], loss=self.loss[index], count=self.count[index], parent=parent,
            gap=np.where(parent < 0, np.inf, self.gap[index]), area=self.area[index], table=self.table[..., index],
        )  # fmt: skip

    def evidence(self, ends: Sequence[int]) -> Evidence:
        """For the fit; `ends`: the rows after which predictions go on."""
        inner = self.gap[np.isfinite(self.gap)]
        span = max(float(np.ptp(self.step[self.run == r])) for r in np.unique(self.run))
        chain = Chain(self.gap, self.parent, np.median(self.count) / self.count)
        return Evidence(
            self.form, self.loss, self.area / self.area.max(), self.table, chain, tuple(ends), max(span, 1.0),
            float(np.median(inner)) if len(inner) else 1.0,
        )  # fmt: skip


def area_of(form: CurveForm, schedule: Schedule | None, steps: Array, peak: float) -> Array:
    """S at steps (n,): Σ lr/peak, or the step itself for a law without LR."""
    if not form.nodes or schedule is None:
        return np.asarray(steps, float)
    return schedule.area[np.asarray(steps, int)] / peak


def table_of(form: CurveForm, schedule: Schedule | None, steps: Array, peak: float) -> Array:
    """φ at steps (n,), at every node."""
    if not form.nodes or schedule is None:
        return np.zeros(len(steps))
    return form.table(schedule, np.asarray(steps, int), peak)


def start_of(runs: Sequence[Run], until: float) -> int:
    """The first step that is fitted: after the warm-up of every run, and after the first tenth of the fitted steps, which no law describes."""
    warm = max((run.schedule.warm for run in runs if run.schedule is not None), default=1)
    return int(max(warm, np.ceil(TRANSIENT * until)))


def spikes(loss: Array) -> Array:
    """Which losses (n,) are far off the median of their neighbours, on both sides of which there are some; at most a twentieth of them."""
    n, half = len(loss), WINDOW // 2
    wild = np.zeros(n, bool)
    if n < 4 * WINDOW:
        return wild
    windows = np.lib.stride_tricks.sliding_window_view(np.log(loss), WINDOW)
    away = np.abs(np.log(loss[half : n - half]) - np.median(windows, axis=1))
    # the typical distance nearby, so that a noisy beginning does not hide what is wild later
    near = np.median(np.lib.stride_tricks.sliding_window_view(np.pad(away, (2 * half, 2 * half), mode="reflect"), 4 * half + 1), axis=1)  # fmt: skip
    scale = np.maximum(1.4826 * np.maximum(near, np.median(away)), 1e-5)
    order = np.argsort(-away / scale)[: n // 20]
    wild[half + order[(away / scale)[order] > WILD]] = True
    return wild


def gather(form: CurveForm, runs: Sequence[Run], start: float, until: float, peak: float) -> tuple[Rows, int]:
    """The rows of runs from `start` to `until`, and how many spikes were set aside."""
    most = max(LEAST_EACH, MOST // max(1, len(runs)))
    parts: list[Rows] = []
    number = {run.name: i for i, run in enumerate(runs)}
    set_aside = 0
    for i, run in enumerate(runs):
        use = (run.step >= start) & (run.step <= until)
        step, loss = run.step[use], run.loss[use]
        if not len(step):
            continue
        wild = spikes(loss)
        set_aside += int(wild.sum())
        step, loss, count, within = thinned(step[~wild], loss[~wild], most)
        before = sum(len(p) for p in parts)
        parent = np.arange(before - 1, before + len(step) - 1)
        gap = np.diff(step, prepend=step[0])
        parent[0], gap[0] = -1, np.inf
        if run.branch is not None:
            from_start = 0
            for old in parts:
                at = np.flatnonzero(old.step <= run.branch[1])
                if old.run[0] == number[run.branch[0]] and len(at):
                    parent[0], gap[0] = from_start + at[-1], step[0] - old.step[at[-1]]
                from_start += len(old)
        parts.append(Rows(
            form, np.full(len(step), i), step, loss, count, parent, gap.astype(float), area_of(form, run.schedule, step, peak),
            table_of(form, run.schedule, step, peak), within,
        ))  # fmt: skip
    return _joined(form, parts), set_aside


def _joined(form: CurveForm, parts: Sequence[Rows]) -> Rows:
    def all_of(pick: Callable[[Rows], Array]) -> Array:
        return np.concatenate([pick(part) for part in parts], axis=-1) if parts else np.empty(0)

    return Rows(
        form, all_of(lambda p: p.run), all_of(lambda p: p.step), all_of(lambda p: p.loss), all_of(lambda p: p.count), all_of(lambda p: p.parent),
        all_of(lambda p: p.gap), all_of(lambda p: p.area), all_of(lambda p: p.table), max((p.within for p in parts), default=0.0),
    )  # fmt: skip
