"""What a worker does: train one run and report on the way; call the user's function; time a few steps."""

from __future__ import annotations

import inspect
import math
import shutil
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, replace
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mutransfer.errors import InputError
from mutransfer.sweep.executor import Send
from mutransfer.sweep.wanted import data_of

if TYPE_CHECKING:
    from mutransfer.train import RunConfig, RunResult

Outcome = dict[str, Any]
"""status, reason, metrics, flops, seconds, cpu_seconds, points: what a job of one run returns."""

_TAIL = 50


def train_config(
    config: RunConfig, folder: str | None, until: int | None, ranks: int, send: Send, small: str | None = None
) -> Outcome:
    """One run of ours, continued from the checkpoint in `folder` if there is one, paused after `until` updates.

    `small` is the folder of the small models that runs of this sweep grow from.
    """
    from mutransfer.train import LogPoint, train

    started = time.process_time()

    def log(point: LogPoint) -> None:
        send(asdict(point))

    place, cache = (None if one is None else Path(one) for one in (folder, small))
    if ranks > 1:
        from mutransfer.train.ranks import launch

        result = launch(config, ranks, place, on_log=log, until=until, small=cache)
    else:
        result = train(config, folder=place, until=until, on_log=log, data=data_of(config), small=cache)
    return {
        "status": result.status, "reason": result.reason, "metrics": metrics(config, result), "flops": result.flops,
        "seconds": result.seconds, "cpu_seconds": time.process_time() - started,
        "points": [asdict(point) for point in result.points],
    }  # fmt: skip


def metrics(config: RunConfig, result: RunResult) -> dict[str, Any]:
    """The numbers by which a run can be judged; None for one that a diverged run does not have.

    `train_loss` is the mean over the last 50 updates, `best_train_loss` the lowest mean over 50 updates or a validation
    period, `mean_loss` the mean over all updates, `half_loss` the mean over the 50 updates up to half of the run. `grow_flops` and `grow_loss`
    are the small model's, where the run starts grown; its FLOPs are in the run's, too.
    """
    half = result.losses[: config.steps // 2][-_TAIL:]
    held = [point.val_loss for point in result.points if point.val_loss is not None]
    span = config.val_every or _TAIL
    spans = [result.losses[i : i + span] for i in range(0, len(result.losses) - len(result.losses) % span, span)]
    spans.append(result.losses[-_TAIL:])
    numbers = {
        "train_loss": result.train_loss,
        "best_train_loss": min(_mean(part) for part in spans),
        "mean_loss": _mean(result.losses),
        "val_loss": result.val_loss,
        "best_val_loss": min(held, default=None),
        "half_loss": _mean(half) if len(result.losses) >= config.steps // 2 else None,
    }
    if result.status == "diverged":
        numbers = dict.fromkeys(numbers)
    found: dict[str, Any] = {name: _finite(value) for name, value in numbers.items()}
    grown = {"grow_flops": result.grow_flops, "grow_loss": _finite(result.grow_loss)} if config.grow_from else {}
    return {**found, "updates": len(result.losses), "diverged_at": result.diverged_at, "params": result.params, **grown}


def _finite(value: float | None) -> float | None:
    return value if value is not None and math.isfinite(value) else None


def _mean(losses: tuple[float, ...]) -> float:
    return sum(losses) / len(losses) if losses else math.nan


def call_function(spec: str, cwd: str, point: Mapping[str, Any], folder: str | None, send: Send) -> Outcome:
    """The user's own training function with the point's values by name; see `docs/sweep.md` for its contract."""
    function = import_function(spec, cwd)
    started, cpu, points = time.perf_counter(), time.process_time(), []

    def report(step: int, loss: float, **more: float) -> None:
        points.append({"step": int(step), "loss": float(loss), **{name: float(value) for name, value in more.items()}})
        send(points[-1])

    extra = {"report": report, "folder": None if folder is None else Path(folder)}
    accepted = inspect.signature(function).parameters
    if folder is not None and "folder" in accepted:
        Path(folder).mkdir(parents=True, exist_ok=True)
    returned = function(**point, **{name: value for name, value in extra.items() if name in accepted})
    numbers = dict(returned) if isinstance(returned, Mapping) else {"loss": returned}
    if "loss" not in numbers:
        raise InputError(
            f"{spec} returned {_quoted(returned)}: return the loss, or a dict of numbers with the key 'loss'"
        )
    found = {}
    for name, value in numbers.items():
        try:
            found[str(name)] = _plain(value)
        except (TypeError, ValueError, RuntimeError):
            what = f"{str(name)!r}: {_quoted(value)}" if isinstance(returned, Mapping) else _quoted(value)
            raise InputError(
                f"{spec} returned {what}, not a number: return the loss, or a dict of numbers with the key 'loss'"
            ) from None
    loss = found["loss"]
    diverged = not math.isfinite(loss)
    return {
        "status": "diverged" if diverged else "finished",
        "reason": f"the loss that {spec} returned is {loss}" if diverged else None,
        "metrics": {name: value if math.isfinite(value) else None for name, value in found.items() if name != "flops"},
        "flops": found.get("flops"), "seconds": time.perf_counter() - started,
        "cpu_seconds": time.process_time() - cpu, "points": points,
    }  # fmt: skip


def _plain(value: Any) -> float:
    """A number, or a tensor or array with one element, as a float. Raises TypeError or ValueError for anything else."""
    if isinstance(value, bool):
        raise TypeError(value)
    # a loss is often returned with its graph, of which torch warns in float()
    return float(value.detach() if hasattr(value, "detach") else value)


def _quoted(value: Any) -> str:
    text = " ".join((value if isinstance(value, str) else repr(value)).split())[:80]
    return repr(text) if isinstance(value, str) else text


def import_function(spec: str, cwd: str) -> Callable[..., Any]:
    """The user's function, imported from the folder in which the sweep was started."""
    import os

    from mutransfer.commands.user_code import find_function

    if Path.cwd() != Path(cwd):
        os.chdir(cwd)
    return find_function(spec, "function run(width, lr, seed, ...) -> loss")


def step_seconds(config: RunConfig, budget: float, send: Send) -> float:
    """Seconds of one update of this run, measured now, beside whatever else this machine is doing: the median of some."""
    from mutransfer.train import LogPoint, train
    from mutransfer.train.warm import without_growth

    data = data_of(config)
    plain = replace(without_growth(config), warmup=0, val_batches=0, checkpoint_every=0, log_every=1)

    def timed(steps: int) -> list[float]:
        at: list[float] = []

        def log(point: LogPoint) -> None:
            at.append(point.seconds)

        train(replace(plain, steps=steps), data=data, on_log=log)
        return [after - before for before, after in pairwise(at)]

    first = statistics.median(timed(4))  # the first update allocates, and is no difference
    return max(1e-6, statistics.median(timed(max(6, min(100, int(budget / max(1e-4, first)))))))


def matmul_flops(device: str, send: Send) -> float:
    """Floating-point operations per second of a large float32 matrix product on this worker's device."""
    import torch

    from mutransfer.train import resolve_device

    place = resolve_device(device)
    size = 512 if place.type == "cpu" else 4096
    a, b = (torch.randn(size, size, device=place) for _ in range(2))

    def run(count: int) -> float:
        start = time.perf_counter()
        c = a
        for _ in range(count):
            c = a @ b
        float(c[0, 0])  # waits for the device
        return (time.perf_counter() - start) / count

    run(3)
    return 2 * size**3 / min(run(10) for _ in range(3))


def forget(folder: str, send: Send) -> None:
    """Remove a run's checkpoints."""
    shutil.rmtree(folder, ignore_errors=True)
