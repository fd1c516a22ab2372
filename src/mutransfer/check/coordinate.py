"""`coord_check`: run the user's code at every size, then judge the exponents."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import replace
from typing import Any

from torch import nn

from mutransfer.check import activation, depth, doubt, expect, feed, points, record, static, step
from mutransfer.check import build as building
from mutransfer.check.findings import Finding
from mutransfer.check.record import Records
from mutransfer.check.report import CheckReport
from mutransfer.check.verdict import Judge
from mutransfer.errors import InputError


def coord_check(
    build: Callable[[Any], Any],
    sizes: Iterable[feed.Size] | Mapping[str, Iterable[int]],
    batches: Any,
    loss: feed.Loss | None = None,
    steps: int = 4,
    seeds: int | Iterable[int] = 3,
    *,
    axis: str | None = None,
    clip: float | Callable[[nn.Module], Any] | None = None,
    schedule: Callable[[Any], Any] | None = None,
    after_step: Callable[..., Any] | None = None,
    operator_norms: bool = False,
    progress: Callable[[int, int, str], Any] | None = None,
    tolerance: float = 0.25,
    level: float = 0.9,
) -> CheckReport:
    """Measure how every module and weight scales with size in the user's own training code, and say what is wrong.

    `build(size)` returns (model, optimizer[, scheduler]); an optimizer may be a list of them. `size` is an int (the width) or a dict, in
    which what varies is the axis. Two axes are a grid: `sizes={"width": [32, 64, 128], "depth": [2, 4, 8]}`, or a list of dicts in which two
    keys vary; `build` gets a dict, every line of the grid is judged, and all of them together: a GridReport.
    `batches`: one batch (tensor, tuple, dict, dataclass), a list of them, or any iterable such as a DataLoader; every size and seed sees the
    same ones. `loss(model, batch)` returns a scalar; without it the model's output must carry `.loss`. `clip` is a global norm threshold, or a callable that clips a model's gradients in place; `schedule(optimizer)` returns a
    scheduler, stepped after every step; `after_step(model, optimizer, step)` is called after each. `tolerance` is the error of an exponent
    that is accepted, `level` the confidence of the intervals.

    Nothing of the caller's random state is changed. Raises InputError for anything that cannot be checked, such as a NaN loss at step 0.
    """
    if isinstance(sizes, Iterator):
        sizes = list(sizes)
    grid = points.read_grid(sizes, axis)
    ordered, name, values = ([], "", []) if grid is not None else feed.read_sizes(sizes, axis)
    seed_list = _seeds(seeds)
    _callables(build=build, loss=loss, schedule=schedule, after_step=after_step, progress=progress)
    _numbers(steps, clip, tolerance, level)
    listed = feed.materialise(batches, steps)
    protocol = record.Protocol(
        build, listed, loss or feed.default_loss, steps, clip, schedule, after_step, operator_norms
    )
    if grid is not None:
        from mutransfer.check.grid import measure  # here: they use `judge`
        from mutransfer.check.lines import judge_grid

        return judge_grid(grid, *measure(grid, protocol, seed_list, progress), tolerance, level)
    records = Records(name, ordered, values, seed_list, clip_is_callable=callable(clip))
    total, done = len(values) * len(seed_list), 0
    with building.own_randomness():
        for i in range(len(ordered)):
            for j, seed in enumerate(seed_list):
                record.run(records, protocol, i, j)
                done += 1
                if i == 0 and not math.isfinite(records.data["loss", "", 0][0, j]):
                    raise InputError(
                        f"the loss is NaN or infinite at step 0 at {name} {values[0]:g} (seed {seed}): fix the model first"
                    )
                if i > 0 and j == 0:
                    expect.refuse_shrinking(records)
                    if not isinstance(ordered[i], dict):
                        records.axis = name = expect.axis_of(records, axis)
                if progress is not None:
                    progress(done, total, f"{name} {values[i]:g}, seed {seed}")
        degrees = step.probe_degree(protocol, ordered[0], seed_list[0])
    return judge(records, degrees, tolerance, level)


HANDED = {
    "build": "a function that takes a size and returns (model, optimizer)",
    "loss": "a function loss(model, batch) that returns a scalar tensor",
    "schedule": "a function schedule(optimizer) that returns a scheduler",
    "after_step": "a function after_step(model, optimizer, step)",
    "progress": "a function progress(done, total, what)",
}


def _callables(**handed: Any) -> None:
    for name, value in handed.items():
        if not callable(value) and (value is not None or name == "build"):
            raise InputError(f"{name}={value!r}: hand over {HANDED[name]}")


def _numbers(steps: Any, clip: Any, tolerance: Any, level: Any) -> None:
    if not isinstance(steps, int) or isinstance(steps, bool) or steps < 1:
        raise InputError(f"steps={steps!r}: at least one training step is needed, as an integer such as 4")
    if clip is not None and not callable(clip) and not (_real(clip) and clip > 0):
        raise InputError(
            f"clip={clip!r}: the threshold must be a positive number such as 1.0, or a function that clips"
        )
    if not (_real(tolerance) and _real(level) and 0 < level < 1 and 0 < tolerance < 1):
        raise InputError(f"tolerance={tolerance!r}, level={level!r}: both are numbers between 0 and 1")


def _real(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _seeds(seeds: int | Iterable[int]) -> list[int]:
    if isinstance(seeds, int) and not isinstance(seeds, bool):
        if seeds < 1:
            raise InputError(f"seeds={seeds!r}: at least one seed is needed")
        return list(range(seeds))
    try:
        listed = [int(seed) for seed in seeds]  # pyright: ignore[reportGeneralTypeIssues]
    except (TypeError, ValueError):
        raise InputError(f"seeds={seeds!r}: a number of seeds or a list of integers") from None
    if not listed or len(set(listed)) < len(listed) or min(listed) < 0:
        raise InputError(f"seeds={listed!r}: a list of different non-negative integers")
    return listed


def judge(
    records: Records, degrees: dict[str, tuple[int, ...]], tolerance: float = 0.25, level: float = 0.9
) -> CheckReport:
    """The verdict on what was recorded; pure arithmetic."""
    stacks = depth.stacks_of(records)
    if stacks is None:
        infos = expect.describe(records, degrees)
        judge = Judge(records, infos, tolerance, level)
        found = static.attention(judge)  # first: it tells which queries and keys carry a factor rightly
        found += judge.judge()
        order = {info.name: info.order for info in infos}
        found.sort(key=lambda f: order.get(f.name, math.inf))
        found = activation.unexplained(judge, found) + found
        found += static.eps(judge, {f.name for f in found if f.rule == "eps"})
        found.sort(key=lambda f: order.get(f.name, math.inf))
        found += static.decay(judge) + static.clipping(judge) + static.schedules(judge)
        found += static.fixed_dimensions(judge)
    else:
        infos = expect.describe_depth(records, degrees)
        judge = Judge(records, infos, tolerance, level)
        found = depth.DepthJudge(judge, stacks).judge_all()
        found += static.clipping(judge) + static.schedules(judge)
    found = doubt.soften(judge, found) + static.diverged(judge)
    found += _unknown_optimizers(records, degrees)
    found = _other_character(records, degrees, found)
    verdict, why = _verdict(records, infos, found)
    return CheckReport(verdict, why, tuple(found), records, tuple(infos), tolerance, level)


def _unknown_optimizers(records: Records, degrees: dict[str, tuple[int, ...]]) -> list[Finding]:
    found = []
    for optimizer in dict.fromkeys(o for n, o in records.optimizer_of.items() if records.facts[n] is None):
        names = [n for n, o in records.optimizer_of.items() if o == optimizer]
        p = max((degrees.get(n, (0,))[0] for n in names), default=0)
        found.append(Finding(names[0], "unknown optimizer", f"{optimizer} has no declared facts", 0, 0, 0, 0,
                             f"measured: its step scales like gradient^{p}", "note"))  # fmt: skip
    return found


def _other_character(records: Records, degrees: dict[str, tuple[int, ...]], found: list[Finding]) -> list[Finding]:
    """An optimizer that does not (yet) act as declared, such as RAdam's first steps, accuses nobody of a learning rate."""
    names = [
        n for n, facts in records.facts.items() if facts is not None and n in degrees and facts.degree not in degrees[n]
    ]
    if not names:
        return found
    first = names[0]
    facts = records.facts[first]
    declared = 0 if facts is None else facts.degree
    doubtful = ("learning rate", "learning rate over depth", "eps")
    found = [replace(f, severity="unclear") if f.name in names and f.rule in doubtful else f for f in found]
    words = f"{records.optimizer_of[first]} acts like gradient^{degrees[first][0]} in its first step, declared gradient^{declared}"
    return [*found, Finding(first, "optimizer's character", words, 0, 0, 0, 0,
                            "check with an optimizer that acts the same from the first step on", "unclear")]  # fmt: skip


def _verdict(records: Records, infos: list[expect.TensorInfo], found: list[Finding]) -> tuple[str, str]:
    if any(f.severity == "fail" for f in found):
        return "FAIL", ""
    if len(records.values) < 3:
        return (
            "INCONCLUSIVE",
            f"only {len(records.values)} sizes: run at least three, such as one between and one twice as large",
        )
    if records.values[-1] / records.values[0] < 3.99:
        need = records.values[0] * 4
        return "INCONCLUSIVE", f"the sizes span less than a factor 4: add {records.axis} {need:g} or larger"
    unclear = {f.rule for f in found if f.severity == "unclear"}
    if unclear == {"not seen"}:
        return "INCONCLUSIVE", "tensors behind zero-initialised ones have not moved yet: take at least 3 steps"
    if unclear == {"optimizer's character"}:
        return "INCONCLUSIVE", "the optimizer does not act as declared in its first steps"
    if unclear:
        return "INCONCLUSIVE", "some exponents are too noisy to tell: run more seeds, or a wider span of sizes"
    moved = [n for n in records.names("update") if any(_positive(records, n, s) for s in records.steps("update", n))]
    if not moved:
        return "INCONCLUSIVE", "no tensor moved: is the learning rate zero?"
    if all(info.role == "unknown" for info in infos):
        return "INCONCLUSIVE", "no tensor's axes could be told"
    return "PASS", ""


def _positive(records: Records, name: str, step: int) -> bool:
    array = records.get("update", name, step)
    return array is not None and bool((array > 0).any())
