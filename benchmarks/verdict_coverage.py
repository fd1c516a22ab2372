"""Simulated sweeps with known optima: do the verdict's intervals hold the truth as often as they say, and how often is HOLDS wrong?

    python -m benchmarks.verdict_coverage [trials per setting, default 20; 500 for a table worth keeping] [processes, default 2]

Prints one line per setting: share of intervals (level 0.9) that hold the true optimum, drift, regret and gain, and the shares of verdicts.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from mutransfer.verdict import transfer_verdict

Array = np.ndarray
SHAPES: dict[str, Callable[[Array], Array]] = {
    "parabola": lambda d: d**2,
    "d² + d³/10": lambda d: d**2 + 0.1 * d**3,
    "cubic": lambda d: d**2 * (1 + 0.35 * np.tanh(0.5 * d)),
    "wall": lambda d: d**2 + 0.15 * np.exp(1.6 * d),
    "steep wall": lambda d: 0.7 * d**2 + 0.02 * np.exp(3.5 * d),
    "|x|^1.5": lambda d: np.abs(d) ** 1.5,
    "log cosh": lambda d: 2 * np.log(np.cosh(1.2 * d)),
    "hyperbola": lambda d: 3 * (np.sqrt(1 + d**2) - 1),
}
LOSS, WIDE = 2.5, np.linspace(-6, 6, 12001)
DIVERGES = 3.0  # a mean loss so far above the best is a run that diverged


@dataclass(frozen=True)
class Setting:
    """One kind of sweep. `rise`: loss one octave off the optimum; `noise`: of one run; both in units of the loss."""

    name: str
    shape: str = "parabola"
    seeds: int = 2
    lrs: int = 9
    spacing: float = 1.0
    sizes: int = 4
    drift: float = 0.0  # octaves per doubling
    gain: float = 0.01  # of the loss per doubling, at the optimum
    rise: float = 0.006
    noise: float = 0.002
    paired: bool = True  # seeds have levels of their own, the same at every size
    grows: float = 0.0  # e-folds per octave by which a run's noise grows above the optimum
    tilted: float = 0.0  # standard deviation of a seed's own shift of the optimum, octaves

    def truth(self) -> dict[str, float]:
        """Optimum offset of the shape, regret at the largest size relative to its loss, drift and total gain."""
        values = self.rise * LOSS * SHAPES[self.shape](WIDE)
        place, lowest = float(WIDE[np.argmin(values)]), float(values.min())
        moved = self.drift * (self.sizes - 1)
        carried = self.rise * LOSS * SHAPES[self.shape](np.array([place - moved]))[0]
        best = LOSS * (1 - self.gain * (self.sizes - 1)) + lowest
        return {"place": place, "lowest": lowest, "regret": (carried - lowest) / best, "drift": self.drift,
                "gain": (LOSS + lowest - best) / (LOSS + lowest)}  # fmt: skip

    def rows(self, rng: np.random.Generator) -> tuple[list[dict[str, Any]], Array]:
        """One simulated table, and the true optimum of each size."""
        place = self.truth()["place"]
        span = (self.lrs - 1) * self.spacing
        optima = -8 + self.drift * np.arange(self.sizes)
        start = optima.mean() - span / 2 + self.spacing * (rng.random() - 0.5)
        levels = 5 * self.noise * LOSS * rng.standard_normal(self.seeds) * self.paired
        shifts = self.tilted * rng.standard_normal((self.sizes, self.seeds))
        rows = []
        for i, best in enumerate(optima):
            for k in range(self.lrs):
                x = start + k * self.spacing
                for seed in range(self.seeds):
                    mean = LOSS * (1 - self.gain * i) + self.rise * LOSS * SHAPES[self.shape](np.array(x - best + place - shifts[i, seed]))  # fmt: skip
                    noise = self.noise * LOSS * np.exp(self.grows * max(0.0, x - best))
                    loss = float(mean + levels[seed] + noise * rng.standard_normal())
                    rows.append({"width": 32 * 2**i, "lr": 2.0**x, "seed": seed, "loss": loss if mean < LOSS * DIVERGES else float("nan")})  # fmt: skip
        return rows, optima


BASE = Setting("base")
SETTINGS = [
    *(replace(BASE, name=f"{shape}, {seeds} seed{'s' * (seeds > 1)}", shape=shape, seeds=seeds)
      for shape, seeds in (("parabola", 1), ("parabola", 2), ("parabola", 3), ("cubic", 1), ("cubic", 3), ("wall", 1), ("wall", 2), ("wall", 3),
                           ("steep wall", 2), ("|x|^1.5", 1), ("|x|^1.5", 3), ("log cosh", 2), ("hyperbola", 2))),
    replace(BASE, name="parabola, 3 seeds, 7 LRs, 5 widths", seeds=3, lrs=7, sizes=5),
    replace(BASE, name="parabola, 5 seeds, 3 widths", seeds=5, sizes=3),
    replace(BASE, name="parabola, 3 seeds, 5 LRs", seeds=3, lrs=5),
    replace(BASE, name="parabola, steps of √2, 2 seeds", spacing=0.5, lrs=13),
    replace(BASE, name="parabola, 15 steps of √2, 5 seeds", spacing=0.5, lrs=15, seeds=5),
    replace(BASE, name="parabola, 3 seeds, noise 0.4 %", noise=0.004, seeds=3, sizes=3),
    replace(BASE, name="parabola, 3 seeds, drift −0.1, noise 0.05 %", noise=0.0005, seeds=3, lrs=7, drift=-0.1),
    replace(BASE, name="parabola, 3 seeds, drift −1", drift=-1.0, seeds=3, lrs=11),
    replace(BASE, name="d² + d³/10, 3 seeds", shape="d² + d³/10", seeds=3),
    replace(BASE, name="d² + d³/10, 2 seeds, 7 LRs, noise 0.4 %", shape="d² + d³/10", lrs=7, noise=0.004),
    replace(BASE, name="steep wall, steps of √2, 1 seed", shape="steep wall", seeds=1, spacing=0.5, lrs=13),
    replace(BASE, name="wall, steps of √2, 3 seeds", shape="wall", seeds=3, spacing=0.5, lrs=13),
    replace(BASE, name="unpaired seeds", paired=False),
    replace(BASE, name="seeds shift the optimum, 3 seeds", tilted=0.3, seeds=3),
    replace(BASE, name="wall, 5 LRs, 1 seed", lrs=5, seeds=1, shape="wall"),
    replace(BASE, name="noise grows by e per octave, 2 seeds", grows=1.0),
    replace(BASE, name="noise grows by e per octave, 3 seeds", grows=1.0, seeds=3),
    replace(BASE, name="noise grows by √e per octave, 3 seeds", grows=0.5, seeds=3),
    replace(BASE, name="2 widths", sizes=2),
    replace(BASE, name="3 widths, 1 seed", sizes=3, seeds=1),
    replace(BASE, name="|x|^1.5, little noise", noise=0.0003, shape="|x|^1.5"),
    replace(BASE, name="much noise", noise=0.006),
    replace(BASE, name="wall, drift −0.3", drift=-0.3, shape="wall"),
    replace(BASE, name="log cosh, drift +0.4", drift=0.4, shape="log cosh"),
    replace(BASE, name="regret 1.1 %", drift=-0.4385),
    replace(BASE, name="regret 1.1 %, 1 seed", drift=-0.4385, seeds=1),
    replace(BASE, name="regret 1.1 %, 2 widths", drift=-1.345, sizes=2),
    replace(BASE, name="regret 1.1 %, much noise", drift=-0.4385, noise=0.006, seeds=3),
    replace(BASE, name="stays, wider worse by 0.5 %", gain=-0.00167),
    replace(BASE, name="stays, wider worse by 0.5 %, much noise", gain=-0.00167, noise=0.006),
    replace(BASE, name="wall, stays, wider worse by 3 %", gain=-0.01, shape="wall"),
]  # fmt: skip


def trial(job: tuple[Setting, int]) -> dict[str, Any]:
    """One verdict against the truth."""
    setting, seed = job
    rows, optima = setting.rows(np.random.default_rng([seed, len(setting.name)]))
    truth, v = setting.truth(), transfer_verdict(rows)
    return {
        "optimum": float(np.mean([o.log2_lr.low <= x <= o.log2_lr.high for o, x in zip(v.optima, optima, strict=True)])),
        "drift": v.drift.low <= truth["drift"] <= v.drift.high,
        "regret": v.regret.low - 1e-12 <= truth["regret"] <= v.regret.high,
        "gain": v.gain.relative.low <= truth["gain"] <= v.gain.relative.high,
        "width": np.mean([min(o.log2_lr.high, 9) - max(o.log2_lr.low, -20) for o in v.optima]),
        "status": v.status,
    }  # fmt: skip


def bad(setting: Setting) -> bool:
    """Whether HOLDS would be wrong."""
    truth = setting.truth()
    return truth["regret"] > 0.01 or truth["gain"] < -0.0025


def summary(setting: Setting, trials: list[dict[str, Any]]) -> dict[str, float]:
    """Shares over the trials."""
    found = {
        name: float(np.mean([t[name] for t in trials])) for name in ("optimum", "drift", "regret", "gain", "width")
    }
    for status in ("HOLDS", "DRIFTS", "INCONCLUSIVE"):
        found[status] = float(np.mean([t["status"] == status for t in trials]))
    return found


def main() -> None:
    """Print the table."""
    count = int(sys.argv[1]) if len(sys.argv) > 1 else 20
    processes = int(sys.argv[2]) if len(sys.argv) > 2 else 2
    print(
        f"{count} sweeps per setting; share of intervals at level 0.9 that hold the truth (standard error {0.3 / count**0.5:.3f})"
    )
    print(
        "| setting | optimum | drift | regret | gain | optimum's width | HOLDS | DRIFTS | INCONCLUSIVE | HOLDS would be |"
    )
    print("|---|---|---|---|---|---|---|---|---|---|")
    with ProcessPoolExecutor(processes) as pool:
        for setting in SETTINGS:
            s = summary(setting, list(pool.map(trial, [(setting, seed) for seed in range(count)], chunksize=8)))
            print(f"| {setting.name} | {s['optimum']:.3f} | {s['drift']:.3f} | {s['regret']:.3f} | {s['gain']:.3f} | {s['width']:.2f} "
                  f"| {s['HOLDS']:.3f} | {s['DRIFTS']:.3f} | {s['INCONCLUSIVE']:.3f} | {'wrong' if bad(setting) else 'right'} |", flush=True)  # fmt: skip


if __name__ == "__main__":
    main()
