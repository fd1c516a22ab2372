"""The axes of a model read off one forward pass: a dispatch mode sees every operation and joins the axes that it indexes alike."""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from mutransfer.construct import same_randomness
from mutransfer.growth import products, views
from mutransfer.growth.layout import Axis
from mutransfer.growth.operations import OPERATIONS, carry, pointwise
from mutransfer.sample import Call, calls
from mutransfer.trace_branches import stand_in

_LARGEST = 1 << 25  # numbers in a stand-in that is run for real; a larger one stays on the meta device

_TABLES = ("arange", "linspace", "logspace", "eye", "randn", "rand", "randint", "randperm")
"""Operations whose numbers differ along their axes and come from nothing that is copied."""

RULES = products, views
"""Importing these modules put their rules among the operations."""

Layout = dict[str, list[Axis]]
"""Tensor (parameter or buffer, by every name it has) → its axes."""


@dataclass(frozen=True)
class Traced:
    """One pass: the axes of every tensor, those that were used, sizes of what came out, whether it drew random numbers."""

    layout: Layout
    used: frozenset[str]
    outputs: tuple[tuple[int, ...], ...]
    random: bool


class NotTraced(Exception):
    """No pass could be made; the message is that of the last error."""


Feed = tuple[Any, Callable[[nn.Module, Any], Any]]
"""A batch and how a model is run on it: the arguments of forward, or a user's batch and loss."""


def feed(call: Call) -> Feed:
    """The arguments of forward as a Feed."""
    return call, lambda model, batch: model(*batch[0], **batch[1])


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
        self.random = False

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
        attention = "scaled_dot_product" in func.overloadpacket.__name__  # may drop, and does not in eval mode
        self.random |= torch.Tag.nondeterministic_seeded in func.tags and not attention
        made = [t for t in (result if isinstance(result, tuple | list) else (result,)) if isinstance(t, Tensor)]
        self.touched.update(id(a) for a in _tensors((args, kwargs)))
        if not made:
            return result
        plain = name.removesuffix("_") if name.endswith("_") and not name.endswith("__") else name
        rule = OPERATIONS.get(plain)
        if rule is None:
            rule = pointwise if torch.Tag.pointwise in func.tags else carry
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
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        value = [getattr(value, f.name, None) for f in dataclasses.fields(value)]
    return [t for item in value for t in _tensors(item)] if isinstance(value, tuple | list) else []


def trace(model: nn.Module, feeds: Sequence[Feed] = ()) -> Traced:
    """The axes of every parameter and buffer after one forward pass.

    The pass is that of a stand-in of the same shapes on the first of `feeds` that runs, or on guessed arguments; the model itself never
    runs.
    Raises NotTraced where no input was found that the model accepts.
    """
    last = ""
    size = sum(p.numel() for p in model.parameters())
    for device in ("meta", "cpu"):
        if device == "cpu" and size > _LARGEST:
            continue
        with same_randomness(), torch.no_grad():
            torch.manual_seed(0)
            twin = stand_in(model, device)
            if twin is None and device == "meta":
                twin = _unsharded(model)
            if twin is None:
                raise NotTraced("the model cannot be copied")
            twin = twin.float()
            for one in feeds or map(feed, calls(twin)):
                found = _pass(twin, one, device)
                if isinstance(found, Traced):
                    return found
                if feeds or not last:
                    last = found
    raise NotTraced(last)


def _unsharded(model: nn.Module) -> nn.Module | None:
    """A sharded model (FSDP2) as its own code built it, on the meta device: its classes, whole shapes, no hooks."""
    if not any(hasattr(p, "device_mesh") for p in model.parameters()):
        return None
    made: dict[int, Any] = {}

    def tensor(t: Tensor | None) -> Tensor | None:
        if t is not None and id(t) not in made:
            empty = torch.empty(t.shape, dtype=torch.float32 if t.is_floating_point() else t.dtype, device="meta")
            made[id(t)] = nn.Parameter(empty, t.requires_grad) if isinstance(t, nn.Parameter) else empty
        return None if t is None else made[id(t)]

    def module(m: nn.Module) -> nn.Module:
        if id(m) not in made:
            cls = type(m)
            own = cls.__bases__[1] if cls.__name__.startswith("FSDP") and len(cls.__bases__) == 2 else cls
            new = made[id(m)] = object.__new__(own)
            new.__dict__.update({k: type(v)() if "_hooks" in k else v for k, v in vars(m).items()})
            new.__dict__["_parameters"] = {k: tensor(v) for k, v in m._parameters.items()}
            new.__dict__["_buffers"] = {k: tensor(v) for k, v in m._buffers.items()}
            new.__dict__["_modules"] = {k: None if v is None else module(v) for k, v in m._modules.items()}
        return made[id(m)]

    return module(model).eval()


def _pass(twin: nn.Module, one: Feed, device: str) -> Traced | str:
    """The pass, or what it failed with."""
    batch, run = _moved(one[0], device), one[1]
    tracer = Tracer()
    fast = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)  # a fused layer shows nothing
    named = dict(twin.named_parameters(remove_duplicate=False)) | dict(twin.named_buffers(remove_duplicate=False))
    for tensor in named.values():
        if id(tensor) not in tracer.axes:
            tracer.put(tensor, [Axis(size) for size in tensor.shape])
    for tensor in _tensors(batch):
        tracer.put(tensor, [Axis(size) for size in tensor.shape])
    default = torch.get_default_dtype()
    try:
        torch.set_default_dtype(torch.float32)  # the stand-in's, of which tables in forward must be
        random.seed(0)
        numpy.random.seed(0)
        with torch.device(device), tracer:
            out = run(twin, batch)
    except Exception as error:  # not an input that this forward accepts
        return f"{type(error).__name__}: {' '.join(str(error).split())[:160]}"
    finally:
        torch.set_default_dtype(default)
        torch.backends.mha.set_fastpath_enabled(fast)
    if any(axis.mismatch for axes in tracer.axes.values() for axis in axes):
        return "sizes that do not fit"  # on the meta device some operations take what they would refuse on real numbers
    used = frozenset(name for name, tensor in named.items() if id(tensor) in tracer.touched)
    layout = {name: tracer.axes[id(tensor)] for name, tensor in named.items()}
    outputs = tuple(tuple(t.shape) for t in _tensors(out) if t.is_floating_point())
    dropout = any(isinstance(m, nn.modules.dropout._DropoutNd) and m.p > 0 for m in twin.modules())
    return Traced(layout, used, outputs, dropout or tracer.random)


def _moved(value: Any, device: str) -> Any:
    if isinstance(value, Tensor):  # the stand-in's floats are float32
        return value.to(device, torch.float32 if value.is_floating_point() else None)
    if isinstance(value, Mapping):
        return {key: _moved(item, device) for key, item in value.items()}
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        return type(value)(*(_moved(item, device) for item in value))
    if isinstance(value, tuple | list):
        return type(value)(_moved(item, device) for item in value)
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        fields = {f.name: _moved(getattr(value, f.name), device) for f in dataclasses.fields(value) if f.init}
        return dataclasses.replace(value, **fields)
    return value
