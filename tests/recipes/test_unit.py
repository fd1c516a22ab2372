"""The unit-scaled gauge: std 1 and multipliers in the forward, and the same training path as the absorbed one."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

import mutransfer as mt
from mutransfer.models import gpt_factory, mlp_factory, resnet_factory
from tests.plan_cases import build, loss, train
from tests.recipes import models

OPTIMIZERS: dict[str, dict[str, Any]] = {
    "adamw": dict(lr=2**-7, weight_decay=0.1, eps=1e-4),
    "sgd": dict(lr=0.05, weight_decay=0.01),
    "adam": dict(lr=2**-7, weight_decay=0.1, eps=1e-4),
    "muon-kimi": dict(lr=0.02, weight_decay=0.1),
}
GPT = dict(vocab_size=17, context=8, head_size=8, init_std=0.125)
SIZES = dict(base=dict(width=16, depth=1), target=dict(width=64, depth=4))


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize(
    "model", [dict(), dict(tied=True), dict(norm="rmsnorm", norm_gain=False, bias=True)], ids=["gpt", "tied", "biases"]
)
def test_unit_scaled_and_absorbed_train_bit_for_bit_the_same(model: dict[str, Any], optimizer: str) -> None:
    """With σ, N and L powers of four the gauge moves powers of two only; every weight then has std 1."""
    make, runs = gpt_factory(**{**GPT, **model}), []
    for placement in ("unit", "absorbed"):
        plan = mt.plan(make, **SIZES, recipe="completep", optimizer=optimizer, placement=placement)  # pyright: ignore[reportArgumentType]
        net = plan.initialize(build(make, SIZES["target"]).double())
        if placement == "unit":
            assert all(abs(p.std().item() - 1) < 0.2 for p in net.parameters() if p.ndim > 1)
        loss(net, 99).backward()
        norm = float(plan.clip_grad_norm_(net, 1e9))
        made = plan.optimizer(net, **OPTIMIZERS[optimizer])
        runs.append((norm, train(net, made, 8)))
        plan.verify(made, net)
    assert runs[0] == runs[1]


@pytest.mark.parametrize("recipe", ["u-mup", "depth-mup"])
@pytest.mark.parametrize("make", [models.NanoGPT, models.MoEGPT], ids=["fused", "mixture"])
def test_any_sigma_and_ratio_to_rounding(make: Callable[..., nn.Module], recipe: str) -> None:
    """Not powers of two: float64 to 1e-10; u-μP's gauge is depth-μP's up to its one departure, the LR of embeddings."""
    sizes: dict[str, Any] = dict(base=dict(width=32, depth=1), target=dict(width=96, depth=2))
    runs = []
    for placement in ("unit", "absorbed", "multiplier"):
        plan = mt.plan(make, recipe=recipe, placement=placement, **sizes)
        net = plan.initialize(build(make, sizes["target"]).double())
        runs.append(models.train(net, plan.optimizer(net, lr=2**-7, weight_decay=0.1, eps=1e-4), 4, plan))
    assert runs[0] == pytest.approx(runs[1], rel=1e-10) and runs[2] == pytest.approx(runs[1], rel=1e-10)


def test_u_mup_departs_from_depth_mup_in_the_embeddings_rate_alone() -> None:
    unit, depth = (
        mt.plan(
            models.NanoGPT, base=dict(width=32, depth=1), target=dict(width=96, depth=5), recipe=r, placement="absorbed"
        )
        for r in ("u-mup", "depth-mup")
    )
    for row in unit.rows:
        other = depth[row.name].ratios
        f = 3**-0.5 if row.name in ("wte.weight", "wpe.weight") else 1.0
        assert (row.ratios.lr, row.ratios.decay, row.ratios.std, row.ratios.eps) == pytest.approx(
            (other.lr * f, other.decay / f, other.std, other.eps)
        )


class Bare(nn.Module):
    """A bare matrix, and MultiheadAttention, whose projections no hook of their own can reach."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.inside, self.w = nn.Linear(3, width), nn.Parameter(torch.randn(width, width) * width**-0.5)
        self.attn, self.out = nn.MultiheadAttention(width, 2, batch_first=True), nn.Linear(width, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.inside(x) @ self.w
        return self.out(self.attn(x, x, x)[0])


@pytest.mark.parametrize("make", [
    mlp_factory(inputs=12, outputs=5, depth=2), resnet_factory(classes=5, blocks=(1, 1)),
], ids=["mlp", "resnet"])  # fmt: skip
def test_other_models_keep_their_function(make: Callable[..., nn.Module]) -> None:
    losses = []
    for placement in ("unit", "absorbed"):
        plan = mt.plan(make, base=dict(width=8), target=dict(width=24), placement=placement)
        net = plan.initialize(build(make, dict(width=24)).double())
        losses.append(train(net, plan.optimizer(net, lr=1e-3), 2))
    assert losses[0] == pytest.approx(losses[1], rel=1e-8)


def test_what_no_forward_of_its_own_takes_stays_and_says_so() -> None:
    plan = mt.plan(
        Bare, base=dict(width=8), target=dict(width=32), placement="unit", head_size=(4, 4), axes={"w": "in out"}
    )
    net, other = (p.initialize(build(Bare, dict(width=32)).double()) for p in
                  (plan, mt.plan(Bare, base=dict(width=8), target=dict(width=32), head_size=(4, 4), axes={"w": "in out"})))  # fmt: skip
    x = torch.randn(2, 3, 3, generator=torch.Generator().manual_seed(0)).double()
    assert torch.allclose(net(x), other(x), rtol=1e-10)
    text = " ".join(str(plan).split())
    assert "not unit-scaled: no forward pass of its own takes w" in text and "takes attn.in_proj_weight" in text
