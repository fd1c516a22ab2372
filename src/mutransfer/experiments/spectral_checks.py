"""Coordinate checks over width and over depth with Muon-Kimi on the hidden matrices and AdamW on the rest, with a plan and without."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from mutransfer.experiments.checks import Case, Checks, experiment

SETTINGS: dict[str, Any] = {"weight_decay": 0.1, "betas": (0.9, 0.95), "momentum": 0.95}


def config(size: str) -> tuple[Checks, ...]:
    """Width 128 … 4096 and depth 4 … 256; small: width 32 … 256 and depth 2 … 32, σ·√width kept. Over depth without a norm, too."""
    small = size == "small"
    model: dict[str, Any] = {"head_size": 64, "context": 1024, "init_std": 0.02}
    if small:
        model = {"head_size": 16, "context": 64, "init_std": 0.08}
    width = Checks(
        "Over width", "width",
        (32, 64, 128, 256) if small else (128, 256, 512, 1024, 2048, 4096),
        (Case("SP", "sp", "FAIL"), Case("μP", "mup", "PASS")),
        {**model, "depth": 2 if small else 4}, "muon-kimi", 2**-5 if small else 2**-7, SETTINGS,
        data="topics" if small else "openwebtext", tokenizer=None if small else "gpt2", batch=8, steps=10, seeds=3,
    )  # fmt: skip
    depth = replace(
        width, title="Over depth, with LayerNorm", axis="depth", sizes=(2, 4, 8, 16, 32) if small else (4, 8, 16, 32, 64, 128, 256),
        cases=(Case("SP", "sp", "FAIL"), Case("CompleteP", "completep", "PASS")), model={**model, "width": 32 if small else 256},
    )  # fmt: skip
    bare = replace(depth, title="Over depth, no norm", model={**depth.model, "norm": "none"})
    return width, depth, bare


SPECTRAL_CHECKS = experiment(
    "spectral-checks", "coordinate checks over width and over depth, SP and the plan, Muon-Kimi and AdamW", "Width-Depth-muP", config,
    "features of SP grow with width and with depth, those of μP stay.",
)  # fmt: skip
