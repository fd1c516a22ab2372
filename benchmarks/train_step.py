"""Cost of one training step: ours beside a bare PyTorch loop of the same model, and as a share of the matmul peak.

Claims: within 5 % of the bare loop, and at least 75 % of the f32 matmul peak at width 512 with two threads.
Everything is measured in this one process, the two loops taking turns, so that only ratios are printed.
"""

import statistics
import time
from collections.abc import Callable

import torch
import torch.nn.functional as F

from mutransfer.build import plan
from mutransfer.data import TextData, load
from mutransfer.models import GPT, GPTConfig
from mutransfer.train import Run, RunConfig, Task, flops_per_row, make_scheduler

CONTEXT, BATCH = 64, 16  # 1,024 tokens per step
CPU = torch.device("cpu")


def our_step(config: RunConfig, data: TextData) -> Callable[[int], None]:
    """One update of our loop: plan's groups and clipping, schedule, record of the loss."""
    made = plan(
        config.make_model, base=config.base, target=config.target, optimizer=config.optimizer, recipe=config.recipe
    )
    run = Run(config, made, Task.of(config, CPU, data), CPU, None)

    def step(number: int) -> None:
        run.update(number, want_norm=False)

    return step


def bare_step(config: RunConfig, data: TextData) -> Callable[[int], None]:
    """What a user would write by hand for the same run, without any plan."""
    assert isinstance(config.model, GPTConfig)
    torch.manual_seed(config.seed)
    model = GPT(config.model)
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=config.lr, betas=config.betas, eps=config.eps, weight_decay=config.weight_decay
    )
    scheduler = make_scheduler(optimizer, steps=config.steps, warmup=config.warmup, schedule=config.schedule)

    def step(number: int) -> None:
        x, y = data.batch(number, config.seed, config.batch, CONTEXT)
        loss = F.cross_entropy(model(x).flatten(0, 1), y.flatten())
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        scheduler.step()
        optimizer.zero_grad()

    return step


def side_by_side(first: Callable[[int], None], second: Callable[[int], None], rounds: int) -> tuple[float, float]:
    """Median seconds of each, taking turns and changing who goes first; the first 3 rounds warm up."""
    times: tuple[list[float], list[float]] = ([], [])
    for number in range(rounds + 3):
        order = ((first, times[0]), (second, times[1]))
        for step, into in order if number % 2 else reversed(order):
            start = time.perf_counter()
            step(number)
            into.append(time.perf_counter() - start)
    return statistics.median(times[0][3:]), statistics.median(times[1][3:])


def matmul_peak(size: int = 2048, repeats: int = 8) -> float:
    """The best float32 FLOP/s of a square matrix product, the yardstick of the share below."""
    a, b = torch.randn(size, size), torch.randn(size, size)
    best = float("inf")
    for _ in range(repeats):
        start = time.perf_counter()
        torch.mm(a, b)
        best = min(best, time.perf_counter() - start)
    return 2 * size**3 / best


def main() -> None:
    data = load("topics")
    assert isinstance(data, TextData)
    print(f"2-layer GPT, {BATCH * CONTEXT} tokens per step, {torch.get_num_threads()} threads")
    print("width | our step / bare step | our step's FLOP/s / matmul peak")
    for width, rounds in ((64, 200), (128, 100), (256, 40), (512, 20)):
        model = GPTConfig(vocab_size=data.vocab_size, context=CONTEXT, width=width, depth=2, head_size=64)
        config = RunConfig(model=model, base={"width": 64}, batch=BATCH, steps=1000)
        before = matmul_peak()
        ours, bare = side_by_side(our_step(config, data), bare_step(config, data), rounds)
        peak = max(before, matmul_peak())  # the machine's speed drifts: the higher of the two is the stricter one
        share = flops_per_row(model, (CONTEXT,)) * BATCH / ours / peak
        print(f"{width:5d} | {ours / bare:20.3f} | {share:8.1%}")


if __name__ == "__main__":
    main()
