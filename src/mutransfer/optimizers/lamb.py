"""LAMB (1904.00962) as pytorch-optimizer has it, with the trust ratio of the paper: φ(‖W‖) = ‖W‖, no clamp."""

from __future__ import annotations

import math

import pytorch_optimizer


class Lamb(pytorch_optimizer.Lamb):
    """`W ← W − lr·(‖W‖/‖u‖)·u` with Adam's u. The package clamps ‖W‖_F at 10, which a growing tensor passes: here nothing is clamped."""

    clamp = math.inf
