"""A ResNet on images: SP against μP under SGD and AdamW, over eight times the width."""

from __future__ import annotations

from typing import Any

from mutransfer.experiments.grid import Grid, powers
from mutransfer.experiments.tables import optimizers_and_recipes
from mutransfer.experiments.transfer import experiment


def config(size: str) -> Grid:
    """ResNet-18 on CIFAR-100, ten epochs; small: one block in each of two stages on the digits as images, one epoch."""
    run: dict[str, Any] = {"kind": "resnet", "weight_decay": 0.0, "clip": None, "momentum": 0.0}
    judged = ("SGD, μP", "AdamW, μP")
    if size == "small":
        run |= {
            "data": "digits-images", "blocks": (1, 1), "batch": 32, "steps": 45, "warmup": 0, "schedule": "constant",
            "device": "cpu", "log_every": 5, "val_batches": 0,
        }  # fmt: skip
        variants = optimizers_and_recipes(powers(-5, 2), powers(-10, -3))
        # after so few updates the running statistics of batch norm are not yet those that validation needs
        return Grid(run, WIDTHS, (0, 1), variants, judged, metrics=("mean_loss",))
    run |= {"data": "cifar100", "batch": 128, "steps": 3900, "warmup": 195, "schedule": "cosine", "val_batches": 78}
    variants = optimizers_and_recipes(powers(-6, 2), powers(-12, -3))
    return Grid(run, WIDTHS, (0, 1, 2), variants, judged, metrics=("val_loss", "train_loss"))


WIDTHS = (8, 16, 32, 64)

IMAGES = experiment(
    "resnet-images", "learning-rate transfer of a ResNet on images, SGD and AdamW, SP and μP", "after 2203.03466", config,
    "no numbers for these images; 2203.03466 makes the same comparison on others.",
)  # fmt: skip
