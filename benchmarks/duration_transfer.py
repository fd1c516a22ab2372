"""Where the best learning rate goes when the batch grows at equal tokens, and when the run grows, with each rule and without.

    python -m benchmarks.duration_transfer [seeds]

A 2-layer GPT of width 32 on the embedded text; base: batch 8, 200 steps. Every line is a sweep over the same *base* learning rates:
under a rule the plan turns them into the target's lr, betas, eps and decay, so that a rule that transfers leaves the optimum where
it was. Optimum: parabola in log2(lr) through the best three of the seed means; regret: loss at the base's best rate over the best of the line.
Validation loss on the same rows for all. A few minutes on an idle core with two seeds.
"""

from __future__ import annotations

import math
import sys
import time
from typing import Any

import numpy as np
import torch

from mutransfer.data import load
from mutransfer.models import GPTConfig
from mutransfer.train import RunConfig, train

RATES = [2.0**power for power in range(-8, -2)]
BATCH, STEPS, RATIO = 8, 200, 4
MODEL = GPTConfig(width=32, depth=2, head_size=16, context=32, init_std=0.08)
BASE: dict[str, Any] = dict(
    model=MODEL, recipe="sp", betas=(0.9, 0.95), weight_decay=0.1, batch=BATCH, steps=STEPS, warmup=STEPS // 10, val_batches=64
)  # fmt: skip

LARGE: dict[str, Any] = dict(
    batch=RATIO * BATCH, steps=STEPS // RATIO, warmup=STEPS // RATIO // 10, val_batches=64 // RATIO
)
LONG: dict[str, Any] = dict(steps=RATIO * STEPS, warmup=RATIO * STEPS // 10)
BOTH: dict[str, Any] = dict(batch=RATIO * BATCH, val_batches=64 // RATIO)
ARMS: dict[str, dict[str, Any]] = {
    "base: batch 8, 200 steps": {},
    "batch ×4, equal tokens: as the base": LARGE,
    "batch ×4, equal tokens: sde": {**LARGE, "duration": "sde", "base_batch": BATCH},
    "tokens ×4, same batch: as the base (sde)": LONG,
    "tokens ×4, same batch: ema": {**LONG, "duration": "ema", "base_steps": STEPS},
    "tokens ×4, same batch: completed-p": {**LONG, "duration": "completed-p", "base_steps": STEPS},
    "batch ×4, tokens ×4: as the base (completed-p)": BOTH,
}


def sweep(options: dict[str, Any], seeds: int, data: Any) -> np.ndarray:
    """Validation losses (rate, seed); a diverged run is inf."""
    losses = []
    for rate in RATES:
        runs = [RunConfig(**{**BASE, **options, "lr": rate, "seed": seed}) for seed in range(seeds)]
        losses.append([train(run, data=data).val_loss for run in runs])
    return np.array(losses, dtype=float)


def optimum(losses: np.ndarray) -> tuple[float, float]:
    """(log2 of the best rate, loss there) by a parabola through the three best neighbours; the grid's own at an edge."""
    mean = losses.mean(1)
    best = int(np.argmin(mean))
    x = math.log2(RATES[best])
    if best in (0, len(RATES) - 1) or not np.isfinite(mean[best - 1 : best + 2]).all():
        return x, float(mean[best])
    left, middle, right = mean[best - 1 : best + 2]
    shift = 0.5 * (left - right) / (left - 2 * middle + right)
    return x + shift, float(middle - 0.25 * (left - right) * shift)


def main() -> None:
    """Print every sweep, its optimum, the drift from the base's, and the regret of the base's."""
    torch.set_num_threads(1)
    seeds = int(sys.argv[1]) if len(sys.argv) > 1 else 2
    data, start, origin, chosen = load("topics"), time.perf_counter(), 0.0, 0
    print(f"log2(base lr): {', '.join(str(round(math.log2(rate))) for rate in RATES)}; {seeds} seeds")
    for name, options in ARMS.items():
        losses = sweep(options, seeds, data)
        mean, (where, lowest) = losses.mean(1), optimum(losses)
        if not options:
            origin, chosen = where, int(np.argmin(mean))
        spread = [optimum(losses[:, [seed]])[0] for seed in range(seeds)]
        print(
            f"{name:<48} optimum 2^{where:.2f} (seeds {', '.join(f'{s:.2f}' for s in spread)}), drift {where - origin:+.2f} octaves, "
            f"loss {lowest:.4f}, regret of the base's rate {100 * (mean[chosen] / mean.min() - 1):.2f} %\n    "
            + " ".join(f"{loss:.4f}" for loss in mean),
            flush=True,
        )
    print(f"{time.perf_counter() - start:.0f} s")


if __name__ == "__main__":
    main()
