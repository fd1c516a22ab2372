"""Static random sparsity: the rules of the density, and masks that hold whatever the optimizer does."""

import copy
import io
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import mutransfer as mt
from mutransfer import sparsity
from mutransfer.optimizers import facts_for
from tests.plan_cases import Lion, build
from tests.recipes.models import AXES, NanoGPT, stacked_moe, train

BASE, TARGET = dict(width=32, depth=1), dict(width=96, depth=1)
MATRICES = [f"h.0.{path}.weight" for path in ("attn.c_attn", "attn.c_proj", "mlp.c_fc", "mlp.c_proj")]


def planned(optimizer: Any = "adamw", density: Any = 0.25, target: dict[str, int] = TARGET, **options: Any) -> mt.Plan:
    return mt.plan(
        NanoGPT,
        base=BASE,
        target=target,
        optimizer=optimizer,
        density=density,
        recipe=options.pop("recipe", "mup"),
        **options,
    )


@pytest.mark.parametrize("density", [0.5, 0.25, 0.3])
def test_the_numbers_of_the_paper(density: float) -> None:
    """2405.15743 Table 1 and appendix D: σ/√(N·ρ); Adam 1/(N·ρ), SGD 1/ρ times the dense LR; the element of G is what it was."""
    for optimizer, lr in (("adamw", 1 / (3 * density)), ("sgd", 1 / density)):
        plan, dense = planned(optimizer, density), planned(optimizer, None)
        for row in plan.rows:
            before = dense[row.name].ratios
            if row.name not in MATRICES:
                assert row.ratios == before and row.density == 1
                continue
            r = row.ratios
            assert r.std == pytest.approx((3 * density) ** -0.5) and row.density == density
            assert r.lr == pytest.approx(lr) and r.lr * r.decay == pytest.approx(1)
            assert r.gradient == pytest.approx(before.gradient * density**0.5) and r.eps == before.eps
    assert f"density ρ ×{density:g}" in str(planned(density=density))


def test_it_follows_the_ratio_of_densities_and_keeps_what_is_kept_per_weight() -> None:
    """Iso-WPN: N times the width at 1/N the density is no change at all; and two steps of thinning are one."""
    r = planned(density=1 / 3)[MATRICES[0]].ratios
    assert (r.std, r.lr, r.decay) == pytest.approx((1, 1, 1))
    first, second, whole = (planned(density=d, target=t)[MATRICES[2]].ratios
                            for d, t in (((1, 0.5), BASE), ((0.5, 0.25), TARGET), ((1, 0.25), TARGET)))  # fmt: skip
    assert whole.lr == pytest.approx(first.lr * second.lr) and whole.std == pytest.approx(first.std * second.std)
    assert planned(density=(0.25, 0.25), target=BASE)[MATRICES[0]].ratios.lr == 1


@pytest.mark.parametrize("density", [0.5, 0.25, 1 / 16])
def test_forward_gradient_and_first_step_do_not_depend_on_the_density(density: float) -> None:
    """What the rules are for, measured on one layer: output, its change by a step, and ‖G ⊙ M‖ as the plan expects it."""
    make = lambda width: nn.Sequential(nn.Linear(8, width), nn.Linear(width, width, bias=False), nn.Linear(width, 3))  # noqa: E731
    sizes, found = dict(width=512), {}
    for rho in (None, density):
        plan = mt.plan(make, base=dict(width=64), target=sizes, density=rho)
        model = plan.initialize(build(make, sizes), seed=1)
        layer = model.get_submodule("1")
        x = torch.randn(64, 512, generator=torch.Generator().manual_seed(0)).abs()
        model(torch.randn(64, 8)).sum().backward()
        model.zero_grad()
        out = layer(x)
        (out * torch.sign(torch.arange(512) % 7 - 3.5)).sum().backward()
        gradient = model.get_parameter("1.weight").grad
        assert gradient is not None
        norm = float(gradient.norm()) / plan["1.weight"].ratios.gradient
        plan.optimizer(model, lr=1e-3, weight_decay=0.0).step()
        found[rho] = (out.std().item(), norm, (layer(x) - out).abs().mean().item())
    assert found[density] == pytest.approx(found[None], rel=0.15)


def test_a_matrix_optimizers_rate_lies_between_the_norm_and_the_aligned_part_of_its_masked_step() -> None:
    """‖UVᵀ ⊙ M‖₂ ≈ 2√ρ, uᵀ(uvᵀ ⊙ M)v = ρ: the LR takes √ρ."""
    q = torch.linalg.qr(torch.randn(512, 512, generator=torch.Generator().manual_seed(0)))[0]
    u = torch.ones(512) / 512**0.5
    for rho in (0.25, 1 / 16):
        mask = sparsity.mask((512, 512), rho, 0, "w", q.device)
        assert float(torch.linalg.matrix_norm(q * mask, 2)) == pytest.approx(2 * rho**0.5, rel=0.06)
        assert float(u @ (torch.outer(u, u) * mask) @ u) == pytest.approx(rho)
    for name in ("muon-kimi", "muon", "shampoo"):
        thin, dense = (planned(name, d)[MATRICES[0]].ratios for d in (0.25, None))
        assert thin.lr == pytest.approx(2 * dense.lr) and thin.std == pytest.approx(2 * dense.std)
        assert thin.eps is not None and dense.eps is not None
        assert thin.eps == pytest.approx(dense.eps * {"frobenius": 0.5, "outer": 0.25}[facts_for(name).eps_kind or ""])


def values(model: nn.Module) -> list[torch.Tensor]:
    return [model.get_parameter(name)[~sparsity.masked(model, name)[1]] for name in MATRICES]


@pytest.mark.parametrize("optimizer", ["adamw", "sgd", "adam", Lion, "muon-kimi"])
def test_masked_weights_stay_zero_after_every_step(optimizer: Any) -> None:
    """With decay, and under a matrix optimizer, whose step fills every entry."""
    plan = planned(optimizer, 0.25)
    model = plan.initialize(build(NanoGPT, TARGET))
    made = plan.optimizer(model, lr=2**-7, weight_decay=0.1)
    for name in MATRICES:
        mask = sparsity.masked(model, name)[1]
        assert int(mask.sum()) == round(0.25 * mask.numel())
    losses = train(model, made, 6, plan)
    assert all(bool((part == 0).all()) for part in values(model)) and math.isfinite(sum(losses))
    assert all(bool(model.get_parameter(n)[sparsity.masked(model, n)[1]].all()) for n in MATRICES)
    plan.verify(made, model)
    model.get_parameter(MATRICES[0]).data.fill_(1.0)
    with pytest.raises(mt.InputError, match=r"'h.0.attn.c_attn.weight' holds numbers where its mask is zero"):
        plan.verify(made, model)


def test_a_users_own_optimizer_is_masked_at_the_next_forward() -> None:
    plan = planned("muon-kimi", 0.25)
    model = plan.initialize(build(NanoGPT, TARGET))
    groups = plan.groups(model, lr=0.01)
    plain = torch.optim.SGD([{"params": g["params"], "lr": g["lr"]} for g in groups])
    train(model, plain, 2)
    with torch.no_grad():
        model.get_parameter(MATRICES[0]).add_(1.0)
    train(model, plain, 1)
    assert all(bool((part == 0).all()) for part in values(model))


def test_masks_are_seeded_and_live_in_the_state_dict(tmp_path: Path) -> None:
    plan = planned(density=0.25)
    models = [plan.initialize(build(NanoGPT, TARGET), seed=seed) for seed in (0, 0, 1)]
    masks = [sparsity.masked(model, MATRICES[0])[1] for model in models]
    assert torch.equal(masks[0], masks[1]) and not torch.equal(masks[0], masks[2])
    state = models[2].state_dict()
    assert {f"{name}_mask" for name in MATRICES} <= set(state)
    plan.save(tmp_path / "plan.json")
    plan = mt.Plan.load(tmp_path / "plan.json")
    fresh = plan.attach(build(NanoGPT, TARGET))
    fresh.load_state_dict(state)
    train(fresh, plan.optimizer(fresh, lr=2**-7), 2)
    assert torch.equal(sparsity.masked(fresh, MATRICES[0])[1], masks[2]) and all(
        bool((p == 0).all()) for p in values(fresh)
    )


def test_copies_and_pickles_keep_their_masks() -> None:
    """The same run in the model, in a deep copy and in one that went through a file."""
    plan = planned("adamw", 0.25)
    model = plan.initialize(build(NanoGPT, TARGET))
    train(model, plan.optimizer(model, lr=2**-7), 1)
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    others = [copy.deepcopy(model), torch.load(file, weights_only=False)]
    want = train(model, plan.optimizer(model, lr=2**-7), 3)
    for other in others:
        assert train(other, plan.optimizer(other, lr=2**-7), 3) == want
        assert all(bool((part == 0).all()) for part in values(other))


@pytest.mark.parametrize("optimizer", ["adamw", "muon-kimi"])
def test_stacked_experts_are_sparse_and_their_router_is_not(optimizer: str) -> None:
    plan = mt.plan(stacked_moe, base=BASE, target=TARGET, axes=AXES, density=0.5, optimizer=optimizer)
    assert {row.name for row in plan.rows if row.density < 1} == {
        "blocks.0.attn.c_attn.weight", "blocks.0.attn.c_proj.weight", "blocks.0.moe.w_in", "blocks.0.moe.w_out",
    }  # fmt: skip
    model = plan.initialize(build(stacked_moe, TARGET))
    train(model, plan.optimizer(model, lr=2**-8, weight_decay=0.1), 3)
    weight, mask = sparsity.masked(model, "blocks.0.moe.w_out")
    assert not bool(weight[~mask].any()) and int(mask.sum()) == mask.numel() // 2


def test_bad_densities_are_one_clear_line() -> None:
    for wrong in (0, 1.5, "half", (0.5,), True, (0.5, 0)):
        with pytest.raises(mt.InputError, match=r"density=.*: write the fraction of weights to keep"):
            planned(density=wrong)
    with pytest.raises(mt.InputError, match=r"recipe='sp' scales nothing"):
        planned(recipe="sp")
    plan = planned(density=0.5)
    model = plan.initialize(build(NanoGPT, TARGET))
    with pytest.raises(mt.InputError, match=r"is masked already: .*redraw=True"):
        plan.initialize(model)
    assert plan.initialize(model, redraw=True) is model
    with torch.device("meta"):
        empty = NanoGPT(width=96, depth=1)
    with pytest.raises(mt.InputError, match=r"on the meta device: its mask needs the whole tensor"):
        plan.attach(empty)
    plan.verify(plan.optimizer(plan.initialize(empty), lr=0.1), empty)
