"""Loss prediction as an experiment: hidden sizes are predicted from the others alone, then revealed; the judged variant decides."""

import json
import math
import sys
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mutransfer.build import plan
from mutransfer.commands.output import finite
from mutransfer.experiments import EXPERIMENTS, SIZES
from mutransfer.experiments.grid import Grid, Variant
from mutransfer.experiments.prediction import Outcome, Setting, config, draw, listed, reveal_all, run, words
from mutransfer.predict import fit_loss
from mutransfer.report import prediction_section
from mutransfer.sweep import Options
from mutransfer.sweep.wanted import without_base
from mutransfer.train import RunConfig

SETTING = config("small")


@pytest.fixture
def no_data(monkeypatch: pytest.MonkeyPatch) -> None:
    """The paper's data need not be here to see that its configs are valid."""
    monkeypatch.setattr("mutransfer.data.load", lambda *args, **options: None)
    monkeypatch.setattr("mutransfer.commands.builtin.fitted", lambda kind, data: {})


@pytest.mark.usefixtures("no_data")
@pytest.mark.parametrize("size", SIZES)
def test_every_run_has_one_learning_rate_and_the_largest_widths_are_hidden(size: str) -> None:
    setting = config(size)
    grid = setting.grid
    base = {"small": 32, "paper": 256}[size]
    assert setting.hidden_sizes == {"small": (128, 160), "paper": (1024, 2048, 3072)}[size]
    assert len(grid.sizes) - setting.hidden >= 6 and set(grid.judged) <= {v.name for v in grid.variants}
    json.dumps(grid.to_dict(), allow_nan=False)
    sp, mup = (grid.configs(variant) for variant in grid.variants)
    assert len({c.lr for c in sp + mup}) == 1 and len({c.hash() for c in sp + mup}) == len(sp + mup)
    assert all(c.base == {"width": base} and c.warmup < c.steps for c in sp + mup)
    for one, other in zip(sp, mup, strict=True):  # at the base, and only there, the two variants are one run
        assert (without_base(one) == without_base(other)) == (one.target["width"] == base)


@pytest.mark.usefixtures("no_data")
def test_the_papers_plans_can_be_made_below_and_above_the_base_width() -> None:
    grid = config("paper").grid
    assert {c.target["width"] for c in grid.configs(grid.variants[1])} == set(grid.sizes)
    for one in grid.configs(grid.variants[1]):
        assert isinstance(one, RunConfig)
        width = one.target["width"]
        if width in (128, 256, 3072):
            made = plan(one.make_model, base=one.base, target=one.target, optimizer=one.optimizer, recipe=one.recipe)
            hidden = next(row for row in made.rows if row.name == "blocks.11.mlp.up.weight")
            assert hidden.target_shape == (4 * width, width) and hidden.ratios.lr == pytest.approx(256 / width)


def records(
    setting: Setting, loss: Mapping[str, Callable[[float], float]], noise: float = 2e-3, levels: float = 0.0
) -> dict[str, Any]:
    """Ended runs of a two-layer GPT whose loss is a function of its parameters, with noise, and a level of each seed."""
    made: dict[str, Any] = {}
    for place, variant in enumerate(setting.grid.variants):
        made[variant.name] = []
        for width in setting.grid.sizes:
            for seed in setting.grid.seeds:
                params = 24 * width**2 + 275 * width
                off = noise * np.random.default_rng([place, width, seed]).normal() + levels * (-1) ** seed
                model = {"kind": "gpt", "width": width, "depth": 2, "vocab_size": 103, "context": 64, "tied": False}
                made[variant.name].append({
                    "key": "", "status": "finished", "reason": None, "environment": {},
                    "metrics": {"train_loss": loss[variant.name](params) * math.exp(off), "params": params},
                    "config": {"model": model, "lr": variant.lrs[0], "seed": seed, "batch": 16, "steps": 1200, **variant.fields},
                })  # fmt: skip
    return made


def power(params: float) -> float:
    return 1.2 + 45 * params**-0.45


def bends(params: float) -> float:
    return power(params) + 0.1 * max(0.0, math.log(params / 2e5))


def hidden(setting: Setting, ended: Mapping[str, Any], variant: str) -> list[Any]:
    return [one for one in ended[variant] if one["config"]["model"]["width"] in setting.hidden_sizes]


def test_a_power_law_is_predicted_and_a_bend_is_not() -> None:
    found = reveal_all(SETTING, records(SETTING, {"SP": bends, "μP": power}, levels=5e-3))
    assert (found.status("SP"), found.status("μP"), found.exit_code) == ("FAIL", "PASS", 0)
    for one in found.found["μP"].revealed:
        assert abs(one.error) < 0.005 and one.inside and len(one.losses) == 2
    assert found.found["SP"].revealed[-1].error < -0.02
    assert found.found["μP"].law.parameters["b"].low < -0.45 < found.found["μP"].law.parameters["b"].high
    said = words(found)
    assert "width 128 and 160" in said and "PASS" in said and "FAIL" in said
    assert reveal_all(SETTING, records(SETTING, {"SP": power, "μP": bends})).exit_code == 1


def test_nothing_that_is_predicted_depends_on_what_is_hidden() -> None:
    ended = records(SETTING, {"SP": power, "μP": power})
    first = reveal_all(SETTING, ended).found["μP"]
    for one in hidden(SETTING, ended, "μP"):
        one["metrics"]["train_loss"] *= 3
    again = reveal_all(SETTING, ended).found["μP"]
    assert again.law.to_dict() == first.law.to_dict()
    assert [r.prediction for r in again.revealed] == [r.prediction for r in first.revealed]
    assert [r.loss for r in again.revealed] == pytest.approx([3 * r.loss for r in first.revealed])


def test_the_law_is_that_of_the_smaller_sizes_alone() -> None:
    ended = records(SETTING, {"SP": power, "μP": power})
    law = reveal_all(SETTING, ended).found["μP"].law
    rows = [
        {**run["config"]["model"], "seed": run["config"]["seed"], **run["metrics"]}
        for run in ended["μP"]
        if run["config"]["model"]["width"] < 128
    ]
    assert law.fit.raw() == pytest.approx(fit_loss(rows, over=law.variables).fit.raw(), rel=1e-6)


def test_a_hidden_run_that_diverged_was_not_predicted() -> None:
    ended = records(SETTING, {"SP": power, "μP": power})
    diverged = hidden(SETTING, ended, "μP")[-1]
    diverged |= {"status": "diverged", "metrics": {**diverged["metrics"], "train_loss": None}}
    found = reveal_all(SETTING, ended)
    assert found.status("μP") == "FAIL" and found.exit_code == 1 and found.status("SP") == "PASS"
    assert [math.isinf(one.loss) for one in found.found["μP"].revealed] == [False, True]
    assert "width 160" in words(found) and "diverged (1 of 2)" in words(found)
    assert draw(found)[0][1].startswith(b"\x89PNG")
    json.dumps(finite(found.to_dict()), allow_nan=False)
    assert "inf" in prediction_section(found.found["μP"]).tables[0].rows[-1]


def test_without_a_law_the_reason_is_said_and_the_experiment_fails() -> None:
    ended = records(SETTING, {"SP": power, "μP": power})
    for one in ended["μP"]:
        one |= {"status": "diverged", "metrics": {**one["metrics"], "train_loss": None}}
    found = reveal_all(SETTING, ended)
    assert found.exit_code == 1 and found.status("μP") == "–" and "diverged" in found.refused["μP"]
    assert found.refused["μP"] in words(found)
    assert draw(Outcome(SETTING, {}, found.refused)) == []


TINY = Setting(
    Grid(
        run={
            "kind": "gpt", "depth": 1, "head_size": 8, "context": 16, "data": "topics", "batch": 4, "steps": 4, "warmup": 1,
            "val_batches": 0, "init_std": 0.08, "device": "cpu",
        },
        sizes=(8, 16, 24, 32, 40, 48), seeds=(0,),
        variants=(Variant("SP", {"recipe": "sp"}, (2**-6,)), Variant("μP", {"recipe": "mup"}, (2**-6,))),
        judged=("μP",),
    ),
    hidden=2,
)  # fmt: skip


def test_the_experiment_runs_writes_its_page_and_repeats_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mutransfer.sweep.cost._TIMED", 2)  # how long the runs will take is not the question

    def once() -> dict[str, Any]:
        return run(lambda size: TINY, "small", tmp_path, Options(workers=1))

    first = once()
    assert {"experiment.json", "experiment.html", "prediction.png", "runs.sqlite"} <= {p.name for p in tmp_path.iterdir()}  # fmt: skip
    page = (tmp_path / "experiment.html").read_text(encoding="utf-8")
    assert "Loss prediction over width" in page and str(tmp_path) not in page
    said = json.loads((tmp_path / "experiment.json").read_text(encoding="utf-8"))
    assert said["words"] == first["words"] and said["hidden"] == [40, 48] and said["experiment"] == "loss-prediction"
    for name in ("SP", "μP"):
        made = said["variants"][name]
        assert [one["width"] for one in made["held_out"]] == [40, 48]
        assert made["status"] == ("PASS" if all(one["close"] for one in made["held_out"]) else "FAIL")
        assert made["law"]["variables"] and made["law"]["parameters"] and made["law"]["sizes_tried"]
        assert all(one["predicted"]["low"] < one["predicted"]["loss"] < one["predicted"]["high"] for one in made["held_out"])  # fmt: skip
    assert said["exit_code"] == (0 if said["variants"]["μP"]["status"] == "PASS" else 1)

    def no_workers(*args: Any) -> Any:
        raise AssertionError("a finished sweep starts no worker")

    monkeypatch.setattr(sys.modules["mutransfer.sweep.sweep"], "open_executor", no_workers)
    assert once() == first


def test_the_experiment_is_listed_and_names_its_sizes() -> None:
    assert EXPERIMENTS["loss-prediction"].source == "Mu-scaling"
    assert config("small") == SETTING != config("paper")
    assert [listed((3,)), listed((1, 2, 3))] == ["3", "1, 2 and 3"]
    assert replace(SETTING, hidden=1).hidden_sizes == (160,)
