"""A small run on a text of its own, and files to evaluate it on."""

from __future__ import annotations

import random
from pathlib import Path

from mutransfer.models import GPTConfig
from mutransfer.train import RunConfig, RunResult, train

SENTENCE = "a scale free model learns a text of few words and says them again: größer, kleiner, gleich."


def words(count: int, seed: int = 0) -> str:
    """A text of so many words, with characters of two bytes."""
    draw, known = random.Random(seed), SENTENCE.split()
    return "".join(draw.choice(known) + draw.choice("   \n") for _ in range(count))


def trained(folder: Path, **changes: object) -> RunResult:
    """24 updates of a one-layer GPT of width 16 and context 16, in `folder`/run, on `folder`/text.txt."""
    text = folder / "text.txt"
    text.write_text(words(1500), encoding="utf-8")
    fields: dict = {
        "batch": 8, "steps": 24, "warmup": 4, "lr": 0.02, "val_batches": 10_000, "device": "cpu", "recipe": "sp", "data": str(text),
    }  # fmt: skip
    size = len(set(text.read_text(encoding="utf-8"))) if changes.get("tokenizer") != "byte" else 256
    model = GPTConfig(vocab_size=size, context=16, width=16, depth=1, head_size=8, dropout=0.1)
    return train(RunConfig(model=model, **{**fields, **changes}), folder=folder / "run")
