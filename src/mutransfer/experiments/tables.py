"""An MLP on tables: SP against μP under SGD and AdamW, over eight times the width."""

from __future__ import annotations

from typing import Any

from mutransfer.experiments.grid import Grid, Variant, powers
from mutransfer.experiments.transfer import experiment


def config(size: str) -> Grid:
    """Covertype, 2,000 updates of 256 rows; small: the digits as a table, one epoch, so that no loss reaches zero.

    With LayerNorm: it keeps hidden sizes at one, where PyTorch's own init lets them shrink with every layer, and a small readout
    hides what SGD's step does to it.
    """
    small = size == "small"
    run: dict[str, Any] = {
        "kind": "mlp", "depth": 2, "norm": "layernorm", "weight_decay": 0.0, "schedule": "constant", "warmup": 0, "clip": None,
        "momentum": 0.0,
    }  # fmt: skip
    if small:
        run |= {"data": "digits", "batch": 16, "steps": 90, "device": "cpu", "log_every": 10, "val_batches": 0}
        sgd, adamw, sizes = powers(-8, 0), powers(-12, -4), (64, 128, 256, 512)
    else:
        run |= {"data": "covertype", "batch": 256, "steps": 2000}
        sgd, adamw, sizes = powers(-10, 1), powers(-14, -5), (128, 256, 512, 1024)
    judged = ("SGD, μP", "AdamW, μP")
    metrics = ("mean_loss",) if small else ("mean_loss", "val_loss")
    return Grid(run, sizes, (0, 1, 2), optimizers_and_recipes(sgd, adamw), judged, metrics=metrics)


def optimizers_and_recipes(sgd: tuple[float, ...], adamw: tuple[float, ...]) -> tuple[Variant, ...]:
    """SP and μP under SGD and AdamW, each optimizer with its own learning rates."""
    return tuple(
        Variant(f"{title}, {name}", {"optimizer": optimizer, "recipe": recipe}, lrs)
        for title, optimizer, lrs in (("SGD", "sgd", sgd), ("AdamW", "adamw", adamw))
        for name, recipe in (("SP", "sp"), ("μP", "mup"))
    )


TABLES = experiment(
    "mlp-tables", "learning-rate transfer of an MLP on tables, SGD and AdamW, SP and μP", "after 2203.03466", config,
    "no numbers for these tables; 2203.03466 makes the same comparison on images.",
)  # fmt: skip
