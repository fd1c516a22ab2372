"""Learning curves with a known law and AR(1) noise."""

from __future__ import annotations

from typing import Any

import numpy as np

from mutransfer.predict.curve_laws import curve_law
from mutransfer.predict.schedules import Schedule, shaped

Array = np.ndarray
STEPS, PEAK = 6000, 3e-3
THETA = {"annealing": (np.log(2e-3),), "multi-power": (np.log(0.13), np.log(0.6), 0.65), "power": ()}


def schedule(shape: str, steps: int = STEPS, lr: float = PEAK, warmup: int = 200) -> Schedule:
    """One of our own."""
    return shaped(shape, steps, lr=lr, warmup=warmup)


def law(made: Schedule, step: Array, name: str = "annealing", level: float = 2.2, fall: float = 0.5, alpha: float = 0.5, worth: float = 0.12) -> Array:  # fmt: skip
    """L0 + A·(S/S_end of the constant LR)^(−α) − K·φ at steps (n,)."""
    area = made.area[step] / (PEAK * STEPS) if name != "power" else step / STEPS
    return level + fall * area**-alpha - worth * curve_law(name).drops(made, step, np.array([THETA[name]]), PEAK)[0]


def noise(rng: np.random.Generator, n: int, phi: float) -> Array:
    """AR(1) of variance 1."""
    e = rng.standard_normal(n)
    for i in range(1, n):
        e[i] = phi * e[i - 1] + np.sqrt(1 - phi**2) * e[i]
    return e


def table(shape: str = "cosine", name: str = "annealing", every: int = 60, sigma: float = 0.001, phi: float = 0.9, seed: int = 0, **truth: float) -> list[dict[str, Any]]:  # fmt: skip
    """A history of one run."""
    made, step = schedule(shape), np.arange(every, STEPS + 1, every)
    loss = law(made, step, name, **truth) * np.exp(sigma * noise(np.random.default_rng(seed), len(step), phi))
    return [{"step": int(s), "lr": float(made.lr[s - 1]), "loss": float(v)} for s, v in zip(step, loss, strict=True)]
