"""Copies of the user's model and optimizers, in float64 where they run in it: whatever is tried, is tried on them."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

from mutransfer import sparsity
from mutransfer.check import feed
from mutransfer.check.build import seed_all
from mutransfer.errors import InputError
from mutransfer.hooks import unwrapped
from mutransfer.shapes import parameters_of


@dataclass
class Shadow:
    """A model and its optimizers, ours to change; `double` says whether they and the batches are float64.

    `rounding` is, by parameter, the relative rounding of an optimizer that works in a coarser type than its parameters,
    `stored_states` that of the type in which the user's optimizer keeps its states.
    """

    model: nn.Module
    optimizers: list[torch.optim.Optimizer]
    double: bool
    parameters: dict[str, nn.Parameter] = field(init=False)
    rounding: dict[str, float] = field(default_factory=dict)
    stored_states: float = 0.0

    def __post_init__(self) -> None:
        owned = parameters_of(self.model)
        self.parameters = {name: p.module._parameters[p.attribute] for name, p in owned.items()}  # pyright: ignore[reportAttributeAccessIssue] # none is None

    def backward(self, loss: feed.Loss, batch: Any, gradients: bool = True) -> float:
        """The loss on this batch, from the same random state every time, and its gradients where they are wanted."""
        for parameter in self.parameters.values():
            parameter.grad = None
        with torch.set_grad_enabled(gradients):
            value = self.loss(loss, batch)
        if gradients:
            value.backward()
        return float(value.detach())

    def loss(self, loss: feed.Loss, batch: Any, seed: int = 0) -> Tensor:
        """The loss on this batch. Raises InputError where it is no scalar."""
        device = next(iter(self.parameters.values())).device
        batch = feed.move(batch, device)
        if self.double:
            batch = tree_map(lambda x: x.double() if isinstance(x, Tensor) and x.is_floating_point() else x, batch)
        seed_all(seed)
        return feed.scalar(loss(self.model, batch))

    def step(self) -> None:
        """One step of every optimizer."""
        for optimizer in self.optimizers:
            optimizer.step()

    @contextmanager
    def outputs(self) -> Iterator[dict[str, Tensor]]:
        """The first output tensor of every module's first call, by the module's path, in the order in which they finish."""
        found: dict[str, Tensor] = {}
        handles = []
        for path, module in self.model.named_modules():

            def keep(_: nn.Module, __: Any, output: Any, path: str = unwrapped(path, self.model)) -> None:
                tensors = feed.tensors_in(output, 1)
                if tensors and path not in found:
                    found[path] = tensors[0].detach().clone()

            handles.append(module.register_forward_hook(keep))
        try:
            yield found
        finally:
            for handle in handles:
                handle.remove()

    def perturb(self, size: float) -> None:
        """Multiply every number of the model by 1 ± size, and of the optimizers' states by their own rounding: as if rounded anew."""
        generator = torch.Generator().manual_seed(0)
        for parameter in self.parameters.values():
            parameter.data.mul_(1 + size * _signs(parameter, generator))
        for values, key in self.states():
            values[key].mul_(1 + max(size, 2 * self.stored_states) * _signs(values[key], generator))

    def states(self) -> list[tuple[dict[str, Any], str]]:
        """Every floating-point state of the optimizers that is no counter, as the dict that holds it and its key."""
        held = [(p, state) for o in self.optimizers for p, state in o.state.items()]
        return [
            (s, key)
            for p, s in held
            for key, v in s.items()
            if _floats(v) or (_floats(v, 0) and p.dim() == 0 and key != "step")
        ]

    def perturb_gradients(self, step: int) -> None:
        """The same for the gradients of parameters whose optimizer rounds more coarsely."""
        generator = torch.Generator().manual_seed(step)
        for name, size in self.rounding.items():
            gradient = self.parameters[name].grad
            if gradient is not None:
                gradient.mul_(1 + size * _signs(gradient, generator))


def _signs(tensor: Tensor, generator: torch.Generator) -> Tensor:
    return (torch.randint(2, tensor.shape, generator=generator) * 2 - 1).to(tensor)


def shadow(model: nn.Module, optimizers: Sequence[torch.optim.Optimizer], double: bool) -> Shadow:
    """A deep copy of the model and of its optimizers, which then step the copy. Raises InputError where there can be none."""
    try:
        copied, copies = copy.deepcopy((model, list(optimizers)))
    except Exception as error:
        raise InputError(
            f"the model or optimizer cannot be copied ({error}): verify before training, or pass verify=False"
        ) from error
    for original, made in zip(optimizers, copies, strict=True):
        # torch copies groups and state only; a class may hold settings of its own (pytorch-optimizer's `maximize`)
        lost = {key: value for key, value in vars(original).items() if key not in vars(made) and not callable(value)}
        vars(made).update(copy.deepcopy(lost))
        if sparsity.remask in getattr(original, "_optimizer_step_post_hooks", {}).values():
            made.register_step_post_hook(
                sparsity.remask
            )  # torch drops hooks from copies; the user's own stay away from ours
    copied.train()
    made = Shadow(copied, copies, double)
    made.stored_states = max([torch.finfo(values[key].dtype).eps for values, key in made.states()], default=0.0)
    if double:
        copied.double()
        for values, key in made.states():
            values[key] = values[key].double()
    return made


def _floats(value: Any, least: int = 1) -> bool:
    """Whether this is a tensor of floating-point numbers, of at least so many axes: counters have none."""
    return isinstance(value, Tensor) and value.dim() >= least and value.is_floating_point()


class _Coarsest(TorchDispatchMode):
    """Records the coarsest rounding of any floating-point tensor computed meanwhile."""

    eps = 0.0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for value in tree_leaves(result):
            if _floats(value):
                self.eps = max(self.eps, torch.finfo(value.dtype).eps)
        return result


@dataclass(frozen=True)
class Manner:
    """How the user's code can be verified: in float64 or not; `rounding` of its passes, of each tensor's step, of the stored weights.

    `still` are modules in eval mode, batch norms apart, because the training mode is random.
    """

    double: bool
    rounding: float
    stored: float
    steps: dict[str, float]
    still: bool

    def shadow(self, model: nn.Module, optimizers: Sequence[torch.optim.Optimizer]) -> Shadow:
        """A copy that is run in this manner."""
        made = shadow(model, optimizers, self.double)
        if self.still:
            _still(made.model)
        made.rounding = {name: size for name, size in self.steps.items() if size > torch.finfo(torch.float64).eps}
        return made


def _still(model: nn.Module) -> None:
    for module in model.modules():
        if not isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.training = False


def manner(
    model: nn.Module, optimizers: Sequence[torch.optim.Optimizer], loss: Callable[[Any, Any], Tensor], batch: Any
) -> Manner:
    """Try the small model once, on copies. Raises InputError where its loss fails, or is random whatever the mode."""
    stored = max(torch.finfo(p.dtype).eps for p in model.parameters())
    for double in (True, False):
        tried = shadow(model, optimizers, double)
        try:
            still = _random(tried, loss, batch)
            if still:
                _still(tried.model)
                if _random(tried, loss, batch):
                    raise InputError(
                        "the loss is random in eval mode too: two runs of one model differ, nothing can be verified"
                    )
            with _Coarsest() as seen:
                value = tried.backward(loss, batch)
        except InputError:
            raise
        except Exception as error:
            if double:
                continue
            raise InputError(f"loss(model, batch) fails on the small model: {type(error).__name__}: {error}") from error
        if not math.isfinite(value):
            raise InputError(f"the loss of the small model is {value} on the first batch: nothing can be verified")
        return Manner(double, seen.eps, stored, _step_rounding(tried), still)
    raise AssertionError("unreachable")


def _random(tried: Shadow, loss: Callable[[Any, Any], Tensor], batch: Any) -> bool:
    with torch.no_grad():
        first, again, other = (float(tried.loss(loss, batch, seed)) for seed in (0, 0, 1))
    return abs(other - first) > 10 * abs(again - first) + 1e-9 * abs(first)


def _step_rounding(tried: Shadow) -> dict[str, float]:
    """What each parameter's optimizer rounds to in a step: torch's Muon, for one, works in bfloat16 whatever its parameters are."""
    names = {id(parameter): name for name, parameter in tried.parameters.items()}
    found: dict[str, float] = {}
    for optimizer in tried.optimizers:
        for part in getattr(optimizer, "parts", [optimizer]):
            with _Coarsest() as seen:
                part.step()
            owned = [id(p) for group in part.param_groups for p in group["params"]]
            found |= {names[key]: seen.eps for key in owned if key in names}
    return found
