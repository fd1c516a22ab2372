"""Simulated sweeps: intervals hold the truth at their level, HOLDS is seldom wrong and, where it is right, is said.

The long version, with the published table, is `benchmarks/verdict_coverage.py`.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

import numpy as np
import pytest

from mutransfer.verdict import Verdict, transfer_verdict

TRIALS = 28  # per case: 504 sweeps in all
ERROR = (0.9 * 0.1 / 504) ** 0.5  # of a share of them, one standard deviation
SHAPES: dict[str, Callable[[float], float]] = {
    "parabola": lambda d: d * d,
    "third order": lambda d: d * d + 0.1 * d**3,
    "wall": lambda d: d * d + 0.15 * float(np.exp(1.6 * d)) - 0.24 * d,  # about its own minimum: slope 0 at 0
}
DRIFTS = {"stays": (0.0, 0.01), "drifts": (-0.65, 0.01), "stays, wider worse": (0.0, -0.004)}
CASES = [(shape, drift, seeds) for shape in SHAPES for drift in DRIFTS for seeds in (2, 3)]
QUANTITIES = ("optimum", "drift", "regret", "gain")


@cache
def sweeps(shape: str, kind: str, seeds: int) -> list[tuple[Verdict, dict[str, list[bool]]]]:
    """(verdict, whether each interval holds the truth) of simulated sweeps over three widths, seven LRs in steps of 2."""
    drift, gain = DRIFTS[kind]
    optima = [-8 + drift * (i - 1) for i in range(3)]
    low = 0.02 * SHAPES[shape](0.0)
    bests = [2.5 * (1 - gain * i) + low for i in range(3)]
    lost = (0.02 * SHAPES[shape](-2 * drift) - low) / bests[-1]
    made = []
    for trial in range(TRIALS):
        rng = np.random.default_rng([trial, seeds, len(shape), len(kind)])
        start = -11.5 + rng.random()
        levels = 0.02 * rng.standard_normal(seeds)
        rows = [
            {"width": 64 * 2**i, "lr": 2.0**x, "seed": s,
             "loss": 2.5 * (1 - gain * i) + 0.02 * SHAPES[shape](x - best) + levels[s] + 0.005 * rng.standard_normal()}
            for i, best in enumerate(optima) for x in start + np.arange(7) for s in range(seeds)
        ]  # fmt: skip
        v = transfer_verdict(rows)
        hits = {
            "optimum": [o.log2_lr.low <= x <= o.log2_lr.high for o, x in zip(v.optima, optima, strict=True)],
            "drift": [v.drift.low <= drift <= v.drift.high],
            "regret": [v.regret.low <= lost + 1e-12 and lost <= v.regret.high],
            "gain": [v.gain.relative.low <= 1 - bests[-1] / bests[0] <= v.gain.relative.high],
        }
        made.append((v, hits))
    return made


def held(quantity: str) -> float:
    return float(np.mean([hit for case in CASES for _, hits in sweeps(*case) for hit in hits[quantity]]))


@pytest.mark.parametrize("quantity", QUANTITIES)
def test_intervals_hold_the_truth_at_their_level(quantity: str) -> None:
    assert held(quantity) == pytest.approx(0.9, abs=0.04 + 2 * ERROR)


def test_all_intervals_together_hold_the_truth_at_their_level() -> None:
    assert np.mean([held(quantity) for quantity in QUANTITIES]) == pytest.approx(0.9, abs=0.04 + ERROR)


@pytest.mark.parametrize("kind", ["drifts", "stays, wider worse"])
def test_false_holds_are_rare(kind: str) -> None:
    found = [v.status for shape in SHAPES for seeds in (2, 3) for v, _ in sweeps(shape, kind, seeds)]
    assert np.mean([status == "HOLDS" for status in found]) < 0.05


def test_what_stays_is_said_to_hold() -> None:
    found = [v.status for shape in SHAPES for seeds in (2, 3) for v, _ in sweeps(shape, "stays", seeds)]
    assert np.mean([status == "HOLDS" for status in found]) > 0.8
    assert np.mean([status == "DRIFTS" for status in found]) < 0.05
