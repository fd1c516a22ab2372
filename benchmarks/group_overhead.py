"""What a plan's param groups cost: AdamW with the plan's groups against one plain AdamW group, side by side in one run.

Both step the same GPT (its own copy) on the same gradients, interleaved; the ratio of an optimizer step is the median over pairs. A
training step, forward and backward included, is what a user waits for: there the same difference is diluted. Run:

    python benchmarks/group_overhead.py
"""

from __future__ import annotations

import statistics
import time

import torch

import mutransfer as mt
from mutransfer.models import gpt_factory

SIZES = ((256, 12), (512, 12))
ROUNDS = 30


def pair(width: int, depth: int) -> tuple[list[torch.optim.Optimizer], torch.nn.Module, int]:
    """The plan's AdamW and the plain one, each on its own copy of one model with one set of gradients."""
    make = gpt_factory(vocab_size=4096, context=128, head_size=64)
    plan = mt.plan(make, base=dict(width=128, depth=4), target=dict(width=width, depth=depth), recipe="completep")
    optimizers: list[torch.optim.Optimizer] = []
    models = [plan.initialize(make(width=width, depth=depth), seed=0) for _ in range(2)]
    generator = torch.Generator().manual_seed(0)
    for p, q in zip(*(model.parameters() for model in models), strict=True):
        p.grad = torch.randn(p.shape, generator=generator)
        q.grad = p.grad.clone()
    optimizers.append(plan.optimizer(models[0], lr=1e-4, weight_decay=0.1))
    optimizers.append(torch.optim.AdamW(models[1].parameters(), lr=1e-4, weight_decay=0.1))
    return optimizers, models[0], len(optimizers[0].param_groups)


def training_step(model: torch.nn.Module) -> float:
    """Seconds of one forward and backward of 8 × 128 tokens."""
    x = torch.randint(4096, (8, 128), generator=torch.Generator().manual_seed(1))
    start = time.perf_counter()
    logits = model(x)
    torch.nn.functional.cross_entropy(logits.flatten(0, 1), x.flatten()).backward()
    return time.perf_counter() - start


def main() -> None:
    """One line per size: groups, ratio of the optimizer step, and of a training step that contains it."""
    print("plan's param groups against one plain AdamW group, median of", ROUNDS, "interleaved pairs")
    for width, depth in SIZES:
        optimizers, model, count = pair(width, depth)
        times: list[list[float]] = [[], []]
        for turn in range(ROUNDS + 3):
            for which in (0, 1) if turn % 2 else (1, 0):
                start = time.perf_counter()
                optimizers[which].step()
                if turn >= 3:
                    times[which].append(time.perf_counter() - start)
        ratios = [a / b for a, b in zip(*times, strict=True)]
        rest = statistics.median(training_step(model) for _ in range(3))
        ours, plain = (statistics.median(found) for found in times)
        print(
            f"width {width:4}, depth {depth}: {count} groups, optimizer step × {statistics.median(ratios):.3f}, "
            f"training step × {(rest + ours) / (rest + plain):.4f}"
        )


if __name__ == "__main__":
    main()
