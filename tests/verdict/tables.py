"""Tables of runs with a known truth."""

from __future__ import annotations

from typing import Any

import numpy as np


def table(
    optima: tuple[float, ...] = (-8.0, -8.0, -8.0, -8.0),
    losses: tuple[float, ...] = (2.43, 2.40, 2.37, 2.34),
    seeds: int = 2,
    lrs: tuple[float, ...] = tuple(range(-12, -3)),
    noise: float = 0.004,
    rise: float = 0.02,
    diverges: float = 0.35,
    rng: int = 0,
    **fields: Any,
) -> list[dict[str, Any]]:
    """A parabola with a wall in log2 LR per width 32, 64, …; nan from where the mean is `diverges` above the best."""
    random = np.random.default_rng(rng)
    levels = random.normal(0, 0.02, seeds)
    rows = []
    for i, (best, loss) in enumerate(zip(optima, losses, strict=True)):
        for x in lrs:
            above = rise * (x - best) ** 2
            for seed in range(seeds):
                value = loss + above + levels[seed] + noise * random.standard_normal()
                gone = x > best and above > diverges
                rows.append(
                    {"width": 32 * 2**i, "lr": 2.0**x, "seed": seed, "loss": float("nan") if gone else value, **fields}
                )
    return rows


DRIFTING = dict(optima=(-6.1, -7.2, -8.0, -8.6), losses=(2.429, 2.393, 2.394, 2.421))  # the known SP setting
STAYING = dict(optima=(-6.1, -5.6, -5.6, -5.8), losses=(2.429, 2.397, 2.375, 2.340))  # and μP
WORSE = dict(optima=(-8.0,) * 4, losses=(2.34, 2.36, 2.38, 2.40))
