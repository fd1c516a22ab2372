"""Synthetic gradients: of a shape, a rank and a scale, the same in every run, drawn from a generator of their own."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

Rank = Literal["signs", "one", "noisy", "full"]
SIGNAL, NOISE = 2, 1.0  # rank of the signal under the noise; RMS of the noise beside the signal's 1


def gaussian(shape: tuple[int, ...], seed: int) -> Tensor:
    """Standard normal numbers (float64, CPU) that depend on shape and seed only, not on the user's generator."""
    generator = torch.Generator().manual_seed(seed + 7919 * sum((i + 1) * n for i, n in enumerate(shape)))
    return torch.randn(shape, generator=generator, dtype=torch.float64, device="cpu")


def gradients(shape: tuple[int, ...], rank: Rank, steps: int, seed: int = 0) -> Tensor:
    """(steps, *shape): gradients whose elements have RMS 1 (float64).

    signs: u·vᵀ of ±1, so that every element has size 1. one: u·vᵀ of normal numbers. full: one normal matrix. These three
    stay the same over the steps. noisy: a signal of rank two and new noise at every step, as stochastic gradients are.
    """
    if len(shape) == 1:
        still = gaussian(shape, seed)
    elif rank == "full":
        still = gaussian(shape, seed + 1)
    else:
        k = SIGNAL if rank == "noisy" else 1
        left, right = gaussian((shape[0], k), seed + 2), gaussian((k, *shape[1:]), seed + 3)
        if rank == "signs":
            left, right = left.sign(), right.sign()
        still = (left @ right.reshape(k, -1)).reshape(shape)
    if rank == "signs":
        still = still.sign()
    still = still / still.square().mean().sqrt()
    if rank != "noisy":
        return still.expand(steps, *shape)
    return still + NOISE * gaussian((steps, *shape), seed + 4)


def rotation(size: int, seed: int) -> Tensor:
    """A random orthogonal matrix (size, size), float64."""
    return torch.linalg.qr(gaussian((size, size), seed + 11))[0]
