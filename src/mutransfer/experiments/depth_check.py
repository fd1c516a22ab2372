"""The residual stream over depth after ten steps: without a depth rule, with branches × L^-½, with branches × 1/L (CompleteP)."""

from __future__ import annotations

from typing import Any

from mutransfer.experiments.checks import Case, Checks, experiment

PANELS = {"residual stream": ("size", "blocks.{last}"), "its change": ("change", "blocks.{last}"), "logits": ("size", "head")}  # fmt: skip


def config(size: str) -> tuple[Checks, ...]:
    """Depth 2 … 64 at width 256, biases, learning rate 1e-3; small: at width 32, σ·√width and hidden learning rate · width kept."""
    small = size == "small"
    model: dict[str, Any] = {"width": 256, "head_size": 64, "context": 1024, "init_std": 0.02, "bias": True}
    if small:
        model = {"width": 32, "head_size": 16, "context": 64, "init_std": 0.0566, "bias": True}
    return (
        Checks(
            "Over depth", "depth", (2, 4, 8, 16, 32, 64),
            (
                Case("no depth rule", "mup", "FAIL"),
                Case("α = ½", "depth-mup", "PASS"),
                Case("α = 1 (CompleteP)", "completep", "PASS"),
            ),
            model, "adamw", 8e-3 if small else 1e-3, {"weight_decay": 0.1, "betas": (0.9, 0.95)},
            data="topics" if small else "shakespeare", batch=4 if small else 8, steps=10, seeds=2 if small else 5, panels=PANELS,
        ),
    )  # fmt: skip


DEPTH_CHECK = experiment(
    "depth-check", "coordinate checks over depth: no depth rule, branches × L^-½, branches × 1/L", "completep", config,
    "the final residual after ten steps grows from 0.6 to 45 without a depth rule and is flat at 0.6 with either.",
)  # fmt: skip
