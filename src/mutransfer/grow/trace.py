"""The axes of a model read off one forward pass: a dispatch mode sees every operation and joins the axes that it indexes alike."""

from __future__ import annotations

import random
from collections.abc import Mapping
from typing import Any

import numpy
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from mutransfer.construct import same_randomness
from mutransfer.grow.layout import Axis
from mutransfer.grow.operations import OPERATIONS, carry, pointwise
from mutransfer.sample import Call, calls
from mutransfer.trace_branches import stand_in

_LARGEST = 1 << 25  # numbers in a stand-in that is run for real; a larger one stays on the meta device

_TABLES = ("arange", "linspace", "logspace", "eye", "randn", "rand", "randint", "randperm")
"""Operations whose numbers differ along their axes and come from nothing that is copied."""

Layout = dict[str, list[Axis]]
"""Tensor (parameter or buffer, by every name it has) → its axes."""


class Tracer(TorchDispatchMode):
    """Knows the axes of every tensor of the pass while it is active."""

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        """Nothing is compiled here; saying so spares torch the import of its compiler."""
        return False

    def __init__(self) -> None:
        super().__init__()
        self.axes: dict[int, list[Axis]] = {}
        self.kept: list[Tensor] = []  # tensors stay alive, so that their ids are not used twice
        self.touched: set[int] = set()
        self.unknown: set[str] = set()

    def of(self, tensor: Tensor) -> list[Axis]:
        """The axes of a tensor; one that nobody made here is a constant, with axes of its own."""
        if id(tensor) not in self.axes:
            found = [Axis(size) for size in tensor.shape]
            for axis in found:
                axis.constant = tensor.is_floating_point() and axis.size > 1
            self.put(tensor, found)
        return self.axes[id(tensor)]

    def put(self, tensor: Tensor, axes: list[Axis]) -> None:
        """These are the tensor's axes."""
        assert [a.size for a in axes] == list(tensor.shape), f"{[a.size for a in axes]} for {tuple(tensor.shape)}"
        self.axes[id(tensor)] = axes
        self.kept.append(tensor)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        name = func.overloadpacket.__name__
        made = [t for t in (result if isinstance(result, tuple | list) else (result,)) if isinstance(t, Tensor)]
        self.touched.update(id(a) for a in _tensors((args, kwargs)))
        if not made:
            return result
        plain = name.removesuffix("_") if name.endswith("_") and not name.endswith("__") else name
        rule = OPERATIONS.get(plain)
        if rule is None:
            rule = pointwise if torch.Tag.pointwise in func.tags else carry
            if rule is carry:
                self.unknown.add(plain)
        call = {a.name: v for a, v in zip(func._schema.arguments, args, strict=False)} | kwargs
        rule(self, call, made)
        for tensor in made:
            if id(tensor) not in self.axes:
                self.put(tensor, [Axis(size) for size in tensor.shape])
                for axis in self.axes[id(tensor)] if plain in _TABLES else ():
                    axis.constant = True
        return result


def _tensors(value: Any) -> list[Tensor]:
    if isinstance(value, Tensor):
        return [value]
    if isinstance(value, Mapping):
        value = list(value.values())
    return [t for item in value for t in _tensors(item)] if isinstance(value, tuple | list) else []


def trace(model: nn.Module, batch: Call | None = None) -> tuple[Layout, frozenset[str]] | None:
    """The axes of every parameter and buffer after one forward pass, and the tensors that the pass used.

    The pass is that of a stand-in of the same shapes on the arguments `batch`, or on guessed ones; the model itself never runs.
    None where no input was found that the model accepts.
    """
    size = sum(p.numel() for p in model.parameters())
    for device in ("meta", "cpu"):
        if device == "cpu" and size > _LARGEST:
            continue
        with same_randomness(), torch.no_grad():
            torch.manual_seed(0)
            twin = stand_in(model, device)
            if twin is None:
                return None
            for call in calls(twin) if batch is None else (batch,):
                found = _pass(twin, call, device)
                if found is not None:
                    return found
    return None


def _pass(twin: nn.Module, call: Call, device: str) -> tuple[Layout, frozenset[str]] | None:
    args, kwargs = _moved(call[0], device), _moved(call[1], device)
    tracer = Tracer()
    fast = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)  # a fused layer shows nothing
    named = dict(twin.named_parameters(remove_duplicate=False)) | dict(twin.named_buffers(remove_duplicate=False))
    for tensor in named.values():
        if id(tensor) not in tracer.axes:
            tracer.put(tensor, [Axis(size) for size in tensor.shape])
    for tensor in _tensors((args, kwargs)):
        tracer.put(tensor, [Axis(size) for size in tensor.shape])
    try:
        random.seed(0)
        numpy.random.seed(0)
        with torch.device(device), tracer:
            twin(*args, **kwargs)
    except AssertionError:
        raise
    except Exception:  # not an input that this forward accepts
        return None
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)
    if any(axis.mismatch for axes in tracer.axes.values() for axis in axes):
        return None  # on the meta device some operations take what they would refuse on real numbers
    used = frozenset(name for name, tensor in named.items() if id(tensor) in tracer.touched)
    return {name: tracer.axes[id(tensor)] for name, tensor in named.items()}, used


def _moved(value: Any, device: str) -> Any:
    if isinstance(value, Tensor):  # the stand-in's floats are float32
        return value.to(device, torch.float32 if value.is_floating_point() else None)
    if isinstance(value, Mapping):
        return {key: _moved(item, device) for key, item in value.items()}
    return type(value)(_moved(item, device) for item in value) if isinstance(value, tuple | list) else value
