"""Learning rate schedules as a number per update: from a table's column, a list, or the settings of a run."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields, is_dataclass
from functools import cached_property
from typing import Any

import numpy as np

from mutransfer.errors import InputError

Array = np.ndarray
SHAPES = ("constant", "cosine", "linear", "wsd")
MOST = 5_000_000  # updates of one run
SETTINGS: Mapping[str, float] = {"lr": 1.0, "warmup": 0.0, "final_lr_ratio": 0.1, "wsd_decay_fraction": 0.2}
"""Of a schedule beside `schedule` and `steps`, with the values they have where nothing is said."""
SAME = 1e-3  # rates that differ by less, as a share of the highest, are one: a logger rounds


@dataclass(frozen=True)
class Schedule:
    """`lr` (T,), float64, ≥ 0: that of update i is lr[i − 1], and the loss at step s is the one after updates 1…s."""

    lr: Array

    def __len__(self) -> int:
        return len(self.lr)

    @cached_property
    def area(self) -> Array:
        """(T + 1,): Σ_{i≤s} lr_i, S1 of both laws."""
        return np.concatenate([[0.0], np.cumsum(self.lr)])

    @cached_property
    def warm(self) -> int:
        """The step at which the LR first reaches its highest value (to `SAME`): before it, it warms up."""
        return int(np.argmax(self.lr >= (1 - SAME) * self.lr.max())) + 1

    @cached_property
    def drops(self) -> Array:
        """(T,): lr_{i−1} − lr_i after warm-up, 0 in it; negative where the LR rises again."""
        fall = np.concatenate([[0.0], self.lr[:-1] - self.lr[1:]])
        fall[: self.warm] = 0.0
        return fall

    def falls(self, until: int | None = None) -> float:
        """The share of its highest value by which the LR lies below it, at most, in the steps up to `until`."""
        seen = self.lr[self.warm - 1 : until]
        return float(1 - seen.min() / self.lr.max()) if len(seen) else 0.0

    def same_until(self, other: Schedule) -> int:
        """The last step up to which both have the same LR."""
        n = min(len(self), len(other))
        scale = max(self.lr.max(), other.lr.max())
        differ = np.abs(self.lr[:n] - other.lr[:n]) > SAME * scale
        return int(np.argmax(differ)) if differ.any() else n

    def extended(self, steps: int) -> Schedule:
        """The last LR kept up to `steps`."""
        return (
            self if steps <= len(self) else Schedule(np.concatenate([self.lr, np.full(steps - len(self), self.lr[-1])]))
        )


def shaped(shape: str, steps: int, **settings: float) -> Schedule:
    """The schedules of our own training loop, `train.schedule.multiplier` for every update at once. Raises InputError."""
    given = {**SETTINGS, **settings}
    if shape not in SHAPES:
        raise InputError(f"schedule={shape!r}: write one of {', '.join(SHAPES)}")
    if not 1 <= steps <= MOST:
        raise InputError(f"schedule steps={steps!r}: write the number of updates, 1 to {MOST:,}")
    lr, warmup, ratio, fraction = (float(given[name]) for name in SETTINGS)
    if not lr > 0 or warmup < 0 or not 0 <= ratio <= 1 or not 0 <= fraction <= 1:
        raise InputError(f"schedule {dict(given)}: lr must be above 0, warmup not below 0, final_lr_ratio and wsd_decay_fraction in [0, 1]")  # fmt: skip
    step = np.arange(steps, dtype=float)
    last = steps - 1.0
    start = max(warmup, last - round(fraction * steps)) if shape == "wsd" else warmup
    u = np.clip((step - start) / max(1.0, last - start), 0.0, 1.0)
    if shape == "constant":
        factor = np.ones(steps)
    elif shape == "cosine":
        factor = ratio + (1 - ratio) * (1 + np.cos(math.pi * u)) / 2
    else:
        factor = 1 - (1 - ratio) * u
    return Schedule(lr * np.where(step < warmup, (step + 1) / (warmup + 1), factor))


def of_config(config: Any) -> Schedule:
    """From settings by name, or a run's config: schedule, steps, and any of `SETTINGS`. Raises InputError."""
    values = {f.name: getattr(config, f.name) for f in fields(config)} if is_dataclass(config) else dict(config)
    known = ("schedule", "steps", *SETTINGS)
    if not is_dataclass(config):
        wrong = next((name for name in values if name not in known), None)
        if wrong is not None:
            raise InputError(f"schedule {wrong}={values[wrong]!r}: write {', '.join(known)}")
    for name in ("schedule", "steps", "lr"):
        if values.get(name) is None:
            raise InputError(f'schedule without {name}: write schedule={{"schedule": "cosine", "steps": 24000, "lr": 3e-4, "warmup": 2000}}')  # fmt: skip
    numbers = {}
    for name in ("steps", *SETTINGS):
        if name in values:
            try:
                numbers[name] = float(values[name])
            except (TypeError, ValueError):
                raise InputError(f"schedule {name}={values[name]!r}: write a number") from None
    return shaped(str(values["schedule"]), int(numbers.pop("steps")), **numbers)


def of_list(rates: Any) -> Schedule:
    """From one LR per update. Raises InputError."""
    try:
        lr = np.array(rates, float)
    except (TypeError, ValueError):
        raise InputError(f"schedule={str(rates)[:60]!r}: write one learning rate per update, or a schedule's settings") from None  # fmt: skip
    if lr.ndim != 1 or not 1 <= len(lr) <= MOST:
        raise InputError(f"schedule of shape {lr.shape}: write one learning rate per update, 1 to {MOST:,} of them")
    wrong = np.flatnonzero(~(np.isfinite(lr) & (lr >= 0)))
    if len(wrong):
        raise InputError(f"schedule: the LR of update {wrong[0] + 1} is {lr[wrong[0]]:g}; write numbers not below 0")
    if not lr.max() > 0:
        raise InputError("schedule: every LR is 0")
    return Schedule(lr)


def of_points(step: Array, lr: Array, name: str = "lr") -> tuple[Schedule, str | None]:
    """From logged points: straight lines between them. Before the first one a linear warm-up is assumed where the LR does not rise later.

    step (n,) whole numbers that grow; lr (n,). Returns what was assumed, if anything. Raises InputError.
    """
    wrong = np.flatnonzero(~(np.isfinite(lr) & (lr >= 0)))
    if len(wrong):
        raise InputError(f"{name}={lr[wrong[0]]:g} at step {step[wrong[0]]:g}: a learning rate is not below 0")
    if not lr.max() > 0:
        raise InputError(f"{name} is 0 in every row")
    if step[-1] > MOST:
        raise InputError(
            f"step goes to {step[-1]:g}: write the number of updates, not tokens or samples, at most {MOST:,}"
        )
    first, gap = step[0], float(np.median(np.diff(step))) if len(step) > 1 else 1.0
    said = None
    rises = len(lr) > 1 and lr[1] > (1 + SAME) * lr[0]
    x, y = step, lr
    if first > 1 and (rises or first > 3 * gap):
        x, y = np.concatenate([[0.0], step]), np.concatenate([[0.0], lr])
        said = f"the table begins at step {first:g}: a linear warm-up of the LR up to there is assumed"
    return Schedule(np.interp(np.arange(1, int(step[-1]) + 1, dtype=float), x, y)), said
