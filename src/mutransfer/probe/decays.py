"""How weight decay acts: beside the step and with lr (decoupled), through the gradient (coupled), beside it and without lr."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from torch import Tensor

from mutransfer.probe.finding import misfit, slope
from mutransfer.probe.gradients import gradients
from mutransfer.probe.measure import SHAPE, weights
from mutransfer.probe.subject import WEIGHT, Subject

STEPS = 6
LR = 3e-5
DECAY = 0.1
ALLOWED = 0.05
DecayKind = Literal["decoupled", "coupled", "independent", "none", "unknown", "not offered", "not asked"]


@dataclass(frozen=True)
class DecayFound:
    """The kind; the misfit of its defining identity; the decay's power in lr; its strength beside lr·wd per step."""

    kind: DecayKind
    misfit: float
    lr_power: float = 0.0
    strength: float = 0.0


def decay(subject: Subject) -> DecayFound:
    """Compare runs with and without decay, at G large (what is left is decoupled) and at G ≈ wd·W (coupled means G + wd·W).

    coupled: W(wd, G) = W(0, G + wd·W). decoupled: W(wd, G) − W(0, G) = −κ·Σ W_k with κ = lr·wd; independent: κ ∝ lr⁰.
    """
    if not subject.takes("weight_decay"):
        return DecayFound("not offered", 0.0)
    if subject.settings.get("weight_decay", 1.0) == 0:
        return DecayFound("not asked", 0.0)
    w, g = weights(SHAPE), gradients(SHAPE, "full", STEPS)

    def moved(scale: float, wd: float, lr: float = LR, by_hand: float = 0.0) -> tuple[Tensor, Tensor]:
        """The displacement, and the sum of the weights that each step found."""
        steps = subject.run(lambda k, now: scale * g[k] + by_hand * now, w, steps=STEPS, lr=lr, weight_decay=wd)
        return -lr * steps.sum(0), STEPS * w - lr * steps.cumsum(0)[:-1].sum(0)

    near = DECAY * WEIGHT
    without = moved(near, 0.0)[0]
    effect = moved(near, DECAY)[0] - without
    if float(effect.norm()) <= 1e-9 * float(without.norm()):
        return DecayFound("none", 0.0)
    by_hand = moved(near, 0.0, by_hand=DECAY)[0]
    through = misfit(effect, by_hand - without)
    if through < ALLOWED:
        return DecayFound("coupled", through)
    strengths, aside = [], []
    for scale, lr in ((near, LR), (100.0, LR), (100.0, 10 * LR)):
        after, found = moved(scale, DECAY, lr)
        change = after - moved(scale, 0.0, lr)[0]
        strengths.append(-float((change * found).sum() / found.square().sum()) / DECAY)
        aside.append(misfit(change, -strengths[-1] * DECAY * found))
    small, large, faster = strengths
    aside.append(abs(small / large - 1) if large else 1.0)
    lr_power = slope(large, faster, 10)
    if max(aside) < ALLOWED and abs(lr_power - 1) < 0.1:
        return DecayFound("decoupled", max(aside), lr_power, large / LR)
    if max(aside) < ALLOWED and abs(lr_power) < 0.1:
        return DecayFound("independent", max(aside), lr_power, large)
    return DecayFound("unknown", min(max(aside), through), lr_power, large / LR)
