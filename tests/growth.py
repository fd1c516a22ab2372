"""Copying every unit of a base model k-fold into a target of its shape: an oracle for a plan that knows none of its formulas.

A layer computes the same features, each k times, iff its effective tensor is `dup(W)/a`, `a` the growth of the axes it sums
over (theory §6). What the plan's hooks carry (`c`) is missing from the stored tensor: `W' = need·dup(W)/(a·c)`. `need` is 1 but
where the architecture itself asks for a factor (1/√k on q·k when the head size grows, 1/k on the logits of a tied head).
"""

import fnmatch
import functools
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import mutransfer as mt
from mutransfer.plans import Plan, Row

Need = float | tuple[float, str]
Unit = int | tuple[int, int]


@dataclass(frozen=True, eq=False)
class Case:
    """A factory at two sizes, where every growing axis grows by a whole factor.

    `units` gives by name pattern and axis the number of neighbours that are copied as one (a head, the pixels of a flattened
    channel); 1 elsewhere: index i → i // k. (size, m): whole units, each number in them m-fold (larger heads, and more). `needs` gives the factors the architecture asks for; (factor, module): unless
    a hook on that module carries it. `inputs` draws the model's arguments from a generator.
    """

    make: Callable[..., nn.Module]
    base: Mapping[str, Any]
    target: Mapping[str, Any]
    inputs: Callable[[torch.Generator], tuple[Tensor, ...]]
    units: Mapping[str, Mapping[int, Unit]] = field(default_factory=dict)
    needs: Mapping[str, Need] = field(default_factory=dict)
    axes: Mapping[str, str] | None = None


@functools.cache
def plan_of(case: Case, target: bool, optimizer: Any, placement: str = "absorbed") -> Plan:
    """The plan from the base to the target, or to the base itself."""
    return mt.plan(
        case.make,
        base=dict(case.base),
        target=dict(case.target if target else case.base),
        optimizer=optimizer,
        placement=placement,
        axes=case.axes,
    )


def dup(tensor: Tensor, shape: tuple[int, ...], units: Mapping[int, Unit]) -> Tensor:
    """The tensor with every unit of every growing axis copied a whole number of times, copies side by side."""
    for axis, (small, big) in enumerate(zip(tensor.shape, shape, strict=True)):
        if small != big:
            assert big % small == 0, f"axis {axis}: {small} → {big} is no whole multiple"
            unit = units.get(axis, 1)
            size, inside = unit if isinstance(unit, tuple) else (unit, 1)
            rows = torch.arange(small).view(-1, size).repeat_interleave(inside, 1)
            tensor = tensor.index_select(axis, rows.repeat_interleave(big // small // inside, 0).flatten())
    return tensor


def _matching(patterns: Mapping[str, Any], name: str) -> Any:
    return next((value for pattern, value in patterns.items() if fnmatch.fnmatchcase(name, pattern)), None)


def carried(plan: Plan, path: str, attribute_reads_input: bool) -> float:
    """What hooks multiply the contribution of one tensor by: on the output all of a module's, on the input its weight's."""
    return math.prod(
        hook.factor for hook in plan.hooks if hook.module == path and (hook.where == "output" or attribute_reads_input)
    )


def scale(plan: Plan, row: Row, case: Case) -> float:
    """s in `W' = s·dup(W)`."""
    need = _matching(case.needs, row.name)
    if isinstance(need, tuple):
        need = need[0] / carried(plan, need[1], True)
    path = row.name.rpartition(".")[0]
    return (1.0 if need is None else need) / (row.fan_in.ratio * carried(plan, path, len(row.base_shape) > 1))


def base_model(case: Case, seed: int = 0) -> nn.Module:
    """A base in float64 with nothing left at a special value: no zero bias, no unit gain, no symmetric start."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = case.make(**case.base).double()
        with torch.no_grad():
            for p in model.parameters():
                fan = math.prod(p.shape[1:]) if p.ndim > 1 else 1
                p.add_(torch.randn_like(p) * (0.7 * fan**-0.5 if p.ndim > 1 else 0.2))
    return model


def widen(plan: Plan, case: Case, small: nn.Module) -> nn.Module:
    """The target that computes the base's function, its hooks attached."""
    big = plan.attach(case.make(**case.target).double())
    with torch.no_grad():
        for name, expected in copies(plan, case, small).items():
            big.get_parameter(name).copy_(expected)
        buffers = dict(small.named_buffers())
        for name, buffer in big.named_buffers():
            buffer.copy_(dup(buffers[name], tuple(buffer.shape), {}))
    return big


def copies(plan: Plan, case: Case, small: nn.Module) -> dict[str, Tensor]:
    """What every tensor of the target must be, given the base's."""
    tensors = dict(small.named_parameters())
    return {
        row.name: scale(plan, row, case)
        * dup(tensors[row.base_name].detach(), row.target_shape, _matching(case.units, row.name) or {})
        for row in plan.rows
    }


def loss(model: nn.Module, case: Case, step: int) -> tuple[Tensor, Tensor]:
    """(outputs, loss) on the batch of this step: cross-entropy against random classes, one per row of outputs."""
    generator = torch.Generator().manual_seed(1000 + step)
    inputs = case.inputs(generator)
    outputs = model(*(x.double() if x.is_floating_point() else x for x in inputs))
    flat = outputs.flatten(0, -2)
    return outputs.detach(), F.cross_entropy(flat, torch.randint(flat.shape[-1], flat.shape[:1], generator=generator))


def difference(found: Tensor, expected: Tensor) -> float:
    """Largest difference relative to the largest expected value."""
    return float((found - expected).abs().max() / expected.abs().max().clamp_min(1e-300))


def assert_same_training(
    case: Case,
    optimizer: Any,
    settings: Mapping[str, Any],
    placement: str,
    *,
    steps: int,
    max_norm: float | None = None,
    silent: int = 0,
    free: tuple[str, ...] = (),
    alter: Callable[[Plan], Plan] = lambda plan: plan,
    tolerance: float = 1e-10,
) -> None:
    """Base and widened target, each under its plan's optimizer with the base's own settings, compute one function for ever.

    Gradients are clipped by each plan's own norm where `max_norm` is given. The first `silent` steps run at lr = 0. Tensors
    that match `free` need not be copies: the function does not depend on them. `alter` spoils the target's plan.
    """
    same, plan = plan_of(case, False, optimizer), alter(plan_of(case, True, optimizer, placement))
    small = base_model(case)
    big = widen(plan, case, small)
    start = {name: p.detach().clone() for name, p in small.named_parameters()}
    optimizers = [its.optimizer(model, **settings) for its, model in ((same, small), (plan, big))]
    rates = [[group["lr"] for group in o.param_groups] for o in optimizers]
    bitten = False
    for step in range(steps + 1):
        outputs, norms = [], []
        for its, model, opt, lrs in zip((same, plan), (small, big), optimizers, rates, strict=True):
            opt.zero_grad()
            found, value = loss(model, case, step)
            value.backward()
            outputs.append(found)
            if max_norm is not None:
                norms.append(float(its.clip_grad_norm_(model, max_norm)))
                bitten |= norms[-1] > max_norm
            for group, lr in zip(opt.param_groups, lrs, strict=True):
                group["lr"] = lr if step >= silent else 0.0
            if step < steps:
                opt.step()
        error = difference(outputs[1], outputs[0])
        assert error < tolerance, f"step {step}: outputs differ by {error:.1e}\n{_report(plan, case, small, big)}"
        assert not norms or math.isclose(*norms, rel_tol=1e-8), f"step {step}: clipping norms {norms}"
    assert max_norm is None or bitten, "the clipping norm never bit: the test is empty"
    for name, expected in copies(plan, case, small).items():
        error = difference(big.get_parameter(name).detach(), expected)
        if any(fnmatch.fnmatchcase(name, pattern) for pattern in free):
            continue
        assert error < tolerance, f"{name} is no scaled copy: {error:.1e}\n{_report(plan, case, small, big)}"
    moved = {name: difference(p.detach(), start[name]) for name, p in small.named_parameters()}
    assert max(moved.values()) > 1e-3, "nothing was trained"
    buffers = dict(small.named_buffers())
    for name, buffer in big.named_buffers():
        expected = dup(buffers[name], tuple(buffer.shape), {})
        assert torch.allclose(buffer.double(), expected.double(), rtol=tolerance, atol=1e-12), name


def _report(plan: Plan, case: Case, small: nn.Module, big: nn.Module) -> str:
    """Which tensors have left their copies, the worst first: for whoever reads a failure."""
    errors = {
        name: difference(big.get_parameter(name).detach(), expected)
        for name, expected in copies(plan, case, small).items()
    }
    worst = sorted(errors, key=lambda name: -errors[name])[:8]
    return "\n".join(f"  {name}: {errors[name]:.1e}  {plan[name].role} {plan[name].ratios}" for name in worst)
