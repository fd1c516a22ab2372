"""What the check reads from, or asks of, a live optimizer and its schedule."""

from __future__ import annotations

import inspect
import warnings
from typing import Any

import torch
from torch import Tensor, nn

from mutransfer.check import feed
from mutransfer.errors import InputError
from mutransfer.optimizers import OptimizerFacts, facts_for
from mutransfer.optimizers.classes import SHAPED_STATES

POWER_ITERATIONS = 8
FLAGS = ("use_muon", "is_muon", "muon")


def owners(optimizers: list[Any]) -> dict[int, tuple[dict[str, Any], Any]]:
    """id(parameter) → its group and the optimizer that steps it: a part, where one object holds several as `.parts`."""
    found: dict[int, tuple[dict[str, Any], Any]] = {}
    for optimizer in optimizers:
        parts = getattr(optimizer, "parts", None)
        for part in parts if isinstance(parts, (list, tuple)) and parts else [optimizer]:
            for group in getattr(part, "param_groups", ()):
                found.update({id(p): (group, part) for p in group["params"]})
        for group in optimizer.param_groups:
            for p in group["params"]:
                found.setdefault(id(p), (group, optimizer))
    return found


def facts_of(group: dict[str, Any], optimizer: Any) -> OptimizerFacts | None:
    """The declared facts of the rule that moves this group, None when nobody declared any.

    A group of a plan carries its rule's name; one class that runs Muon beside Adam (`use_muon`) is known by neither name alone.
    """
    flag = next((bool(group[key]) for key in FLAGS if key in group), None)
    for candidate in ("adamw" if flag is False else None, optimizer, group.get("optimizer")):
        try:
            if candidate is not None:
                return facts_for(candidate)
        except InputError:
            continue
    return None


def default_of(optimizer: Any, setting: str) -> float:
    """What this optimizer class uses for a setting (weight_decay, eps) when nobody chose one; 0 where it has none."""
    parameter = inspect.signature(type(optimizer).__init__).parameters.get(setting)
    default = None if parameter is None else parameter.default
    return float(default) if isinstance(default, (int, float)) else 0.0


def check_states(optimizers: list[Any], params: dict[str, nn.Parameter], size: feed.Size) -> None:
    """Raise InputError for an optimizer state that belongs to a model of another width."""
    names = {id(p): name for name, p in params.items()}
    for optimizer in optimizers:
        for p, state in getattr(optimizer, "state", {}).items():
            for key in SHAPED_STATES:
                value = state.get(key) if isinstance(state, dict) else None
                if isinstance(value, Tensor) and value.dim() > 0 and value.shape != p.shape:
                    raise InputError(
                        f"build({size!r}): the optimizer's {key} of {names.get(id(p), 'a tensor')!r} has shape "
                        f"{tuple(value.shape)} but the tensor {tuple(p.shape)}: this state is of another width; start it fresh "
                        "or use mutransfer.grow"
                    )


def operator_norm(w: Tensor) -> Tensor:
    """‖W‖₂ of a tensor seen as (out, everything else), or the largest over a stack (E, in, out), by power iteration."""
    w = w.detach().float()
    m = w.reshape(w.shape[0], -1)
    generator = torch.Generator().manual_seed(0)
    v = torch.randn(m.shape[1], generator=generator).to(m.device)
    norm = torch.linalg.vector_norm(m @ v)
    for _ in range(POWER_ITERATIONS):
        v = m.T @ (m @ v)
        v = v / torch.linalg.vector_norm(v).clamp_min(1e-30)
        norm = torch.linalg.vector_norm(m @ v)
    return norm


def erased_ratios(optimizers: list[Any], schedulers: list[Any], ahead: int = 1000) -> tuple[dict[str, Any], str] | None:
    """The group that a schedule favours, with words, when it does not multiply every group's LR by the same factor.

    The schedule is played `ahead` steps on, until it ends; nothing is trained meanwhile.
    """
    groups = [group for optimizer in optimizers for group in optimizer.param_groups]
    base = [float(group.get("initial_lr", group.get("lr", 0.0))) for group in groups]
    if not schedulers or len({round(b, 12) for b in base}) < 2 or min(base) <= 0:
        return None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for k in range(ahead):
            factors = [float(group["lr"]) / b for group, b in zip(groups, base, strict=True)]
            low, high = min(factors), max(factors)
            if high > 0.01 and high > 1.25 * max(low, 1e-12):
                words = f"{k} steps later one group's LR is {high:.3g} and another's {low:.3g} times its own base value"
                return groups[factors.index(high)], words
            try:
                for scheduler in schedulers:
                    scheduler.step()
            except (
                ValueError,
                TypeError,
                RuntimeError,
            ):  # the end of a schedule of fixed length, or one that wants a metric
                break
    return None
