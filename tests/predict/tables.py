"""Tables of runs with a known truth."""

from __future__ import annotations

from typing import Any

WIDTHS = (128, 256, 384, 512, 640, 768, 1024)
SIZES = (1e7, 3e7, 1e8, 3e8)
TOKENS = (1e9, 3e9, 1e10)


def gpt_params(width: int, depth: int = 12, vocab: int = 50304) -> int:
    """12·depth·width² in the blocks, an embedding, norms and biases."""
    return 12 * depth * width**2 + (vocab + 13 * depth) * width


def ladder(widths: tuple[int, ...] = WIDTHS, **fields: Any) -> list[dict[str, Any]]:
    """One run per width; the loss is a power law of the parameters."""
    return [{"width": w, "params": gpt_params(w), "loss": 2.9 + 400 * gpt_params(w) ** -0.4, **fields} for w in widths]


def grid(**fields: Any) -> list[dict[str, Any]]:
    """Sizes by tokens under Chinchilla's law."""
    return [{"N": n, "D": d, "loss": 1.7 + 400 / n**0.34 + 410 / d**0.28, **fields} for n in SIZES for d in TOKENS]


def history(widths: tuple[int, ...] = WIDTHS[:5], steps: tuple[int, ...] = (10, 20, 50, 100)) -> list[dict[str, Any]]:
    """A log of runs, several steps each."""
    return [
        {"run": f"w{row['width']}", **row, "_step": step, "batch_size": 8, "seq_len": 128, "loss": row["loss"] + 2 / step}
        for row in ladder(widths) for step in steps
    ]  # fmt: skip


def changed(rows: list[dict[str, Any]], which: tuple[int, ...], **fields: Any) -> list[dict[str, Any]]:
    """The rows with other values in some of them; a function is given the row's own value."""
    return [
        {**row, **{k: f(row[k]) if callable(f) else f for k, f in fields.items()}} if i in which else row
        for i, row in enumerate(rows)
    ]
