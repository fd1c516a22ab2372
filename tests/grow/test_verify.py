"""verify_growth finds no fault in an exact copy, in any precision, and names what is at fault in any other."""

import copy
import json
import random
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mutransfer.errors import InputError
from mutransfer.growth.axis import AxisMap
from mutransfer.growth.build import grow_plan
from mutransfer.growth.optimizer import grow_optimizer
from mutransfer.growth.tensors import GrowPlan
from mutransfer.growth.verify import GrowthError, verify_growth
from mutransfer.growth.weights import grown
from tests.grow.pair import SETTINGS, Pair, cross_entropy, load, pair


def changed(name: str, **fields: Any) -> Callable[[GrowPlan], GrowPlan]:
    """The grow plan with these fields of one tensor multiplied, or replaced where they are no number."""

    def alter(growth: GrowPlan) -> GrowPlan:
        old = growth.by_name[name]
        new = {k: getattr(old, k) * v if isinstance(v, float) else v for k, v in fields.items()}
        return replace(growth, tensors=tuple(replace(t, **new) if t is old else t for t in growth.tensors))

    return alter


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", ["normed mlp", "cnn", "tied gpt", "gpt, by head size"])
def test_an_exact_copy_passes_in_any_precision(name: str, dtype: torch.dtype) -> None:
    found = pair(name, dtype=dtype).verify()
    assert found.ok, f"{found}\n{found.table}"
    assert str(found).startswith("PASS: the big model is the small one in ")
    assert "3 training steps" in str(found)
    assert {check.stage for check in found.checks} == {"weights", "layers", "loss", "gradients", "path"}
    found.raise_if_wrong()


@pytest.mark.parametrize("seed", range(12))
def test_the_verdict_in_float32_is_no_luck(seed: int) -> None:
    assert pair("mlp", dtype=torch.float32, seed=seed).verify().ok
    wrong = pair("mlp", dtype=torch.float32, seed=seed)
    group = next(g for g in wrong.big_optimizer.param_groups if "second.weight" in g["names"])
    group["lr"] *= 1.01
    found = wrong.verify().first
    assert found is not None and found.name in group["names"]


@pytest.mark.parametrize(
    ("optimizer", "settings"),
    [("sgd", dict(momentum=0.9)), ("adam", {}), ("muon", dict(engine="own")), ("muon", dict(engine="torch"))],
)
def test_optimizers(optimizer: str, settings: dict[str, Any]) -> None:
    """torch's Muon rounds to bfloat16 inside: its own tensors get room for that, and no others."""
    both = pair("mlp", optimizer, dtype=torch.float32, **settings)
    found = both.verify(clip=0.5)
    assert found.ok, f"{found}\n{found.table}"


def test_clipping_by_a_norm_that_grows_with_width_is_found() -> None:
    both = pair("mlp", "sgd")
    assert both.verify(clip=0.3).ok
    found = both.verify(clip=lambda model: nn.utils.clip_grad_norm_(model.parameters(), 0.3)).first
    assert found is not None and (found.stage, found.step) == ("path", 1)


# ---------------------------------------------------------------- what is wrong is named


def test_a_weight_off_by_a_percent() -> None:
    both = pair("mlp")
    with torch.no_grad():
        both.big.get_parameter("second.weight").mul_(1.01)
    found = both.verify()
    assert found.first is not None and (found.first.stage, found.first.name) == ("weights", "second.weight")
    assert found.first.error == pytest.approx(0.01)
    assert str(found).startswith("FAIL: second.weight is the first to depart (weights and buffers), by 1.0e-02")
    with pytest.raises(GrowthError, match=r"FAIL: second\.weight"):
        found.raise_if_wrong()
    data = json.loads(json.dumps(found.to_dict()))
    assert data["ok"] is False and data["first"]["name"] == "second.weight"
    assert "WRONG weights    second.weight" in found.table


def test_a_scale_off_by_a_percent_in_the_plan() -> None:
    found = pair("mlp", alter=changed("second.weight", scale=1.01)).verify().first
    assert found is not None and (found.stage, found.name) == ("plan", "second.weight")
    found = pair("mlp", alter=changed("second.weight", scale=1.01, gradient=1 / 1.01)).verify().first
    assert found is not None and (found.stage, found.name) == ("layers", "second")
    without_bias = pair("mlp", alter=changed("third.weight", scale=1.01, gradient=1 / 1.01)).verify().first
    assert without_bias is not None and without_bias.stage == "layers"
    assert without_bias.detail == "the output of third is 1.01 times the copy"


def test_a_gradient_off_by_a_percent_in_the_plan() -> None:
    found = (
        pair("mlp", alter=lambda g: replace(g, depth="identity") and changed("third.weight", gradient=1.01)(g))
        .verify()
        .first
    )
    assert found is not None and (found.stage, found.name) == ("plan", "third.weight")


@pytest.mark.parametrize(("tensor", "axis", "layer"), [("first.weight", 0, "first"), ("second.weight", 1, "second")])
def test_copies_in_another_order_along_one_axis(tensor: str, axis: int, layer: str) -> None:
    """ABAB in place of AABB: in the model, or in the plan and so in the model."""
    right = pair("mlp")
    maps = list(right.growth.by_name[tensor].maps)
    maps[axis] = AxisMap.product(
        AxisMap(1, maps[axis].target // maps[axis].base), AxisMap(maps[axis].base, maps[axis].base)
    )
    tiled = changed(tensor, maps=tuple(maps))
    wrong = tiled(right.growth).by_name[tensor]
    with torch.no_grad():
        right.big.get_parameter(tensor).copy_(grown(wrong, right.small.get_parameter(tensor)))
    found = right.verify().first
    assert found is not None and (found.stage, found.name) == ("weights", tensor)
    found = pair("mlp", alter=tiled).verify().first
    assert found is not None and (found.stage, found.name) == ("layers", layer)


def test_a_buffer_that_was_not_copied() -> None:
    both = pair("cnn")
    with torch.no_grad():
        both.big.get_buffer("bn2.running_var").fill_(1.0)
    found = both.verify().first
    assert found is not None and (found.stage, found.name) == ("weights", "bn2.running_var")


def test_a_second_moment_grown_as_a_first_one() -> None:
    both = pair("mlp")
    parameter = both.big.get_parameter("third.weight")
    both.big_optimizer.state[parameter]["exp_avg_sq"] /= both.growth.by_name["third.weight"].gradient
    found = both.verify()
    assert found.first is not None and (found.first.stage, found.first.name, found.first.step) == (
        "path",
        "third.weight",
        1,
    )
    assert "third.weight is the first to depart at step 1 (training)" in str(found)


def test_a_step_counter_in_common() -> None:
    both = pair("mlp")
    small, big = both.small.get_parameter("second.bias"), both.big.get_parameter("second.bias")
    both.big_optimizer.state[big]["step"] = both.optimizer.state[small]["step"]
    found = both.verify()
    assert found.first is not None and (found.first.stage, found.first.name) == ("shared", "step of second.bias")
    assert "is the small one's own memory" in str(found)


def test_a_step_counter_that_starts_anew() -> None:
    both = pair("mlp")
    both.big_optimizer.state[both.big.get_parameter("second.bias")]["step"] = torch.tensor(0.0)
    found = both.verify().first
    assert found is not None and (found.stage, found.name, found.step) == ("path", "second.bias", 1)


def test_an_optimizer_without_the_plans_rates() -> None:
    both = pair("mlp")
    both.big_optimizer = torch.optim.AdamW(both.big.parameters(), **SETTINGS)
    found = both.verify().first
    assert found is not None and (found.stage, found.step) == ("path", 1)


def test_a_tensor_that_only_one_loss_depends_on() -> None:
    both = pair("mlp")
    both.big.get_parameter("head.bias").requires_grad_(False)
    found = both.verify(steps=0).first
    assert found is not None and (found.stage, found.name) == ("gradients", "head.bias")


# ---------------------------------------------------------------- what is asked less of


def test_uneven_growth_is_verified_at_the_start() -> None:
    torch.manual_seed(0)
    from mutransfer import plan as make_plan

    small = nn.Sequential(nn.Linear(7, 8), nn.Tanh(), nn.Linear(8, 12), nn.Tanh(), nn.Linear(12, 5)).double()
    big = nn.Sequential(nn.Linear(7, 12), nn.Tanh(), nn.Linear(12, 20), nn.Tanh(), nn.Linear(20, 5)).double()
    plan = make_plan(big, base=small, optimizer="adamw", placement="absorbed")
    x = torch.randn(6, 7, dtype=torch.float64)
    growth = grow_plan(small, big, plan, batch=((x,), {}), uneven=True)
    both = Pair(small, big, growth, [((x,), torch.randint(5, (6,)))], torch.optim.SGD(small.parameters()), None)
    load(both)
    both.big_optimizer = torch.optim.SGD(big.parameters())
    found = both.verify(steps=2)
    assert found.ok, found.table
    assert found.steps == 0 and "training was not compared" in str(found)


def test_outputs_only() -> None:
    """What function-preserving noise leaves: the outputs of every layer."""
    both = pair("mlp")
    weight = both.big.get_parameter("second.weight")
    copies = both.growth.by_name["second.weight"].maps[1].index()
    assert torch.equal(copies[:2], torch.zeros(2, dtype=torch.int64))
    with torch.no_grad():
        weight[:, 0] += 0.1
        weight[:, 1] -= 0.1
    assert not both.verify(steps=0).ok
    found = both.verify(steps=0, outputs_only=True)
    assert found.ok and {check.stage for check in found.checks} == {"layers", "loss"}


@pytest.mark.parametrize(("depth", "note"), [("identity", "new blocks start at zero"), ("append", "repeated blocks")])
def test_deeper_models(depth: Any, note: str) -> None:
    """New blocks that start at zero keep the function, and every old layer's output; repeated ones do not."""
    from mutransfer import plan as make_plan
    from mutransfer.models import gpt_factory

    torch.manual_seed(0)
    make = gpt_factory(vocab_size=11, context=5, bias=True, head_size=2)
    small, big = make(width=4, depth=2).double(), make(width=8, depth=4).double()
    plan = make_plan(big, base=small, optimizer="adamw", placement="absorbed")
    x = torch.randint(11, (3, 5))
    growth = grow_plan(small, plan.attach(big), plan, batch=((x,), {}), depth=depth)
    both = Pair(small, big, growth, [((x,), torch.randint(11, (15,)))], torch.optim.SGD(small.parameters()), None)
    load(both)
    both.big_optimizer = torch.optim.SGD(big.parameters())
    found = both.verify(steps=2)
    assert found.ok, f"{found}\n{found.table}"
    assert (
        note in str(found)
        and found.steps == 0
        and ("holds the small one's copies" in str(found)) == (depth == "append")
    )
    if depth == "identity":
        assert {"the model's output", "wte", "norm_f"} <= {
            check.name for check in found.checks if check.stage == "layers"
        }
        with torch.no_grad():
            big.get_parameter(next(t.name for t in growth.tensors if t.fresh)).fill_(0.1)
        assert not both.verify(steps=0).ok


class Dropped(nn.Module):
    """Random in training mode."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.first, self.norm, self.head = nn.Linear(7, width), nn.BatchNorm1d(width), nn.Linear(width, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(F.dropout(self.norm(self.first(x)), 0.5, self.training))


class Coarse(nn.Module):
    """Computes in float32 whatever its weights are."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.first, self.head = nn.Linear(7, width), nn.Linear(width, 5)

    def forward(self, x: Tensor) -> Tensor:
        h = torch.tanh(F.linear(x.float(), self.first.weight.float()) + self.first.bias.float())
        return self.head(h.to(self.head.weight.dtype))


class Single(Coarse):
    """Runs in float32 only."""

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.tanh(self.first(x.float())))


@pytest.mark.parametrize(
    ("make", "note"), [(Dropped, "ran in eval mode"), (Coarse, ""), (Single, "does not run in float64")]
)
def test_models_of_their_own_mind(make: Callable[[int], nn.Module], note: str) -> None:
    from mutransfer import plan as make_plan

    torch.manual_seed(0)
    small, big = make(4), make(12)
    plan = make_plan(big, base=small, optimizer="adamw", placement="absorbed")
    x = torch.randn(6, 7)
    growth = grow_plan(small, big, plan, batch=((x,), {}))
    optimizer = make_plan(small, base=copy.deepcopy(small), optimizer="adamw").optimizer(small, **SETTINGS)
    both = Pair(small, big, growth, [((x,), torch.randint(5, (6,)))], optimizer, None)
    load(both)
    both.big_optimizer = grow_optimizer(optimizer, small, big, growth)
    found = both.verify(steps=4)
    assert found.ok, f"{found}\n{found.table}"
    assert note in str(found) and ("note" in str(found)) == bool(note)
    both.big_optimizer.param_groups[0]["lr"] *= 1.01
    assert not both.verify(steps=4).ok


# ---------------------------------------------------------------- manners


def snapshot(both: Pair) -> list[Any]:
    numpy: Any = np.random.get_state()
    kept: list[Any] = [torch.get_rng_state(), numpy[1].tolist(), random.getstate()]
    for model, optimizer in ((both.small, both.optimizer), (both.big, both.big_optimizer)):
        kept += [t.clone() for t in model.state_dict().values()]
        kept += [p.grad if p.grad is None else p.grad.clone() for p in model.parameters()]
        kept += [[m.training for m in model.modules()], [len(m._forward_hooks) for m in model.modules()]]
        state = copy.deepcopy(optimizer.state_dict())
        kept += [v for values in state["state"].values() for v in values.values()] + [state["param_groups"]]
    return kept


def test_nothing_of_the_callers_changes() -> None:
    both = pair("cnn")
    both.small.eval()
    both.big.bn1.eval()  # pyright: ignore[reportCallIssue, reportAttributeAccessIssue] # a batch norm
    before = snapshot(both)
    assert both.verify(clip=0.5).ok
    for old, new in zip(before, snapshot(both), strict=True):
        assert torch.equal(old, new) if isinstance(old, Tensor) else old == new


def test_bad_input() -> None:
    both = pair("mlp")
    for options, words in [
        (dict(steps=-1), "steps=-1"),
        (dict(clip=-1.0), "clip=-1.0"),
        (dict(tolerance=0), "tolerance=0"),
        (dict(loss=lambda model, batch: model(*batch[0])), "it must return one scalar tensor"),
        (dict(loss=lambda model, batch: model(*batch[0]).sum() * torch.rand(())), "random in eval mode too"),
        (dict(loss=lambda model, batch: model(*batch[0]).sum() * torch.nan), "the loss of the small model is nan"),
        (dict(loss=lambda model, batch: 1 / 0), "fails on the small model: ZeroDivisionError"),
    ]:
        with pytest.raises(InputError, match=words):
            both.verify(**options)
    with pytest.raises(InputError, match="hand over optimizer="):
        verify_growth(both.small, both.big, both.growth, both.batches, cross_entropy, steps=1)
    with pytest.raises(InputError, match="the grow plan goes from"):
        verify_growth(both.big, both.small, both.growth, both.batches, cross_entropy)
    with pytest.raises(InputError, match="batches is empty"):
        verify_growth(both.small, both.big, both.growth, [], cross_entropy)
    with pytest.raises(InputError, match="meta device"):
        verify_growth(both.small, copy.deepcopy(both.big).to("meta"), both.growth, both.batches, cross_entropy)


def test_a_tolerance_of_ones_own() -> None:
    both = pair("mlp")
    with torch.no_grad():
        both.big.get_parameter("head.bias").mul_(1 + 1e-6)
    assert not both.verify(steps=0).ok
    assert both.verify(steps=0, tolerance=1e-4).ok
