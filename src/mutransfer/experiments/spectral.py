"""Learning-rate transfer over width and over depth with Muon-Kimi on the hidden matrices and AdamW on the rest, from one base rate."""

from __future__ import annotations

from typing import Any

from mutransfer.experiments.grid import Grid, Variant, powers
from mutransfer.experiments.nanogpt import SMALL
from mutransfer.experiments.transfer import experiment

OPTIMIZER: dict[str, Any] = {"optimizer": "muon-kimi", "betas": (0.9, 0.95), "momentum": 0.95}
"""The hidden matrices take steps of 0.2·√max(in, out)·UVᵀ, as large as AdamW's in root mean square; the rest is AdamW's."""

PAPER: dict[str, Any] = {
    "kind": "gpt", "head_size": 64, "context": 1024, "init_std": 0.02, "tied": False, "data": "openwebtext", "tokenizer": "gpt2",
    "batch": 240, "accumulation": 20, "steps": 1220, "warmup": 122, "schedule": "cosine", "final_lr_ratio": 0.1, "weight_decay": 0.1,
    "clip": 1.0, "val_batches": 0, "autocast": "bf16", **OPTIMIZER,
}  # fmt: skip
"""Base width 256 with four heads, base depth 4, 240 sequences of 1,024 tokens an update, 300 million tokens."""

CUT = {name: value for name, value in (SMALL | OPTIMIZER).items() if name != "depth"}


def over_width(size: str) -> Grid:
    """Width 128 … 4096 at depth 4 on OpenWebText; small: width 32 … 256 at depth 2 on the embedded text."""
    small = size == "small"
    own, planned = (powers(-8, -3), powers(-7, -2)) if small else (powers(-10, -4), powers(-10, -4))
    return Grid(
        run={**CUT, "depth": 2} if small else {**PAPER, "depth": 4},
        sizes=(32, 64, 128, 256) if small else (128, 256, 512, 1024, 2048, 4096),
        seeds=(0,),
        variants=(Variant("SP", {"recipe": "sp"}, own), Variant("μP", {"recipe": "mup"}, planned)),
        judged=("μP",),
    )


def over_depth(size: str) -> Grid:
    """Depth 4 … 256 at width 256 on OpenWebText; small: depth 2 … 32 at width 32 on the embedded text, σ·√width as published.

    The small runs with a norm are twice as long: depth begins to pay later there.
    """
    small = size == "small"
    if small:
        middle = (2**-4.5,)
        norm = {"steps": 400, "warmup": 40}
        own, planned = sorted((*powers(-7, -3), *middle)), sorted((*powers(-6, -3), *middle, 2**-3.5))
        # without a norm SP goes far, and the plan's optimum lies within two octaves of divergence
        far, near = powers(-9, -3), sorted((*powers(-7, -2), *middle, 2**-4.25, 2**-3.75, 2**-3.5))
    else:
        norm = {}
        own = planned = far = near = powers(-10, -4)
    return Grid(
        run={**CUT, "width": 32, "init_std": 0.0566} if small else {**PAPER, "width": 256},
        sizes=(2, 4, 8, 16, 32) if small else (4, 8, 16, 32, 64, 128, 256),
        seeds=(0,),
        variants=(
            Variant("SP, LayerNorm", {"recipe": "sp", **norm}, tuple(own)),
            Variant("CompleteP, LayerNorm", {"recipe": "completep", **norm}, tuple(planned)),
            Variant("SP, no norm", {"recipe": "sp", "norm": "none"}, far),
            Variant("CompleteP, no norm", {"recipe": "completep", "norm": "none"}, tuple(near)),
        ),
        judged=("CompleteP, LayerNorm", "CompleteP, no norm"),
        size="depth",
    )


SPECTRAL_WIDTH = experiment(
    "spectral-width-lr", "learning-rate transfer over width, SP and μP, Muon-Kimi on hidden matrices and AdamW on the rest",
    "Width-Depth-muP", over_width,
    "the best rate of μP is the same at every width, wider is better; that of SP moves to smaller rates and wide models are worse. Shrunken "
    "runs at widths 32, 64, 128: μP best at 2^-4 to 2^-5 with 2.314, 2.170, 2.047; SP 2.141 at 128.",
)  # fmt: skip
SPECTRAL_DEPTH = experiment(
    "spectral-depth-lr", "learning-rate transfer over depth, SP and CompleteP, with and without LayerNorm, Muon-Kimi and AdamW",
    "Width-Depth-muP", over_depth,
    "with LayerNorm SP transfers over depth, too (2^-7 at every depth); without it SP diverges or moves to smaller rates, and the depth "
    "rule transfers: the case without a norm is the one that discriminates.",
)  # fmt: skip
