"""The named recipes that depart from the derived rules: their numbers, and what no departure may break."""

import dataclasses
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import mutransfer as mt
from mutransfer.check import coord_check
from mutransfer.errors import InputError
from mutransfer.models import GPTConfig, gpt_factory, gpt_loss
from mutransfer.recipes import RECIPES, recipe_named
from mutransfer.train.config import RunConfig
from tests.plan_cases import FACTORIES, SIZES, build, loss, train, values

LADDER = ("claire-mup", "claire-sqrt-embedding", "claire-sqrt-logits", "claire-independent-decay")
GPT = dict(vocab_size=17, context=8, head_size=8)
BASE = dict(width=16, depth=1)
N = 4.0

# tensor → (forward multiplier, std, lr, weight_decay, eps) under AdamW with the logits' multiplier in the forward pass, as the
# ladder's authors describe each variant; eps follows the gradient, which logits × 1/√N leave √N times as large
EXPECTED: dict[str, dict[str, tuple[float, float, float, float, float]]] = {
    "claire-mup": {
        "wte.weight": (1, 1, 1 / N, 1, 1 / N),
        "wpe.weight": (1, 1, 1 / N, 1, 1 / N),
        "blocks.0.mlp.up.weight": (1, N**-0.5, 1 / N, 1, 1 / N),
        "norm_f.weight": (1, 1, 1, 1, 1 / N),
        "head.weight": (1 / N, 1, 1 / N, 1, 1 / N),
    },
    "claire-sqrt-embedding": {
        "wte.weight": (1, 1, N**-0.5, 1, 1 / N),
        "wpe.weight": (1, 1, N**-0.5, 1, 1 / N),
        "blocks.0.mlp.up.weight": (1, N**-0.5, 1 / N, 1, 1 / N),
        "norm_f.weight": (1, 1, 1, 1, 1 / N),
        "head.weight": (1 / N, 1, N**-0.5, 1, 1 / N),
    },
    "claire-sqrt-logits": {
        "wte.weight": (1, 1, N**-0.5, 1, N**-0.5),
        "wpe.weight": (1, 1, N**-0.5, 1, N**-0.5),
        "blocks.0.mlp.up.weight": (1, N**-0.5, 1 / N, 1, N**-0.5),
        "norm_f.weight": (1, 1, 1, 1, N**-0.5),
        "head.weight": (N**-0.5, 1, N**-0.5, 1, N**-0.5),
    },
    "claire-independent-decay": {
        "wte.weight": (1, 1, N**-0.5, N**0.5, N**-0.5),
        "wpe.weight": (1, 1, N**-0.5, N**0.5, N**-0.5),
        "blocks.0.mlp.up.weight": (1, N**-0.5, 1 / N, N, N**-0.5),
        "norm_f.weight": (1, 1, 1, 1, N**-0.5),
        "head.weight": (N**-0.5, 1, N**-0.5, N**0.5, N**-0.5),
    },
}


def planned(recipe: str, width: int = 64, make: Callable[..., nn.Module] | None = None, **options: Any) -> mt.Plan:
    factory = gpt_factory(**GPT) if make is None else make
    return mt.plan(factory, base=BASE, target={**BASE, "width": width}, recipe=recipe, **options)


@pytest.mark.parametrize("name", LADDER)
def test_the_numbers_of_every_variant(name: str) -> None:
    plan = planned(name, placement="multiplier")
    forward = {f"{hook.module}.weight": hook.factor for hook in plan.hooks}
    for tensor, expected in EXPECTED[name].items():
        r = plan[tensor].ratios
        assert (forward.get(tensor, 1), r.std, r.lr, r.decay, r.eps) == expected, tensor
    assert set(forward) == {"head.weight"}


CANONICAL = {"sp", "mup", "depth-mup", "completep", "spectral-muon", "spectral-muon-kimi", "claire-sp"}


def test_the_canonical_recipes_depart_from_nothing() -> None:
    assert {name for name, recipe in RECIPES.items() if not recipe.departs} == CANONICAL
    assert all(recipe.name == name and recipe.source for name, recipe in RECIPES.items())
    assert not any("departs" in note for note in planned("mup").notes)


@pytest.mark.parametrize("name", LADDER)
@pytest.mark.parametrize("optimizer", ["adamw", "sgd", "adam", "muon", "shampoo"])
@pytest.mark.parametrize("model", FACTORIES)
def test_ratio_one_is_the_identity(name: str, optimizer: str, model: str) -> None:
    plan = mt.plan(FACTORIES[model], base=SIZES[model], target=SIZES[model], optimizer=optimizer, recipe=name)
    assert plan.identity


@pytest.mark.parametrize("name", LADDER)
@pytest.mark.parametrize("optimizer", ["adamw", "sgd", "adam", "muon", "muon-kimi", "shampoo"])
def test_two_steps_of_growth_are_one(name: str, optimizer: str) -> None:
    make = gpt_factory(**GPT)
    small, middle, big = (dict(width=width, depth=1) for width in (16, 48, 96))
    options = dict(optimizer=optimizer, recipe=name)
    first, second, whole = (
        mt.plan(make, base=base, target=target, **options)  # pyright: ignore[reportArgumentType] (a mix of names)
        for base, target in ((small, middle), (middle, big), (small, big))
    )
    for row in whole.rows:
        for field, value in dataclasses.asdict(row.ratios).items():
            if value is not None:
                parts = getattr(first[row.name].ratios, field) * getattr(second[row.name].ratios, field)
                assert parts == pytest.approx(value, rel=1e-12), (row.name, field)


@pytest.mark.parametrize("name", LADDER)
@pytest.mark.parametrize("optimizer", ["adamw", "sgd", "adam", "muon"])
def test_the_gauge_stays_exact(name: str, optimizer: str) -> None:
    """At N = 4 every number is a power of two, so multipliers carried and absorbed train bit for bit the same."""
    settings: dict[str, Any] = dict(lr=0.05 if optimizer in ("sgd", "muon") else 0.01, weight_decay=0.1)
    settings |= {} if optimizer == "sgd" else dict(eps=1e-4)
    make, runs = gpt_factory(**GPT), []
    for placement in ("absorbed", "multiplier"):
        plan = planned(name, placement=placement, optimizer=optimizer)
        model = plan.initialize(build(make, dict(width=64, depth=1)))
        loss(model, 99).backward()
        norm = float(plan.clip_grad_norm_(model, 1e9))
        made = plan.optimizer(model, **settings)
        runs.append((norm, train(model, made, 20)))
        plan.verify(made, model)
    assert runs[0] == runs[1] and len(set(runs[0][1])) == 20


@pytest.mark.parametrize("optimizer", ["adamw", "sgd"])
def test_larger_logits_make_every_gradient_larger_and_no_step(optimizer: str) -> None:
    """Logits × 1/√N instead of 1/N: gradients √N times as large, as the plan's clip, eps and SGD's LR expect."""
    make, found = gpt_factory(**GPT, init_std=0.02), {}
    for name in ("claire-sqrt-embedding", "claire-sqrt-logits"):
        plan = planned(name, placement="multiplier", optimizer=optimizer)
        model = plan.initialize(build(make, dict(width=64, depth=1)))
        loss(model, 0).backward()
        gradients = {
            n: p.grad.norm() / plan[n].ratios.gradient for n, p in model.named_parameters() if p.grad is not None
        }
        norm, before = float(plan.clip_grad_norm_(model, 1e9)), values(model)
        plan.optimizer(model, lr=1e-3, weight_decay=0.0).step()
        steps = {n: (p.detach() - before[n]).norm() for n, p in model.named_parameters()}
        found[name] = (norm, gradients, steps)
    (norm, gradients, steps), (other, others, moved) = found.values()
    assert norm == pytest.approx(other, rel=0.02)
    for tensor in gradients:
        assert float(gradients[tensor]) == pytest.approx(float(others[tensor]), rel=0.1, abs=1e-6), tensor
        assert float(steps[tensor]) == pytest.approx(float(moved[tensor]), rel=0.1, abs=1e-7), tensor


@pytest.mark.parametrize(("name", "slope"), [("claire-mup", -1.0), ("claire-sqrt-embedding", -0.5),
                                             ("claire-sqrt-logits", 0.0), ("mup", 0.0)])  # fmt: skip
def test_how_much_one_step_of_the_head_moves_the_logits(name: str, slope: float) -> None:
    """c·lr·N: the ladder's two √N are what brings a shared LR of the unembedding back to the canonical step."""
    make, change = gpt_factory(**GPT), []
    for width in (16, 256):
        plan = planned(name, width)
        model = plan.initialize(build(make, dict(width=width, depth=1)))
        head, x = model.get_submodule("head"), torch.ones(1, width)
        before = head(x).sum()
        before.backward()
        plan.optimizer(model, lr=1e-3, weight_decay=0.0).step()
        change.append(float((head(x).sum() - before).detach()))
    assert math.log(change[1] / change[0], 16) == pytest.approx(slope, abs=1e-3)


def numbered(width: int) -> nn.Module:
    return nn.Sequential(nn.Linear(3, width), nn.ReLU(), nn.Linear(width, width), nn.Linear(width, 2))


def test_only_the_ends_of_the_model_depart() -> None:
    plan = planned("claire-sqrt-logits", make=gpt_factory(**GPT, kv_heads=1), placement="multiplier")
    canonical = planned("mup", make=gpt_factory(**GPT, kv_heads=1), placement="multiplier")
    inner = "blocks.0.attn.k_proj.weight"
    assert plan[inner].role == "output" and plan[inner].ratios.lr == canonical[inner].ratios.lr
    assert {h.factor for h in plan.hooks if h.module == "blocks.0.attn.k_proj"} == {1 / N}
    plan = mt.plan(numbered, base=dict(width=8), target=dict(width=32), recipe="claire-mup")
    assert [plan[n].ratios.lr for n in ("0.weight", "2.weight", "3.weight")] == [1 / N, 1 / N, 1 / N**2]
    assert "LR of embeddings (0.weight) × N^-1; LR of heads (3.weight) × N^-1" in str(plan.notes)


def test_a_tied_head_shares_the_embeddings_lr_and_gets_the_recipes_logits() -> None:
    plan = planned("claire-sqrt-logits", make=gpt_factory(**GPT, tied=True))
    assert (plan["wte.weight"].ratios.lr, plan["norm_f.weight"].ratios.std) == (N**-0.5, N**-0.5)
    plan = planned("claire-sqrt-logits", make=gpt_factory(**GPT, tied=True, norm_gain=False))
    assert [hook.factor for hook in plan.hooks] == [N**-0.5]


class TwoHeads(nn.Module):
    """Heads on the stream and on half of it plus a fixed part, so that their fan-ins grow by different ratios."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.inside, self.hidden = nn.Linear(3, width), nn.Linear(width, width)
        self.policy, self.value = nn.Linear(width, 2), nn.Linear(width // 2 + 4, 1)


def test_heads_that_grow_differently_have_no_common_logits() -> None:
    options: dict[str, Any] = dict(base=dict(width=8), target=dict(width=32))
    assert mt.plan(TwoHeads, recipe="claire-mup", **options)["value.weight"].ratios.multiplier == 1
    with pytest.raises(InputError, match=r"'policy.weight' ×4, 'value.weight' ×2.5.*recipe='mup'"):
        mt.plan(TwoHeads, recipe="claire-sqrt-logits", **options)


def test_the_table_says_what_departs_and_by_whose_word() -> None:
    text = " ".join(str(planned("claire-sqrt-logits")).split())
    for words in (
        "claire-sqrt-logits: c=a^-0.5=0.5, every gradient ×2 and eps=0.5, lr·a^-0.5=0.5, weight_decay itself kept, ×1",
        "lr·b^-0.5=0.5",
        "recipe 'claire-sqrt-logits' departs from the derived rules",
        "logits × N^-0.5 instead of 1/N",
        "CLAIRE",
    ):
        assert words in text


@pytest.mark.parametrize("name", LADDER)
def test_plans_and_runs_keep_the_recipe(name: str, tmp_path: Path) -> None:
    plan = planned(name)
    plan.save(tmp_path / "plan.json")
    assert mt.Plan.load(tmp_path / "plan.json") == plan
    config = RunConfig(model=GPTConfig(width=64, depth=1, head_size=16), base={"width": 32}, recipe=name)
    assert RunConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config


def test_an_unknown_name_gets_the_closest_one() -> None:
    for call in (recipe_named, planned, lambda name: RunConfig(recipe=name, base={"width": 16})):
        with pytest.raises(InputError, match=r"recipe='claire-mop': one of sp, mup, .*; did you mean 'claire-mup'"):
            call("claire-mop")


def check(recipe: str, weight_decay: float) -> mt.CheckReport:
    make = gpt_factory(vocab_size=64, context=16, head_size=16, init_std=0.08, norm="rmsnorm", norm_gain=False)
    g = torch.Generator().manual_seed(0)
    batches = [tuple(torch.randint(64, (2, 4, 16), generator=g)) for _ in range(3)]

    def at(width: int) -> tuple[nn.Module, Any]:
        sizes = dict(width=width, depth=1)
        plan = mt.plan(make, base=dict(width=32, depth=1), target=sizes, recipe=recipe)
        model = plan.initialize(make(**sizes))
        return model, plan.optimizer(model, lr=2**-7, weight_decay=weight_decay)

    return coord_check(at, [32, 64, 128], batches, gpt_loss, steps=3, seeds=2)


FOUND = {  # recipe → tensor → (rule, exponent of the width)
    "claire-mup": {name: ("learning rate", -1.0) for name in ("wte.weight", "wpe.weight", "head.weight")},
    "claire-sqrt-embedding": {name: ("learning rate", -0.5) for name in ("wte.weight", "wpe.weight", "head.weight")},
    "claire-independent-decay": {
        "wte.weight": ("learning rate", -0.5),
        "wpe.weight": ("learning rate", -0.5),
        "head.weight": ("readout multiplier", 0.0),
    },
}


@pytest.mark.parametrize("name", FOUND)
def test_the_check_measures_what_a_departing_recipe_does(name: str) -> None:
    """It knows of no recipe: every departed number is found as the exponent that it is, and nothing else is."""
    report = check(name, weight_decay=0.0)
    assert report.verdict == "FAIL"
    found = {f.name: (f.rule, f.slope) for f in report.findings if f.severity == "fail"}
    assert set(found) == set(FOUND[name]), report.words()
    for tensor, (rule, slope) in FOUND[name].items():
        assert found[tensor] == (rule, pytest.approx(slope, abs=0.05)), tensor


def test_the_check_sees_a_decay_that_falls_with_width() -> None:
    found = {f.name: f.slope for f in check("claire-sqrt-logits", weight_decay=0.1).findings if f.rule == "decay"}
    assert found["wte.weight"] == pytest.approx(-0.5) and found["blocks.0.mlp.up.weight"] == pytest.approx(-1.0)
    assert not any(f.rule == "decay" for f in check("claire-independent-decay", weight_decay=0.1).findings)
    assert check("mup", weight_decay=0.1).ok
