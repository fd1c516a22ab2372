"""Small runs that the tests of this folder share."""

from functools import lru_cache
from typing import Any

import numpy as np

from mutransfer.data import TextData, load
from mutransfer.models import GPTConfig, MLPConfig, ResNetConfig
from mutransfer.train import RunConfig


@lru_cache
def text() -> TextData:
    """The embedded text, tokenized once."""
    data = load("topics")
    assert isinstance(data, TextData)
    return data


def gpt_run(**changes: Any) -> RunConfig:
    """24 updates of a one-layer GPT of width 32 on the embedded text, at twice its base width."""
    sizes: dict[str, Any] = {"context": 16, "width": 32, "depth": 1, "head_size": 8, "init_std": 0.08}
    sizes.update(changes.pop("sizes", {}))
    model = GPTConfig(vocab_size=text().vocab_size, **sizes)
    settings: dict[str, Any] = {"batch": 8, "steps": 24, "warmup": 4, "log_every": 5, "val_batches": 2, "device": "cpu"}
    return RunConfig(model=model, **{"base": {"width": 16}, **settings, **changes})


def digits_run(kind: str, **changes: Any) -> RunConfig:
    """24 updates of an MLP on the digits as a table, or of a ResNet with batch norm on the digits as images."""
    if kind == "mlp":
        model, base, data = MLPConfig(inputs=64, outputs=10, width=32), {"width": 16}, "digits"
    else:
        model = ResNetConfig(channels=1, classes=10, width=8, blocks=(1, 1), stem="cifar")
        base, data = {"width": 4}, "digits-images"
    settings: dict[str, Any] = {
        "batch": 32,
        "steps": 24,
        "warmup": 2,
        "log_every": 5,
        "val_batches": 2,
        "device": "cpu",
    }
    return RunConfig(model=model, base=base, data=data, **{**settings, "lr": 2**-7, **changes})


def mean(losses: tuple[float, ...]) -> float:
    """Mean of some losses."""
    return float(np.mean(losses))
