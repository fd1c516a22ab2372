"""Simulated sweeps: intervals hold the truth at their level, HOLDS is seldom wrong and, where it is right, is said.

The long version, with the published table, is `benchmarks/verdict_coverage.py`.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

import numpy as np
import pytest

from mutransfer.verdict import Verdict, transfer_verdict

TRIALS = 30  # per case: 540 sweeps in all
SHAPES: dict[str, Callable[[float], float]] = {
    "parabola": lambda d: d * d,
    "wall": lambda d: d * d + 0.15 * float(np.exp(1.6 * d)) - 0.24 * d,  # about its own minimum: slope 0 at 0
    "hyperbola": lambda d: 3 * (float(np.sqrt(1 + d * d)) - 1),
}
DRIFTS = {"stays": (0.0, 0.01), "drifts": (-0.65, 0.01), "stays, wider worse": (0.0, -0.004)}
CASES = [(shape, drift, seeds) for shape in SHAPES for drift in DRIFTS for seeds in (1, 3)]


@cache
def sweeps(shape: str, kind: str, seeds: int) -> list[tuple[Verdict, tuple[float, ...], float]]:
    """(verdict, true optima, true relative regret) of simulated sweeps over three widths."""
    drift, gain = DRIFTS[kind]
    made = []
    for trial in range(TRIALS):
        rng = np.random.default_rng([trial, seeds, len(shape), len(kind)])
        start = -11.5 + rng.random()
        optima = tuple(-8 + drift * (i - 1) for i in range(3))
        levels = 0.02 * rng.standard_normal(seeds)
        rows = [
            {"width": 64 * 2**i, "lr": 2.0**x, "seed": s,
             "loss": 2.5 * (1 - gain * i) + 0.02 * SHAPES[shape](x - best) + levels[s] + 0.005 * rng.standard_normal()}
            for i, best in enumerate(optima) for x in start + np.arange(7) for s in range(seeds)
        ]  # fmt: skip
        low = SHAPES[shape](0.0)
        lost = 0.02 * (SHAPES[shape](-2 * drift) - low) / (2.5 * (1 - 2 * gain) + 0.02 * low)
        made.append((transfer_verdict(rows), optima, lost))
    return made


@pytest.mark.parametrize("quantity", ["optimum", "drift", "regret"])
def test_intervals_hold_the_truth_at_their_level(quantity: str) -> None:
    hits: list[bool] = []
    for shape, kind, seeds in CASES:
        for v, optima, lost in sweeps(shape, kind, seeds):
            if quantity == "optimum":
                hits += [o.log2_lr.low <= x <= o.log2_lr.high for o, x in zip(v.optima, optima, strict=True)]
            elif quantity == "drift":
                hits.append(v.drift.low <= DRIFTS[kind][0] <= v.drift.high)
            else:
                hits.append(v.regret.low <= lost <= v.regret.high)
    assert 0.86 <= np.mean(hits) <= 0.97  # over shapes that are no parabola and a parabola


@pytest.mark.parametrize("kind", ["drifts", "stays, wider worse"])
def test_false_holds_are_rare(kind: str) -> None:
    found = [v.status for shape in SHAPES for seeds in (1, 3) for v, _, _ in sweeps(shape, kind, seeds)]
    assert np.mean([status == "HOLDS" for status in found]) < 0.05


def test_what_stays_is_said_to_hold() -> None:
    found = [v.status for shape in SHAPES for seeds in (1, 3) for v, _, _ in sweeps(shape, "stays", seeds)]
    assert np.mean([status == "HOLDS" for status in found]) > 0.8
    assert np.mean([status == "DRIFTS" for status in found]) < 0.05
