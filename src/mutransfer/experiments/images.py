"""A ResNet on images: SP against μP under SGD and AdamW, over eight times the width."""

from __future__ import annotations

from typing import Any

from mutransfer.experiments.grid import Grid, powers
from mutransfer.experiments.tables import optimizers_and_recipes
from mutransfer.experiments.transfer import experiment


def config(size: str) -> Grid:
    """ResNet-18 on CIFAR-100, ten epochs, width 8 … 64; small: one block a stage on the digits as images, width 4 … 32."""
    run: dict[str, Any] = {"kind": "resnet", "weight_decay": 0.0, "clip": None, "momentum": 0.0}
    if size == "small":
        run |= {"data": "digits-images", "blocks": (1, 1), "batch": 16, "steps": 60, "warmup": 0, "schedule": "constant", "device": "cpu", "log_every": 10}  # fmt: skip
        sgd, adamw, sizes, seeds = powers(-6, 1), powers(-12, -4), (4, 8, 16, 32), (0, 1)
    else:
        run |= {"data": "cifar100", "batch": 128, "steps": 3900, "warmup": 195, "schedule": "cosine", "val_batches": 78}
        sgd, adamw, sizes, seeds = powers(-6, 2), powers(-12, -4), (8, 16, 32, 64), (0, 1, 2)
    return Grid(run, sizes, seeds, optimizers_and_recipes(sgd, adamw), judged=("SGD, μP", "AdamW, μP"), metrics=("mean_loss", "val_loss"))  # fmt: skip


IMAGES = experiment(
    "resnet-images", "learning-rate transfer of a ResNet on images, SGD and AdamW, SP and μP", "2203.03466 (ResNet)", config,
    "with batch norm the standard parametrization is half right already (each convolution's scale is normalised away): "
    "what is left is the readout and its step.",
)  # fmt: skip
