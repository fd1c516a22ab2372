"""Forward multipliers that cannot be absorbed, carried by hooks: picklable, copied with the model, attached once."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from torch import Tensor, nn

from mutransfer.errors import InputError
from mutransfer.shapes import clean

Side = Literal["input", "output"]


@dataclass(frozen=True)
class Hook:
    """`factor` on the first input, or on the output, of the module at this path."""

    module: str
    where: Side
    factor: float
    reason: str


class Multiplier:
    """The callable that a hook registers: multiplies the first tensor argument, or the output."""

    def __init__(self, hook: Hook) -> None:
        self.hook = hook

    def __call__(self, module: nn.Module, *values: Any) -> Any:
        if self.hook.where == "output":
            return _scaled(values[-1], self.hook.factor)
        args, kwargs = values
        if args:
            return (_scaled(args[0], self.hook.factor), *args[1:]), kwargs
        first = next(iter(kwargs))
        return args, {**kwargs, first: _scaled(kwargs[first], self.hook.factor)}


def _scaled(value: Any, factor: float) -> Any:
    if isinstance(value, Tensor):
        return value * factor
    if isinstance(value, tuple | list):
        return type(value)([_scaled(value[0], factor), *value[1:]])
    raise InputError(f"a multiplier hook met {type(value).__name__}, not a tensor; use placement='absorbed'")


def unwrapped(path: str, model: nn.Module) -> str:
    """A module's path in the user's own model: without what compile, FSDP or (Distributed)DataParallel put before it."""
    wrapped = isinstance(model, nn.DataParallel | nn.parallel.DistributedDataParallel)
    return clean(path).removeprefix("module.") if wrapped else clean(path)


def attached(model: nn.Module) -> dict[Hook, str]:
    """The multiplier hooks that this model carries now, with the path of the module that carries each."""
    found: dict[Hook, str] = {}
    for path, module in model.named_modules():
        for registered in (module._forward_pre_hooks, module._forward_hooks):
            found.update(
                {hook.hook: unwrapped(path, model) for hook in registered.values() if isinstance(hook, Multiplier)}
            )
    return found


def attach(model: nn.Module, hooks: tuple[Hook, ...]) -> None:
    """Register the hooks that are not there yet. Raises InputError when a module is missing."""
    present = attached(model)
    modules = {unwrapped(path, model): module for path, module in model.named_modules()}
    for hook in hooks:
        if hook.module not in modules:
            raise InputError(f"the plan's multiplier sits on module {hook.module!r}, which this model does not have")
    for hook in hooks:
        if hook in present:
            continue
        if hook.where == "input":
            modules[hook.module].register_forward_pre_hook(Multiplier(hook), with_kwargs=True)
        else:
            modules[hook.module].register_forward_hook(Multiplier(hook))
