"""The ladder of six from standard parametrization to μP: which panel of a coordinate check each rung flattens.

The published run (nanoGPT-mup, char Shakespeare): 2 layers, head size 64, context 1024, 8,192 tokens a step, σ 0.02, η 1e-2
constant, λ 0.1, β .9/.95, clip 1, 10 steps, widths 256…4096, 5 seeds, tied head, no biases. The rungs add one change each:
hidden init, hidden LR, logits /√N, logits /N, attention 1/d_head; the last is invisible because the head size is fixed.

Every rung is written out by hand here, with no plan: it shows what a plan does, and what is missed without each part of it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from mutransfer.data import load, text_batch
from mutransfer.errors import InputError
from mutransfer.models import GPT, GPTConfig, gpt_loss

RUNGS = ("sp", "+ hidden init", "+ hidden lr", "+ logits /√N", "+ logits /N", "+ attention 1/d (μP)")
PANELS = ("wte", "attn", "mlp", "logits")


@dataclass(frozen=True)
class LadderConfig:
    """One ladder: widths (the first is the base), the model's fixed sizes, the data and the optimizer's base values."""

    widths: tuple[int, ...]
    head_size: int
    context: int
    batch: int
    init_std: float
    seeds: int
    steps: int = 10
    depth: int = 2
    lr: float = 1e-2
    weight_decay: float = 0.1
    betas: tuple[float, float] = (0.9, 0.95)
    clip: float = 1.0
    data: str = "topics"


def paper() -> LadderConfig:
    """The published setting; for a GPU. `data="shakespeare"` needs the network or a local file."""
    return LadderConfig((256, 512, 1024, 2048, 4096), 64, 1024, 8, 0.02, 5, data="shakespeare")


def small() -> LadderConfig:
    """The same structure for two CPU cores, a minute or two: four times narrower, so σ is twice as large (σ√width kept)."""
    return LadderConfig((64, 128, 256, 512), 16, 128, 8, 0.04, 3)


def build(config: LadderConfig, rung: int) -> Callable[[int], tuple[nn.Module, torch.optim.Optimizer]]:
    """`build(width)` for the first `rung` changes of the ladder applied to the standard parametrization, by hand."""
    vocabulary = load(config.data, tokenizer="char").vocab_size  # type: ignore[union-attr]

    def make(width: int) -> tuple[nn.Module, torch.optim.Optimizer]:
        n = width / config.widths[0]
        model = GPT(
            GPTConfig(
                vocab_size=vocabulary, context=config.context, width=width, depth=config.depth, head_size=config.head_size,
                tied=True, init_std=config.init_std, residual_init="scaled",
            )
        )  # fmt: skip
        hidden = [p for name, p in model.named_parameters() if name.startswith("blocks.") and p.ndim == 2]
        if rung >= 1:
            with torch.no_grad():
                for weight in hidden:
                    weight.mul_(n**-0.5)
        multiplier = 1 / n if rung >= 4 else n**-0.5 if rung == 3 else 1.0
        if multiplier != 1.0:
            model.head.register_forward_pre_hook(lambda _module, args: (args[0] * multiplier, *args[1:]))
        # rung 5, attention 1/d_head equal to 1/√d_head at the base, changes nothing while the head size is fixed
        known = {id(p) for p in hidden}
        groups: list[dict[str, Any]] = [
            {"params": [p for p in model.parameters() if id(p) not in known]},
            {"params": hidden, "lr": config.lr / n if rung >= 2 else config.lr},
        ]
        return model, torch.optim.AdamW(groups, lr=config.lr, betas=config.betas, weight_decay=config.weight_decay)

    return make


def run(config: LadderConfig, progress: Callable[[str], None] | None = None) -> list[dict[str, Any]]:
    """One row per rung: verdict, first culprit, and the slope (with interval) of each panel at the last step.

    Panels are the RMS of the outputs of the embedding, attention, MLP (means over blocks) and of the logits.
    """
    from mutransfer.check import coord_check

    data = load(config.data, tokenizer="char")
    tokens = getattr(data, "train", None)
    if tokens is None:
        raise InputError(f"data={config.data!r} is not a text")
    batches = [text_batch(tokens, step, 0, config.batch, config.context) for step in range(config.steps)]
    rows = []
    for rung, name in enumerate(RUNGS):
        if progress is not None:
            progress(f"rung {rung + 1} of {len(RUNGS)}: {name}")
        report = coord_check(
            build(config, rung), list(config.widths), batches, gpt_loss, steps=config.steps, seeds=config.seeds, clip=config.clip
        )
        panels = {
            "wte": ["wte"],
            "attn": [f"blocks.{i}.attn" for i in range(config.depth)],
            "mlp": [f"blocks.{i}.mlp" for i in range(config.depth)],
            "logits": ["head"],
        }
        slopes = {}
        for panel, modules in panels.items():
            found = [report.slope("size", module, config.steps) for module in modules]
            values = [f for f in found if f is not None]
            slopes[panel] = tuple(sum(v[i] for v in values) / len(values) for i in range(3)) if values else None
        rows.append({"rung": name, "verdict": report.verdict, "culprit": (report.culprits or [""])[0], **slopes})
    return rows


def table(config: LadderConfig, rows: list[dict[str, Any]]) -> str:
    """The rows as a Markdown table."""
    lines = [
        f"Slope of log₂ RMS against log₂ width {config.widths[0]}…{config.widths[-1]} at step {config.steps} "
        f"({config.seeds} seeds, mean and 90 % interval).",
        "",
        "| rung | embedding | attention | MLP | logits | check | first culprit |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        cells = [
            "–" if row[panel] is None else f"{row[panel][0]:+.2f} [{row[panel][1]:+.2f}, {row[panel][2]:+.2f}]"
            for panel in PANELS
        ]
        lines.append(f"| {row['rung']} | {' | '.join(cells)} | {row['verdict']} | {row['culprit']} |")
    return "\n".join(lines) + "\n"
