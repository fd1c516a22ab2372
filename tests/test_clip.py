"""The clipping norm means the same at every size and wherever a multiplier lives; torch's does not (theory §4, §6)."""

import math

import pytest
import torch
from torch import nn

import mutransfer as mt
from mutransfer.models import gpt_factory, mlp_factory
from tests.plan_cases import FACTORIES, SIZES, build, loss, widen

SEEDS = 3


@pytest.mark.parametrize("model_name", FACTORIES)
@pytest.mark.parametrize("max_norm", [0.01, 1e3])
def test_at_ratio_one_it_is_torchs_own_bit_for_bit(model_name: str, max_norm: float) -> None:
    make, sizes = FACTORIES[model_name], SIZES[model_name]
    plan = mt.plan(make, base=sizes, target=sizes)
    ours, theirs = build(make, sizes), build(make, sizes)
    for model in (ours, theirs):
        loss(model, 0).backward()
    found = plan.clip_grad_norm_(ours, max_norm)
    assert torch.equal(found, nn.utils.clip_grad_norm_(theirs.parameters(), max_norm))
    assert all(torch.equal(a.grad, b.grad) for a, b in zip(ours.parameters(), theirs.parameters(), strict=True))


def slope(sizes: list[int], norms: list[float]) -> float:
    """Least squares of log norm against log size."""
    x = torch.tensor(sizes, dtype=torch.float64).log()
    y = torch.tensor(norms, dtype=torch.float64).log()
    x = x - x.mean()
    return float((x * y).sum() / (x * x).sum())


def norms(
    make, base: dict, key: str, sizes: list[int], recipe: str, placement: str, optimizer: str = "adamw"
) -> tuple[float, float]:
    """Slopes over `key` of the plan's norm and of torch's, after a few steps of training, averaged over seeds."""
    ours, theirs = [], []
    for size in sizes:
        target = base | {key: size}
        plan = mt.plan(make, base=base, target=target, recipe=recipe, placement=placement, optimizer=optimizer)
        sums = [0.0, 0.0]
        for seed in range(SEEDS):
            model = plan.initialize(build(make, target, seed=seed))
            optim = plan.optimizer(model, lr=2e-3)
            for step in range(3):
                optim.zero_grad()
                loss(model, 10 * seed + step).backward()
                optim.step()
            optim.zero_grad()
            loss(model, 77 + seed).backward()
            sums[0] += math.log(float(plan.clip_grad_norm_(model, 1e9)))
            sums[1] += math.log(float(nn.utils.get_total_norm([p.grad for p in model.parameters()])))
        ours.append(math.exp(sums[0] / SEEDS))
        theirs.append(math.exp(sums[1] / SEEDS))
    return slope(sizes, ours), slope(sizes, theirs)


WIDE = {
    "gpt": (gpt_factory(vocab_size=17, context=8, head_size=8, init_std=0.02), dict(width=32, depth=2)),
    "mlp": (mlp_factory(inputs=12, outputs=5, residual=True, norm="layernorm"), dict(width=32, depth=2)),
}


@pytest.mark.parametrize("placement", ["absorbed", "multiplier"])
@pytest.mark.parametrize("model_name", WIDE)
def test_over_width_the_norm_stays_and_torchs_leaves(model_name: str, placement: str) -> None:
    """An absorbed head's gradient grows like √N and comes to dominate torch's norm; as a multiplier it shrinks with the rest."""
    make, base = WIDE[model_name]
    ours, theirs = norms(make, base, "width", [32, 64, 128, 256], "mup", placement)
    assert abs(ours) < 0.15
    assert (theirs > 0.15) if placement == "absorbed" else (theirs < -0.15)


@pytest.mark.parametrize("placement", ["absorbed", "multiplier"])
@pytest.mark.parametrize("model_name", WIDE)
def test_over_depth_the_norm_stays_and_torchs_leaves_if_absorbed(model_name: str, placement: str) -> None:
    make, base = WIDE[model_name]
    ours, theirs = norms(make, base, "depth", [2, 4, 8, 16], "completep", placement)
    assert abs(ours) < 0.15
    assert theirs > 0.15 or placement == "multiplier"


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_copying_every_neuron_leaves_the_norm_exactly(optimizer: str) -> None:
    """theory §6: W' = s·dup(W), s = 1/(a·c), G' = g·dup(G), g = c/b: the norm divided by its expectation is the same number."""
    make = mlp_factory(inputs=12, outputs=5, depth=2)
    small, k = build(make, dict(width=8)).double(), 4
    with torch.no_grad():
        for p in small.parameters():
            p.mul_(2).add_(0.1 * torch.randn(p.shape, generator=torch.Generator().manual_seed(0)))
    big = make(width=8 * k).double()
    widen(small, big, k)
    for placement in ("multiplier", "absorbed"):
        plan = mt.plan(make, base=dict(width=8), target=dict(width=8 * k), placement=placement, optimizer=optimizer)
        identity = mt.plan(make, base=dict(width=8), target=dict(width=8), optimizer=optimizer)
        plan.attach(big)
        if placement == "absorbed":
            big.head._forward_pre_hooks.clear()
            big.head.weight.data.div_(k)
        values = []
        for model, its_plan in ((small, identity), (big, plan)):
            model.zero_grad()
            value = loss(model, 1)
            value.backward()
            values.append((value.item(), float(its_plan.clip_grad_norm_(model, 1e9))))
        assert values[0] == pytest.approx(values[1], rel=1e-12)


def test_it_clips_all_gradients_by_one_factor_and_leaves_small_ones() -> None:
    make = FACTORIES["gpt"]
    plan = mt.plan(make, base=dict(width=16), target=dict(width=32))
    model = build(make, dict(width=32))
    assert float(plan.clip_grad_norm_(model, 1.0)) == 0.0  # no gradients at all
    loss(model, 0).backward()
    before = [p.grad.clone() for p in model.parameters()]
    norm = plan.clip_grad_norm_(model, 1e6)
    assert all(torch.equal(a, p.grad) for a, p in zip(before, model.parameters(), strict=True))
    plan.clip_grad_norm_(model, float(norm) / 10)
    factors = [float(p.grad.norm() / a.norm()) for a, p in zip(before, model.parameters(), strict=True)]
    assert factors == pytest.approx([0.1] * len(factors), rel=1e-5)
    assert float(plan.clip_grad_norm_(model, 1e6)) == pytest.approx(float(norm) / 10, rel=1e-4)
