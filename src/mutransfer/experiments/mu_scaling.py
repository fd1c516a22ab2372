"""Mu-scaling's grid of learning rates at two or three widths: are the loss basins aligned?"""

from __future__ import annotations

from typing import Any

from mutransfer.experiments.grid import Grid, Variant
from mutransfer.experiments.nanogpt import SMALL
from mutransfer.experiments.transfer import Outcome, Picture, experiment

MODEL: dict[str, Any] = {
    "kind": "gpt", "tied": True, "bias": True, "residual_init": "scaled", "zero_init": ("query", "embedding"),
    "embedding_multiplier": 5.0, "logit_multiplier": 5.0,
}  # fmt: skip
"""GPT-2 with its biases; input and logits × 5, which on a tied embedding is one gauge: the same as 5σ at 5 times the rate."""


def config(size: str) -> Grid:
    """Six layers, base width 256, 20,000 updates of 48 × 1,024 tokens; small: widths 32 … 128 with σ·√width and η·width kept."""
    if size == "small":
        run = SMALL | MODEL | {"depth": 6, "init_std": 0.14, "weight_decay": 0.01, "warmup": 10, "batch": 8}
        sizes, lrs = (32, 64, 128), (4e-4, 8e-4, 2.4e-3, 8e-3, 2.4e-2)
    else:
        run = MODEL | {
            "depth": 6, "head_size": 64, "context": 1024, "init_std": 0.05, "weight_decay": 0.01, "data": "openwebtext",
            "tokenizer": "gpt2", "batch": 48, "accumulation": 4, "steps": 20_000, "warmup": 200, "schedule": "cosine",
            "final_lr_ratio": 0.1, "autocast": "bf16", "val_batches": 0, "clip": 1.0,
        }  # fmt: skip
        sizes, lrs = (256, 512), (5e-5, 1e-4, 3e-4, 1e-3, 3e-3)
    variants = (Variant("SP", {"recipe": "sp"}, lrs), Variant("μP", {"recipe": "mup"}, lrs))
    return Grid(run, sizes, (0,), variants, judged=("μP",))


def draw(found: Outcome) -> list[Picture]:
    """The loss basins of all widths over one another."""
    from mutransfer.experiments.figures import draw_basins

    text = "Loss above each width's own best against learning rate; bars: the rates within 1 % of the best"
    return [("basins", draw_basins(found.main), text)] if found.main else []


MU_SCALING = experiment(
    "mu-scaling-grid", "loss basins over the learning rate, by width, of a tied GPT-2 with input and logits × 5", "Mu-scaling", config,
    "η in 5e-5, 1e-4, 3e-4, 1e-3, 3e-3 at widths 256 and 512: the basins lie over one another.",
    draw,
)  # fmt: skip
