"""Static random sparsity: the rules of density ρ (SμPar, 2405.15743), and masks that keep a model sparse while it trains.

A hidden matrix of which a fraction ρ is kept sums over ρ times as many inputs, so that its fan-in is a·ρ:

    init std  (a·ρ)^−½          LR  1/(a·ρ) for Adam, b/(a·ρ) for SGD          ‖G ⊙ M‖_F  √ρ of the dense one, |G_ij| the same

A matrix optimizer's step is orthogonal. Masked, the part of it that is aligned with the features falls like ρ, its operator norm is
2√ρ from a half down (measured), and the LR here grows like ρ^−½, between the two: uncertain, and not in the paper. Masks are buffers (`weight_mask`), so that a state dict holds them; gradients are masked as they come, and
weights again whenever something else has moved them.
"""

from __future__ import annotations

import weakref
from dataclasses import replace
from fractions import Fraction
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from mutransfer import draw
from mutransfer.errors import InputError
from mutransfer.optimizers import OptimizerFacts
from mutransfer.rules import Ratios, root

if TYPE_CHECKING:
    from mutransfer.plans import Plan

SUFFIX = "_mask"


def parse(density: Any) -> tuple[float, float]:
    """(base, target) densities from the user's option: one number is the target's, of a dense base. Raises InputError."""
    if density is None:
        return 1.0, 1.0
    pair: tuple[Any, ...] = (
        tuple(density) if isinstance(density, list | tuple) and len(density) == 2 else (1.0, density)
    )
    for value in pair:
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value <= 1:
            raise InputError(f"density={density!r}: write the fraction of weights to keep, above 0 and up to 1, such as "
                             f"density=0.25, or (base, target), such as density=(0.5, 0.25)")  # fmt: skip
    return float(pair[0]), float(pair[1])


def thin(ratios: Ratios, density: tuple[float, float], facts: OptimizerFacts, fixed_decay: bool) -> tuple[Ratios, str]:
    """The ratios of a matrix whose density goes from base to target, from those of the dense one; and the text of it."""
    ratio = Fraction(density[1]) / Fraction(density[0])
    if ratio == 1:
        return ratios, ""
    size = root(ratio)
    spread = facts.matrix_only or facts.weight  # LAMB shares a step of the weights' own norm among those that are kept
    f = 1 / size if spread else float(1 / ratio)
    eps = ratios.eps
    if eps is not None:
        eps *= {"element": 1.0, "frobenius": size, "outer": float(ratio)}[facts.eps_kind or "element"]
    changed = replace(
        ratios,
        std=ratios.std / size,
        lr=ratios.lr * f,
        decay=ratios.decay if fixed_decay else ratios.decay / f,
        l2=ratios.l2 if fixed_decay else ratios.l2 / f if facts.degree == 1 else ratios.l2 * float(ratio),
        eps=eps,
        gradient=ratios.gradient * size,
    )
    exponent = "½" if spread else "1"
    text = f"; density ρ ×{float(ratio):g}: std·ρ^-½={changed.std:g}, lr·ρ^-{exponent}={changed.lr:g}, ‖G‖·√ρ"
    return changed, text + ("" if eps is None else f", eps={eps:g}")


class Keeper:
    """The forward pre-hook of the whole model that masks what has moved since, and sees that gradients are masked.

    Copies and pickles with the model: it holds names only.
    """

    def __init__(self, names: tuple[str, ...]) -> None:
        self.names = names
        self.seen: dict[str, tuple[int, int, int]] = {}  # name → weight, its version, mask when it was last masked

    def __call__(self, model: nn.Module, *_: Any) -> None:
        for name in self.names:
            weight, mask = masked(model, name)
            if self.seen.get(name) != (id(weight), weight._version, id(mask)):
                _watch(weight, mask)
                with torch.no_grad():
                    weight.mul_(mask)
                self.seen[name] = (id(weight), weight._version, id(mask))

    def __getstate__(self) -> dict[str, Any]:
        return {"names": self.names, "seen": {}}


_MASKS: dict[
    int, tuple[weakref.ref[Tensor], weakref.ref[Tensor]]
] = {}  # id of a weight that is watched → itself, its mask


class _Masked:
    """Masks the gradient of one weight as it arrives."""

    def __init__(self, mask: weakref.ref[Tensor]) -> None:
        self.mask = mask

    def __call__(self, gradient: Tensor) -> Tensor:
        mask = self.mask()
        return gradient if mask is None else gradient * mask


def _watch(weight: Tensor, mask: Tensor) -> None:
    known = _MASKS.get(id(weight))
    if known is not None and known[0]() is weight and known[1]() is mask:
        return
    key = id(weight)
    _MASKS[key] = (weakref.ref(weight, lambda _: _MASKS.pop(key, None)), weakref.ref(mask))
    if weight.requires_grad:
        weight.register_hook(_Masked(weakref.ref(mask)))


def masked(model: nn.Module, name: str) -> tuple[Tensor, Tensor]:
    """The weight of this name and its mask."""
    path, _, attribute = name.rpartition(".")
    module = model.get_submodule(path)
    weight, mask = module._parameters[attribute], module._buffers.get(attribute + SUFFIX)
    if weight is None or mask is None:
        raise InputError(f"{name!r} has lost its mask {attribute + SUFFIX!r}; call plan.attach(model)")
    return weight, mask


def remask(optimizer: torch.optim.Optimizer, *_: Any) -> None:
    """The hook after a step: weights that an optimizer moved where they are masked (Muon does) go back to zero."""
    with torch.no_grad():
        for group in optimizer.param_groups:
            for weight in group["params"]:
                known = _MASKS.get(id(weight))
                if known is not None and known[0]() is weight and (mask := known[1]()) is not None:
                    weight.mul_(mask)


def start(plan: Plan, model: nn.Module, redraw: bool) -> None:
    """Before initial values are drawn: masks of an earlier call go, since laws are those of whole tensors.

    Raises InputError where its weights would be kept, which are masked already.
    """
    for row, parameter in plan.named(model) if any(row.density < 1 for row in plan.rows) else ():
        module, attribute = _owner(model, parameter)
        if row.density < 1 and module._buffers.get(attribute + SUFFIX) is not None:
            if not redraw:
                raise InputError(
                    f"{row.name!r} is masked already: initialize a fresh model, or say redraw=True for new values"
                )
            del module._buffers[attribute + SUFFIX]


def _owner(model: nn.Module, parameter: nn.Parameter) -> tuple[nn.Module, str]:
    return next((m, a) for m in model.modules() for a, p in m._parameters.items() if p is parameter)


def attach(plan: Plan, model: nn.Module, seed: int = 0) -> None:
    """Give every sparse tensor its mask (a buffer; kept where it is there already) and the model its keeper.

    The mask is a function of (seed, tensor name) alone and keeps round(ρ·size) entries. Raises InputError for a tensor on meta or
    sharded over ranks.
    """
    pairs = [(row, parameter) for row, parameter in plan.named(model) if row.density < 1]
    if not pairs:
        return
    owners = {id(parameter): (path, module, attribute) for path, module in model.named_modules()
              for attribute, parameter in module._parameters.items() if parameter is not None}  # fmt: skip
    names = []
    for row, parameter in pairs:
        path, module, attribute = owners[id(parameter)]
        names.append(f"{path}.{attribute}" if path else attribute)
        if module._buffers.get(attribute + SUFFIX) is not None:
            continue
        if parameter.is_meta or hasattr(parameter, "to_local"):
            where = "on the meta device" if parameter.is_meta else "sharded"
            raise InputError(
                f"{row.name!r} is {where}: its mask needs the whole tensor; call plan.initialize before sharding"
            )
        module.register_buffer(
            attribute + SUFFIX, mask(tuple(parameter.shape), row.density, seed, row.name, parameter.device)
        )
    hooks = model._forward_pre_hooks
    for key in [key for key, hook in hooks.items() if isinstance(hook, Keeper)]:
        del hooks[key]
    keeper = Keeper(tuple(names))
    model.register_forward_pre_hook(keeper)
    keeper(model)


def mask(shape: tuple[int, ...], density: float, seed: int, name: str, device: torch.device) -> Tensor:
    """A bool tensor with exactly round(density·size) entries kept, at least one."""
    whole = torch.Size(shape)
    kept = max(1, round(density * whole.numel()))
    where = torch.device("cpu") if device.type == "mps" else device
    order = draw.uniforms(torch.arange(whole.numel(), device=where), draw._key(seed, f"{name}{SUFFIX}", 0))
    result = torch.zeros(whole.numel(), dtype=torch.bool, device=where)
    result[order.topk(kept, largest=False).indices] = True
    return result.view(whole).to(device)


def check(plan: Plan, model: nn.Module) -> None:
    """Raise InputError where a sparse tensor has lost its mask, or holds numbers where it is masked."""
    for row, parameter in plan.named(model) if any(row.density < 1 for row in plan.rows) else ():
        if row.density < 1:
            module, attribute = _owner(model, parameter)
            found = module._buffers.get(attribute + SUFFIX)
            if found is None:
                raise InputError(
                    f"{row.name!r} has density {row.density:g} in the plan and no mask; call plan.attach(model)"
                )
            if not parameter.is_meta and bool((parameter.detach() * ~found).any()):
                raise InputError(
                    f"{row.name!r} holds numbers where its mask is zero: step with plan.optimizer, or run the model once"
                )
