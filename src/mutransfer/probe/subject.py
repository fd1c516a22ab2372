"""The optimizer under test: built fresh for every run, driven by given gradients, its steps recorded; nothing global is touched."""

from __future__ import annotations

import contextlib
import functools
import inspect
import io
import random
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mutransfer.errors import InputError

WEIGHT = 0.05
"""RMS of the weights in every run that does not vary it."""
LR = 1e-3
STEPS = 16
EARLY, LATE = slice(0, 4), slice(8, 16)
"""Steps over which "early" and "late" average: an average over several sees through look-ahead and skipped steps."""

BUDGET = 60.0
"""Seconds of processor time after which a probe gives up."""

_CURVATURE = ("update_hessian", "compute_hutchinson_hessian", "set_hessian", "compute_hessian")
_TWICE = ("first_step", "second_step")


@dataclass
class Subject:
    """A class with its settings. `run` gives the raw steps `A_k = −ΔW_k/lr` of one tensor; `weight_decay` is 0 unless asked."""

    cls: Callable[..., Any]
    name: str
    settings: dict[str, Any]
    group: dict[str, Any] = field(default_factory=dict)
    dtype: torch.dtype = torch.float64
    device: torch.device = field(default_factory=torch.get_default_device)
    started: float = field(default_factory=time.process_time)
    _known: dict[Any, Tensor] = field(default_factory=dict)

    @functools.cached_property
    def parameters(self) -> Mapping[str, inspect.Parameter]:
        """What the constructor takes, by name."""
        try:
            return inspect.signature(self.cls).parameters
        except (TypeError, ValueError):
            return {}

    def takes(self, name: str) -> bool:
        """Whether the constructor names this setting."""
        return name in self.parameters

    def run(
        self,
        grads: Tensor | Callable[[int, Tensor], Tensor],
        weight: Tensor,
        *,
        steps: int = STEPS,
        lr: float = LR,
        seed: int = 0,
        beside: tuple[Tensor, Tensor] | None = None,
        other_lr: float | None = None,
        cut: int | None = None,
        **settings: Any,
    ) -> Tensor:
        """(steps, *shape) raw steps −ΔW_k/lr in float64 on the CPU, of a fresh optimizer.

        grads: (steps, *shape), or a function of step and weight. beside: (weight, grads) of a second tensor in the same
        group. other_lr: what the constructor is given, while the param group has `lr`. cut: from this step on the rate is
        halved (steps are still divided by `lr`). seed: of whatever the optimizer draws itself.
        """
        if time.process_time() - self.started > BUDGET:
            raise InputError(
                f"{self.name} is too slow to probe: {BUDGET:.0f} s of small matrices (12 to 64) were not enough"
            )
        w = torch.nn.Parameter(weight.to(self.device, self.dtype).clone())
        other = None if beside is None else torch.nn.Parameter(beside[0].to(self.device, self.dtype).clone())
        path = [w.detach().to("cpu", torch.float64, copy=True)]
        with isolated(seed, self.device), torch.enable_grad():
            optimizer = self._built([w] if other is None else [w, other], lr, other_lr, settings)
            for k in range(steps):
                w.grad = (grads(k, w.detach().to("cpu", torch.float64)) if callable(grads) else grads[k]).to(w)
                w.grad = w.grad.clone(memory_format=torch.contiguous_format)
                if other is not None and beside is not None:
                    other.grad = beside[1][k].to(other, copy=True)
                if k == cut:
                    for group in optimizer.param_groups:
                        group["lr"] = group["lr"] * 0.5
                self._step(optimizer)
                path.append(w.detach().to("cpu", torch.float64, copy=True))
        moved = torch.stack(path)
        return (moved[:-1] - moved[1:]) / lr

    def once(self, key: Any, make: Callable[[], Tensor]) -> Tensor:
        """`make()`, made once per key: several findings read the same runs."""
        if key not in self._known:
            self._known[key] = make()
        return self._known[key]

    def _built(self, params: list[Tensor], lr: float, other_lr: float | None, settings: Mapping[str, Any]) -> Any:
        given = {**({"weight_decay": 0.0} if self.takes("weight_decay") else {}), **self.settings, **settings}
        if self.takes("weight_decay") and "weight_decay" not in settings:
            given["weight_decay"] = 0.0
        group = {"params": params, **self.group, **({} if other_lr is None else {"lr": lr})}
        try:
            optimizer = self.cls([group], **{**given, "lr": lr if other_lr is None else other_lr})
        except InputError:
            raise
        except Exception as error:
            shown = ", ".join(f"{key}={value!r}" for key, value in {**self.settings, **settings}.items())
            raise Refused(
                f"{self.name}({shown}) cannot be built for a tensor of shape {tuple(params[0].shape)}: {said(error)}"
                + _group_hint(error)
            ) from error
        if not hasattr(optimizer, "step") or not hasattr(optimizer, "param_groups"):
            raise InputError(f"{self.name} made a {type(optimizer).__name__}, which has no step() and no param_groups")
        if any("lr" not in group for group in optimizer.param_groups):
            raise InputError(
                f"{self.name} keeps no lr in its param groups: rates per tensor, which a plan sets, cannot act on it"
            )
        train = getattr(optimizer, "train", None)
        if callable(train):  # schedule-free optimizers take their steps in train mode only
            train()
        return optimizer

    def _step(self, optimizer: Any) -> None:
        try:
            optimizer.step()
        except Exception as error:
            if "closure" in str(error).lower() or "closure" in type(error).__name__.lower():
                raise InputError(needs_closure(self.name)) from error
            shape = tuple(optimizer.param_groups[0]["params"][0].shape)
            raise Refused(
                f"{self.name}.step() failed for a tensor of shape {shape}: {said(error)}" + _group_hint(error)
            ) from error


class Refused(InputError):
    """The optimizer raised an error of its own at this shape or dtype."""


def needs_closure(name: str) -> str:
    """The line for an optimizer that evaluates the loss itself."""
    return (
        f"{name} needs a closure: it evaluates the loss itself (a line search or several passes per step), so its step is "
        "no function of the gradient alone and no per-tensor rule describes it; use one whose step() needs none"
    )


def refuse_protocols(subject: Subject) -> None:
    """Raises InputError for classes whose step needs more than a gradient: a model, a closure, a Hessian, two passes."""
    cls, name = subject.cls, subject.name
    first = next(iter(subject.parameters.values()), None)
    if first is not None and first.name in ("model", "module"):
        raise InputError(
            f"{name} takes a whole {first.name}, not parameters: it hooks into the backward pass; probe one that takes params"
        )
    if first is not None and first.name in ("optimizer", "base_optimizer", "base") and first.kind != first.VAR_KEYWORD:
        raise InputError(f"{name} wraps another optimizer: probe that one; what the wrapper adds is not measured")
    if all(hasattr(cls, method) for method in _TWICE):
        raise InputError(
            f"{name} takes two passes per step ({_TWICE[0]}, {_TWICE[1]}): probe the optimizer inside it, whose facts are those of the mix"
        )
    step = getattr(cls, "step", None)
    called = getattr(getattr(inspect.unwrap(step), "__code__", None), "co_names", ()) if callable(step) else ()
    extra = next((method for method in _CURVATURE if method in called or method in getattr(cls, "__dict__", ())), None)
    if extra is not None:
        raise InputError(
            f"{name} also needs second derivatives ({extra}), which synthetic gradients do not have: declare its facts with "
            "mt.register_optimizer (a clipped Sophia step has Adam's: degree 0, √(in·out), element)"
        )
    if step is not None:
        with contextlib.suppress(TypeError, ValueError):
            closure = inspect.signature(step).parameters.get("closure")
            if closure is not None and closure.default is inspect.Parameter.empty:
                raise InputError(needs_closure(name))
    named = any(p.kind in (p.VAR_KEYWORD, p.VAR_POSITIONAL) for p in subject.parameters.values())
    if subject.parameters and not subject.takes("lr") and not named:
        raise InputError(f"{name} takes no lr: rates per tensor, which a plan sets, cannot act on it")


@contextlib.contextmanager
def isolated(seed: int, device: torch.device) -> Iterator[None]:
    """Random draws inside are seeded, and leave the user's generators (torch, numpy, python) as they were; silent, not compiled."""
    python, numpy = random.getstate(), np.random.get_state()
    devices = [device] if device.type not in ("cpu", "meta") else []
    kind = device.type if devices else "cuda"
    with contextlib.ExitStack() as stack:
        stack.enter_context(torch.random.fork_rng(devices, device_type=kind))
        stack.enter_context(warnings.catch_warnings())
        stack.enter_context(contextlib.redirect_stdout(io.StringIO()))
        if hasattr(torch.compiler, "set_stance"):
            stack.enter_context(torch.compiler.set_stance("force_eager"))
        warnings.simplefilter("ignore")
        torch.default_generator.manual_seed(seed)
        if devices:
            torch.get_device_module(device).manual_seed(seed)
        random.seed(seed)
        np.random.seed(seed)
        try:
            yield
        finally:
            random.setstate(python)
            np.random.set_state(numpy)


def said(error: BaseException) -> str:
    """`Type: message` on one line."""
    text = " ".join(str(error).split()) or "no message"
    return f"{type(error).__name__}: {text[:200]}"


def _group_hint(error: BaseException) -> str:
    return "; write group={'use_muon': True}" if "use_muon" in str(error) else ""
