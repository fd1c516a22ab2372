"""The check and the plan agree: what the plan makes passes, over width and over depth, and standard parametrization fails."""

import functools
import re

import pytest
import torch
import torch.nn.functional as F

import mutransfer as mt
from mutransfer.check import coord_check
from mutransfer.models import gpt_factory, gpt_loss, mlp_factory, resnet_factory

WIDTHS = [32, 64, 128]
DEPTHS = [dict(depth=d) for d in (2, 4, 8)]
GPT = dict(vocab_size=64, context=16, head_size=16, init_std=0.08)
RATE = {"adamw": 2**-7, "sgd": 0.3, "muon": 2**-6, "muon-kimi": 2**-6}


def text(rows=4, length=16):
    g = torch.Generator().manual_seed(0)
    return [tuple(torch.randint(64, (2, rows, length), generator=g)) for _ in range(3)]


def check(factory, base, sizes, optimizer, batches, loss, recipe, placement="absorbed", **options):
    def build(size):
        target = {**base, **(size if isinstance(size, dict) else dict(width=size))}
        plan = mt.plan(factory, base=base, target=target, optimizer=optimizer, recipe=recipe, placement=placement)
        model = factory(**target)
        plan.initialize(model)
        return model, plan.optimizer(model, lr=RATE[optimizer])

    return coord_check(build, sizes, batches, loss, **{"steps": 3, "seeds": 2, **options})


gpt = functools.partial(check, batches=text(), loss=gpt_loss, base=dict(width=32, depth=2))


@pytest.mark.parametrize(
    ("options", "optimizer", "placement"),
    [
        (dict(), "adamw", "absorbed"),
        (dict(), "adamw", "multiplier"),
        (dict(tied=True), "adamw", "absorbed"),
        (dict(tied=True, bias=True), "sgd", "absorbed"),
        (dict(tied=True, norm_gain=False, qk_norm=True), "muon", "absorbed"),
        (dict(kv_heads=1), "muon-kimi", "absorbed"),
        (dict(kv_heads=1), "sgd", "absorbed"),
        (dict(norm="rmsnorm", activation="swiglu", positions="rotary"), "muon", "absorbed"),
        (dict(n_heads=2), "muon", "absorbed"),
        (dict(zero_init=("query", "head")), "adamw", "absorbed"),
    ],
    ids=str,
)
def test_a_planned_gpt_passes_over_width(options, optimizer, placement):
    report = gpt(
        gpt_factory(**{**GPT, **options}), sizes=WIDTHS, optimizer=optimizer, recipe="mup", placement=placement
    )
    assert report.ok, report.words()


@pytest.mark.parametrize("optimizer", ["adamw", "sgd", "muon"])
@pytest.mark.parametrize("recipe", ["completep", "depth-mup"])
def test_a_planned_gpt_passes_over_depth(recipe, optimizer):
    report = gpt(gpt_factory(**GPT), sizes=DEPTHS, optimizer=optimizer, recipe=recipe)
    assert report.ok, report.words()


@pytest.mark.parametrize("optimizer", ["adamw", "sgd"])
def test_without_a_depth_rule_the_ends_of_the_branches_are_named(optimizer):
    report = gpt(gpt_factory(**GPT), sizes=DEPTHS, optimizer=optimizer, recipe="mup")
    assert report.verdict == "FAIL", report.words()
    assert re.match(r"blocks\.0\.(attn\.out_proj|mlp\.down)\.weight", report.culprits[0]), report.words()


def digits():
    g = torch.Generator().manual_seed(0)
    return [(torch.randn(16, 64, generator=g), torch.randint(10, (16,), generator=g)) for _ in range(3)]


def classify(model, batch):
    return F.cross_entropy(model(batch[0]), batch[1])


def images():
    g = torch.Generator().manual_seed(0)
    return [(torch.randn(8, 3, 8, 8, generator=g), torch.randint(10, (8,), generator=g)) for _ in range(3)]


OTHERS = {
    "mlp": (mlp_factory(inputs=64, outputs=10), dict(width=32), digits()),
    "resnet": (resnet_factory(blocks=(1, 1)), dict(width=8), images()),
}


@pytest.mark.parametrize("optimizer", ["adamw", "sgd"])
@pytest.mark.parametrize("model", OTHERS)
def test_planned_mlp_and_resnet_pass(model, optimizer):
    factory, base, batches = OTHERS[model]
    sizes = [base["width"] * k for k in (1, 2, 4)]
    report = check(factory, base, sizes, optimizer, batches, classify, "mup")
    assert report.ok, report.words()


@pytest.mark.parametrize("optimizer", ["adamw", "sgd"])
def test_a_planned_residual_mlp_passes_over_depth(optimizer):
    factory = mlp_factory(inputs=64, outputs=10, residual=True, norm="layernorm")
    report = check(factory, dict(width=32, depth=2), DEPTHS, optimizer, digits(), classify, "completep")
    assert report.ok, report.words()


@pytest.mark.parametrize("optimizer", ["adamw", "sgd"])
def test_standard_parametrization_fails(optimizer):
    factory, base, batches = OTHERS["mlp"]
    assert check(factory, base, WIDTHS, optimizer, batches, classify, "sp").verdict == "FAIL"
    assert gpt(gpt_factory(**GPT), sizes=WIDTHS, optimizer=optimizer, recipe="sp").verdict == "FAIL"
