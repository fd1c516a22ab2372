"""Every recipe trains every kind of model: fused projections, mixtures of experts apart and stacked, a GPT; and the router is an output."""

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
from torch import nn

import mutransfer as mt
from mutransfer.models import gpt_factory
from mutransfer.recipes import RECIPES
from tests.plan_cases import build
from tests.recipes.models import AXES, CONTEXT, VOCABULARY, MoEGPT, NanoGPT, stacked_moe, train

BASE, TARGET = dict(width=32, depth=1), dict(width=96, depth=2)
MODELS: dict[str, tuple[Callable[..., nn.Module], dict[str, Any]]] = {
    "fused": (NanoGPT, {}),
    "experts": (MoEGPT, {}),
    "stacked experts": (stacked_moe, {"axes": AXES}),
    "gpt": (gpt_factory(vocab_size=VOCABULARY, context=CONTEXT, head_size=16, tied=True, init_std=0.125), {}),
}


NAMES = [name for name, recipe in RECIPES.items() if not recipe.beside.startswith("cosine")]
OTHERS = [model for model in MODELS if model != "fused"]
PAIRS = [(name, "fused") for name in NAMES] + [(name, OTHERS[i % 3]) for i, name in enumerate(NAMES)]


@pytest.mark.parametrize(("name", "model"), PAIRS)
def test_a_few_steps_learn_and_stay_finite(name: str, model: str) -> None:
    make, options = MODELS[model]
    plan = mt.plan(make, base=BASE, target=TARGET, recipe=name, **options)
    net = plan.initialize(build(make, TARGET))
    decay = 1e-4 if RECIPES[name].decay == "independent" else 0.1
    optimizer = plan.optimizer(net, lr=2**-6, weight_decay=decay)
    losses = train(net, optimizer, 8, plan)
    plan.verify(optimizer, net)
    assert all(map(math.isfinite, losses)) and losses[-1] < losses[0] - 0.05, losses
    assert mt.Plan.from_dict(plan.to_dict() | {}) == plan


@pytest.mark.parametrize("optimizer", ["adamw", "sgd", "muon-kimi"])
@pytest.mark.parametrize("model", ["experts", "stacked experts"])
def test_the_router_is_an_output_and_experts_are_hidden(model: str, optimizer: str) -> None:
    """The router's fan-out, the number of experts, does not grow: logits × 1/N, init and LR as a head's; never a matrix optimizer's."""
    make, options = MODELS[model]
    plan = mt.plan(
        make, base=BASE, target=TARGET, recipe="completep", optimizer=optimizer, placement="multiplier", **options
    )
    router, head = plan["blocks.0.moe.router.weight"], plan["lm_head.weight"]
    experts = [row for row in plan.rows if ".w_" in row.name or ("experts" in row.name and row.name.endswith("weight"))]
    assert router.role == "output" and router.ratios.std == 1 and len(experts) in (16, 4)
    assert [hook.factor for hook in plan.hooks if hook.module.endswith("0.moe.router")] == [pytest.approx(1 / 3)]
    assert router.ratios.lr == pytest.approx(head.ratios.lr * (2 if optimizer == "sgd" else 1))  # SGD's follows α, too
    assert router.optimizer == ("adamw" if optimizer == "muon-kimi" else optimizer)
    lr = {"adamw": 1 / 3, "sgd": 2.0, "muon-kimi": 3**-0.5}[optimizer]
    for row in experts:
        assert row.role == "hidden" and row.ratios.std == pytest.approx(3**-0.5) and row.ratios.lr == pytest.approx(lr)
        assert row.optimizer == optimizer


def test_a_recipe_is_data_like_any_other(tmp_path: Any) -> None:
    """Combined by `dataclasses.replace`, given as an object, kept in the plan's file under a name that says it was changed."""
    mixed = replace(RECIPES["completep"], changes=RECIPES["large-vocabulary"].changes)
    plan = mt.plan(NanoGPT, base=BASE, target=TARGET, recipe=mixed, density=0.5)
    assert plan.recipe == "completep*" and plan.parametrization == replace(mixed, name="completep*")
    assert plan["wte.weight"].ratios.lr == pytest.approx(3**-0.5)
    assert plan["h.0.mlp.c_fc.weight"].ratios.lr == pytest.approx(2 / 3)
    assert "completep*: lr·b^-0.5=0.577" in str(plan)
    plan.save(tmp_path / "plan.json")
    assert mt.Plan.load(tmp_path / "plan.json") == plan
    same = mt.plan(NanoGPT, base=BASE, target=TARGET, recipe=replace(RECIPES["completep"]))
    assert same == mt.plan(NanoGPT, base=BASE, target=TARGET, recipe="completep")


@pytest.mark.parametrize(("fields", "words"), [
    (dict(attention="1/√d"), "attention='1/√d' of recipe 'mup': one of 'base', '1/d'"),
    (dict(decay="none"), "decay='none' of recipe 'mup'"),
    (dict(zero=("keys",)), "zero='keys' of recipe 'mup'"),
    (dict(multipliers=(("vector", 2.0),)), "multipliers='vector' of recipe 'mup'"),
    (dict(multipliers=(("head", 0.0),)), "a positive number"),
    (dict(logits=-0.3), "a multiple of ½"),
    (dict(depth_exponent=2.0), "depth_exponent=2.0 of recipe 'mup'"),
    (dict(placement="unit-scaled"), "placement='unit-scaled'"),
    (dict(width=False, decay="fixed"), "width=False"),
])  # fmt: skip
def test_a_wrong_recipe_is_one_clear_line(fields: dict[str, Any], words: str) -> None:
    with pytest.raises(mt.InputError, match=words.replace("(", r"\(")):
        replace(RECIPES["mup"], **fields)


def test_what_a_recipe_cannot_do_to_this_model_is_an_error() -> None:
    no_positions = gpt_factory(vocab_size=VOCABULARY, context=CONTEXT, head_size=16, tied=True, positions="rotary")
    with pytest.raises(mt.InputError, match=r"starts 'wte.weight' at zero, which is embedding and head in one"):
        mt.plan(no_positions, base=BASE, target=TARGET, recipe="mu-scaling")
    with pytest.raises(mt.InputError, match=r"placement='none': 'absorbed', 'multiplier' or 'unit'"):
        mt.plan(NanoGPT, base=BASE, target=TARGET, placement="none")


def test_only_the_query_starts_at_zero() -> None:
    plan = mt.plan(NanoGPT, base=BASE, target=TARGET, recipe="mu-scaling")
    net = plan.initialize(build(NanoGPT, TARGET))
    packed = net.get_parameter("h.1.attn.c_attn.weight")
    assert not bool(packed[:96].any()) and bool(packed[96:].all()) and not bool(net.get_parameter("wte.weight").any())
    assert bool(net.get_parameter("wpe.weight").all())
