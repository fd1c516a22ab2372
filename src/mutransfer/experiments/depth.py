"""Learning-rate transfer over depth: SP against CompleteP (branches × 1/L), with LayerNorm and without."""

from __future__ import annotations

from mutransfer.experiments.grid import Grid, Variant, powers
from mutransfer.experiments.nanogpt import PAPER, SMALL
from mutransfer.experiments.transfer import experiment


def config(size: str) -> Grid:
    """Depth 4 … 64 at width 256 on OpenWebText, 240 sequences an update; small: depth 2 … 16 at width 64 on the embedded text."""
    small = size == "small"
    paper = PAPER | {
        "width": 256, "data": "openwebtext", "tokenizer": "gpt2", "batch": 240, "accumulation": 20, "steps": 1220, "warmup": 122,
        "schedule": "cosine", "final_lr_ratio": 0.1, "autocast": "bf16", "tied": False,
    }  # fmt: skip
    # σ·√width as at width 32 of the other small settings
    run = {name: value for name, value in (SMALL | {"width": 64, "init_std": 0.0566} if small else paper).items() if name != "depth"}  # fmt: skip
    lrs = powers(-10, -4) if small else powers(-13, -5)
    # without a norm the optimum lies within an octave of divergence
    fine = tuple(sorted((*lrs, 2**-6.5, 2**-5.5))) if small else lrs
    return Grid(
        run=run,
        sizes=(2, 4, 8, 16) if small else (4, 8, 16, 32, 64),
        seeds=(0, 1) if small else (0,),
        variants=(
            Variant("SP, LayerNorm", {"recipe": "sp"}, lrs),
            Variant("CompleteP, LayerNorm", {"recipe": "completep"}, lrs),
            Variant("SP, no norm", {"recipe": "sp", "norm": "none"}, fine),
            Variant("CompleteP, no norm", {"recipe": "completep", "norm": "none"}, fine),
        ),
        judged=("CompleteP, LayerNorm", "CompleteP, no norm"),
        size="depth",
    )


DEPTH = experiment(
    "depth-lr", "learning-rate transfer over depth, SP and CompleteP, with and without LayerNorm", "completep, Width-Depth-muP", config,
    "under Muon, with LayerNorm SP transfers over depth, too; without it SP diverges or moves to smaller rates, and the depth rule "
    "transfers: the case without a norm is the one that discriminates. Here the optimizer is AdamW.",
)  # fmt: skip
