"""Learning-rate schedules as multipliers: every group keeps its own rate, so the plan's ratios survive.

A schedule that *sets* rates (``OneCycleLR(max_lr=float)``, cosine with an absolute ``eta_min``) gives every group the
same rate and silently turns a μP run into a standard one. Here it is one number in [0, 1] that multiplies them all.
"""

import math
from typing import Literal, get_args

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

Schedule = Literal["constant", "cosine", "linear", "wsd"]
SCHEDULES: tuple[str, ...] = get_args(Schedule)


def multiplier(
    step: int,
    *,
    steps: int,
    warmup: int = 0,
    schedule: str = "constant",
    final_lr_ratio: float = 0.1,
    wsd_decay_fraction: float = 0.2,
) -> float:
    """The factor in [0, 1] on every learning rate for update number `step` (0-based) of a run of `steps` updates.

    Warm-up is linear, ``(step + 1) / (warmup + 1)``: never 0, and exactly 1 at ``step == warmup``. Then, with
    ``r = final_lr_ratio`` and ``u`` linear from 0 at the start of the decay to 1 at the last update ``steps - 1``:

    - ``constant``: 1
    - ``cosine``: ``r + (1 - r)(1 + cos πu)/2``, decaying from the end of warm-up
    - ``linear``: ``1 - (1 - r)u``, decaying from the end of warm-up
    - ``wsd`` (warm-up, stable, decay): 1, then linear over the last ``wsd_decay_fraction · steps`` updates
    """
    if step < warmup:
        return (step + 1) / (warmup + 1)
    last = steps - 1
    start = max(warmup, last - round(wsd_decay_fraction * steps)) if schedule == "wsd" else warmup
    if schedule == "constant" or step <= start:
        return 1.0
    progress = min(1.0, (step - start) / max(1, last - start))
    if schedule == "cosine":
        return final_lr_ratio + (1 - final_lr_ratio) * (1 + math.cos(math.pi * progress)) / 2
    return 1.0 - (1 - final_lr_ratio) * progress


def make_scheduler(
    optimizer: Optimizer,
    *,
    steps: int,
    warmup: int = 0,
    schedule: str = "constant",
    final_lr_ratio: float = 0.1,
    wsd_decay_fraction: float = 0.2,
) -> LambdaLR:
    """A torch scheduler that multiplies each group's own rate by `multiplier`; ``.step()`` it after each update."""

    def factor(step: int) -> float:
        return multiplier(
            step,
            steps=steps,
            warmup=warmup,
            schedule=schedule,
            final_lr_ratio=final_lr_ratio,
            wsd_decay_fraction=wsd_decay_fraction,
        )

    return LambdaLR(optimizer, factor)
