"""The experiments that are sweeps: their grids can be run, their verdicts follow from the rows, a rerun is free."""

import json
import math
import sys
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mutransfer import plan
from mutransfer.cli import main
from mutransfer.commands.experiments import Experiments
from mutransfer.experiments import SIZES, claire, depth, images, mu_scaling, nanogpt, nanogpt_owt, spectral, tables
from mutransfer.experiments.figures import basin
from mutransfer.experiments.grid import Grid, Variant, powers
from mutransfer.experiments.transfer import Outcome, judge, run, words
from mutransfer.sweep import Options, Wanted
from mutransfer.train import RunConfig, train
from mutransfer.verdict import transfer_verdict

CONFIGS = {
    module.__name__.rpartition(".")[2]: module.config
    for module in (nanogpt, nanogpt_owt, depth, claire, mu_scaling, tables, images)
} | {"spectral width": spectral.over_width, "spectral depth": spectral.over_depth}


@pytest.fixture
def no_data(monkeypatch: pytest.MonkeyPatch) -> None:
    """The paper's data need not be here to see that its configs are valid."""
    monkeypatch.setattr("mutransfer.data.load", lambda *args, **options: None)
    monkeypatch.setattr("mutransfer.commands.builtin.fitted", lambda kind, data: {})


@pytest.mark.usefixtures("no_data")
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("name", CONFIGS)
def test_every_point_of_every_grid_is_a_valid_run(name: str, size: str) -> None:
    grid = CONFIGS[name](size)
    assert set(grid.judged) <= {variant.name for variant in grid.variants}
    json.dumps(grid.to_dict(), allow_nan=False)
    every: set[str] = set()
    for variant in grid.variants:
        configs = grid.configs(variant)
        assert len(configs) == len(grid.sizes) * len(variant.lrs) * len(grid.seeds) >= 4
        assert {getattr(c.model, grid.size) for c in configs} == set(grid.sizes)
        assert all(c.base == {grid.size: min(grid.sizes)} and c.warmup < c.steps for c in configs)
        hashes = {c.hash() for c in configs}
        assert not hashes & every  # no two variants are the same runs under two names
        every |= hashes


@pytest.mark.usefixtures("no_data")
@pytest.mark.parametrize("size", SIZES)
def test_the_last_variants_decay_depends_on_neither_width_nor_rate(size: str) -> None:
    grid = claire.config(size)
    for variant in grid.variants:
        products = {round(math.log2(c.lr * c.weight_decay), 6) for c in grid.configs(variant)}
        assert len(products) == (1 if variant.decay_at else len(variant.lrs))
    middle = [v for v in grid.variants if v.decay_at]
    assert len(middle) == 2 and all(v.decay_at in v.lrs for v in middle)


@pytest.mark.parametrize("config", [spectral.over_width, spectral.over_depth])
def test_the_spectral_grids_run_muon_inside_and_adamw_outside(config: Callable[[str], Grid]) -> None:
    grid = config("small")
    for variant in grid.variants:
        one = replace(grid.configs(variant)[0], steps=1, warmup=0, batch=2)
        assert one.optimizer == "muon-kimi" and train(one).status == "finished"
        largest = max(grid.configs(variant), key=lambda c: getattr(c.model, grid.size))
        made = plan(one.make_model, base=one.base, target=largest.target, optimizer=one.optimizer, recipe=one.recipe)
        for row in made.rows:
            inside = row.name.startswith("blocks.") and len(row.target_shape) == 2
            assert row.optimizer == ("muon-kimi" if inside else "adamw")
        scaled = any(row.ratios.lr != 1 or row.ratios.std != 1 for row in made.rows)
        assert scaled == (one.recipe != "sp")  # SP is the user's own numbers at every size


def test_at_the_base_the_ladder_shares_its_runs() -> None:
    """All μP variants with one schedule, norm and decay are one model at the base width: one run, not six."""
    grid = replace(claire.config("small"), sizes=(16, 32), metrics=("val_loss",))
    grid = replace(grid, run={**grid.run, "head_size": 8, "steps": 20, "val_every": 4})
    count = len(grid.variants[0].lrs)
    results = {v.name: [Wanted.of(c).result for c in grid.configs(v)[:count]] for v in grid.variants}
    assert results["1 SP"] == results["2 μP, embedding η/N"]
    assert results["4 + gainless RMSNorm"] == results["5 + embedding η/√N"] == results["6 + logits 1/√N"]
    assert results["7 + independent decay"] == results[claire.CANONICAL]
    assert len({result for made in results.values() for result in made}) < 5 * count


def synthetic(grid: Grid, best: Mapping[str, float], gain: float = 0.1, status: str = "finished") -> dict[str, Any]:
    """Records of parabolas whose optimum moves `best` octaves per doubling of size."""
    made = {}
    for variant in grid.variants:
        made[variant.name] = []
        for size in grid.sizes:
            for lr in variant.lrs:
                for seed in grid.seeds:
                    doublings = math.log2(size / grid.sizes[0])
                    away = math.log2(lr) + 7 - best[variant.name] * doublings
                    noise = 1e-3 * np.random.default_rng([size, seed, round(1e6 * lr)]).normal()
                    loss = 3 - gain * doublings + 0.05 * away**2 + noise
                    made[variant.name].append({
                        "key": "", "status": status, "reason": None, "environment": {}, "metrics": dict.fromkeys(grid.metrics, loss),
                        "config": {grid.size: size, "lr": lr, "seed": seed, "weight_decay": 1 / lr},
                    })  # fmt: skip
    return made


GRID = Grid(
    run={"kind": "gpt", "data": "topics"},
    sizes=(32, 64, 128, 256),
    seeds=(0, 1),
    variants=(Variant("SP", {"recipe": "sp"}, powers(-12, -4)), Variant("μP", {"recipe": "mup"}, powers(-12, -4))),
    judged=("μP",),
    metrics=("val_loss", "train_loss"),
)


def test_the_verdicts_follow_from_the_rows_and_the_judged_variant_decides() -> None:
    found = judge(GRID, synthetic(GRID, {"SP": -1.0, "μP": 0.0}))
    for metric in GRID.metrics:
        assert {name: found.status(metric, name) for name in ("SP", "μP")} == {"SP": "DRIFTS", "μP": "HOLDS"}
    assert found.main["SP"].drift.value == pytest.approx(-1, abs=0.05)
    assert found.exit_code == 0 and "DRIFTS" in words(found) and "HOLDS" in words(found)
    assert judge(GRID, synthetic(GRID, {"SP": 0.0, "μP": -1.0})).exit_code == 1


def test_a_variant_that_cannot_be_judged_is_said_and_is_inconclusive() -> None:
    records = synthetic(GRID, {"SP": -1.0, "μP": 0.0})
    for record in records["μP"]:
        record["status"] = "diverged"
    found = judge(GRID, records)
    assert found.exit_code == 3 and found.status("val_loss", "μP") == "–"
    assert "diverged" in found.refused["val_loss", "μP"] and found.refused["val_loss", "μP"] in words(found)
    picture = claire.draw(Outcome(GRID, found.verdicts, found.refused))[0][1]
    assert picture.startswith(b"\x89PNG")


def test_a_basin_ends_where_the_loss_is_one_per_cent_above_the_best() -> None:
    rows = [{"width": w, "lr": 2.0**x, "loss": 2.0 * (1 + 0.04 * abs(x + 6))} for w in (32, 64) for x in range(-10, -1)]
    one = transfer_verdict(rows).optima[0]
    assert basin(one) == pytest.approx((-6.25, -5.75))
    flat = replace(one, points=tuple((x, 2.0) for x, _ in one.points))
    assert basin(flat) == (-10.0, -2.0)


TINY = Grid(
    run={
        "kind": "gpt", "depth": 1, "head_size": 8, "context": 16, "data": "topics", "batch": 4, "steps": 4, "warmup": 1,
        "val_batches": 0, "init_std": 0.08, "device": "cpu",
    },
    sizes=(8, 16), seeds=(0,),
    variants=(Variant("SP", {"recipe": "sp"}, powers(-8, -5)), Variant("μP", {"recipe": "mup"}, powers(-8, -5))),
    judged=("μP",), metrics=("mean_loss",),
)  # fmt: skip


def test_an_experiment_runs_writes_its_page_and_repeats_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes: list[str] = []

    def config(size: str) -> Grid:
        sizes.append(size)
        return TINY

    def once() -> dict[str, Any]:
        return run("tiny", "a tiny experiment", config, "nothing", mu_scaling.draw, "small", tmp_path, Options(workers=1))  # fmt: skip

    first = once()
    assert first["exit_code"] in (0, 1, 3) and sizes == ["small"]
    files = {"experiment.json", "experiment.html", "curves.png", "drift.png", "best.png", "basins.png", "runs.sqlite"}
    assert files <= {path.name for path in tmp_path.iterdir()}
    page = (tmp_path / "experiment.html").read_text(encoding="utf-8")
    assert "A tiny experiment" in page and str(tmp_path) not in page
    assert json.loads((tmp_path / "experiment.json").read_text(encoding="utf-8"))["words"] == first["words"]

    def no_workers(*args: Any) -> Any:
        raise AssertionError("a finished sweep starts no worker")

    monkeypatch.setattr(sys.modules["mutransfer.sweep.sweep"], "open_executor", no_workers)
    assert once() == first


def test_a_missing_data_set_is_one_clear_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MUTRANSFER_DATA", str(tmp_path / "empty"))
    out = tmp_path / "out"
    assert main(["experiments", "mlp-tables", "--size", "paper", "--out", str(out)]) == 2
    said = capsys.readouterr().err
    assert "covertype" in said and said.count("\n") == 1 and not out.exists()


def test_the_commands_options_reach_the_sweep(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Asked(Exception):
        pass

    def sweep(runs: Any, folder: Path, options: Options, label: str) -> Any:
        raise Asked(len(runs), folder, options)

    monkeypatch.setattr("mutransfer.sweep.sweep", sweep)
    for options in (Options(), Options(yes=True, workers=3, limit=120.0)):
        with pytest.raises(Asked) as asked:
            command = Experiments(
                "resnet-images", out=tmp_path, yes=options.yes, workers=options.workers, limit=options.limit / 60
            )
            command.run()
        grid = images.config("small")
        count = sum(len(variant.lrs) for variant in grid.variants) * len(grid.sizes) * len(grid.seeds)
        assert asked.value.args == (count, tmp_path, options)


def test_configs_are_functions_of_their_size_alone() -> None:
    for config in CONFIGS.values():
        assert config("small") == config("small") != config("paper")
    assert isinstance(nanogpt.config("small").configs(GRID.variants[0])[0], RunConfig)
