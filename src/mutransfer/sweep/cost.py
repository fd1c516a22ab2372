"""What a sweep will cost, told before it starts: a few updates of some of its runs, timed in all workers at once."""

from __future__ import annotations

import heapq
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from mutransfer.errors import InputError
from mutransfer.sweep import jobs
from mutransfer.sweep.executor import Executor
from mutransfer.sweep.wanted import Call, Wanted, data_of

if TYPE_CHECKING:
    from mutransfer.train import RunConfig

_TIMED = 6  # sizes that are timed; the others take the speed of their neighbours
_BUDGET = 0.3  # seconds for each
_LOST = 3  # processes that may die meanwhile


@dataclass(frozen=True)
class Cost:
    """Seconds of one worker and FLOPs of every run by its result; `peak`: matmul FLOP/s of a worker, None if unknown."""

    seconds: Mapping[str, float]
    flops: Mapping[str, float]
    peak: float | None
    places: int

    @property
    def known(self) -> bool:
        """Whether every run could be estimated: the user's own functions cannot before the first of them is done."""
        return all(math.isfinite(value) for value in self.seconds.values())

    @property
    def wall(self) -> float:
        """Seconds until all are done, longest first on `places` workers."""
        free = [0.0] * self.places
        for seconds in sorted((s for s in self.seconds.values() if math.isfinite(s)), reverse=True):
            heapq.heapreplace(free, free[0] + seconds)
        return max(free)


def estimate(runs: Sequence[Wanted], executor: Executor, ranks: int, known: Sequence[Mapping[str, Any]] = ()) -> Cost:
    """The cost of `runs` (one of each result), from records of earlier runs of the same shape and from timing the rest."""
    from mutransfer.train.warm import without_growth

    ours = {run.result: run.config for run in runs if not isinstance(run.config, Call)}
    flops = _shared(ours)
    shapes = {result: _shape(config) for result, config in ours.items()}
    speed = _speeds(known)
    fresh: dict[str, RunConfig] = {}
    for result, config in ours.items():
        if shapes[result] not in speed:
            fresh.setdefault(shapes[result], without_growth(config))
    peak = None
    if fresh:
        ordered = sorted(fresh.items(), key=lambda item: flops_of(item[1]) / item[1].steps)
        step = max(1.0, (len(ordered) - 1) / (_TIMED - 1))
        chosen = dict(ordered[round(i * step)] for i in range(min(_TIMED, len(ordered))))
        timed = _time(chosen, executor, ranks)
        peak = timed.pop("", None)
        for shape, config in ordered:
            speed[shape] = timed[shape] if shape in timed else _near(flops_of(config) / config.steps, chosen, timed)
    calls = _call_seconds(runs, known)
    seconds = {result: flops[result] / speed[shapes[result]] for result in ours}
    return Cost({**seconds, **calls}, flops, peak, executor.count)


def flops_of(config: RunConfig) -> float:
    """FLOPs of the matrix products of the whole run, the small model's that it grows from with them."""
    import torch

    from mutransfer.train import Task, flops_per_row

    rows = Task(config, data_of(config), torch.device("cpu")).row_shape
    own = flops_per_row(config.model, rows) * config.batch * config.steps
    return own if config.small is None else own + flops_of(config.small)


def _shared(runs: Mapping[str, RunConfig]) -> dict[str, float]:
    """FLOPs of every run by its result; a small model that several of them grow from is trained by the first."""
    found: dict[str, float] = {}
    seen: set[RunConfig] = set()
    for result, config in runs.items():
        found[result] = flops_of(config)
        if config.small is not None:
            if config.small in seen:
                found[result] -= flops_of(config.small)
            seen.add(config.small)
    return found


def _shape(config: RunConfig) -> str:
    """What decides the speed of a run: everything but the numbers of its rule."""
    from mutransfer.train.warm import without_growth

    plain = replace(
        without_growth(config), lr=1.0, seed=0, weight_decay=0.0, eps=0.0, steps=1, warmup=0, base={}, recipe="sp", mode="exact",
        momentum=0.0, betas=(0.0, 0.0), log_every=1, schedule="constant", final_lr_ratio=0.0,
    )  # fmt: skip
    return plain.hash()


def _speeds(known: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """shape → FLOP/s of finished runs of ours in the store."""
    from mutransfer.train import RunConfig

    found: dict[str, float] = {}
    for record in known:
        if record["status"] == "finished" and record["flops"] and record["seconds"] and "model" in record["config"]:
            found[_shape(RunConfig.from_dict(record["config"]))] = record["flops"] / record["seconds"]
    return found


def _time(chosen: Mapping[str, RunConfig], executor: Executor, ranks: int) -> dict[str, float]:
    """shape → FLOP/s, all places busy; under "" the matmul FLOP/s of a place. The largest first."""
    work: dict[str, tuple[Any, ...]] = {
        f"time {shape}": (jobs.step_seconds, config, _BUDGET) for shape, config in reversed(list(chosen.items()))
    }
    work["time "] = (jobs.matmul_flops, next(iter(chosen.values())).device)
    for job, call in work.items():
        executor.submit(job, *call)
    jobs_left, lost = set(work), 0
    found: dict[str, float] = {}
    while jobs_left:
        for event in executor.events():
            if event.kind == "error":
                raise event.value
            if event.kind == "lost":
                lost += 1
                if lost > _LOST:
                    raise InputError(f"timing a few updates failed: {event.value}")
                executor.submit(event.job, *work[event.job])
            if event.kind == "done":
                jobs_left.discard(event.job)
                shape = event.job.removeprefix("time ")
                if not shape:
                    found[""] = event.value
                else:
                    config = chosen[shape]
                    found[shape] = flops_of(config) / config.steps / event.value * ranks
    return found


def _near(flops: float, chosen: Mapping[str, RunConfig], timed: Mapping[str, float]) -> float:
    """The speed of the timed run that is nearest in FLOPs per update."""
    return timed[min(chosen, key=lambda shape: abs(math.log(flops_of(chosen[shape]) / chosen[shape].steps / flops)))]


def _call_seconds(runs: Sequence[Wanted], known: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """Seconds of the user's own calls: the mean of what calls of the same function and size took; NaN if none is known."""
    found: dict[str, float] = {}
    for run in runs:
        if isinstance(run.config, Call):
            fields = run.config.to_dict()
            took = [
                record["seconds"]
                for record in known
                if record["status"] == "finished"
                and all(record["config"].get(n) == fields.get(n) for n in ("function", "width", "depth"))
            ]
            found[run.result] = sum(took) / len(took) if took else math.nan
    return found
