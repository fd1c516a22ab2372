"""Trained, grown and trained on: the small model and the big one compute one function, whatever the optimizer had in its state.

Weights, state and settings grow at once, from step 10; eps is as large as the gradients, so that any wrong power of any number shows.
"""

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import nn

from mutransfer.errors import InputError
from mutransfer.growth.axis import AxisMap
from mutransfer.growth.optimizer import grow_optimizer
from mutransfer.growth.state import RULES, Rule, grown_state, inexact_reason, rules_for
from mutransfer.growth.tensors import GrowPlan, TensorGrowth
from mutransfer.growth.weights import dup
from tests.grow.continued import BFLOAT, EPS, OPTIMIZERS, RELATIVE, TOLERANCE, departure, own, pair, same, trained


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_the_grown_model_goes_on_as_the_small_one(name: str) -> None:
    assert departure(name) < TOLERANCE


@pytest.mark.parametrize("name", ["adamw", "momentum + l2"])
@pytest.mark.parametrize(
    ("model", "placement"), [("mlp", "multiplier"), ("normed mlp", "multiplier"), ("by hand", "absorbed")]
)
def test_on_other_models_and_placements(name: str, model: str, placement: str) -> None:
    assert departure(name, model, placement) < TOLERANCE


def spoiled(monkeypatch: pytest.MonkeyPatch, optimizer: str, key: str, rule: Rule) -> None:
    monkeypatch.setitem(RULES, optimizer, RULES[optimizer] | {key: rule})


MOMENTS = [
    (name, key) for name, keys in RULES.items() for key, rule in keys.items() if rule.kind in ("moment", "weight")
]
BY_FACTS = {"sgd": "momentum + l2", "rmsprop": "rmsprop", "muon": "our muon", "schedule-free-adamw": "schedule-free"}
UNUSED = {
    ("schedule-free-adamw", "max_exp_avg_sq"),
    ("adam", "max_exp_avg_sq"),
    ("nadam", "max_exp_avg_sq"),
    ("radam", "max_exp_avg_sq"),
}


@pytest.mark.parametrize(
    ("facts", "key"), [pair for pair in MOMENTS if pair not in UNUSED and pair[0] not in ("adafactor", "lamb", "scion")]
)
def test_every_rule_of_the_table_is_needed(facts: str, key: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """With another degree in any one of them, or moments in place of weights, the path is left at once."""
    name = "amsgrad" if (facts, key) == ("adamw", "max_exp_avg_sq") else BY_FACTS.get(facts, facts)
    right = departure(name)
    rule = RULES[facts][key]
    wrong = Rule("moment", 1) if rule.kind == "weight" else replace(rule, degree={0: 1, 1: 2, 2: 1}[rule.degree])
    spoiled(monkeypatch, facts, key, wrong)
    assert departure(name) > max(1e-4, 2 * right)


def test_a_counter_at_zero_leaves_the_path(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mutransfer.growth.state._counter", lambda value, *_: torch.zeros_like(value))
    assert min(departure(name) for name in ("adam", "nadam", "adagrad")) > 1e-4


@pytest.mark.parametrize("key", ["lr", "eps", "decay", "l2"])
def test_every_setting_is_needed(key: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A percent in one ratio shows; eps too."""
    original = pair

    def spoiled_pair(*given: Any) -> tuple[nn.Module, nn.Module, GrowPlan]:
        small, big, plan = original(*given)
        rows = tuple(
            replace(r, ratios=replace(r.ratios, **{key: 1.01 * getattr(r.ratios, key)})) for r in plan.plan.rows
        )
        return small, big, replace(plan, plan=replace(plan.plan, rows=rows))

    monkeypatch.setattr("tests.grow.continued.pair", spoiled_pair)
    assert departure("adam + l2" if key == "l2" else "adamw") > 1e-6


# ------------------------------------------------------------------ where the path is not the same


def own_rate(name: str) -> float:
    """The departure with the learning rates of exact copies in place of the plan's: lr·std/s, a decay that goes with it, a floor at s."""
    original = pair

    def exact(*given: Any) -> tuple[nn.Module, nn.Module, GrowPlan]:
        small, big, plan = original(*given)
        rows = []
        for r in plan.plan.rows:
            factor = 1.0 if r.base_law.zeros and name == "lamb" else r.ratios.std / plan.by_name[r.name].scale
            scaled = replace(
                r.ratios, lr=r.ratios.lr * factor, decay=r.ratios.decay / factor, std=r.ratios.std / factor
            )
            rows.append(replace(r, ratios=scaled))
        return small, big, replace(plan, plan=replace(plan.plan, rows=tuple(rows)))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("tests.grow.continued.pair", exact)
        return departure(name)


@pytest.mark.parametrize("name", RELATIVE)
def test_why_steps_that_follow_the_weights_leave_the_path(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The state is right, to the last digit: at the copies' own rate they stay; the plan's is off by √(fan-in growth), as the note says."""
    monkeypatch.setitem(OPTIMIZERS, name, RELATIVE[name])
    assert departure(name) > 1e-2 and "√(fan-in growth)" in inexact_reason(name)
    assert own_rate(name) < TOLERANCE
    wrong = Rule("moment", 1, over=RULES[name].get("row_var", Rule("copy")).over)
    monkeypatch.setitem(RULES, name, RULES[name] | {"row_var" if name == "adafactor" else "exp_avg_sq": wrong})
    assert own_rate(name) > 1e-4


def test_lambs_eps_stands_in_two_places(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(OPTIMIZERS, "lamb", ("lamb", own("lamb", lr=0.05, weight_decay=0.1, eps=EPS)))
    assert own_rate("lamb") > 1e-4 and "eps" in inexact_reason("lamb")


@pytest.mark.parametrize("name", BFLOAT)
def test_products_in_bfloat16_are_followed_within_their_rounding(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    facts, make = BFLOAT[name]
    monkeypatch.setitem(OPTIMIZERS, name, (facts, make))
    assert 1e-11 < departure(name) < 5e-3
    parts: Any = make(pair(facts)[0])
    assert {"bfloat16" in inexact_reason(part) for part in parts.parts if not isinstance(part, torch.optim.AdamW)} == {
        True
    }
    monkeypatch.setitem(RULES, "muon", {"momentum_buffer": Rule("moment", 2)})
    monkeypatch.setitem(RULES, "scion", {"d": Rule("moment", 2)})
    assert departure(name) > 5e-3


def test_radam_is_exact_once_its_first_steps_are_over() -> None:
    small, *_ = pair("radam")
    optimizer = OPTIMIZERS["radam"][1](small)
    trained(small, optimizer, range(3))
    assert "sixth" in inexact_reason(optimizer) and "sixth" in inexact_reason("radam")
    trained(small, optimizer, range(3, 6))
    assert inexact_reason(optimizer) == "" == inexact_reason("adamw") == inexact_reason(torch.optim.SGD)


def test_soap_is_refused_for_what_is_measured_here() -> None:
    """From nothing, on G' = g·dup(G): its step is that of the copies over √(a·b), where the plan's lr counts on a step of that size."""
    po: Any = pytest.importorskip("pytorch_optimizer")
    generator, moved = torch.Generator().manual_seed(0), []
    gradients = [torch.randn(3, 3, generator=generator, dtype=torch.float64) for _ in range(4)]
    for k in (1, 2):
        p = nn.Parameter(torch.zeros(3 * k, 3 * k, dtype=torch.float64))
        optimizer = po.SOAP([p], lr=1.0, eps=1e-8, weight_decay=0.0)
        for gradient in gradients:
            p.grad = gradient.repeat_interleave(k, 0).repeat_interleave(k, 1)
            optimizer.step()
        moved.append(p.detach())
    copied = moved[0].repeat_interleave(2, 0).repeat_interleave(2, 1)
    assert torch.allclose(moved[1], copied / 2, atol=1e-5)
    assert pair("soap")[2].plan["second.weight"].ratios.lr == pytest.approx(1 / 2)  # s·lr, as for a step of full size
    small, big, plan = pair("soap")
    optimizer = own("soap", lr=0.01)(small)
    trained(small, optimizer, range(4))
    with pytest.raises(InputError, match=r"SOAP cannot grow: .*√\(a·b\) smaller.*optimizer_state='fresh'"):
        grow_optimizer(optimizer, small, big, plan)
    fresh = grow_optimizer(optimizer, small, big, plan, state="fresh")
    assert not fresh.state and len(trained(big, fresh, range(4))) == 5
    assert not pair("sophia")[2].exact or "Hessian" in inexact_reason("sophia")


# ------------------------------------------------------------------ one tensor at a time


HEADS = AxisMap.product(AxisMap(2, 4), AxisMap(3, 3))  # two heads of three become four
FUSED = AxisMap.join(HEADS, HEADS, HEADS)  # query | key | value
MAPS = {
    "heads": (HEADS, AxisMap(4, 8)),
    "fused": (FUSED, AxisMap(4, 8)),
    "same": (AxisMap(3, 3), AxisMap(4, 4)),
    "3 → 6": (AxisMap(3, 6), AxisMap(1, 5)),
}


@pytest.mark.parametrize("maps", MAPS)
@pytest.mark.parametrize("name", ["Adafactor", "Adam", "Shampoo"])
def test_states_of_products_and_joins_are_those_that_the_copies_gradients_make(name: str, maps: str) -> None:
    """The grown state of three steps on G is the state of three steps on g·dup(G)."""
    po: Any = pytest.importorskip("pytorch_optimizer") if name == "Shampoo" else None
    axes, g = MAPS[maps], 0.25
    growth = TensorGrowth("w", "w", axes, (False, True), 0.5, g, "w")
    generator, states = torch.Generator().manual_seed(0), []
    gradients = [torch.randn(growth.base_shape, generator=generator, dtype=torch.float64) for _ in range(3)]
    eps = 0.1
    outer = eps * g**2 * growth.fan_in_growth * growth.fan_out_growth
    for big in (False, True):
        p = nn.Parameter(torch.ones(growth.target_shape if big else growth.base_shape, dtype=torch.float64))
        optimizer = po.Shampoo([p], matrix_eps=outer if big else eps) if po else getattr(torch.optim, name)([p])
        for gradient in gradients:
            p.grad = g * dup(growth, gradient) if big else gradient.clone()
            optimizer.step()
        states.append(optimizer.state[p])
    found = grown_state(rules_for(name), growth, states[0], {"matrix_eps": eps})
    expected = {k: v for k, v in states[1].items() if not (po and k == "momentum_buffer")}
    assert found.keys() == expected.keys()
    for key, value in expected.items():
        assert found[key].shape == value.shape and torch.allclose(found[key], value, rtol=1e-9, atol=1e-12), key
        assert found[key] is not states[0][key] and found[key].data_ptr() != states[0][key].data_ptr()


def test_a_new_block_has_no_state_and_counts_from_its_own_start() -> None:
    """Where a class counts in its groups, a tensor that starts anew is in one of its own."""
    small, big, plan = pair("ademamix")
    fresh = tuple(replace(t, fresh="zero") if t.name == "third.weight" else t for t in plan.tensors)
    optimizer = OPTIMIZERS["ademamix"][1](small)
    trained(small, optimizer, range(3))
    found = grow_optimizer(optimizer, small, big, replace(plan, tensors=fresh))
    assert big.get_parameter("third.weight") not in found.state and len(found.state) == len(plan.plan.rows) - 1
    assert {n: g.get("step") for g in found.param_groups for n in g["names"]} == {
        r.name: None if r.name == "third.weight" else 3 for r in plan.plan.rows
    }
    trained(big, found, range(3))
    assert {n: g["step"] for g in found.param_groups for n in g["names"]}["third.weight"] == 3


def test_one_tensor_that_several_copy_gives_each_its_own_state() -> None:
    growth = TensorGrowth("blocks.1.w", "blocks.0.w", (AxisMap(2, 4),), (False,), 1.0, 0.5, "blocks.1.w")
    state = {"step": torch.tensor(3.0), "exp_avg": torch.tensor([2.0, 4.0]), "exp_avg_sq": torch.tensor([4.0, 16.0])}
    first, second = (grown_state(rules_for("adam"), growth, state) for _ in range(2))
    same(
        first,
        {
            "step": torch.tensor(3.0),
            "exp_avg": torch.tensor([1.0, 1, 2, 2]),
            "exp_avg_sq": torch.tensor([1.0, 1, 4, 4]),
        },
    )
    assert not {v.data_ptr() for v in first.values()} & {v.data_ptr() for v in (*second.values(), *state.values())}


def test_moments_follow_the_parameters_dtype_and_counters_keep_theirs() -> None:
    small, big, plan = pair("adamw")
    optimizer = torch.optim.AdamW(small.parameters(), lr=0.01)
    trained(small, optimizer, range(2))
    found = grow_optimizer(optimizer, small, big.bfloat16(), plan)
    for state in found.state.values():
        assert (state["step"].dtype, state["exp_avg"].dtype, state["exp_avg_sq"].dtype) == (
            torch.float32,
            torch.bfloat16,
            torch.bfloat16,
        )


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    ("facts", "cls"), [("sgd", "SGD"), ("adamw", "AdamW"), ("ademamix", "AdEMAMix"), ("schedule-free-adamw", "SFAdamW")]
)
def test_heavyballs_numbered_states(facts: str, cls: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its moments are float32 whatever the weights are, so that the path is followed within that."""
    heavyball: Any = pytest.importorskip("heavyball")
    monkeypatch.setattr(heavyball.utils, "compile_mode", None)
    settings = {} if cls == "SGD" else dict(eps=EPS)
    monkeypatch.setitem(
        OPTIMIZERS,
        cls,
        (facts, lambda m: getattr(heavyball, cls)(m.parameters(), lr=0.02, weight_decay=0.3, **settings)),
    )
    with torch._dynamo.config.patch(disable=True):  # pyright: ignore[reportAttributeAccessIssue] # not in the stubs
        assert departure(cls) < 1e-6
