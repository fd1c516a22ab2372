"""What the user hands over: sizes, batches of any shape, a loss. Checked and brought into one form."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from mutransfer.errors import InputError

Size = int | dict[str, Any]
Loss = Callable[[Any, Any], Tensor]

DEPTH_WORDS = ("depth", "layer", "block")
WIDTH_WORDS = ("width", "embd", "embed", "hidden", "model", "dim", "channel")


def read_sizes(sizes: Any, axis: str | None) -> tuple[list[Size], str, list[float]]:
    """The sizes in growing order, the name of the axis that varies, and its values.

    Keys of dict sizes that move together are one axis, called by its depth-like or width-like key.
    Raises InputError for fewer than two sizes, repeated or non-positive ones, dicts with different keys, or an axis that is no name.
    """
    if axis is not None and (not isinstance(axis, str) or not axis.strip()):
        raise InputError(f"axis={axis!r}: write the name of what varies, such as 'width' or 'depth'")
    if isinstance(sizes, (int, str, Mapping)) or not isinstance(sizes, Iterable):
        raise InputError(f"sizes={sizes!r}: write a list of at least two sizes, such as [64, 128, 256, 512]")
    listed = list(sizes)
    if len(listed) < 2:
        raise InputError(f"sizes={listed!r}: at least two sizes are needed, such as [64, 128, 256, 512]")
    numbers = [size for size in listed if isinstance(size, int) and not isinstance(size, bool)]
    dicts = [dict(size) for size in listed if isinstance(size, Mapping)]
    if len(numbers) == len(listed):
        name, values = axis or "width", [float(size) for size in numbers]
    elif len(dicts) == len(listed):
        name = _axis(dicts, axis)
        values = [float(size[name]) for size in dicts]
    else:
        raise InputError(f"sizes={listed!r}: write all integers, or all dicts such as dict(width=64, depth=2)")
    if min(values) <= 0:
        raise InputError(f"sizes={listed!r}: every {name} must be positive")
    if len(set(values)) < len(values):
        raise InputError(f"sizes={listed!r}: the same {name} is listed twice")
    order = sorted(range(len(values)), key=values.__getitem__)
    return [listed[k] for k in order], name, [values[k] for k in order]


def _axis(sizes: list[dict[str, Any]], axis: str | None) -> str:
    if any(set(size) != set(sizes[0]) for size in sizes):
        raise InputError(f"sizes={sizes!r}: every size needs the same keys")
    varying = [key for key in sizes[0] if len({repr(size[key]) for size in sizes}) > 1]
    if axis is not None:
        if axis not in varying:
            raise InputError(f"axis={axis!r} does not vary in sizes; what varies is {varying}")
        return axis
    numeric = [key for key in varying if all(isinstance(size[key], (int, float)) for size in sizes)]
    if not numeric:
        raise InputError(f"sizes={sizes!r}: nothing varies; list sizes of different width or depth")
    for words in (WIDTH_WORDS, DEPTH_WORDS):
        for key in numeric:
            if any(word in key.lower() for word in words):
                return key
    if len(numeric) > 1:
        raise InputError(f"several keys vary, {numeric}: say which one is the axis, such as axis={numeric[0]!r}")
    return numeric[0]


def materialise(batches: Any, steps: int) -> list[Any]:
    """At most `steps` batches as a list: a tensor, tuple, dict or dataclass is one batch; a list or iterable holds many.

    Raises InputError when nothing comes out of it.
    """
    if isinstance(batches, (str, bytes, int, float)) or batches is None:
        raise InputError(
            f"batches={batches!r}: hand over one batch (tensor, tuple, dict), a list of them or a DataLoader"
        )
    if isinstance(batches, (Tensor, tuple, Mapping)) or dataclasses.is_dataclass(batches):
        return [batches]
    if not isinstance(batches, Iterable):
        return [batches]
    taken = list(itertools.islice(batches, steps))
    if not taken:
        raise InputError("batches is empty: the check needs at least one batch")
    return taken


def move(batch: Any, device: torch.device) -> Any:
    """The batch with every tensor in it on this device; anything that is not a tensor stays as it is."""
    if isinstance(batch, Tensor):
        return batch.to(device)
    if isinstance(batch, Mapping):
        moved = {key: move(value, device) for key, value in batch.items()}
        if type(batch) is dict:
            return moved
        try:
            return type(batch)(moved)  # pyright: ignore[reportCallIssue]
        except TypeError:
            return moved
    if isinstance(batch, tuple) and hasattr(batch, "_fields"):
        return type(batch)(*(move(value, device) for value in batch))
    if isinstance(batch, (tuple, list)):
        return type(batch)(move(value, device) for value in batch)
    if dataclasses.is_dataclass(batch) and not isinstance(batch, type):
        fields = {f.name: move(getattr(batch, f.name), device) for f in dataclasses.fields(batch) if f.init}
        return dataclasses.replace(batch, **fields)
    return batch


def tensors_in(value: Any, limit: int = 4) -> list[Tensor]:
    """The floating-point tensors (not scalars) of a nested output, in order, at most `limit`."""
    return list(itertools.islice(_tensors(value, 0), limit))


def _tensors(value: Any, level: int) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        if value.is_floating_point() and value.dim() > 0 and value.numel() > 0:
            yield value
    elif level > 4:
        return
    elif isinstance(value, Mapping):
        for item in value.values():
            yield from _tensors(item, level + 1)
    elif isinstance(value, (tuple, list)):
        for item in value:
            yield from _tensors(item, level + 1)
    elif dataclasses.is_dataclass(value) and not isinstance(value, type):
        for field in dataclasses.fields(value):
            yield from _tensors(getattr(value, field.name, None), level + 1)


def default_loss(model: Any, batch: Any) -> Tensor:
    """The loss that the model itself computes: `model(**batch).loss`, or `["loss"]` of a dict.

    Raises InputError when the output carries none.
    """
    if isinstance(batch, Mapping):
        output = model(**batch)
    elif isinstance(batch, (tuple, list)):
        output = model(*batch)
    else:
        output = model(batch)
    value = output.get("loss") if isinstance(output, Mapping) else getattr(output, "loss", None)
    if value is None:
        raise InputError(
            f"the model returns a {type(output).__name__} without a loss: pass loss=lambda model, batch: <scalar tensor>"
        )
    return value


def scalar(value: Any) -> Tensor:
    """The loss as it must be: one number that gradients flow from. Raises InputError otherwise."""
    if not isinstance(value, Tensor) or value.numel() != 1:
        shown = f"a tensor of shape {tuple(value.shape)}" if isinstance(value, Tensor) else f"a {type(value).__name__}"
        raise InputError(f"loss(model, batch) returned {shown}: it must return one scalar tensor")
    return value.reshape(())


def built(result: Any, size: Size) -> tuple[nn.Module, list[Any], list[Any]]:
    """(model, optimizers, schedulers) from what the user's `build(size)` returned. Raises InputError when it is neither."""
    shown = f"build({size!r})"
    if isinstance(result, nn.Module):
        raise InputError(f"{shown} returned a model alone: return (model, optimizer), so that updates can be checked")
    if not isinstance(result, Sequence) or not 2 <= len(result) <= 3 or not isinstance(result[0], nn.Module):
        raise InputError(f"{shown} returned {type(result).__name__}: it must return (model, optimizer)")
    model, optimizers = result[0], result[1]
    optimizers = list(optimizers) if isinstance(optimizers, (list, tuple)) else [optimizers]
    for optimizer in optimizers:
        if not all(hasattr(optimizer, name) for name in ("param_groups", "step", "zero_grad")):
            raise InputError(
                f"{shown} returned {type(optimizer).__name__} as optimizer: it needs param_groups, step and zero_grad"
            )
    if not any(True for _ in model.parameters()):
        raise InputError(f"{shown} returned a model without parameters")
    if next(model.parameters()).is_meta:
        raise InputError(f"{shown} returned a model on the meta device: materialise it first")
    own = {id(p) for p in model.parameters()}
    if not any(id(p) in own for optimizer in optimizers for group in optimizer.param_groups for p in group["params"]):
        raise InputError(f"{shown}: none of the model's parameters is in the optimizer; build both together")
    third = result[2] if len(result) == 3 else None
    schedulers = [] if third is None else list(third) if isinstance(third, (list, tuple)) else [third]
    return model, optimizers, schedulers
