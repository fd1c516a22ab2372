"""Where the LR varies within a size the verdict is consulted, and one loss per size and seed is taken."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from mutransfer.errors import InputError
from mutransfer.predict.reading import read_points
from tests.predict.tables import changed, grid
from tests.verdict.tables import DRIFTING, STAYING, table

LRS = tuple(range(-11, -3))


def staying(**fields: Any) -> list[dict[str, Any]]:
    return table(**STAYING, lrs=LRS, **fields)


def test_the_best_lr_of_each_size_is_taken_with_every_seed() -> None:
    points = read_points(table(optima=(-9.0, -8.0, -7.0, -6.0)))
    assert len(points) == 8 and set(points.seed) == {"0", "1"}
    assert np.log2(points.variables["lr"]).tolist() == [-9, -9, -8, -8, -7, -7, -6, -6]
    assert any("at each of 4 sizes the LR with the lowest mean loss is taken" in note for note in points.notes)


def test_the_mean_over_seeds_decides_and_a_divergence_of_one_seed_is_a_wall() -> None:
    rows = table(optima=(-8.0,) * 4, noise=0.0)
    low = [i for i, row in enumerate(rows) if row["lr"] == 2.0**-10 and row["seed"] == 0]
    rows = changed(rows, tuple(low), loss=lambda v: v - 0.03)  # one lucky seed far from the optimum
    points = read_points(changed(rows, (0,), loss=float("nan")))
    assert points.constants["lr"] == 2.0**-8


def test_one_lr_for_all_is_the_best_of_the_smallest_size() -> None:
    points = read_points(table(optima=(-9.0, -8.0, -7.0, -6.0)), at="shared")
    assert points.constants["lr"] == 2.0**-9 and len(points) == 8
    assert any(
        "LR 0.001953, the best one at the smallest size, is taken at every size" in note for note in points.notes
    )


def test_sizes_that_diverge_at_the_shared_lr_are_left_out_and_named() -> None:
    rows = table(optima=(-6.0, -7.0, -8.0, -12.0), diverges=0.5)
    points = read_points(rows, at="shared")
    assert points.variables["width"].max() == 128
    assert any("sizes without a finite loss at that LR, left out: 1 (width 256" in note for note in points.notes)


def test_an_lr_can_be_named_to_one_percent() -> None:
    points = read_points(staying(), at=0.0039)
    assert points.constants["lr"] == 2.0**-8 and len(points) == 8
    with pytest.raises(InputError, match=r"at=0.005: no run has that LR; the table has 0.0004883"):
        read_points(staying(), at=0.005)


def test_every_lr_can_be_kept() -> None:
    rows = staying()
    assert len(read_points(rows, at=None)) == sum(np.isfinite(row["loss"]) for row in rows)


def test_lrs_written_with_few_digits_are_one_lr() -> None:
    rows = [{**row, "lr": float(f"{row['lr']:.{2 + row['seed']}g}")} for row in staying()]
    assert len(read_points(rows)) == 8


def test_a_sweep_that_holds_says_so() -> None:
    points = read_points(staying())
    assert points.transfer == "HOLDS"
    assert any("verdict of the sweep over width: HOLDS" in note for note in points.notes)
    assert not any("no ground" in note for note in points.notes)


@pytest.mark.parametrize("at", ["best", "shared"])
def test_a_sweep_that_drifts_is_warned_of_plainly(at: str) -> None:
    points = read_points(table(**DRIFTING, lrs=LRS, recipe="sp"), at=at)
    assert points.transfer == "DRIFTS"
    said = " | ".join(points.notes)
    assert "losses at one LR for all sizes do not line up, and their extrapolation has no ground" in said
    assert "recipe is sp: under the standard parametrization" in said
    assert ("each size's own best LR" in said) == (at == "best")


def test_a_sweep_that_cannot_be_judged_is_said_to_be_so() -> None:
    inconclusive = read_points(table(**STAYING, lrs=(-8, -7, -6), seeds=1))
    assert inconclusive.transfer == "INCONCLUSIVE" and any("no ground yet" in note for note in inconclusive.notes)
    one = read_points(
        [
            {"width": 64, "D": d, "lr": lr, "loss": 3 - np.log10(d) / 10 + lr}
            for d in (1e8, 1e9, 1e10)
            for lr in (0.01, 0.02)
        ]
    )
    assert one.transfer is None and any("swept at one size" in note for note in one.notes)


def test_a_table_without_a_sweep_has_no_verdict() -> None:
    assert read_points(grid(lr=0.01)).transfer is None
    tuned = read_points([{**row, "lr": row["N"] ** -0.25} for row in grid()])
    assert tuned.transfer is None and len(tuned) == 12 and "lr" in tuned.variables


def test_sizes_by_tokens_by_lrs_leave_one_row_per_size_and_length() -> None:
    rows = [{**row, "lr": 2.0**x, "loss": row["loss"] + 0.02 * (x + 8) ** 2} for row in grid() for x in range(-11, -4)]
    points = read_points(rows)
    assert len(points) == 12 and points.constants["lr"] == 2.0**-8
    assert points.transfer is not None  # asked of the sizes at one length of training


def test_where_the_batch_is_swept_too_the_best_pair_is_taken() -> None:
    rows = [
        {**row, "lr": 2.0**x, "batch": b, "loss": row["loss"] + 0.02 * (x + 8) ** 2 + 0.01 * (b - 64) ** 2 / 64}
        for row in grid()
        for x in (-9, -8, -7)
        for b in (32, 64, 128)
    ]
    points = read_points(rows)
    assert len(points) == 12 and points.constants["lr"] == 2.0**-8 and points.constants["batch"] == 64


def test_an_optimum_at_the_edge_is_said() -> None:
    points = read_points(table(optima=(-4.0,) * 4, lrs=(-8, -7, -6, -5)))
    assert any("at 4 of them it is at the edge of the grid" in note for note in points.notes)


def test_histories_of_a_sweep_keep_the_chosen_runs_whole() -> None:
    rows = [{**row, "step": s, "loss": row["loss"] + 5 / s} for row in staying() for s in (10, 50, 100)]
    points = read_points(rows, steps=True)
    assert len(points) == 24 and len(set(points.run)) == 8 and points.transfer == "HOLDS"
    assert all(points.run.count(run) == 3 for run in points.run)


def test_the_losses_taken_do_not_depend_on_the_order_of_rows() -> None:
    rows = staying()
    one, two = read_points(rows), read_points(rows[::-1])
    assert np.array_equal(one.loss, two.loss) and one.notes == two.notes and one.run == two.run
