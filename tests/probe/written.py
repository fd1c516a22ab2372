"""Optimizers written by hand, each with one known property, for the probe to find."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor


class Base(torch.optim.Optimizer):
    """W ← W − lr·`update(G, W, state, group)`; a decay that each subclass may apply."""

    def __init__(
        self, params: Any, lr: float = 1e-2, eps: float = 1e-8, weight_decay: float = 0.0, **more: Any
    ) -> None:
        super().__init__(params, {"lr": lr, "eps": eps, "weight_decay": weight_decay, **more})

    def update(self, g: Tensor, w: Tensor, state: dict[str, Any], group: dict[str, Any]) -> Tensor:
        raise NotImplementedError

    def decay(self, w: Tensor, group: dict[str, Any]) -> None:
        w.mul_(1 - group["lr"] * group["weight_decay"])

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            for w in group["params"]:
                update = self.update(w.grad, w, self.state[w], group)
                self.decay(w, group)
                w.sub_(group["lr"] * update)


class TrustSign(Base):
    """sign(G) times the layer's trust ratio ‖W‖/‖sign‖."""

    def update(self, g, w, state, group):
        return g.sign() * w.norm() / math.sqrt(w.numel())


class Rows(Base):
    """Each row divided by its norm: ‖A‖₂ = √out where G has rank one, a formula that no rule knows."""

    def update(self, g, w, state, group):
        return g / g.norm(dim=-1, keepdim=True).clamp_min(1e-300)


class Noisy(Base):
    """sign(G) with noise from the global generator."""

    def update(self, g, w, state, group):
        return g.sign() * (1 + 0.3 * torch.randn_like(g))


class Seldom(Base):
    """Element-wise, but one step in four, at random, is skipped."""

    def update(self, g, w, state, group):
        return g.sign() * float(torch.rand(()) > 0.25)


class SquaredRate(Base):
    """The step goes with lr²."""

    def update(self, g, w, state, group):
        return group["lr"] * g.sign()


class IndependentDecay(Base):
    """W *= 1 − wd, whatever lr is."""

    def update(self, g, w, state, group):
        return g.sign()

    def decay(self, w, group):
        w.mul_(1 - group["weight_decay"])


class CoupledSign(Base):
    """Weight decay goes through the gradient and is normalised away with it."""

    def update(self, g, w, state, group):
        g = g + group["weight_decay"] * w
        return g / (g.abs() + group["eps"])

    def decay(self, w, group):
        pass


class CautiousDecay(Base):
    """Only elements whose step goes their own way decay."""

    def update(self, g, w, state, group):
        return g.sign()

    def decay(self, w, group):
        w.mul_(1 - group["lr"] * group["weight_decay"] * (w.grad * w > 0))


class OutsideRoot(Base):
    """Adam without its first average; eps is added to √v."""

    def update(self, g, w, state, group):
        v = state["v"] = 0.9 * state.get("v", 0 * g) + 0.1 * g * g
        state["t"] = state.get("t", 0) + 1
        return g / ((v / (1 - 0.9 ** state["t"])).sqrt() + group["eps"])


class InsideRoot(OutsideRoot):
    """The same with eps added to v."""

    def update(self, g, w, state, group):
        v = state["v"] = 0.9 * state.get("v", 0 * g) + 0.1 * g * g
        state["t"] = state.get("t", 0) + 1
        return g / (v / (1 - 0.9 ** state["t"]) + group["eps"]).sqrt()


class Spectral(Base):
    """√(out/in)·UVᵀ by SVD; eps is added to ‖G‖_F, as Muon does, before singular values are pushed to one."""

    def update(self, g, w, state, group):
        u, s, v = torch.linalg.svd(g / (g.norm() + group["eps"]), full_matrices=False)
        return (g.shape[0] / g.shape[1]) ** 0.5 * (u * (s / s.clamp_min(1e-3))) @ v


class Half(Base):
    """Degree ½: √|G| with the sign of G. Deceptive: element-wise, and bounded."""

    def update(self, g, w, state, group):
        return g.sign() * g.abs().sqrt()


class Clipped(Base):
    """SGD that clips its gradient at norm 1: degree 1 below, 0 above; it looks normalised with a large eps."""

    def update(self, g, w, state, group):
        return g / g.norm().clamp_min(1.0)


class Global(Base):
    """The sign of G, scaled by the norm of the gradients of all tensors of the group."""

    def update(self, g, w, state, group):
        norms = [float(other.grad.norm()) for other in group["params"]]
        return g.sign() * float(g.norm()) / math.hypot(*norms)


class Turns(Base):
    """SGD for 40 steps, sign after: beyond the short runs."""

    def update(self, g, w, state, group):
        state["t"] = state.get("t", 0) + 1
        return g if state["t"] <= 40 else g.sign()


class Aligned(Base):
    """The part of sign(G) that is orthogonal to W is doubled: depends on the direction of W."""

    def update(self, g, w, state, group):
        return g.sign() + 5 * w.sign()


class DeafRate(Base):
    """Steps with the rate that the constructor was given, whatever the groups say."""

    def update(self, g, w, state, group):
        return g.sign() * self.defaults["lr"] / group["lr"]


class Explodes(Base):
    """Divides by zero on the third step."""

    def update(self, g, w, state, group):
        state["t"] = state.get("t", 0) + 1
        return g / float(state["t"] < 3) if state["t"] < 3 else g * math.inf


class NormalizedSGD(Base):
    """G/(‖G‖_F + eps): one scalar per tensor."""

    def update(self, g, w, state, group):
        return g / (g.norm() + group["eps"])


class SingleOnly(Base):
    """Refuses float64; prints; draws random numbers that it does not use."""

    def update(self, g, w, state, group):
        if g.dtype == torch.float64:
            raise RuntimeError("float64 is not supported")
        print("step")
        torch.rand(3)
        return g.sign()


class Momentum(Base):
    """Momentum whose buffer holds lr: W −= m, m = 0.9·m + lr·G."""

    def update(self, g, w, state, group):
        state["m"] = 0.9 * state.get("m", 0 * g) + group["lr"] * g
        return state["m"] / group["lr"]


class TwoPasses(Base):
    """Sharpness-aware: two calls."""

    def first_step(self) -> None: ...

    def second_step(self) -> None: ...


class LineSearch(Base):
    """Evaluates the loss itself."""

    def step(self, closure: Callable[[], float]) -> None:  # type: ignore[override]
        closure()


class SilentLineSearch(Base):
    """The same, said only when it runs."""

    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        if closure is None:
            raise ValueError("a closure is required")


class Curvature(Base):
    """Sophia-like: wants a Hessian."""

    def update_hessian(self) -> None: ...


class WholeModel:
    """Built from a model."""

    def __init__(self, model: torch.nn.Module, lr: float = 1e-3) -> None: ...


class NoRate(torch.optim.Optimizer):
    """Has no lr."""

    def __init__(self, params: Any, scale: float = 1.0) -> None:
        super().__init__(params, {"scale": scale})


class Still(Base):
    """Never moves."""

    def update(self, g, w, state, group):
        return 0 * g
