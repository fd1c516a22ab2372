"""Do the intervals of loss prediction hold the truth as often as they say? Synthetic tables of known laws.

`python -m benchmarks.prediction_coverage 500`: per setting that many tables with random parameters; the share of 90 % intervals that hold
a new run at the target (profile, bootstrap), the law itself, and the true exponents; how often a fit failed.
"""

from __future__ import annotations

import os
import sys
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np

from mutransfer.predict import fit_loss


@dataclass(frozen=True)
class Setting:
    """Random tables of one kind. `far`: the target is that many times the largest size (and tokens)."""

    name: str
    law: str = "power"
    sizes: int = 7
    seeds: int = 1
    decades: float = 1.3
    noise: tuple[float, float] = (0.0005, 0.005)
    far: float = 10.0
    wild: float = 0.0  # share of runs that are off by ten standard deviations
    paired: float = 0.0  # seeds' own levels, in standard deviations of the noise

    def table(
        self, rng: np.random.Generator
    ) -> tuple[dict[str, Any], dict[str, float], dict[str, float], float, float]:
        """(columns, true exponents, target, its noiseless loss, its noise)."""
        noise = float(np.exp(rng.uniform(*np.log(self.noise))))
        start = 10 ** rng.uniform(5, 8)
        n = np.geomspace(start, start * 10**self.decades, self.sizes)
        if self.law == "power":
            b, c = rng.uniform(0.15, 0.8), rng.uniform(1.0, 3.0)
            a = rng.uniform(0.2, 1.2)
            scale = float(np.exp(np.log(n).mean()))

            def loss(n: Any, d: Any) -> Any:
                return c + a * (n / scale) ** -b

            truth = {"b": -b, "c": c}
            values = {"params": np.repeat(n, self.seeds)}
            target = {"params": n[-1] * self.far}
        else:
            alpha, beta, c = rng.uniform(0.25, 0.5), rng.uniform(0.25, 0.5), rng.uniform(1.2, 2.2)
            many = self.sizes
            n = np.exp(rng.uniform(np.log(start), np.log(start) + 2.5 * np.log(10), many))
            d = n * np.exp(rng.uniform(np.log(2), np.log(200), many))
            scale, other = float(np.exp(np.log(n).mean())), float(np.exp(np.log(d).mean()))
            a, b = rng.uniform(0.2, 0.8, 2)

            def loss(n: Any, d: Any) -> Any:
                return c + a * (n / scale) ** -alpha + b * (d / other) ** -beta

            truth = {"α": alpha, "β": beta, "E": c}
            values = {"params": np.repeat(n, self.seeds), "tokens": np.repeat(d, self.seeds)}
            target = {"params": n.max() * self.far, "tokens": 20 * n.max() * self.far}
        rows = len(values["params"])
        error = noise * rng.standard_normal(rows)
        error += 10 * noise * rng.choice([-1, 1], rows) * (rng.uniform(size=rows) < self.wild)
        seed = np.tile(np.arange(self.seeds), self.sizes)
        error += (self.paired * noise * rng.standard_normal(self.seeds))[seed]
        mean = loss(values["params"], values.get("tokens"))
        table = {**values, "loss": mean * np.exp(error)}
        if self.seeds > 1:
            table["seed"] = seed
        spread = noise * float(np.sqrt(1 + self.paired**2))
        return table, truth, target, float(loss(target["params"], target.get("tokens"))), spread


BASE = Setting("7 sizes")
SETTINGS = [
    BASE,
    replace(BASE, name="5 sizes", sizes=5),
    replace(BASE, name="10 sizes, 3 times larger", sizes=10, far=3.0),
    replace(BASE, name="10 sizes, 100 times larger", sizes=10, far=100.0),
    replace(BASE, name="7 sizes, much noise", noise=(0.005, 0.02)),
    replace(BASE, name="7 sizes, 3 seeds", seeds=3),
    replace(BASE, name="6 sizes, 5 seeds with levels of their own", sizes=6, seeds=5, paired=1.0),
    replace(BASE, name="30 sizes over 3 decades", sizes=30, decades=3.0, far=30.0),
    replace(BASE, name="40 sizes, 3 % wild", sizes=40, decades=2.0, wild=0.03),
    replace(BASE, name="Chinchilla, 30 runs", law="chinchilla", sizes=30),
    replace(BASE, name="Chinchilla, 100 runs", law="chinchilla", sizes=100),
    replace(BASE, name="Chinchilla, 245 runs, 2 % wild", law="chinchilla", sizes=245, wild=0.02, noise=(0.003, 0.01)),
]


def trial(job: tuple[Setting, int]) -> dict[str, Any]:
    """One table against its truth."""
    setting, seed = job
    rng = np.random.default_rng([seed, len(setting.name), setting.sizes])
    table, truth, target, mean, noise = setting.table(rng)
    law = fit_loss(table, setting.law)
    p = law.predict(**target)
    new = mean * np.exp(noise * rng.standard_normal())
    found = law.parameters
    best = law.fit.restarts.objective[0]
    return {
        "profile": p.low <= new <= p.high, "bootstrap": p.bootstrap[0] <= new <= p.bootstrap[1], "law": p.law_low <= mean <= p.law_high,
        "exponents": float(np.mean([found[name].low <= value <= found[name].high for name, value in truth.items() if name not in ("c", "E")])),
        "irreducible": float(np.mean([found[name].low <= value <= found[name].high for name, value in truth.items() if name in ("c", "E")])),
        "width": p.half_width, "error": abs(p.loss / mean - 1), "failed": not (np.isfinite(best) and np.isfinite([p.loss, p.low, p.high]).all()),
        "widened": law.backtest is not None and law.backtest.misfit > 0,
    }  # fmt: skip


COLUMNS = ("profile", "bootstrap", "law", "exponents", "irreducible", "width", "error", "widened", "failed")


def summary(trials: list[dict[str, Any]]) -> dict[str, float]:
    """Shares over the trials; medians of the width and the error."""
    return {
        name: float(np.median([t[name] for t in trials]) if name in ("width", "error") else np.mean([t[name] for t in trials]))
        for name in COLUMNS
    }  # fmt: skip


def main() -> None:
    """Print the table."""
    count = int(sys.argv[1]) if len(sys.argv) > 1 else 20
    processes = int(sys.argv[2]) if len(sys.argv) > 2 else 2
    wanted = [s for s in SETTINGS if len(sys.argv) < 4 or sys.argv[3] in s.name]
    print(
        f"{count} tables per setting; share of 90 % intervals that hold the truth (standard error {0.3 / count**0.5:.3f})"
    )
    print(
        "| setting | new run, profile | new run, bootstrap | the law | exponents | irreducible | half width, median | error, median | widened | failed |"
    )
    print("|---|---|---|---|---|---|---|---|---|---|")
    with ProcessPoolExecutor(processes) as pool:
        for setting in wanted:
            s = summary(list(pool.map(trial, [(setting, seed) for seed in range(count)], chunksize=4)))
            print(f"| {setting.name} | " + " | ".join(f"{s[n]:.3f}" for n in COLUMNS[:5]) + f" | {100 * s['width']:.2g} % | {100 * s['error']:.2g} % | {s['widened']:.2f} | {s['failed']:.3f} |", flush=True)  # fmt: skip


if __name__ == "__main__":
    main()
