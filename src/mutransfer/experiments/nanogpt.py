"""Learning-rate transfer over width on char Shakespeare: SP against μP at a constant rate, as nanoGPT-mup measured it."""

from __future__ import annotations

from typing import Any

from mutransfer.experiments.grid import Grid, Variant, powers
from mutransfer.experiments.transfer import experiment

SMALL: dict[str, Any] = {
    "kind": "gpt", "depth": 2, "head_size": 16, "context": 64, "init_std": 0.08, "data": "topics", "batch": 16, "steps": 200,
    "warmup": 20, "schedule": "cosine", "final_lr_ratio": 0.1, "weight_decay": 0.1, "clip": 1.0, "val_batches": 0,
    "log_every": 25, "device": "cpu",
}  # fmt: skip
"""Two layers on the text of every Python, in seconds a run: the setting that the other small experiments start from."""

PAPER: dict[str, Any] = {
    "kind": "gpt", "depth": 2, "head_size": 64, "context": 1024, "init_std": 0.02, "tied": True, "data": "shakespeare",
    "tokenizer": "char", "batch": 8, "steps": 122, "warmup": 0, "schedule": "constant", "weight_decay": 0.1,
    "betas": (0.9, 0.95), "clip": 1.0, "val_batches": 0,
}  # fmt: skip
"""8,192 tokens an update for one million tokens, no biases, no dropout, tied embeddings."""

WIDTHS = {"small": (32, 64, 128, 256), "paper": (256, 512, 1024, 2048)}


def config(size: str) -> Grid:
    """Char Shakespeare at a constant rate, mean loss over the whole run; small: a decayed run, mean of its last 50 updates."""
    small = size == "small"
    return Grid(
        run=SMALL if small else PAPER,
        sizes=WIDTHS[size],
        seeds=(0, 1) if small else (0, 1, 2),
        variants=(
            Variant("SP", {"recipe": "sp"}, powers(-11, -4) if small else powers(-18, -8)),
            Variant("μP", {"recipe": "mup"}, powers(-11, -4) if small else powers(-14, -3)),
        ),
        judged=("μP",),
        metrics=("train_loss",) if small else ("mean_loss", "train_loss"),
    )


NANOGPT = experiment(
    "nanogpt-lr", "learning-rate transfer over width, SP and μP, char Shakespeare", "nanoGPT-mup", config,
    "widths 256 … 2048, three seeds, 122 updates, mean loss over the run. SP: best at 2^-11, -13, -14, -16, and worse with width "
    "(2.605 to 2.695). μP: 2^-11 at every width, 2.605 to 2.59.",
)  # fmt: skip
