"""Schedules and averages go on at their step: every group's rate keeps its ratio, every average is the copies' average."""

import copy
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn
from torch.optim import lr_scheduler as schedules
from torch.optim.swa_utils import SWALR, AveragedModel, get_ema_multi_avg_fn

from mutransfer.errors import InputError
from mutransfer.growth.optimizer import grow_optimizer
from mutransfer.growth.schedule import grow_average, grow_scheduler
from mutransfer.growth.tensors import GrowPlan
from mutransfer.growth.weights import grown
from tests.grow.continued import grow_weights, pair
from tests.growth import difference, loss
from tests.growth_models import CASES

Optimizer = torch.optim.Optimizer


class Halving(schedules.LRScheduler):
    """A class of the user's own, with a list per group and a bound method in itself."""

    def __init__(self, optimizer: Optimizer) -> None:
        self.peaks = [group["lr"] for group in optimizer.param_groups]
        self.factor = self.halve
        super().__init__(optimizer)

    def halve(self) -> float:
        assert self.optimizer.param_groups
        return 0.5 ** (self.last_epoch / 5)

    def get_lr(self) -> list[Any]:
        return [peak * self.factor() for peak in self.peaks]


def sequential(optimizer: Optimizer) -> schedules.LRScheduler:
    parts: list[schedules.LRScheduler] = [
        schedules.LinearLR(optimizer, 0.1, total_iters=7), schedules.CosineAnnealingLR(optimizer, 10), schedules.ExponentialLR(optimizer, 0.9),
    ]  # fmt: skip
    return schedules.SequentialLR(optimizer, parts, milestones=[7, 13])


def chained(optimizer: Optimizer) -> schedules.LRScheduler:
    return schedules.ChainedScheduler([schedules.ConstantLR(optimizer, 0.5, 12), schedules.StepLR(optimizer, 4, 0.7)])


SCHEDULES: dict[str, Callable[[Optimizer], Any]] = {
    "LambdaLR": lambda o: schedules.LambdaLR(o, [lambda t: 0.9**t, lambda t: 1 / (1 + t)]),
    "MultiplicativeLR": lambda o: schedules.MultiplicativeLR(o, lambda t: 0.95),
    "StepLR": lambda o: schedules.StepLR(o, 3, 0.5),
    "MultiStepLR": lambda o: schedules.MultiStepLR(o, [4, 12], 0.5),
    "LinearLR": lambda o: schedules.LinearLR(o, 0.1, total_iters=15),
    "PolynomialLR": lambda o: schedules.PolynomialLR(o, 30, 2.0),
    "CosineAnnealingLR": lambda o: schedules.CosineAnnealingLR(o, 25),
    "warm restarts": lambda o: schedules.CosineAnnealingWarmRestarts(o, 6, 2),
    "OneCycleLR": lambda o: schedules.OneCycleLR(o, [0.1, 0.02], total_steps=30),
    "CyclicLR": lambda o: schedules.CyclicLR(o, [0.01, 0.001], 0.1, step_size_up=4, mode="exp_range", gamma=0.98, cycle_momentum=False),
    "ReduceLROnPlateau": lambda o: schedules.ReduceLROnPlateau(o, factor=0.5, patience=1, min_lr=[1e-3, 1e-4]),
    "SWALR": lambda o: SWALR(o, 0.005, anneal_epochs=15),
    "SequentialLR": sequential,
    "ChainedScheduler": chained,
}  # fmt: skip


def small_and_groups(cls: Any = torch.optim.AdamW) -> tuple[nn.Module, nn.Module, GrowPlan, Optimizer]:
    """A model in two groups of different rates: vectors and matrices."""
    small, big, plan = pair("adamw")
    vectors, matrices = [p for p in small.parameters() if p.ndim < 2], [p for p in small.parameters() if p.ndim > 1]
    return small, big, plan, cls([{"params": vectors, "lr": 0.01}, {"params": matrices, "lr": 0.03}], lr=0.02, eps=1e-2)


def step(optimizer: Optimizer, scheduler: Any, model: nn.Module, number: int) -> torch.Tensor:
    optimizer.zero_grad()
    outputs, value = loss(model, CASES["normed mlp"], number)
    value.backward()
    optimizer.step()
    scheduler.step(*([1.0 + (number > 3)] if isinstance(scheduler, schedules.ReduceLROnPlateau) else []))
    return outputs


def rates(optimizer: Optimizer) -> dict[int, float]:
    return {id(p): float(group["lr"]) for group in optimizer.param_groups for p in group["params"]}


@pytest.mark.parametrize("steps", [0, 1, 10])
@pytest.mark.parametrize("name", SCHEDULES)
def test_a_schedule_goes_on_and_every_rate_keeps_its_ratio(name: str, steps: int) -> None:
    small, big, plan, optimizer = small_and_groups()
    scheduler = SCHEDULES[name](optimizer)
    for number in range(steps):
        step(optimizer, scheduler, small, number)
    grow_weights(small, big, plan)
    kept = copy.deepcopy({k: v for k, v in scheduler.state_dict().items() if k != "_schedulers"})
    bigger = grow_optimizer(optimizer, small, big, plan)
    continued = grow_scheduler(scheduler, bigger, small, plan)
    assert type(continued) is type(scheduler) and continued.optimizer is bigger
    assert (
        str({k: v for k, v in scheduler.state_dict().items() if k != "_schedulers"}) == str(kept) or name == "LambdaLR"
    )
    tensors, moved = dict(small.named_parameters()), set()
    for number in range(steps, steps + 10):
        outputs = step(bigger, continued, big, number), step(optimizer, scheduler, small, number)
        assert difference(*outputs) < 1e-11
        old, new = rates(optimizer), rates(bigger)
        for growth in plan.tensors:
            ratio = plan.plan[growth.name].ratios.lr
            was = old[id(tensors[growth.source])]
            assert new[id(big.get_parameter(growth.name))] == pytest.approx(ratio * was, rel=1e-12), growth.name
            moved.add(was)
        assert continued.get_last_lr() == [group["lr"] for group in bigger.param_groups]
    assert len(moved) > 2 and len({plan.plan[g.name].ratios.lr for g in plan.tensors}) > 2, "nothing is tested"


def test_momentum_cycles_as_well() -> None:
    small, big, plan = pair("sgd")
    optimizer = torch.optim.SGD(small.parameters(), lr=0.1, momentum=0.9)
    scheduler = schedules.OneCycleLR(optimizer, 0.05, total_steps=30)
    for number in range(10):
        step(optimizer, scheduler, small, number)
    grow_weights(small, big, plan)
    bigger = grow_optimizer(optimizer, small, big, plan)
    continued = grow_scheduler(scheduler, bigger, small, plan)
    for number in range(10, 20):
        assert difference(step(bigger, continued, big, number), step(optimizer, scheduler, small, number)) < 1e-11
        assert {group["momentum"] for group in bigger.param_groups} == {optimizer.param_groups[0]["momentum"]}


@pytest.mark.parametrize("make", [
    lambda o: schedules.CosineAnnealingLR(o, 20, eta_min=1e-4),
    lambda o: schedules.SequentialLR(o, [schedules.LinearLR(o), schedules.CosineAnnealingWarmRestarts(o, 5, eta_min=1e-4)], [3]),
])  # fmt: skip
def test_one_floor_for_all_groups_is_refused_with_the_line_to_write(make: Any) -> None:
    small, big, plan, optimizer = small_and_groups()
    scheduler = make(optimizer)
    with pytest.raises(InputError, match=r"eta_min=0\.0001.*LambdaLR\(optimizer, lambda") as caught:
        grow_scheduler(scheduler, grow_optimizer(optimizer, small, big, plan), small, plan)
    assert "\n" not in str(caught.value)


def test_the_line_to_write_is_the_same_schedule() -> None:
    parameter = nn.Parameter(torch.zeros(1))
    floored, factor = torch.optim.SGD([parameter], lr=0.1), torch.optim.SGD([parameter], lr=0.1)
    f = 1e-2 / 0.1
    both = (
        schedules.CosineAnnealingLR(floored, 20, eta_min=1e-2),
        schedules.LambdaLR(factor, lambda t: f + (1 - f) * (1 + math.cos(math.pi * t / 20)) / 2),
    )
    for _ in range(20):
        for one in (floored, factor, *both):
            one.step()
        assert both[0].get_last_lr() == pytest.approx(both[1].get_last_lr())


def test_a_floor_of_one_group_is_scaled() -> None:
    small, big, plan = pair("adamw")
    optimizer = torch.optim.AdamW([small.get_parameter("head.weight")], lr=0.1)
    scheduler = schedules.CosineAnnealingLR(optimizer, 4, eta_min=0.02)
    bigger = grow_optimizer(optimizer, small, big, plan)
    continued: Any = grow_scheduler(scheduler, bigger, small, plan)
    assert continued.eta_min == 0.02 * plan.plan["head.weight"].ratios.lr != 0.02


def test_a_class_of_the_users_own_says_what_its_lists_hold() -> None:
    small, big, plan, optimizer = small_and_groups()
    scheduler = Halving(optimizer)
    step(optimizer, scheduler, small, 0)
    grow_weights(small, big, plan)
    bigger = grow_optimizer(optimizer, small, big, plan)
    with pytest.raises(InputError, match=r"Halving\.peaks=.*per_group=\{'peaks': 'lr'\}"):
        grow_scheduler(scheduler, bigger, small, plan)
    continued: Any = grow_scheduler(scheduler, bigger, small, plan, per_group={"peaks": "lr"})
    assert continued.factor.__self__ is continued and scheduler.factor.__self__ is scheduler
    for number in range(1, 6):
        assert difference(step(bigger, continued, big, number), step(optimizer, scheduler, small, number)) < 1e-11


def test_wrong_objects_are_refused() -> None:
    small, big, plan, optimizer = small_and_groups()
    scheduler = schedules.StepLR(optimizer, 3)
    with pytest.raises(InputError, match="no scheduler"):
        grow_scheduler(optimizer, optimizer, small, plan)  # pyright: ignore[reportArgumentType]
    with pytest.raises(InputError, match=r"2 param groups where the grow plan makes \d"):
        grow_scheduler(scheduler, optimizer, small, plan)
    with pytest.raises(InputError, match="no average of weights"):
        grow_average(3, big, plan)
    with pytest.raises(InputError, match=r"'other\.weight' \(2,\)"):
        grow_average({"other.weight": torch.ones(2)}, big, plan)
    with pytest.raises(InputError, match=r"'head\.weight' has shape \(2, 2\)"):
        grow_average({"head.weight": torch.ones(2, 2)}, big, plan)


@torch.no_grad()
def apart(found: nn.Module, expected: nn.Module) -> float:
    x = torch.randn(6, 7, generator=torch.Generator().manual_seed(9), dtype=torch.float64)
    return difference(found(x), expected(x))


@pytest.mark.parametrize("kind", ["AveragedModel", "EMA", "module", "mapping", "state dict"])
def test_an_average_grows_like_the_weights_and_goes_on(kind: str) -> None:
    small, big, plan, optimizer = small_and_groups()
    ema = dict(multi_avg_fn=get_ema_multi_avg_fn(0.9)) if kind != "AveragedModel" else {}
    average = AveragedModel(small, **ema)  # pyright: ignore[reportArgumentType]
    scheduler = schedules.StepLR(optimizer, 3)
    for number in range(5):
        step(optimizer, scheduler, small, number)
        average.update_parameters(small)
    grow_weights(small, big, plan)
    if kind in ("AveragedModel", "EMA"):
        made = grow_average(average, big, plan)
        bigger = grow_optimizer(optimizer, small, big, plan)
        continued = grow_scheduler(scheduler, bigger, small, plan)
        assert apart(made, average) < 1e-11 and apart(made, big) > 1e-3
        for number in range(5, 9):
            step(bigger, continued, big, number)
            step(optimizer, scheduler, small, number)
            made.update_parameters(big)
            average.update_parameters(small)
            assert apart(made, average) < 1e-11
        assert made.n_averaged == average.n_averaged == 9
        return
    if kind == "module":
        made = grow_average(average.module.eval().requires_grad_(False), big, plan)
        assert not made.training and not any(p.requires_grad for p in made.parameters())
        assert apart(made, average) < 1e-11
        return
    held: Any = dict(average.module.named_parameters()) if kind == "mapping" else average.state_dict()
    found = grow_average(held, big, plan)
    prefix = "module." if kind == "state dict" else ""
    assert found.keys() == held.keys()
    for growth in plan.tensors:
        assert torch.equal(found[prefix + growth.name], grown(growth, held[prefix + growth.source]))
