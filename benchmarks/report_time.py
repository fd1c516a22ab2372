"""`mutransfer report` of 500 runs with 40 logged points each, in fresh processes, Python's start included. Limit: 5 s."""

import math
import os
import random
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path

from mutransfer.models import GPTConfig
from mutransfer.sweep.store import Store
from mutransfer.train import RunConfig

REPEATS = 5
LIMIT = 5.0  # seconds
STEPS, EVERY = 200, 5
WIDTHS, LOG2_LRS, SEEDS = (32, 64, 128, 256, 512), tuple(range(-12, -2)), range(5)


def loss_at(recipe: str, width: int, log2_lr: float) -> float:
    """A valley that stays under μP and moves left by an octave per doubling under SP; inf where it is too steep."""
    octaves = math.log2(width / 32)
    best = -6.0 if recipe == "mup" else -6.0 - octaves
    away = log2_lr - best
    if away > 3.5:
        return math.inf
    floor = 2.4 - (0.03 * octaves if recipe == "mup" else 0.005 * octaves)
    return floor + (0.02 if away > 0 else 0.012) * away * away


def fill(folder: Path) -> int:
    """A store of made-up runs; returns how many."""
    config = RunConfig(model=GPTConfig(depth=2, head_size=16, context=64), base={"width": 32}, steps=STEPS)
    with Store(folder) as store:
        store.note(
            "command", "mutransfer sweep gpt --grid recipe=sp,mup width=32,64,128,256,512 lr=2^-12..2^-3 seed=0..4"
        )
        for recipe in ("sp", "mup"):
            for width in WIDTHS:
                for log2_lr in LOG2_LRS:
                    for seed in SEEDS:
                        wanted = replace(config, recipe=recipe, model=replace(config.model, width=width), lr=2.0**log2_lr, seed=seed)  # fmt: skip
                        _add(store, wanted)
        return len(store.statuses())


def _add(store: Store, config: RunConfig) -> None:
    width = config.model.width
    loss = loss_at(config.recipe, width, math.log2(config.lr))
    drawn = random.Random(f"{config.seed}")
    shared = config.recipe == "mup" and width == 32
    twin = replace(config, recipe="sp") if shared else config
    noise = drawn.gauss(0, 0.004) + random.Random(twin.hash()).gauss(0, 0.002)
    finite = math.isfinite(loss)
    end = STEPS if finite else 60
    points = [
        {"step": step, "loss": loss + noise + 1.8 * math.exp(-step / 40) if finite else 4 + step / 20, "lr": config.lr,
         "grad_norm": 1.0, "tokens": step * 1024, "seconds": step / 50}
        for step in range(EVERY, end + 1, EVERY)
    ]  # fmt: skip
    value = loss + noise if finite else None
    flops = 3e5 * width * width * end
    store.add(
        {
            "key": config.hash()[:32], "result": config.hash()[:32] + "r", "status": "finished" if finite else "diverged",
            "reason": None if finite else f"loss is nan at update {end}", "config": config.to_dict(),
            "metrics": {"train_loss": value, "val_loss": value, "updates": end, "diverged_at": None if finite else end,
                        "params": 12 * 2 * width * width},
            "flops": 0.0 if shared else flops, "seconds": 0.0 if shared else flops / 2e10, "cpu_seconds": 0.0 if shared else flops / 2e10,
            "copied_from": twin.hash()[:32] if shared else None, "version": "0.1.0",
            "environment": {"python": "3.11", "torch": "2.13"}, "git": "none", "ended": "2026-01-01 00:00 UTC",
        },
        points,
    )  # fmt: skip


def report(folder: Path) -> tuple[float, float]:
    """Seconds by the clock and of the processor that one report takes."""
    start, cpu = time.perf_counter(), sum(os.times()[2:4])
    subprocess.run([sys.executable, "-m", "mutransfer.cli", "report", str(folder)], check=True, capture_output=True)
    return time.perf_counter() - start, sum(os.times()[2:4]) - cpu


def main() -> None:
    """Print the first report (which makes the plan, with torch) and the median of later ones, and shares of what is allowed."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name) / "sweep"
        runs = fill(folder)
        first = report(folder)
        again = [report(folder) for _ in range(REPEATS)]
        size = (folder / "report.html").stat().st_size
    for what, (wall, cpu) in (
        ("first report", first),
        ("again", (statistics.median(wall for wall, _ in again), statistics.median(cpu for _, cpu in again))),
    ):
        print(
            f"{runs} runs, {what}: {wall:.2f} s, {wall / LIMIT:.2f} of the {LIMIT:g} s allowed ({cpu:.2f} s of a core)"
        )
    print(f"page: {size / 1e6:.1f} MB")


if __name__ == "__main__":
    main()
