"""How a model is run where the user gives no batch, and in which ways his own batch may be meant."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from mutransfer.growth.trace import Feed, feed
from mutransfer.sample import Call, calls


def feeds(first: Any, loss: Any) -> list[Feed]:
    """Ways to run a forward pass on the user's first batch: his own loss; the batch as an argument; its parts."""
    ways: list[Feed] = [] if loss is None else [(first, lambda model, batch: loss(model, batch))]
    if isinstance(first, tuple | list) and first:
        ways += [feed((tuple(first[: n or None]), {})) for n in (1, 0)]
    if isinstance(first, Mapping):
        inputs = {k: v for k, v in first.items() if k not in ("labels", "label", "y", "target", "targets")}
        ways += [feed(((), dict(first))), feed(((), inputs))]
    return [*ways, feed(((first,), {}))]


def guessed_batch(model: nn.Module) -> Call | None:
    """Arguments that the model's forward accepts, found by trying; None where none were. The model runs without gradients."""
    training = {m: m.training for m in model.modules()}
    try:
        model.eval()
        place = next((p.device for p in model.parameters()), torch.device("cpu"))
        kind = next((p.dtype for p in model.parameters() if p.is_floating_point()), torch.float32)
        for args, kwargs in calls(model):
            moved = _cast(_distinct(args), place, kind), _cast(kwargs, place, kind)
            try:
                with torch.no_grad():
                    model(*moved[0], **moved[1])
            except Exception:  # not an input that this forward accepts
                continue
            return moved
    finally:
        for module, mode in training.items():
            module.training = mode
    return None


def _distinct(args: tuple[Any, ...]) -> tuple[Any, ...]:
    """Guesses give every argument the same tensor: two inputs whose difference counts would look alike."""
    seen: set[int] = set()
    made = []
    for value in args:
        again = isinstance(value, Tensor) and id(value) in seen
        seen.add(id(value))
        made.append(
            torch.randn_like(value) if again and value.is_floating_point() else value.flip(-1) if again else value
        )
    return tuple(made)


def _cast(value: Any, device: torch.device, dtype: torch.dtype) -> Any:
    if isinstance(value, Tensor):
        return value.to(device, dtype if value.is_floating_point() else None)
    if isinstance(value, Mapping):
        return {key: _cast(item, device, dtype) for key, item in value.items()}
    return type(value)(_cast(item, device, dtype) for item in value) if isinstance(value, tuple | list) else value


def guessed_loss(model: nn.Module, batch: Any) -> Tensor:
    """Mean squares of everything that comes out: the same for equal copies of any output."""
    args, kwargs = batch
    found = [out.square().mean() for out in _outputs(model(*args, **kwargs))]
    return torch.stack([value.double() if value.dtype.itemsize < 4 else value for value in found]).sum()


def _outputs(value: Any) -> list[Tensor]:
    if isinstance(value, Tensor):
        return [value] if value.is_floating_point() else []
    if dataclasses.is_dataclass(value) and not isinstance(value, type | Mapping):
        value = vars(value)
    items = value.values() if isinstance(value, Mapping) else value if isinstance(value, tuple | list) else ()
    return [out for item in items for out in _outputs(item)]
