"""The experiments on growing: their settings can be run, both sides of the comparison cost the same, and either side can win."""

import contextlib
import json
import math
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from mutransfer.errors import InputError
from mutransfer.experiments import EXPERIMENTS, SIZES, growing_compute, growing_exactness, growing_transfer
from mutransfer.experiments.grid import Grid, Variant
from mutransfer.experiments.growing_compute import LONGER, METHODS, SCRATCH, WARM, Found, Point, Task, interval, measure
from mutransfer.experiments.growing_figure import draw
from mutransfer.sweep import Options, Wanted, jobs
from mutransfer.sweep.cost import flops_of
from mutransfer.train import RunConfig
from tests.sweep.small import Inline

MLP = {"kind": "mlp", "depth": 1, "data": "digits", "batch": 4, "device": "cpu", "val_batches": 1}
TINY = Task(MLP, (4, 8), (8, 16), 6, 5, (4, 8), (2**-7, 2**-6), (0.1, 0.3), (0, 1))


@pytest.fixture
def no_data(monkeypatch: pytest.MonkeyPatch) -> None:
    """The paper's data need not be here to see that its configs are valid."""
    monkeypatch.setattr("mutransfer.data.load", lambda *args, **options: None)
    monkeypatch.setattr("mutransfer.commands.builtin.fitted", lambda kind, data: {})


@pytest.mark.usefixtures("no_data")
@pytest.mark.parametrize("size", SIZES)
def test_every_setting_is_a_valid_run(size: str) -> None:
    assert {"grow-exactness", "grow-transfer", "grow-compute"} <= set(EXPERIMENTS)
    for grid in growing_transfer.config(size).values():
        for variant in grid.variants:
            for one in grid.configs(variant):
                assert one.small is not None and one.small.target["width"] * 2 == one.target["width"]
        assert len(grid.seeds) == 5
    for task in growing_compute.config(size).values():
        plain = task.config(task.proxy[0], task.small_steps, task.lrs[0], 0)
        grown = task.grown(task.proxy, task.tune_steps, task.lrs[0], task.noises[0], task.lrs[0], 0)
        assert grown.small == replace(
            plain, val_every=0
        )  # the tuned small run is the one that grows: it is paid for once
        assert task.grown(task.target, task.steps[0], 0.1, 0.1, 0.1, 0).base == plain.base == {"width": task.proxy[0]}
    json.dumps([grid.to_dict() for grid in growing_transfer.config(size).values()], allow_nan=False)


def records(best: dict[str, float]) -> tuple[Any, list[RunConfig]]:
    """A `make` whose losses are these by kind of run, and the list of all that it was asked for."""
    asked: list[Any] = []

    def make(runs: list[Wanted]) -> list[dict[str, Any]]:
        asked.extend(run.config for run in runs)
        made = []
        for config in asked[len(asked) - len(runs) :]:
            kind = "warm" if config.small is not None else "scratch"
            away = abs(math.log2(config.lr) + 6) + abs(math.log2(config.grow_noise or 0.1) - math.log2(0.1))
            loss = best[kind] + 0.1 * away + 0.01 * config.seed + 1 / (config.steps + 100)
            made.append({"status": "finished", "metrics": {"val_loss": loss}})
        return made

    return make, asked


def test_both_sides_cost_the_same_in_total_with_base_training_and_tuning() -> None:
    make, asked = records({"warm": 1.0, "scratch": 1.0})
    found = measure(TINY, make)
    assert found.tuned == {"small lr": 2**-6, "lr": 2**-6, "noise": 0.1}
    assert found.edges == ("small lr", "lr", "noise")  # two values each: both are ends of their grid
    tuning_small = asked[:2]
    assert [c.model.width for c in asked[:6]] == [4, 4, 8, 8, 8, 8] and all(c.grow_lr == 2**-6 for c in asked[2:6])
    for point, first in zip(found.points, (6, 12), strict=True):
        warm, only, longer = asked[first], asked[first + 2], asked[first + 4]
        assert [c.model.width for c in (warm, only, longer)] == [16, 16, 16] and warm.grow_from == {"width": 8}
        small = sum(map(flops_of, tuning_small))
        growing = sum(flops_of(c) - flops_of(c.small) for c in asked[2:6] if c.small)
        total = small + growing + flops_of(warm)
        assert point.total == pytest.approx(total)
        step = flops_of(longer) / longer.steps
        assert abs(small + flops_of(longer) - total) <= step / 2 and abs(flops_of(only) - flops_of(warm)) <= step / 2
        assert point.flops[LONGER] == pytest.approx(small + flops_of(longer))


@pytest.mark.parametrize(("warm", "better"), [(0.9, "warm start"), (1.1, "scratch")])
def test_either_side_can_win_and_the_table_says_so(warm: float, better: str) -> None:
    found = measure(TINY, records({"warm": warm, "scratch": 1.0})[0])
    assert all(point.says(LONGER) == point.says(SCRATCH) == better for point in found.points)
    assert f": {better};" in growing_compute.words({"tiny": found}, {})
    assert draw({"tiny": found.lines(), "other": found.lines()}).startswith(b"\x89PNG")


def test_a_difference_within_the_seeds_is_none() -> None:
    losses = {WARM: (1.0, 1.2, 1.1), SCRATCH: (1.1, 1.1, 1.1), LONGER: (0.5, math.inf, 0.5)}
    point = Point(5, 1.0, dict.fromkeys(METHODS, 5), dict.fromkeys(METHODS, 1.0), losses)
    assert point.says(SCRATCH) == "cannot tell" and point.says(LONGER) == "cannot tell"
    mean, low, high = interval([1.0, 2.0, 3.0])
    assert (mean, high) == pytest.approx((2.0, 2 + 2.919986 / math.sqrt(3))) and low == pytest.approx(4 - high)
    assert interval([1.0])[1:] == (-math.inf, math.inf)
    found = Found({"lr": 1.0}, {"scratch": 0.1, "growing": 0.1}, (point,))
    assert draw({"tiny": found.lines()}).startswith(b"\x89PNG") and "diverged" in growing_compute.words(
        {"t": found}, {}
    )


def test_the_experiments_run_and_repeat_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    here = Inline()
    monkeypatch.setattr(
        sys.modules["mutransfer.sweep.sweep"], "open_executor", lambda *args: contextlib.nullcontext(here)
    )
    monkeypatch.setattr(jobs, "step_seconds", lambda *args: 1e-3)
    monkeypatch.setattr(jobs, "matmul_flops", lambda *args: 1e9)
    variant = Variant("μP", {"recipe": "mup"}, (2**-7, 2**-6))
    grid = Grid({**MLP, "steps": 4, "warmup": 1, "grow_from.width": "/2", "grow_steps": 3, "base.width": 4, "grow_noise": 0.1},
                (8, 16), (0,), (variant,), ("μP",))  # fmt: skip
    noise = replace(
        grid, run={**grid.run, "lr": 2**-7}, variants=(replace(variant, lrs=(0.0, 0.1, 0.2)),), knob="grow_noise"
    )
    noise = replace(noise, run={k: v for k, v in noise.run.items() if k != "grow_noise"})
    task = replace(TINY, steps=(4,), lrs=TINY.lrs[:1], noises=(0.1,), seeds=(0,))
    gone = {"gone": replace(task, run={**MLP, "data": "fineweb-edu"})}
    monkeypatch.setenv("MUTRANSFER_DATA", str(tmp_path / "empty"))

    def once() -> tuple[dict[str, Any], dict[str, Any]]:
        first = growing_transfer.run(
            lambda size: {"a: learning rate": grid, "a: noise": noise}, "small", tmp_path / "t", Options()
        )
        second = growing_compute.run(lambda size: {"tiny": task, **gone}, "small", tmp_path / "c", Options())
        return first, second

    first, second = once()
    assert first["exit_code"] == 3 and second["exit_code"] == 0 and "fineweb" in second["refused"]["gone"]
    assert {"a-learning-rate.png", "a-noise.png", "experiment.html", "experiment.json"} <= {
        p.name for p in (tmp_path / "t").iterdir()
    }
    assert {"compute.png", "experiment.html", "experiment.json"} <= {p.name for p in (tmp_path / "c").iterdir()}
    count = len(here.done)
    assert once() == (first, second) and len(here.done) == count
    with pytest.raises(InputError, match="fineweb"):
        growing_compute.run(lambda size: gone, "small", tmp_path / "none", Options())


def test_growing_is_exact_in_its_quick_form(tmp_path: Path) -> None:
    cases = tuple(replace(case, steps=4, optimizers=case.optimizers[-1:]) for case in growing_exactness.config("small"))
    cases = (cases[0], replace(cases[2], small=(16,), big=(32,)))
    outcome = growing_exactness.run(lambda size: cases, "small", tmp_path, Options())
    assert outcome["exit_code"] == 0 and all(row["within"] and row["steps"] == 4 for row in outcome["rows"])
    assert (tmp_path / "exactness.png").read_bytes().startswith(b"\x89PNG") and "within 1e-12" in outcome["words"]
