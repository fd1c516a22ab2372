"""The verdict says what is true of tables whose truth is known."""

from __future__ import annotations

import dataclasses
import json
import math
import random
import subprocess
import sys
import time
from typing import Any

import numpy as np
import pytest

import mutransfer as mt
from mutransfer.verdict import Estimate
from mutransfer.verdict.figure import draw_drift
from mutransfer.verdict.words import cost
from tests.verdict.tables import DRIFTING, STAYING, WORSE, table


@pytest.mark.parametrize("seeds", [1, 2, 3])
def test_an_optimum_that_stays_holds(seeds: int) -> None:
    v = mt.transfer_verdict(table(**STAYING, seeds=seeds))
    assert v.status == "HOLDS" and v.ok
    assert v.wider_is_better is True
    assert v.regret.high < 0.01
    assert not v.next_runs


@pytest.mark.parametrize("seeds", [1, 2, 3])
def test_an_optimum_that_moves_at_a_cost_drifts(seeds: int) -> None:
    v = mt.transfer_verdict(table(**DRIFTING, seeds=seeds))
    assert v.status == "DRIFTS" and not v.ok
    assert v.drift.value == pytest.approx(-0.83, abs=0.06)
    assert v.regret.low > 0.01


def test_staying_while_wider_gets_worse_does_not_hold() -> None:
    v = mt.transfer_verdict(table(**WORSE))
    assert abs(v.drift.value) < 0.05 and v.regret.high < 0.005
    assert v.wider_is_better is False
    assert v.status == "DRIFTS"
    assert "worse" in v.reasons[0]


def test_drift_without_regret_does_not_decide() -> None:
    v = mt.transfer_verdict(table((-8, -8.3, -8.6, -8.9), rise=0.001, noise=0.0003, diverges=9))
    assert v.drift.high < -0.15
    assert v.regret.high < 0.005
    assert v.status == "HOLDS"


def test_optima_and_losses_are_found() -> None:
    truth = (-6.1, -7.2, -8.0, -8.6)
    v = mt.transfer_verdict(table(**DRIFTING, seeds=3))
    for found, x, loss in zip(v.optima, truth, DRIFTING["losses"], strict=True):
        assert found.log2_lr.value == pytest.approx(x, abs=0.15)
        assert found.lr.value == pytest.approx(2**found.log2_lr.value)
        assert found.loss.low - 0.01 < loss < found.loss.high + 0.01
        assert found.log2_lr.low <= found.log2_lr.value <= found.log2_lr.high


def test_regret_of_a_parabola_is_its_height() -> None:
    v = mt.transfer_verdict(table((-8, -9), (2.4, 2.3), noise=0.001, seeds=3, diverges=9))
    assert v.regret.value == pytest.approx(0.02 / 2.3, rel=0.1)
    assert v.regrets[0].absolute.value == pytest.approx(0.02, rel=0.1)
    assert v.regrets[0].share is not None and v.regrets[0].share.value == pytest.approx(0.2, rel=0.15)


def test_more_seeds_give_shorter_intervals() -> None:
    lengths = [np.mean([o.log2_lr.high - o.log2_lr.low for o in mt.transfer_verdict(table(seeds=n, noise=0.01)).optima]) for n in (2, 8)]  # fmt: skip
    assert lengths[1] < 0.7 * lengths[0]


def test_a_common_level_of_the_seeds_changes_nothing_but_the_loss() -> None:
    rows = table(seeds=3)
    shifted = [{**row, "loss": row["loss"] + 0.3 * row["seed"]} for row in rows]
    one, two = mt.transfer_verdict(rows), mt.transfer_verdict(shifted)
    assert one.drift.value == pytest.approx(two.drift.value, abs=1e-3)
    assert one.noise == pytest.approx(two.noise, rel=1e-6)


PUBLISHED: dict[str, tuple[str, dict[str, Any]]] = {  # optima and best losses as published; heights of the valleys and noise are ours
    "untied, SP": ("DRIFTS", dict(optima=(-11, -11.5, -12, -12.5), losses=(5.34, 5.37, 5.41, 5.46), lrs=tuple(range(-15, -7)), rise=0.03)),
    "untied, embedding LR 1/N": ("DRIFTS", dict(optima=(-10.9, -10.2, -9.4, -8.7), losses=(5.375, 5.34, 5.31, 5.29), lrs=tuple(range(-14, -6)), rise=0.03)),
    "untied, all fixes": ("HOLDS", dict(optima=(-9.4, -9.3, -9.2, -9.1), losses=(5.375, 5.335, 5.3, 5.263), lrs=tuple(range(-13, -5)), rise=0.03)),
    "spectral width": ("HOLDS", dict(optima=(-4.5, -4.5, -4.6), losses=(2.314, 2.17, 2.047), lrs=tuple(range(-9, -2)))),
    "spectral depth": ("HOLDS", dict(optima=(-4.2, -4.1, -4, -4), losses=(2.253, 2.169, 2.114, 2.052), lrs=tuple(range(-9, -2)))),
    "depth without norm, SP": ("DRIFTS", dict(optima=(-5.2, -5.8, -6.4, -7), losses=(2.292, 2.254, 2.281, 2.307), lrs=tuple(range(-9, -4)))),
}  # fmt: skip


@pytest.mark.parametrize("seeds", [1, 2])
@pytest.mark.parametrize("name", PUBLISHED)
def test_published_settings_get_the_verdict_that_their_numbers_support(name: str, seeds: int) -> None:
    status, fields = PUBLISHED[name]
    v = mt.transfer_verdict(table(**fields, seeds=seeds, diverges=9))
    assert v.status == status


@pytest.mark.parametrize("drift, rise", [(-0.35, 0.015), (-0.4, 0.015), (-0.4, 0.012)])
def test_a_drift_that_costs_half_to_one_percent_drifts(drift: float, rise: float) -> None:
    v = mt.transfer_verdict(table(tuple(-8 + drift * i for i in range(4)), rise=rise, seeds=2, diverges=9))
    assert v.status == "DRIFTS"


@pytest.mark.parametrize("finite", [1, 2])
def test_sizes_with_next_to_no_finite_run_are_still_drawn(finite: int) -> None:
    rows = table(seeds=2, lrs=tuple(range(-9, -5)), diverges=9)
    for row in rows:
        if row["width"] == 64 and row["lr"] > 2.0 ** (finite - 9.5):
            row["loss"] = math.nan
    v = mt.transfer_verdict(rows)
    assert v.status == "INCONCLUSIVE"
    for e in (v.drift, v.regret, *(o.log2_lr for o in v.optima)):
        assert e.low <= e.value <= e.high
    assert draw_drift({"": v})


# edges, walls, missing runs ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("edge", ["low", "high"])
def test_an_optimum_at_the_edge_is_not_trusted(edge: str) -> None:
    lrs = tuple(range(-8, -2)) if edge == "low" else tuple(range(-14, -7))
    v = mt.transfer_verdict(table((-8.2, -8.3, -8.1, -8.2) if edge == "low" else (-7.9,) * 4, lrs=lrs, diverges=9))
    if edge == "low":
        assert v.status == "INCONCLUSIVE"
    assert v.status in ("INCONCLUSIVE", "HOLDS")
    if v.next_runs:
        beyond = [run["log2_lr"] for run in v.next_runs]
        assert min(beyond) < min(lrs) if edge == "low" else max(beyond) > max(lrs)


def test_the_far_edge_asks_for_runs_beyond_it() -> None:
    v = mt.transfer_verdict(table(lrs=tuple(range(-14, -9)), diverges=9))
    assert v.status == "INCONCLUSIVE"
    assert all(o.edge == "high" and math.isinf(o.log2_lr.high) for o in v.optima)
    assert {run["log2_lr"] for run in v.next_runs} == {-9.0, -8.0}
    assert {run["size"] for run in v.next_runs} == {32, 64, 128, 256}
    assert {run["seed"] for run in v.next_runs} == {0, 1}
    assert all(run["lr"] == pytest.approx(2 ** run["log2_lr"]) for run in v.next_runs)


def test_a_base_at_the_edge_still_accuses_when_the_loss_there_is_proved() -> None:
    lrs = tuple(range(-13, -6))  # the base's optimum, -6.1, lies beyond
    v = mt.transfer_verdict(table(**DRIFTING, lrs=lrs, seeds=3))
    assert v.optima[0].edge == "high"
    assert v.status == "DRIFTS"


def test_a_carried_lr_that_diverges_is_infinite_regret() -> None:
    v = mt.transfer_verdict(table((-6, -8, -10), (2.4, 2.35, 2.3), diverges=0.15))
    assert v.status == "DRIFTS"
    assert math.isinf(v.regret.value) and math.isinf(v.regret.low)
    assert "diverge" in v.reasons[-1] + v.reasons[0]
    json.dumps(v.to_dict(), allow_nan=False)


@pytest.mark.parametrize("how", ["nan", "inf", "empty", "status"])
def test_a_diverged_run_is_a_wall_however_it_is_written(how: str) -> None:
    rows = table(noise=0.002, diverges=0.3)
    written: list[dict[str, Any]] = []
    for row in rows:
        gone = math.isnan(row["loss"])
        value = {"nan": "NaN", "inf": math.inf, "empty": "", "status": 1.0}[how] if gone else row["loss"]
        written.append({**row, "loss": value, "status": "diverged" if gone and how == "status" else "finished"})
    one, two = mt.transfer_verdict(rows), mt.transfer_verdict(written)
    assert one.optima == two.optima
    assert all(o.walls == (-4.0,) for o in one.optima)


def test_one_diverged_seed_makes_its_lr_a_wall() -> None:
    rows = table(seeds=3, lrs=tuple(range(-11, -4)), diverges=9)
    for row in rows:
        if row["lr"] == 2.0**-7 and row["seed"] == 1:
            row["loss"] = float("nan")
    v = mt.transfer_verdict(rows)
    assert all(-7.0 in o.walls for o in v.optima)
    assert any("diverged at an LR below" in note for note in v.notes)


def test_given_up_runs_bracket_but_say_nothing_of_the_loss() -> None:
    rows = [{**row, "status": "finished"} for row in table(**DRIFTING)]
    for row in rows:
        if row["width"] == 256 and row["lr"] > 2**-6.6:
            row.update(status="stopped", loss=9.0)
    v = mt.transfer_verdict(rows)
    assert v.regrets[-1].unknown
    assert math.isinf(v.regret.high) and math.isfinite(v.regret.low)
    assert v.optima[-1].log2_lr.value == pytest.approx(-8.6, abs=0.2)


def test_failed_runs_are_counted_and_are_no_result() -> None:
    rows = [{**row, "status": "finished"} for row in table()]
    rows.append({"width": 64, "lr": 2.0**-8, "seed": 7, "loss": 0.1, "status": "failed"})
    v = mt.transfer_verdict(rows)
    assert v.optima[1].loss.value > 2
    assert any("1 failed" in note for note in v.notes)


def test_a_missing_seed_is_no_lower_loss() -> None:
    """The seed with the high level is absent at one LR: that LR must not look better for it."""
    rows = table(seeds=2, noise=0.0005)
    rows = [{**row, "loss": row["loss"] + 0.2 * row["seed"]} for row in rows]
    kept = [row for row in rows if not (row["seed"] == 1 and row["lr"] == 2.0**-6)]
    for one, two in zip(mt.transfer_verdict(rows).optima, mt.transfer_verdict(kept).optima, strict=True):
        assert one.log2_lr.value == pytest.approx(two.log2_lr.value, abs=0.05)


def test_two_minima_are_seen() -> None:
    rows = table(noise=0.001, rise=0.01, diverges=9, seeds=2)
    for row in rows:
        if row["lr"] == 2.0**-7:
            row["loss"] += 0.2
    v = mt.transfer_verdict(rows)
    assert all(o.bimodal for o in v.optima)
    assert v.status == "INCONCLUSIVE"


def test_noise_too_large_to_tell_asks_for_seeds() -> None:
    v = mt.transfer_verdict(table(noise=0.05, seeds=2, lrs=tuple(range(-11, -4)), diverges=9))
    assert v.status == "INCONCLUSIVE"
    assert v.next_runs and all(run["seed"] >= 2 for run in v.next_runs if run["log2_lr"] in range(-11, -4))


def test_one_seed_says_where_its_noise_comes_from() -> None:
    v = mt.transfer_verdict(table(seeds=1))
    assert not v.noise_from_seeds
    assert "one seed: estimated" in v.words()
    assert v.noise == pytest.approx(0.004, rel=0.6)


def test_three_lrs_are_too_few() -> None:
    v = mt.transfer_verdict(table(lrs=(-9, -8, -7), seeds=3))
    assert v.status == "INCONCLUSIVE"
    assert "LRs" in v.reasons[0]
    assert v.next_runs


# the contract --------------------------------------------------------------------------------------------------------


def test_the_order_of_rows_changes_nothing() -> None:
    rows = table(seeds=3)
    mixed = rows.copy()
    random.Random(0).shuffle(mixed)
    mixed = [dict(reversed(row.items())) for row in mixed]
    assert mt.transfer_verdict(rows).to_dict() == mt.transfer_verdict(mixed).to_dict()


def test_unpaired_repetitions_do_not_depend_on_the_order_of_rows() -> None:
    rows = [{k: v for k, v in row.items() if k != "seed"} for row in table(seeds=3)]
    mixed = rows.copy()
    random.Random(1).shuffle(mixed)
    one = mt.transfer_verdict(rows)
    assert one.to_dict() == mt.transfer_verdict(mixed).to_dict()
    assert any("repetitions" in note for note in one.notes)


def test_by_gives_each_group_what_it_would_get_alone() -> None:
    rows = table(**STAYING, recipe="mup") + table(**DRIFTING, recipe="sp")
    both = mt.transfer_verdicts(rows, by="recipe")
    assert {name: v.status for name, v in both.items()} == {"mup": "HOLDS", "sp": "DRIFTS"}
    alone = mt.transfer_verdict(rows, where={"recipe": "sp"})
    assert alone.optima == both["sp"].optima


def test_the_verdict_is_frozen_and_plain_in_json() -> None:
    v = mt.transfer_verdict(table(**DRIFTING))
    with pytest.raises(dataclasses.FrozenInstanceError):
        v.status = "HOLDS"  # pyright: ignore[reportAttributeAccessIssue]  # the point of the test
    again = json.loads(json.dumps(v.to_dict(), allow_nan=False))
    assert again["status"] == "DRIFTS" and again["regret"]["low"] <= again["regret"]["value"] <= again["regret"]["high"]


def test_words_say_what_it_costs_and_which_columns_were_taken() -> None:
    said = mt.transfer_verdict(table(**STAYING)).words()
    assert said.startswith("HOLDS over width 32, 64, 128, 256")
    assert "tune at width 32, use at width 256: costs" in said
    assert "columns: size = width, lr = lr, seed = seed, loss = loss" in said


def test_five_hundred_rows_take_less_than_two_seconds() -> None:
    rows = table((-8.0,) * 7, (2.5, 2.45, 2.4, 2.35, 2.3, 2.25, 2.2), seeds=6, lrs=tuple(np.arange(-12, -6, 0.5)))
    assert len(rows) == 504
    mt.transfer_verdict(rows[:400])
    start = time.process_time()
    mt.transfer_verdict(rows)
    assert time.process_time() - start < 2


def test_it_needs_no_torch() -> None:
    code = (
        "import sys; from mutransfer import transfer_verdict; assert 'torch' not in sys.modules, 'torch was imported'"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize(
    ("estimate", "said"),
    [
        (Estimate(0.0013, 0.0002, 0.0031), "costs 0.13 % [0.02, 0.31] of the loss"),
        (
            Estimate(0.012, 0.005, math.inf),
            "costs 1.20 % of the loss (0.50 or more: training may diverge there, or nothing was run there)",
        ),
        (Estimate(math.inf, 0.0758, math.inf), "makes training diverge there, or costs 7.58 % of the loss or more"),
        (Estimate(math.inf, math.inf, math.inf), "makes training diverge"),
    ],
)
def test_an_infinite_cost_is_called_a_divergence(estimate: Estimate, said: str) -> None:
    assert cost(estimate) == said
