"""Made-up sweeps in a store: valleys with known optima, walls, shared runs, and one of our own configs."""

from __future__ import annotations

import itertools
import math
import random
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mutransfer.sweep.store import Store

WIDTHS, LOG2_LRS, SEEDS = (32, 64, 128), tuple(range(-10, -2)), (0, 1)
FLOPS = 1e6  # of a run at width 1


def loss_at(moves: float, octaves: float, log2_lr: float, gain: float = 0.03) -> float:
    """A valley whose optimum moves by `moves` octaves per doubling; inf three and a half octaves above it."""
    away = log2_lr + 6 - moves * octaves
    return math.inf if away > 3.5 else 2.4 - gain * octaves + 0.015 * away * away


def config(recipe: str, width: int, log2_lr: float, seed: int, **more: Any) -> dict[str, Any]:
    """A config as plain JSON."""
    values = {
        "recipe": recipe,
        "optimizer": "adamw",
        "lr": 2.0**log2_lr,
        "seed": seed,
        "data": "topics",
        "base": {"width": 32},
    }
    return {**values, "model": {"kind": "gpt", "width": width, "depth": more.pop("depth", 2)}, **more}


def record(key: str, config: Mapping[str, Any], loss: float, width: int = 32, **more: Any) -> dict[str, Any]:
    """One row: finished with this loss, or diverged at update 60."""
    finite = math.isfinite(loss)
    values = {
        "key": key, "result": f"{key}/result", "status": "finished" if finite else "diverged",
        "reason": None if finite else "loss is nan at update 60", "config": dict(config),
        "metrics": {"train_loss": loss if finite else None, "val_loss": loss + 0.1 if finite else None,
                    "diverged_at": None if finite else 60},
        "flops": FLOPS * width**2, "seconds": 1.0, "cpu_seconds": 0.9, "copied_from": None, "version": "0.1.0",
        "environment": {"python": "3.11"}, "git": "none", "ended": "2026-01-01 00:00 UTC",
    }  # fmt: skip
    return {**values, **more}


def points(loss: float) -> list[dict[str, Any]]:
    """A falling curve; a lost one ends."""
    if not math.isfinite(loss):
        return [{"step": step, "loss": 4.0 + step} for step in (1, 20, 40)]
    return [{"step": step, "loss": loss + math.exp(-step / 40)} for step in range(20, 201, 20)]


def fill(
    folder: Path, *, recipes: Mapping[str, float] | None = None, depths: Sequence[int] = (2,), shuffled: bool = False
) -> Path:
    """SP moves left by an octave per doubling, μP stays; at the base μP's runs are copies of SP's. `recipes`: name → moves."""
    moves = {"sp": -1.0, "mup": 0.0} if recipes is None else recipes
    grid = list(itertools.product(moves, depths, WIDTHS, LOG2_LRS, SEEDS))
    if shuffled:
        random.Random(0).shuffle(grid)
    with Store(folder) as store:
        store.note("command", "mutransfer sweep gpt --grid ...")
        for recipe, depth, width, x, seed in grid:
            loss = loss_at(moves[recipe], math.log2(width / 32), x)
            shared = recipe != "sp" and "sp" in moves and width == 32
            noise = random.Random(f"{'sp' if shared else recipe}/{depth}/{width}/{x}/{seed}").gauss(0, 0.001)
            key = f"{recipe}/{depth}/{width}/{x}/{seed}"
            cost = (
                {"flops": 0.0, "seconds": 0.0, "cpu_seconds": 0.0, "copied_from": f"sp/{depth}/{width}/{x}/{seed}"}
                if shared
                else {}
            )
            store.add(
                record(key, config(recipe, width, x, seed, depth=depth), loss + noise, width, **cost), points(loss)
            )
    return folder
