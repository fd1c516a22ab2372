"""Small models that `mutransfer.grow` grows, and the optimizers that train them."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import mutransfer as mt
from mutransfer.models import gpt_factory, resnet_factory
from tests.growth_models import CNN, MLP

CLASSES, VOCABULARY, TIME, ROWS = 5, 13, 6, 8
Batch = tuple[Tensor, Tensor]


class Perceptron(nn.Module):
    """Hidden ReLU layers, each of a width of its own."""

    def __init__(self, widths: tuple[int, ...]) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(a, b) for a, b in zip((7, *widths), widths, strict=False))
        self.head = nn.Linear(widths[-1], CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = torch.relu(layer(x))
        return self.head(x)


# ------------------------------------------------------------------ data


def rows(g: torch.Generator) -> Batch:
    """Features (ROWS, 7); the class is the largest of the first ones."""
    x = torch.randn(ROWS, 7, generator=g, dtype=torch.float64)
    return x, x[:, :CLASSES].argmax(1)


def images(g: torch.Generator, pixels: int = 4, count: int = ROWS) -> Batch:
    """Images (count, 3, pixels, pixels); the class is the brightest of the first columns of pixels."""
    x = torch.randn(count, 3, pixels, pixels, generator=g, dtype=torch.float64)
    return x, x.mean(1).flatten(1)[:, :CLASSES].argmax(1)


def larger_images(g: torch.Generator) -> Batch:
    """16 images of 8 × 8: with fewer, the statistics of the last stage (one pixel each) make training chaotic at any useful rate."""
    return images(g, 8, 16)


def tokens(g: torch.Generator) -> Batch:
    """Token ids (4, TIME); the next one is a function of the last two."""
    x = torch.randint(VOCABULARY, (4, TIME), generator=g)
    return x, (3 * x + x.roll(1, 1)) % VOCABULARY


def loss(model: nn.Module, batch: Batch) -> Tensor:
    """Cross-entropy, the inputs in the model's dtype."""
    x, y = batch
    x = x.to(next(model.parameters()).dtype) if x.is_floating_point() else x
    return F.cross_entropy(model(x).flatten(0, -2), y.flatten())


# ------------------------------------------------------------------ subjects


@dataclass(frozen=True, eq=False)
class Subject:
    """A factory at a small and a big size, one in between where there is one (`middle`), and one below (`base`).

    `limit` is the largest relative difference of any output that growing promises; `pace` multiplies the learning rates. What matches
    `free` is not compared: nothing depends on it.
    """

    make: Callable[..., nn.Module]
    small: Mapping[str, Any]
    big: Mapping[str, Any]
    batch: Callable[[torch.Generator], Batch]
    limit: float
    middle: Mapping[str, Any] | None = None
    base: Mapping[str, Any] | None = None
    pace: float = 1.0
    free: tuple[str, ...] = ()

    def batches(self, count: int, start: int = 0) -> list[Batch]:
        """One batch per step, a function of the step's number alone."""
        return [self.batch(torch.Generator().manual_seed(7 + step)) for step in range(start, start + count)]

    def model(self, size: Mapping[str, Any], seed: int = 0) -> nn.Module:
        """In float64, in training mode, as its class begins it."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            return self.make(**size).double()


def _gpt(small: dict, big: dict, middle: dict | None = None, base: dict | None = None, **options: Any) -> Subject:
    """A key's bias adds one number to all logits of a query: its gradient is zero but for rounding."""
    make = gpt_factory(vocab_size=VOCABULARY, context=TIME, depth=2, mlp_ratio=2.0, init_std=0.2, **options)
    free = ("*.k_proj", "*.k_proj.bias") if options.get("bias") else ()
    return Subject(make, small, big, tokens, 1e-10, middle, base, free=free)


def _w(width: int, **more: int) -> dict[str, int]:
    return dict(width=width, **more)


SUBJECTS: dict[str, Subject] = {
    "mlp 50,100,200→500,500,800": Subject(
        Perceptron, dict(widths=(50, 100, 200)), dict(widths=(500, 500, 800)), rows, 1e-12,
        dict(widths=(100, 500, 400)), dict(widths=(25, 50, 50)),
    ),
    "mlp": Subject(
        lambda **s: MLP(norm=True, **s), dict(width=4, wide=3), dict(width=24, wide=9), rows, 1e-12,
        dict(width=8, wide=9), dict(width=2, wide=1), pace=0.3,
    ),
    "cnn": Subject(
        CNN, dict(width=4, wide=3), dict(width=24, wide=18), images, 1e-12, dict(width=8, wide=6), dict(width=2, wide=1)
    ),
    "resnet-18": Subject(resnet_factory(classes=CLASSES), _w(8), _w(32), larger_images, 1e-12, _w(16), _w(4), pace=0.1),
    "gpt, by heads": _gpt(_w(8), _w(24), base=_w(4), head_size=4),
    "gpt, by head size": _gpt(_w(8), _w(48), _w(16), _w(4), n_heads=2),
    "gpt, by both": _gpt(_w(8, n_heads=2), _w(48, n_heads=6), _w(24, n_heads=6), _w(4, n_heads=2)),
    "gpt with biases": _gpt(_w(8), _w(16), base=_w(4), head_size=4, bias=True),
    "tied gpt, by heads": _gpt(_w(8), _w(48), _w(16), _w(4), head_size=4, tied=True),
    "tied gpt, by head size": _gpt(_w(8), _w(24), base=_w(4), n_heads=2, tied=True),
    "more key heads": _gpt(_w(16, kv_heads=2), _w(32, kv_heads=4), base=_w(8, kv_heads=1), head_size=4),
    "same key heads": _gpt(_w(16, kv_heads=2), _w(32, kv_heads=2), base=_w(8, kv_heads=2), head_size=4),
    "key heads, by head size": _gpt(_w(16), _w(32), base=_w(8), n_heads=4, kv_heads=2),
    "rotary, by heads": _gpt(_w(8), _w(48), _w(24), _w(4), head_size=4, positions="rotary"),
    "tied, rotary, more key heads": _gpt(
        _w(16, kv_heads=2), _w(48, kv_heads=6), base=_w(8, kv_heads=1), head_size=4, positions="rotary", tied=True
    ),
}  # fmt: skip


# ------------------------------------------------------------------ optimizers

EPS = 1e-3
"""Nearly as large as the gradients: a wrong ratio of eps shows."""


def plain(cls: str, **settings: Any) -> Callable[[nn.Module, float], Any]:
    """The user's own torch optimizer, all tensors in one group."""

    def make(model: nn.Module, pace: float) -> Any:
        given = {**settings, "lr": settings["lr"] * pace}
        if cls == "Lion":
            from pytorch_optimizer import Lion

            return Lion(model.parameters(), **given)
        return getattr(torch.optim, cls)(model.parameters(), **given)

    return make


def muon(name: str, model: nn.Module, pace: float) -> Any:
    """Our Muon on the hidden matrices, AdamW on the rest, as a plan of the small model alone sets them: every factor is 1."""
    return mt.plan(model, base=model, optimizer="muon").optimizer(model, **settings_of(name, pace))


TAYLOR = (15 / 8, -10 / 8, 3 / 8)
PLANNED: dict[str, tuple[str, dict[str, Any]]] = {
    "SGD": ("sgd", dict(lr=0.05)),
    "momentum": ("sgd", dict(lr=0.01, momentum=0.9)),
    "Nesterov": ("sgd", dict(lr=0.01, momentum=0.9, nesterov=True)),
    "SGD + L2": ("sgd", dict(lr=0.01, momentum=0.9, weight_decay=0.05)),
    "Adam": ("adam", dict(lr=3e-3, eps=EPS)),
    "Adam + L2": ("adam", dict(lr=3e-3, eps=EPS, weight_decay=0.02)),
    "AMSGrad": ("adam", dict(lr=3e-3, eps=EPS, amsgrad=True)),
    "AdamW": ("adamw", dict(lr=3e-3, eps=EPS, weight_decay=0.5)),
    "Lion": ("lion", dict(lr=5e-4, weight_decay=0.5)),
    "Muon": ("muon", dict(lr=3e-3, eps=EPS, weight_decay=0.5, engine="own", coefficients=TAYLOR)),
    "Muon, Jordan's": ("muon", dict(lr=3e-3, eps=EPS, weight_decay=0.5, engine="own")),
    "Muon, float32": (
        "muon",
        dict(lr=3e-3, eps=EPS, weight_decay=0.5, engine="own", coefficients=TAYLOR, dtype="float32"),
    ),
    "Muon, bfloat16": (
        "muon",
        dict(lr=3e-3, eps=EPS, weight_decay=0.5, engine="own", coefficients=TAYLOR, dtype="bfloat16"),
    ),
}
"""By the issue's name: the plan's name of the optimizer, and the base's settings.

Newton–Schulz is a polynomial of the momentum, so growing is exact under any coefficients, without an exact polar factor. But copies
make singular values that are zero, and each step multiplies what rounding leaves in them by a⁵: 485 for Jordan's a = 3.4445, which
parts the copies within 200 steps as noise would, and 23 for the a = 15/8 used here, the best quintic for σ near 1.
"""
_CLASSES = {"sgd": "SGD", "adam": "Adam", "adamw": "AdamW", "lion": "Lion"}


def settings_of(optimizer: str, pace: float = 1.0) -> dict[str, Any]:
    """The settings, the rate at this pace."""
    settings = PLANNED[optimizer][1]
    return {**settings, "lr": settings["lr"] * pace}


OPTIMIZERS: dict[str, Callable[[nn.Module, float], Any]] = {
    name: functools.partial(muon, name) if key == "muon" else plain(_CLASSES[key], **settings)
    for name, (key, settings) in PLANNED.items()
}
