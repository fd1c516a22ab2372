"""Learning-rate transfer over width on OpenWebText in bf16, with a schedule that leaves its warm-up."""

from __future__ import annotations

from mutransfer.experiments.grid import Grid, Variant, powers
from mutransfer.experiments.nanogpt import PAPER, SMALL, WIDTHS
from mutransfer.experiments.transfer import experiment


def config(size: str) -> Grid:
    """1,000 updates in bf16. The published runs end within their warm-up; here a tenth of the run warms up, then a cosine to 10 %."""
    small = size == "small"
    owt = PAPER | {
        "data": "openwebtext", "tokenizer": "gpt2", "steps": 1000, "warmup": 100, "schedule": "cosine", "final_lr_ratio": 0.1,
        "autocast": "bf16",
    }  # fmt: skip
    return Grid(
        run=SMALL | {"autocast": "bf16", "batch": 8} if small else owt,
        sizes=WIDTHS[size],
        seeds=(0,) if small else (0, 1, 2),
        variants=(
            Variant("SP", {"recipe": "sp"}, powers(-11, -4) if small else powers(-14, -6)),
            Variant("μP", {"recipe": "mup"}, powers(-11, -4) if small else powers(-12, -4)),
        ),
        judged=("μP",),
    )


NANOGPT_OWT = experiment(
    "nanogpt-lr-owt", "learning-rate transfer over width, SP and μP, OpenWebText in bf16", "nanoGPT-mup", config,
    "widths 256 … 2048, 1,000 updates that never left their warm-up. SP: best at 2^-10, -11, -10, -11. μP: 2^-8 at every width, "
    "5.42 to 5.35. Here the schedule reaches its peak and decays.",
)  # fmt: skip
