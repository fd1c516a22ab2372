"""A network can blow up and stay finite: losses of 10⁹ are divergences, and must not drown the noise of the others."""

from __future__ import annotations

import numpy as np
import pytest

import mutransfer as mt
from mutransfer.verdict.cells import exploded

NAN = float("nan")


def test_a_loss_above_that_of_hardly_training_is_a_wall_and_only_above_the_best() -> None:
    loss = np.array([[4.0, 4.1], [2.5, 2.4], [2.2, 2.3], [2.9, 3.0], [5.0, 2.9], [7.0, 1e9], [NAN, np.inf]])
    found = exploded(loss)
    assert np.array_equal(found[:5], loss[:5], equal_nan=True)  # 5.0 is below 1.5 × 4.1
    assert np.isinf(found[5]).all() and np.isnan(found[6, 0]) and np.isinf(found[6, 1])
    slow = np.array([[9.0], [8.0], [1.0], [1.1], [9.5]])  # at low rates a loss may be anything
    assert np.array_equal(exploded(slow), slow)
    assert np.array_equal(exploded(-loss), -loss, equal_nan=True)  # losses that are not positive are left alone
    assert np.isnan(exploded(np.full((2, 2), NAN))).all()


@pytest.mark.parametrize("blown", [50.0, 1e9])
def test_a_blown_up_run_changes_nothing_but_the_wall(blown: float) -> None:
    rng = np.random.default_rng(1)
    rows = [
        {"depth": depth, "lr": 2.0**x, "seed": seed, "loss": 2.5 - 0.02 * i + 0.03 * (x + 6) ** 2 + rng.normal(0, 0.004)}
        for i, depth in enumerate((2, 4, 8)) for x in range(-10, -3) for seed in (0, 1)
    ]  # fmt: skip
    gone = [{**row, "loss": NAN if row["lr"] == 2**-4 else row["loss"]} for row in rows]
    blown_up = [{**row, "loss": blown if row["lr"] == 2**-4 else row["loss"]} for row in rows]
    one, other = mt.transfer_verdict(gone), mt.transfer_verdict(blown_up)
    assert one.status == other.status == "HOLDS"
    assert one.optima[0].log2_lr == other.optima[0].log2_lr and one.drift == other.drift
    assert other.noise < 0.006
