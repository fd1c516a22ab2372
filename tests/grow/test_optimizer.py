"""The groups of a grown optimizer are those that the plan gives the big model, and what cannot be grown is one clear line."""

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import nn

import mutransfer as mt
from mutransfer.errors import InputError
from mutransfer.growth.axis import AxisMap
from mutransfer.growth.build import grow_plan
from mutransfer.growth.optimizer import grow_optimizer, grow_state_dict
from mutransfer.growth.state import grown_state, rules_for
from mutransfer.growth.tensors import GrowPlan, TensorGrowth
from mutransfer.optimizers import REGISTRY
from tests.grow.continued import (
    BFLOAT,
    EPS,
    OPTIMIZERS,
    RELATIVE,
    TOLERANCE,
    Make,
    departure,
    grow_weights,
    pair,
    same,
    trained,
)
from tests.growth import difference, loss
from tests.growth_models import CASES

# ------------------------------------------------------------------ groups


def by_tensor(optimizer: torch.optim.Optimizer) -> dict[str, dict[str, Any]]:
    return {
        name: {k: v for k, v in g.items() if k not in ("params", "names", "base")}
        | {f"base {k}": v for k, v in g["base"].items()}
        for g in optimizer.param_groups
        for name in g["names"]
    }


PLANNED = {
    name: OPTIMIZERS[name][0]
    for name in OPTIMIZERS
    if name.startswith(("planned", "our")) or name in ("lion", "shampoo", "ademamix")
}


@pytest.mark.parametrize("name", [*PLANNED, *BFLOAT, *RELATIVE])
def test_the_groups_are_those_of_the_plan(name: str) -> None:
    """A grown optimizer's settings are, tensor by tensor, what `plan.optimizer` gives the big model; both plans verify."""
    facts, make = {**OPTIMIZERS, **BFLOAT, **RELATIVE}[name]
    small, big, plan = pair(facts)
    optimizer = make(small)
    expected = by_tensor(from_plan(plan, make, big))
    found = grow_optimizer(optimizer, small, big, plan)
    assert by_tensor(found).keys() == expected.keys()
    for tensor, settings in by_tensor(found).items():
        assert settings.keys() == expected[tensor].keys()
        for key, value in expected[tensor].items():
            number = isinstance(value, float) or (isinstance(value, tuple) and value and isinstance(value[0], float))
            assert settings[key] == (pytest.approx(value, rel=1e-12, abs=0) if number else value), (tensor, key)
    assert plan.plan.verify(found, big)["lr"] == pytest.approx(found.param_groups[0]["base"]["lr"])


def from_plan(plan: GrowPlan, make: Make, big: nn.Module) -> torch.optim.Optimizer:
    """What `make` would have made of this plan."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("tests.grow.continued.plan_of", lambda *_: plan.plan)
        return make(big)


def test_a_users_own_plan_from_a_smaller_base_verifies_after_growing_and_in_a_schedule() -> None:
    case = CASES["normed mlp"]
    sizes = dict(width=2, wide=3), dict(width=4, wide=6), dict(width=8, wide=12)
    to_small, to_big, relative = (
        mt.plan(case.make, base=a, target=b, optimizer="adamw") for a, b in ((sizes[0], sizes[1]), (sizes[0], sizes[2]), (sizes[1], sizes[2]))
    )  # fmt: skip
    small, big = to_small.initialize(case.make(**sizes[1])), case.make(**sizes[2])
    optimizer = to_small.optimizer(small, lr=0.02, weight_decay=0.3, eps=EPS)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda t: 0.5**t)
    optimizer.step()
    schedule.step()
    grown_one = grow_optimizer(optimizer, small, big, grow_plan(small, big, relative))
    assert to_big.verify(grown_one, big) == {"lr": pytest.approx(0.01)}
    assert {g["initial_lr"] / g["lr"] for g in grown_one.param_groups} == {2.0}


def test_groups_split_no_more_than_they_must_and_other_settings_stay() -> None:
    small, big, plan = pair("adamw")
    named = list(small.named_parameters())
    decayed, rest = [x for x in named if x[1].ndim > 1], [x for x in named if x[1].ndim < 2 and x[0] != "norm.bias"]
    optimizer = torch.optim.AdamW(
        [{"params": decayed, "lr": torch.tensor(0.03), "mine": [1]}, {"params": rest, "weight_decay": 0.0}], lr=0.01, foreach=False, betas=(0.8, 0.9)
    )  # fmt: skip
    found = grow_optimizer(optimizer, small, big, plan)
    names = [group["names"] for group in found.param_groups]
    assert sorted(n for group in names for n in group) == sorted(
        name for name, _ in decayed + rest
    )  # norm.bias is frozen and stays so
    ratios = {
        tuple((plan.plan[n].ratios.lr, plan.plan[n].ratios.decay, plan.plan[n].ratios.eps, plan.plan[n].ratios.std))
        for n, _ in decayed
    }
    assert sum("mine" in group for group in found.param_groups) == len(ratios)
    for group in found.param_groups:
        assert (group["betas"], group["foreach"], group["param_names"]) == ((0.8, 0.9), False, group["names"])
        assert (
            isinstance(group["lr"], torch.Tensor) == ("mine" in group) and group["weight_decay"] == 0.0
        ) or "mine" in group
        for name, p in zip(group["names"], group["params"], strict=True):
            assert p is big.get_parameter(name)
            assert float(group["lr"]) == pytest.approx(plan.plan[name].ratios.lr * (0.03 if "mine" in group else 0.01))
    found.param_groups[0]["lr"].mul_(2)
    found.param_groups[0]["mine"].append(2)
    assert float(optimizer.param_groups[0]["lr"]) == pytest.approx(0.03) and optimizer.param_groups[0]["mine"] == [1]
    assert plan.plan.verify(grow_optimizer(optimizer, small, big, plan), big)


def test_a_plain_muon_of_torchs_is_read_without_its_built_in_factor() -> None:
    """It multiplies by √max(1, out/in) itself; a plan in another scaling counts on a step without."""
    small, big, plan = pair("muon-spectral")
    muon: Any = getattr(torch.optim, "Muon", None) or pytest.skip("no Muon in this torch")
    found = grow_optimizer(
        muon([small.get_parameter(n) for n in ("second.weight", "third.weight")], lr=0.1), small, big, plan
    )
    assert plan.plan.verify(found)
    for group in found.param_groups:
        (rows, columns), (old_rows, old_columns) = (m.get_parameter(group["names"][0]).shape for m in (big, small))
        step = [math.sqrt(max(1, r / c)) for r, c in ((rows, columns), (old_rows, old_columns))]
        due = math.sqrt(rows / columns) / math.sqrt(
            old_rows / old_columns
        )  # the spectral step of 2310.17813, whatever multiplies it
        assert group["lr"] * step[0] / (0.1 * step[1]) == pytest.approx(due * plan.plan[group["names"][0]].ratios.lr)


def test_adafactors_own_eps_is_the_dtypes() -> None:
    small, big, plan = pair("adafactor")
    found = grow_optimizer(torch.optim.Adafactor(small.parameters()), small, big, plan)
    eps = {name: group["eps"] for group in found.param_groups for name in group["names"]}
    for name, pair_of in eps.items():
        ratios = plan.plan[name].ratios
        own = None if ratios.eps == 1 else torch.finfo(torch.float64).eps * (ratios.eps or 1)
        assert pair_of == (own, 1e-3 * ratios.std)


def test_a_wrapped_model_has_the_same_names() -> None:
    class Wrapper(nn.Module):
        def __init__(self, module: nn.Module) -> None:
            super().__init__()
            self.module = module

    small, big, plan = pair("adamw")
    found = grow_optimizer(torch.optim.AdamW(Wrapper(small).parameters(), lr=0.1), Wrapper(small), Wrapper(big), plan)
    assert {n for group in found.param_groups for n in group["names"]} == {row.name for row in plan.plan.rows}


def test_two_optimizers_give_two() -> None:
    small, big, plan = pair("muon")
    matrices = [small.get_parameter(n) for n in ("second.weight", "third.weight")]
    rest = [p for p in small.parameters() if all(p is not m for m in matrices)]
    from mutransfer.muon import Muon

    optimizers = [Muon(matrices, lr=0.02, eps=EPS), torch.optim.AdamW(rest, lr=0.01, eps=EPS)]
    for number in range(10):
        value = loss(small, CASES["normed mlp"], number)[1]
        for one in optimizers:
            one.zero_grad()
        value.backward()
        for one in optimizers:
            one.step()
    grow_weights(small, big, plan)
    found = grow_optimizer(optimizers, small, big, plan)
    assert [type(one) for one in found] == [Muon, torch.optim.AdamW]
    for number in range(10, 20):
        outputs = []
        for model, ones in ((small, optimizers), (big, found)):
            outputs.append(loss(model, CASES["normed mlp"], number))
            for one in ones:
                one.zero_grad()
            outputs[-1][1].backward()
            for one in ones:
                one.step()
        assert difference(outputs[1][0], outputs[0][0]) < TOLERANCE


@pytest.mark.parametrize("name", ["amsgrad", "planned adamw", "our muon", "schedule-free", "shampoo"])
def test_a_state_dict_alone_grows_as_its_optimizer_does(name: str) -> None:
    facts, make = OPTIMIZERS[name]
    small, big, plan = pair(facts)
    optimizer = make(small)
    trained(small, optimizer, range(3))
    expected = grow_optimizer(optimizer, small, big, plan).state_dict()
    names = [n for n, _ in small.named_parameters()] if name == "amsgrad" else None
    which = None if name == "our muon" else type(getattr(optimizer, "parts", [optimizer])[0])
    if name == "shampoo":
        which = None
    found = grow_state_dict(optimizer.state_dict(), which, plan, names)
    same(found["state"], expected["state"])
    for one, other in zip(found["param_groups"], expected["param_groups"], strict=True):
        assert one == other
    fresh = grow_optimizer(optimizer, small, big, plan, state="fresh")
    same(grow_state_dict(optimizer.state_dict(), which, plan, names, state="fresh"), fresh.state_dict())
    trained(big, fresh, range(3))


# ------------------------------------------------------------------ what has no rule


class Heavy(torch.optim.Optimizer):
    """A class of the user's own: momentum under a name of its own, a copy of the weights, a count."""

    def __init__(self, params: Any, lr: float = 0.1) -> None:
        super().__init__(params, dict(lr=lr))

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        for group in self.param_groups:
            for p in group["params"]:
                if not (state := self.state[p]):
                    state.update(velocity=torch.zeros_like(p), anchor=p.clone(), calls=0)
                state["calls"] += 1
                p.sub_(group["lr"] * state["velocity"].mul_(0.9).add_(p.grad))
                p.lerp_(state["anchor"], 0.01 / state["calls"])


def test_a_class_that_is_not_known_is_refused_until_its_state_is_declared(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(REGISTRY, "heavy", replace(REGISTRY["sgd"], name="heavy"))
    monkeypatch.setitem(OPTIMIZERS, "heavy", ("heavy", lambda model: Heavy(model.parameters())))
    with pytest.raises(InputError, match=r"Heavy keeps 'velocity' of 'temperature'.*state_rules=\{'velocity': 1\}"):
        departure("heavy")
    declared: Any = {"velocity": 1, "anchor": "weight", "calls": "copy"}
    assert departure("heavy", state_rules=declared) < TOLERANCE
    for wrong in ({"velocity": 2}, {"anchor": 1}):
        assert departure("heavy", state_rules=declared | wrong) > 1e-4
    with pytest.raises(InputError, match="'anchor'"):
        departure("heavy", state_rules={"velocity": 1})
    for value in (3, True, "moment", [1]):
        with pytest.raises(InputError, match=r"state_rules=\{'velocity': .*'weight' or 'copy'"):
            departure("heavy", state_rules={"velocity": value})


def test_what_cannot_be_is_one_clear_line() -> None:
    small, big, plan = pair("adamw")
    optimizer = torch.optim.AdamW(small.parameters(), lr=0.1)
    cases: dict[str, Callable[[], Any]] = {
        r"shape \(2, 3\).*no parameter of the small": lambda: grow_optimizer(torch.optim.AdamW([nn.Parameter(torch.ones(2, 3))]), small, big, plan),
        "Module.* is no optimizer": lambda: grow_optimizer(nn.Module(), small, big, plan),  # pyright: ignore[reportArgumentType, reportCallIssue]
        "'copy' or 'fresh'": lambda: grow_optimizer(optimizer, small, big, plan, state="new"),  # pyright: ignore[reportArgumentType, reportCallIssue]
        r"big model's has \(4, 7\)": lambda: grow_optimizer(optimizer, small, small, plan),
        "trained by SGD.*optimizer='sgd'": lambda: grow_optimizer(torch.optim.SGD(small.parameters()), small, big, plan),
        "names: 1 given.*11": lambda: grow_state_dict(optimizer.state_dict(), "adamw", plan, ["head.weight"]),
        "do not name their tensors": lambda: grow_state_dict(optimizer.state_dict(), "adamw", plan),
        "which optimizer they are of": lambda: grow_state_dict(optimizer.state_dict(), None, plan, [n for n, _ in small.named_parameters()]),
    }  # fmt: skip
    for expected, call in cases.items():
        with pytest.raises(InputError, match=expected) as caught:
            call()
        assert "\n" not in str(caught.value)


def test_a_state_of_another_shape_is_refused() -> None:
    growth = TensorGrowth("w", "w", (AxisMap(2, 4), AxisMap(3, 3)), (False, True), row="w")
    with pytest.raises(InputError, match=r"'exp_avg' of 'w' \(2, 3\) has shape \(3, 2\)"):
        grown_state(rules_for("adamw"), growth, {"exp_avg": torch.ones(3, 2)})
    with pytest.raises(InputError, match="matrix_eps=None"):
        grown_state(rules_for("shampoo"), growth, {"pre_cond_0": torch.eye(2)}, {})
