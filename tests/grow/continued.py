"""Train a small model, grow it with its optimizer, train both on: what the tests of states, groups and schedules share."""

import copy
import functools
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import nn

from mutransfer.growth.build import grow_plan
from mutransfer.growth.optimizer import grow_optimizer
from mutransfer.growth.tensors import GrowPlan
from mutransfer.growth.weights import grown
from tests.growth import base_model, difference, loss, plan_of
from tests.growth_models import CASES

TOLERANCE = 1e-11
EPS = 1e-2
Make = Callable[[Any], torch.optim.Optimizer]


def own(name: str, **settings: Any) -> Make:
    """The optimizer that a plan of the small model makes."""
    return lambda model: plan_of(CASES["normed mlp"], False, name).optimizer(model, **settings)


def plain(name: str, **settings: Any) -> Make:
    """The user's own optimizer, all tensors in one group."""
    return lambda model: getattr(torch.optim, name)(model.parameters(), **settings)


OPTIMIZERS: dict[str, tuple[str, Make]] = {
    "sgd": ("sgd", plain("SGD", lr=0.1)),
    "momentum + l2": ("sgd", plain("SGD", lr=0.03, momentum=0.9, weight_decay=0.1)),
    "dampening": ("sgd", plain("SGD", lr=0.1, momentum=0.9, dampening=0.5)),
    "nesterov": ("sgd", plain("SGD", lr=0.03, momentum=0.9, nesterov=True, weight_decay=0.1)),
    "adam": ("adam", plain("Adam", lr=0.02, eps=EPS)),
    "adam + l2": ("adam", plain("Adam", lr=0.02, eps=EPS, weight_decay=0.1)),
    "adamw": ("adamw", plain("AdamW", lr=0.02, eps=EPS, weight_decay=0.5)),
    "amsgrad": ("adamw", plain("AdamW", lr=0.02, eps=EPS, weight_decay=0.5, amsgrad=True)),
    "nadam": ("nadam", plain("NAdam", lr=0.02, eps=EPS, weight_decay=0.1)),
    "nadam decoupled": ("nadam", plain("NAdam", lr=0.02, eps=EPS, weight_decay=0.5, decoupled_weight_decay=True)),
    "radam": ("radam", plain("RAdam", lr=0.05, eps=EPS, weight_decay=0.1)),
    "adamax": ("adamax", plain("Adamax", lr=0.02, eps=EPS, weight_decay=0.1)),
    "rmsprop": ("rmsprop", plain("RMSprop", lr=0.01, eps=EPS, weight_decay=0.1, momentum=0.5, centered=True)),
    "adagrad": ("adagrad", plain("Adagrad", lr=0.05, eps=EPS, weight_decay=0.1, lr_decay=0.01, initial_accumulator_value=0.1)),
    "planned adamw": ("adamw", own("adamw", lr=0.02, eps=EPS, weight_decay=0.5)),
    "planned momentum": ("sgd", own("sgd", lr=0.03, momentum=0.9, weight_decay=0.1)),
    "our muon": ("muon", own("muon", lr=0.02, weight_decay=0.5, engine="own", eps=EPS)),
    "our spectral muon": ("muon-spectral", own("muon-spectral", lr=0.02, weight_decay=0.5, engine="own", eps=EPS, momentum=0.9)),
    "lion": ("lion", own("lion", lr=0.01, weight_decay=0.5)),
    "sign": ("sign", own("sign", lr=0.01, weight_decay=0.5)),
    "ademamix": ("ademamix", own("ademamix", lr=0.02, eps=EPS, weight_decay=0.5)),
    "scion": ("scion", own("scion", lr=0.02, weight_decay=0.5)),
    "shampoo": ("shampoo", own("shampoo", lr=0.02, weight_decay=0.5, overrides={"second.weight": {"eps": 1e-3}, "third.weight": {"eps": 1e-3}})),
    "schedule-free": ("schedule-free-adamw", own("schedule-free-adamw", lr=0.02, eps=EPS, weight_decay=0.5, warmup_steps=4)),
}  # fmt: skip


RELATIVE = {
    "adafactor": ("adafactor", own("adafactor", lr=0.05, weight_decay=0.1)),
    "lamb": ("lamb", own("lamb", lr=0.05, weight_decay=0.1, eps=1e-14)),
}


BFLOAT = {
    "scion": OPTIMIZERS.pop("scion"),
    **{
        name: (name, own(name, lr=0.02, weight_decay=0.5, engine="torch", eps=EPS))
        for name in ("muon", "muon-spectral", "muon-kimi")
    },
}


def pair(
    optimizer: str, model: str = "normed mlp", placement: str = "absorbed"
) -> tuple[nn.Module, nn.Module, GrowPlan]:
    """A small model, the big one it will become, and how."""
    case, plan = CASES[model], plan_of(CASES[model], True, optimizer, placement)
    return base_model(case), plan.attach(case.make(**case.target).double()), _copies(model, optimizer, placement)


@functools.cache
def _copies(model: str, optimizer: str, placement: str) -> GrowPlan:
    case = CASES[model]
    return grow_plan(base_model(case), case.make(**case.target), plan_of(case, True, optimizer, placement))


def trained(
    model: nn.Module, optimizer: torch.optim.Optimizer, steps: range, case: str = "normed mlp"
) -> list[torch.Tensor]:
    """The outputs before each of these steps, and after the last."""
    outputs = []
    for step in [*steps, None]:
        optimizer.zero_grad()
        found, value = loss(model, CASES[case], steps.stop if step is None else step)
        outputs.append(found)
        if step is not None:
            value.backward()
            optimizer.step()
    return outputs


@torch.no_grad()
def grow_weights(small: nn.Module, big: nn.Module, plan: GrowPlan) -> None:
    """Every tensor of the big model from the small one's."""
    tensors = {**dict(small.named_parameters()), **dict(small.named_buffers())}
    filled = {**dict(big.named_parameters()), **dict(big.named_buffers())}
    for growth in plan.tensors:
        filled[growth.name].copy_(grown(growth, tensors[growth.source]))


def departure(name: str, model: str = "normed mlp", placement: str = "absorbed", **settings: Any) -> float:
    """Largest relative difference of the outputs over ten steps after growing."""
    facts, make = OPTIMIZERS[name]
    small, big, plan = pair(facts, model, placement)
    optimizer = make(small)
    trained(small, optimizer, range(10), model)
    grow_weights(small, big, plan)
    before = copy.deepcopy(optimizer.state_dict())
    bigger = grow_optimizer(optimizer, small, big, plan, **settings)
    same(optimizer.state_dict(), before)
    unshared(optimizer, bigger)
    outputs = trained(big, bigger, range(10, 20), model)
    expected = trained(small, optimizer, range(10, 20), model)
    assert difference(expected[-1], expected[0]) > 1e-2, "nothing was trained"
    return max(map(difference, outputs, expected))


def same(found: Any, expected: Any) -> None:
    """The same numbers all through."""
    if isinstance(expected, Mapping):
        assert found.keys() == expected.keys()
        for key in expected:
            same(found[key], expected[key])
    elif isinstance(expected, list):
        for one, other in zip(found, expected, strict=True):
            same(one, other)
    else:
        assert torch.equal(found, expected) if isinstance(expected, torch.Tensor) else found == expected


def unshared(small: torch.optim.Optimizer, big: torch.optim.Optimizer) -> None:
    """No tensor, list or dict of one is held by the other."""

    def held(value: Any) -> set[int]:
        if isinstance(value, Mapping):
            return {id(value)}.union(*map(held, value.values()))
        if isinstance(value, list | set):
            return {id(value)}.union(*map(held, value))
        return {value.data_ptr()} if isinstance(value, torch.Tensor) and value.numel() else set()

    first, second = small.state_dict(), big.state_dict()  # both alive, or one's ids are given to the other
    assert not held(first) & held(second)
