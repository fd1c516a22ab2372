"""Warm start against training from scratch at equal total compute, base training and tuning counted on both sides (μpscaling).

A warm start pays for the tuning of the small model (which scratch pays for, too), for the tuning of growing at a small size, and for the small
model; what that costs, the big model from scratch is trained longer.
"""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mutransfer.errors import InputError
from mutransfer.experiments.experiment import Experiment
from mutransfer.experiments.grid import powers
from mutransfer.experiments.growing_figure import Line, draw

if TYPE_CHECKING:
    from collections.abc import Callable

    from mutransfer.sweep import Options, Wanted
    from mutransfer.train import RunConfig

LEVEL = 0.9
"""Of the intervals, over seeds."""
WARM, SCRATCH, LONGER = "warm start", "scratch, growing's tuning not counted", "scratch, equal total compute"
METHODS = (WARM, SCRATCH, LONGER)


@dataclass(frozen=True)
class Task:
    """One model and data set. `proxy` and `target` are (small, big) widths: growing is tuned from the one pair and used in the other.

    Tuning runs and small runs are `small_steps` updates long, those that grow go on for `tune_steps`; the big model for each of `steps`.
    Tuning is one seed, the rates of the small model and those of the grown one on the same grid.
    """

    run: Mapping[str, Any]
    proxy: tuple[int, int]
    target: tuple[int, int]
    small_steps: int
    tune_steps: int
    steps: tuple[int, ...]
    lrs: tuple[float, ...]
    noises: tuple[float, ...]
    seeds: tuple[int, ...]
    metric: str = "val_loss"

    @cached_property
    def values(self) -> dict[str, Any]:
        """The proxy's small run as plain values. Raises InputError when its data is not there."""
        from mutransfer.commands.builtin import described

        fields = {**self.run, "width": self.proxy[0], "base.width": self.proxy[0]}
        return described(fields.pop("kind"), fields)

    def config(self, width: int, steps: int, lr: float, seed: int, **more: Any) -> RunConfig:
        """A run of this task, warmed up for a tenth of it."""
        from mutransfer.sweep.grid import with_fields
        from mutransfer.train import RunConfig

        given = {"width": width, "steps": steps, "warmup": steps // 10, "lr": lr, "seed": seed, **more}
        return RunConfig.from_dict(with_fields(self.values, given))

    def grown(
        self, pair: tuple[int, int], steps: int, lr: float, noise: float, small_lr: float, seed: int
    ) -> RunConfig:
        """The same of the pair's big model, grown from its small one."""
        more = {"grow_from.width": pair[0], "grow_steps": self.small_steps, "grow_warmup": self.small_steps // 10}
        return self.config(pair[1], steps, lr, seed, **more, grow_lr=small_lr, grow_noise=noise)


def config(size: str) -> dict[str, Task]:
    """Covertype 100 → 400 to tune, 500 → 2000 to use; CIFAR-100; FineWeb-Edu, 8 layers, 256 → 512 (published); small: embedded data."""
    if size == "paper":
        five = (0, 1, 2, 3, 4)
        noises = (0.01, 0.03, 0.1, 0.3)
        mlp = {"kind": "mlp", "depth": 3, "data": "covertype", "batch": 256, "weight_decay": 0.0, "clip": None}
        net = {
            "kind": "resnet",
            "data": "cifar100",
            "batch": 128,
            "weight_decay": 5e-4,
            "clip": None,
            "val_batches": 78,
        }
        gpt = {
            "kind": "gpt",
            "depth": 8,
            "head_size": 64,
            "context": 1024,
            "data": "fineweb-edu",
            "batch": 32,
            "weight_decay": 0.1,
        }
        return {
            "MLP, Covertype": Task(mlp, (100, 400), (500, 2000), 2000, 2000, (1000, 2000, 4000, 8000), powers(-12, -6), noises, five),
            "ResNet-18, CIFAR-100": Task(net, (8, 16), (32, 64), 3900, 3900, (1950, 3900, 7800), powers(-12, -6), noises, five),
            "GPT, FineWeb-Edu": Task(gpt, (64, 128), (256, 512), 5000, 5000, (2500, 5000, 10000, 20000), powers(-12, -6), noises, five[:3]),
        }  # fmt: skip
    common = {"device": "cpu", "log_every": 50, "clip": 1.0}
    mlp = {
        **common,
        "kind": "mlp",
        "depth": 2,
        "norm": "layernorm",
        "data": "digits",
        "batch": 16,
        "weight_decay": 0.0,
        "val_batches": 22,
    }
    net = {
        **common,
        "kind": "resnet",
        "blocks": (1, 1),
        "data": "digits-images",
        "batch": 16,
        "weight_decay": 0.0,
        "val_batches": 22,
    }
    gpt = {
        **common, "kind": "gpt", "depth": 2, "head_size": 8, "context": 32, "init_std": 0.08, "data": "topics", "batch": 16,
        "weight_decay": 0.1, "val_batches": 32,
    }  # fmt: skip
    five, noises = (0, 1, 2, 3, 4), (0.3, 1.0, 3.0)
    return {
        "MLP, digits": Task(mlp, (16, 64), (64, 256), 60, 60, (30, 60, 120, 240), powers(-7, -2), noises, five),
        "ResNet, digits images": Task(net, (4, 8), (16, 32), 45, 45, (22, 45, 90, 180), powers(-6, -1), noises, five),
        "GPT, topics": Task(gpt, (8, 16), (32, 64), 200, 150, (100, 200, 400, 800), powers(-7, -3), noises, five),
    }  # fmt: skip


@dataclass(frozen=True)
class Point:
    """One budget: total FLOPs with all tuning (of one run), and each method's losses by seed with the FLOPs that it really took."""

    steps: int
    total: float
    updates: Mapping[str, int]
    flops: Mapping[str, float]
    losses: Mapping[str, tuple[float, ...]]

    def difference(self, method: str) -> tuple[float, float, float]:
        """Warm start over a method of scratch, less 1: geometric mean over paired seeds and its interval."""
        pairs = zip(self.losses[WARM], self.losses[method], strict=True)
        mean, low, high = interval(
            [math.log(a / b) if 0 < a < math.inf and 0 < b < math.inf else math.nan for a, b in pairs]
        )
        return math.expm1(mean), math.expm1(low), math.expm1(high)

    def says(self, method: str) -> str:
        """Which is better, where the interval tells."""
        _, low, high = self.difference(method)
        return "warm start" if high < 0 else "scratch" if low > 0 else "cannot tell"


@dataclass(frozen=True)
class Found:
    """What came out of a task: what was tuned (`edges`: what lies at the end of its grid), what that cost (FLOPs), a point per budget."""

    tuned: Mapping[str, float]
    tuning: Mapping[str, float]
    points: tuple[Point, ...]
    edges: tuple[str, ...] = ()

    @property
    def choice(self) -> str:
        """What was tuned, in words; a value at the end of its grid is said to be one."""
        return ", ".join(
            f"{what} {v:.4g}{' (edge of the grid)' * (what in self.edges)}" for what, v in self.tuned.items()
        )

    def lines(self) -> dict[str, Line]:
        """Per line of the picture: total FLOPs with (mean, low, high) of the losses, in growing order."""
        scratch = [(p.flops[m], interval(p.losses[m])) for p in self.points for m in (SCRATCH, LONGER)]
        warm = [(p.flops[WARM], interval(p.losses[WARM])) for p in self.points]
        free = [(flops - self.tuning["growing"], loss) for flops, loss in warm]
        return {"from scratch": sorted(scratch), WARM: warm, f"{WARM}, if its own tuning were free": free}

    def to_dict(self) -> dict[str, Any]:
        """Plain values, differences and their intervals included."""
        points = [
            {**asdict(p), "difference": {m: dict(zip(("mean", "low", "high"), p.difference(m), strict=True)) for m in METHODS[1:]}}
            for p in self.points
        ]  # fmt: skip
        return {
            "tuned": dict(self.tuned),
            "edges": list(self.edges),
            "tuning_flops": dict(self.tuning),
            "points": points,
        }


def interval(values: Sequence[float]) -> tuple[float, float, float]:
    """(mean, low, high) by Student's t over the seeds; unbounded for a single one, and where a run diverged."""
    if not all(map(math.isfinite, values)):
        return math.nan, -math.inf, math.inf
    mean = statistics.mean(values)
    if len(values) < 2:
        return mean, -math.inf, math.inf
    from scipy import special

    half = float(special.stdtrit(len(values) - 1, (1 + LEVEL) / 2)) * statistics.stdev(values) / math.sqrt(len(values))
    return mean, mean - half, mean + half


def measure(task: Task, make: Callable[[list[Wanted]], list[Mapping[str, Any]]]) -> Found:
    """Tune at the small size, then every budget by every method; `make` gives the records of runs."""
    from mutransfer.sweep import Wanted
    from mutransfer.sweep.cost import flops_of

    def losses(configs: Sequence[RunConfig]) -> list[float]:
        records = make([Wanted.of(one) for one in configs])
        found = [record["metrics"].get(task.metric) if record["status"] == "finished" else None for record in records]
        return [math.inf if value is None else value for value in found]

    first = task.seeds[0]
    plain = [task.config(task.proxy[0], task.small_steps, lr, first) for lr in task.lrs]
    small_lr = min(zip(losses(plain), task.lrs, strict=True))[1]
    cells = [(lr, noise) for lr in task.lrs for noise in task.noises]
    grown = [task.grown(task.proxy, task.tune_steps, lr, noise, small_lr, first) for lr, noise in cells]
    lr, noise = min(zip(losses(grown), cells, strict=True))[1]
    # the small model that they grow from is one of the tuning runs
    tuning = {
        "scratch": sum(map(flops_of, plain)),
        "growing": sum(flops_of(one) - flops_of(_small(one)) for one in grown),
    }
    points = []
    for steps in task.steps:
        warm = [task.grown(task.target, steps, lr, noise, small_lr, seed) for seed in task.seeds]
        update = (flops_of(warm[0]) - flops_of(_small(warm[0]))) / steps
        total = tuning["scratch"] + tuning["growing"] + flops_of(warm[0])
        updates = {
            WARM: steps, SCRATCH: round(flops_of(warm[0]) / update), LONGER: round((total - tuning["scratch"]) / update),
        }  # fmt: skip
        runs = {WARM: warm} | {
            name: [task.config(task.target[1], updates[name], small_lr, seed) for seed in task.seeds]
            for name in METHODS[1:]
        }
        every = losses([one for method in METHODS for one in runs[method]])
        count = len(task.seeds)
        found = {method: tuple(every[i * count : (i + 1) * count]) for i, method in enumerate(METHODS)}
        flops = {name: tuning["scratch"] + update * updates[name] for name in METHODS[1:]}
        points.append(Point(steps, total, updates, {WARM: total, **flops}, found))
    grids = {"small lr": (small_lr, task.lrs), "lr": (lr, task.lrs), "noise": (noise, task.noises)}
    edges = tuple(what for what, (value, grid) in grids.items() if value in (min(grid), max(grid)))
    return Found({what: value for what, (value, _) in grids.items()}, tuning, tuple(points), edges)


def _small(config: RunConfig) -> RunConfig:
    assert config.small is not None
    return config.small


def run(config: Callable[[str], dict[str, Task]], size: str, out: Path, options: Options) -> dict[str, Any]:
    """Make what is missing of every task whose data is there; `experiment.html`, `experiment.json`, `compute.png` in `out`.

    Exit code 0 whichever side wins. Raises InputError when no task has its data.
    """
    from mutransfer.commands.output import finite
    from mutransfer.files import write_whole
    from mutransfer.sweep import sweep

    tasks, found, refused = config(size), {}, {}
    for name, task in tasks.items():
        try:
            task.config(task.proxy[0], task.small_steps, task.lrs[0], task.seeds[0])
        except InputError as error:
            refused[name] = str(error)
            continue
        make: Any = partial(sweep, folder=out, options=options, label=f"{COMPUTE.name}: {name}")
        found[name] = measure(task, make)
    if not found:
        raise InputError(next(iter(refused.values())))
    picture = draw({name: one.lines() for name, one in found.items()})
    outcome = {
        "exit_code": 0, "words": words(found, refused), "experiment": COMPUTE.name, "size": size, "refused": refused,
        "tasks": {name: {"setting": asdict(tasks[name]), **one.to_dict()} for name, one in found.items()},
    }  # fmt: skip
    write_whole(out / "compute.png", picture)
    write_whole(out / "experiment.json", json.dumps(finite(outcome), indent=1, ensure_ascii=False))
    _page(out, size, tasks, found, refused, picture)
    return outcome


COLUMNS = (
    "updates after growing", "total FLOPs", "of it tuning, small model", "warm start", "scratch, equal total", "difference", "better",
    "difference, growing's tuning not counted", "better",
)  # fmt: skip


def table(found: Found) -> list[tuple[str, ...]]:
    """A row per budget, as `COLUMNS` says."""
    rows = []
    tuning = sum(found.tuning.values())
    for p in found.points:
        growing = (
            p.updates[WARM] * (p.flops[LONGER] - p.flops[SCRATCH]) / max(1, p.updates[LONGER] - p.updates[SCRATCH])
        )
        parts = f"{tuning / p.total:.0%}, {(p.total - tuning - growing) / p.total:.0%}"
        rows.append((
            str(p.steps), f"{p.total:.3g}", parts, _loss(p.losses[WARM]), f"{_loss(p.losses[LONGER])} ({p.updates[LONGER]} updates)",
            _share(p.difference(LONGER)), p.says(LONGER), _share(p.difference(SCRATCH)), p.says(SCRATCH),
        ))  # fmt: skip
    return rows


def _loss(losses: Sequence[float]) -> str:
    mean, low, high = interval(losses)
    return "diverged" if math.isnan(mean) else f"{mean:.4f} ± {(high - low) / 2:.4f}"


def _share(difference: tuple[float, float, float]) -> str:
    mean, low, high = (100 * x for x in difference)
    return "–" if math.isnan(mean) else f"{mean:+.1f} % [{low:+.1f}, {high:+.1f}]"


def words(found: Mapping[str, Found], refused: Mapping[str, str]) -> str:
    """A line per task and budget: both losses at equal total compute, their difference, who is better."""
    lines = [
        f"loss at equal total compute, base training and tuning counted; relative difference of warm start to scratch, {LEVEL:.0%} intervals over seeds"
    ]
    for name, one in found.items():
        lines.append(f"{name} (tuned: {one.choice})")
        for steps, total, parts, warm, scratch, share, better, only, alone in table(one):
            lines.append(
                f"  {steps} updates after growing, {total} FLOP (tuning, small model: {parts}): warm start {warm}, scratch {scratch}: "
                f"{share}: {better}; without growing's tuning {only}: {alone}"
            )
    return "\n".join([*lines, *(f"{name}: not run: {reason}" for name, reason in refused.items())])


def _page(
    out: Path,
    size: str,
    tasks: Mapping[str, Task],
    found: Mapping[str, Found],
    refused: Mapping[str, str],
    picture: bytes,
) -> None:
    from mutransfer.commands.output import command_line
    from mutransfer.report import Provenance, Section, Table, write_page

    first = Section(
        "Is it worth growing?",
        paragraphs=(
            "At equal total FLOPs: the warm start pays for the tuning of the small model, for the tuning of growing at the small size, and for the small "
            "model; from scratch the big model gets those FLOPs, but for the tuning of the small model, as further updates.",
            f"Intervals are at {LEVEL:.0%} over seeds, which share their data; tuning is one seed.",
            *(f"{name}: not run: {reason}" for name, reason in refused.items()),
        ),
        pictures=((picture, "Validation loss against total FLOPs: from scratch, warm start, and warm start if its own tuning were free"),),
    )  # fmt: skip
    sections = [
        Section(
            name, tables=(Table(COLUMNS, tuple(table(one)), one.choice, frozenset(COLUMNS[:2])),),
            fixed=json.dumps(asdict(tasks[name]), indent=1, ensure_ascii=False), folded="the setting",
        )
        for name, one in found.items()
    ]  # fmt: skip
    data = ", ".join(str(tasks[name].run["data"]) for name in found)
    seeds = ", ".join(map(str, next(iter(tasks.values())).seeds))
    write_page(out / "experiment.html", f"Warm start against scratch ({size})", [first, *sections], Provenance.now(command_line(), data=data, seeds=seeds))  # fmt: skip


COMPUTE = Experiment(
    "grow-compute", "warm start against training from scratch at equal total compute, base training and tuning counted", "μpscaling",
    partial(run, config),
)  # fmt: skip
