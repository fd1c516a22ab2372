"""Noise: one σ means the same at every width, factor and placement; function-preserving noise preserves the function; copies part."""

import functools
import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import mutransfer as mt
from mutransfer.errors import InputError
from mutransfer.growth.axis import AxisMap
from mutransfer.growth.build import grow_plan
from mutransfer.growth.noise import KINDS, Noise, NoiseKind, apply_noise, is_gain, noise_of, noisy, noisy_moment
from mutransfer.growth.optimizer import grow_optimizer
from mutransfer.growth.tensors import GrowPlan, TensorGrowth
from mutransfer.growth.ties import tie_warning, tied
from mutransfer.growth.weights import grown
from mutransfer.plans import Row
from tests.growth import plan_of
from tests.growth_models import CASES


def net(width: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Linear(64, width, bias=False), nn.Tanh(), nn.Linear(width, width, bias=False), nn.Tanh(), nn.Linear(width, 64, bias=False)
    )  # fmt: skip


def grow_by_hand(small: nn.Module, big: nn.Module, growth: GrowPlan) -> None:
    ours, theirs = ({**dict(m.named_parameters()), **dict(m.named_buffers())} for m in (small, big))
    with torch.no_grad():
        for tensor in growth.tensors:
            theirs[tensor.name].copy_(grown(tensor, ours[tensor.source].detach()))


def models(make: Callable[[Any], nn.Module], base: Any, target: Any, x: Tensor, placement: str = "absorbed") -> tuple[Any, Any, GrowPlan]:  # fmt: skip
    torch.manual_seed(0)
    small, big = make(base).double(), make(target).double()
    plan = mt.plan(big, base=small, optimizer="adamw", placement=placement)
    growth = grow_plan(small, plan.attach(big), plan, batch=((x,), {}))
    grow_by_hand(small, big, growth)
    return small, big, growth


def apply(noise: Noise, big: nn.Module, growth: GrowPlan, seed: int = 0) -> tuple[str, ...]:
    return apply_noise(noise, growth, big.get_parameter, seed)


def row_of(growth: GrowPlan, tensor: TensorGrowth) -> Row | None:
    return None if tensor.row is None else growth.plan[tensor.row]


@functools.cache
def relative_changes(width: int, factor: int, placement: str = "absorbed") -> dict[tuple[NoiseKind, int], float]:
    """By kind and layer: RMS change of the layer's output over the RMS of that output, its own tensor alone noisy, σ = 0.1."""
    x = torch.randn(64, 64, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    _, big, growth = models(net, width, width * factor, x, placement)
    found = {}
    for layer in (0, 2, 4):
        tensor = growth.by_name[f"{layer}.weight"]
        with torch.no_grad():
            parameter = big.get_parameter(tensor.name)
            before, kept = big[: layer + 1](x), parameter.clone()
            for kind in KINDS:
                changes = []
                for seed in range(3):
                    parameter.copy_(noisy(Noise(0.1, kind), tensor, kept, seed, row_of(growth, tensor)))
                    changes.append(float((big[: layer + 1](x) - before).norm() / before.norm()))
                found[kind, layer] = sum(changes) / len(changes)
            parameter.copy_(kept)
    return found


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("layer", [0, 2, 4])
def test_sigma_means_the_same_at_every_width_and_factor(kind: NoiseKind, layer: int) -> None:
    """The slope of the change of a layer's output against width, and against the factor, is zero."""
    cells = [(w, k) for k in (2, 4, 8) for w in (32, 64, 128, 256, 512) if w * k <= 1024]
    changes = np.log([relative_changes(w, k)[kind, layer] for w, k in cells])
    design = np.array([[1, math.log(w), math.log(k)] for w, k in cells])
    found, *_ = np.linalg.lstsq(design, changes, rcond=None)
    spread = np.std(changes - design @ found, ddof=3) * np.sqrt(np.diag(np.linalg.inv(design.T @ design)))
    for slope, error in zip(found[1:], spread[1:], strict=True):
        assert error < 0.03 and abs(slope) < 3 * error + 0.02, f"{found[1:]} ± {spread[1:]}"


@pytest.mark.parametrize("kind", KINDS)
def test_sigma_means_the_same_wherever_multipliers_live(kind: NoiseKind) -> None:
    """Absorbed into the tensor, or carried by a hook: noise follows the tensor's own s."""
    absorbed, carried = (relative_changes(32, 4, p)[kind, 4] for p in ("absorbed", "multiplier"))
    assert absorbed == pytest.approx(carried, rel=1e-6)
    row, growth = a_row(), TensorGrowth("w", "w", (AxisMap(4, 8), AxisMap(6, 12)), (False, True), 0.5)
    w = torch.randn(8, 12, dtype=torch.float64)
    for t in (0.25, 3.0):
        gauged = replace(growth, scale=growth.scale * t)
        one, other = (
            noisy(Noise(0.1, kind), growth, w, 0, row) - w,
            noisy(Noise(0.1, kind), gauged, t * w, 0, row) - t * w,
        )
        torch.testing.assert_close(t * one, other)


def a_row(
    role: str = "hidden", kind: str = "Linear.weight", axes: tuple[str, ...] = ("out", "in"), **fields: Any
) -> Row:
    base = plan_of(CASES["mlp"], True, "adamw")["second.weight"]
    return replace(base, role=role, kind=kind, axes=axes, **fields)


def square(**fields: Any) -> TensorGrowth:
    return replace(TensorGrowth("w", "w", (AxisMap(32, 64), AxisMap(32, 64)), (False, True), 0.5, row="w"), **fields)


def test_sizes_are_what_the_formulas_say() -> None:
    w = grown(square(), torch.randn(32, 32, dtype=torch.float64))
    gaussian = noisy(Noise(0.1), square(), w, 0, a_row()) - w
    assert float(gaussian.std()) == pytest.approx(0.1 * 0.5 * 2 / 64**0.5, rel=0.05)
    relative = noisy(Noise(0.1, "relative"), square(), w, 0, a_row()) - w
    assert float(relative.std()) == pytest.approx(0.1 * 2**0.5 * float(w.square().mean().sqrt()), rel=0.05)
    spectral = noisy(Noise(0.1, "spectral"), square(), w, 0, a_row()) - w
    norms = [float(torch.linalg.matrix_norm(m, 2)) for m in (spectral, w)]
    assert norms[0] == pytest.approx(0.1 * norms[1], rel=0.05)


def test_spectral_noise_of_kernels_and_stacks() -> None:
    """A kernel is one matrix (out, in·taps); each expert of a stack is one of its own."""
    kernel = TensorGrowth("w", "w", (AxisMap(32, 64), AxisMap(16, 32), AxisMap(3, 3)), (False, True, True), row="w")
    w = torch.randn(64, 32, 3, dtype=torch.float64)
    noise = noisy(Noise(0.1, "spectral"), kernel, w, 0, a_row(axes=("out", "in", "kernel"))) - w
    ratio = torch.linalg.matrix_norm(noise.flatten(1), 2) / torch.linalg.matrix_norm(w.flatten(1), 2)
    assert float(ratio) == pytest.approx(0.1, rel=0.1)
    stack = TensorGrowth("w", "w", (AxisMap(3, 3), AxisMap(32, 64), AxisMap(40, 80)), (False, True, False), row="w")
    w = torch.randn(3, 64, 80, dtype=torch.float64) * torch.tensor([1.0, 10.0, 100.0]).view(3, 1, 1)
    noise = noisy(Noise(0.1, "spectral"), stack, w, 0, a_row(axes=("stack", "in", "out"))) - w
    ratios = torch.linalg.matrix_norm(noise, 2) / torch.linalg.matrix_norm(w, 2)
    torch.testing.assert_close(ratios, torch.full((3,), 0.1, dtype=torch.float64), rtol=0.1, atol=0)


# ---------------------------------------------------------------- function-preserving


HEADS = AxisMap.product(AxisMap(2, 4), AxisMap(4, 8))
FUSED = AxisMap.join(AxisMap(8, 16), AxisMap(4, 8))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("maps", "sums"),
    [
        ((AxisMap(4, 8), AxisMap(6, 18)), (False, True)),
        ((AxisMap(4, 8), HEADS), (False, True)),
        ((AxisMap(4, 4), FUSED), (False, True)),
        ((AxisMap(4, 8), AxisMap(6, 9)), (False, True)),
        ((AxisMap(4, 8), AxisMap(6, 12), AxisMap(3, 3)), (False, True, True)),
        ((AxisMap(4, 8), AxisMap(3, 6), AxisMap(5, 10)), (False, True, True)),
        ((AxisMap(6, 12), AxisMap(4, 8)), (True, False)),
    ],
    ids=["whole", "heads", "fused", "not whole", "kernel", "bilinear", "in first"],
)
def test_preserving_noise_gives_nothing_on_equal_copies(
    maps: tuple[AxisMap, ...], sums: tuple[bool, ...], kind: NoiseKind
) -> None:
    growth = TensorGrowth("w", "w", maps, sums, 0.5, row="w")
    w = grown(growth, torch.randn(growth.base_shape, dtype=torch.float64))
    row = a_row(axes=tuple("in" if s else "out" for s in sums))
    noise = noisy(Noise(0.3, kind, preserving=True), growth, w, 0, row) - w
    assert float(noise.abs().max()) > 1e-3
    x = torch.randn([m.base for m, s in zip(maps, sums, strict=True) if s], dtype=torch.float64)
    for axis, map_ in enumerate(m for m, s in zip(maps, sums, strict=True) if s):
        x = x.index_select(axis, map_.index())
    axes = [i for i, s in enumerate(sums) if s]
    out = torch.tensordot(noise, x, dims=(axes, list(range(x.ndim))))  # pyright: ignore[reportArgumentType] # lists of axes, which torch takes
    assert float(out.abs().max()) < 1e-13
    single = maps[axes[0]].copies() == 1
    assert not noise.index_select(axes[0], single.nonzero().flatten()).any(), (
        "a unit without a copy has nobody to part from"
    )


def test_preserving_noise_keeps_its_size() -> None:
    for factor in (2, 8):
        growth = TensorGrowth("w", "w", (AxisMap(64, 64), AxisMap(32, 32 * factor)), (False, True), row="w")
        noise = noisy(Noise(1.0, preserving=True), growth, torch.zeros(64, 32 * factor), 0, a_row())
        assert float(noise.std()) == pytest.approx((factor / 32) ** 0.5, rel=0.05)


PARTED = ["mlp", "cnn", "gpt, by heads", "gpt, by head size", "packed, by heads"]


@pytest.mark.parametrize("name", PARTED)
def test_preserving_noise_keeps_the_function_and_parts_the_copies(name: str) -> None:
    """Change at step 0 ≤ 1e-12 relative in float64; after 20 steps no two copies are equal; without noise they all are."""
    case, plan = CASES[name], plan_of(CASES[name], True, "adamw", "absorbed")
    generator = torch.Generator().manual_seed(0)
    inputs = [tuple(x.double() if x.is_floating_point() else x for x in case.inputs(generator)) for _ in range(20)]
    labels = torch.randint(5, (50,), generator=generator)

    def trained(noise: Noise) -> tuple[nn.Module, GrowPlan]:
        torch.manual_seed(0)
        small, big = case.make(**case.base).double(), plan.attach(case.make(**case.target).double())
        growth = grow_plan(small, big, plan, batch=(inputs[0], {}))
        with torch.no_grad():
            for p in small.parameters():
                p.add_(0.3 * torch.randn_like(p))
        grow_by_hand(small, big, growth)
        before = big(*inputs[0]).detach()
        apply(noise, big, growth)
        after = big(*inputs[0]).detach()
        assert float((after - before).abs().max() / before.abs().max()) <= 1e-12
        optimizer = plan.optimizer(big, lr=0.02)
        for x in inputs:
            optimizer.zero_grad()
            outputs = big(*x).flatten(0, -2)
            F.cross_entropy(outputs, labels[: len(outputs)]).backward()
            optimizer.step()
        return big, growth

    big, growth = trained(Noise(0.3, preserving=True))
    for tensor in growth.tensors:
        if not tensor.buffer and tensor.name.endswith("weight") and len(tensor.maps) > 1:
            assert not tied(big, replace(growth, tensors=(tensor,)), 1e-4), f"copies in {tensor.name} did not part"
    big, growth = trained(Noise())
    assert len(tied(big, growth, 1e-6)) >= sum(any(m.grows for m in t.maps) for t in growth.tensors if not t.buffer)


# ---------------------------------------------------------------- who gets noise


def test_gains_and_running_statistics_are_never_noise() -> None:
    """A published system takes BatchNorm's gains for weights; here nothing of a norm changes, even with noise on vectors."""
    case, plan = CASES["cnn"], plan_of(CASES["cnn"], True, "adamw", "absorbed")
    small, big = case.make(**case.base), case.make(**case.target)
    x = case.inputs(torch.Generator().manual_seed(0))
    growth = grow_plan(small, big, plan, batch=(x, {}))
    grow_by_hand(small, big, growth)
    before = {name: t.clone() for name, t in big.state_dict().items()}
    apply(Noise(0.1, roles={"vector": 1.0}), big, growth)
    same = {name for name, t in big.state_dict().items() if torch.equal(t, before[name])}
    assert same == {
        n for n in before if "running" in n or "num_batches" in n or n in ("bn1.weight", "bn2.weight", "head.bias")
    }


def test_what_is_a_gain() -> None:
    rows = {
        name: plan_of(CASES[case], True, "adamw")[name]
        for case, name in [
            ("normed mlp", "norm.weight"), ("normed mlp", "norm.bias"), ("normed mlp", "norm2.weight"), ("mlp", "first.bias"),
            ("by hand", "slope.weight"), ("gains stored less one", "norm_f.weight"), ("class token, by heads", "layer_scale"),
        ]
    }  # fmt: skip
    assert {name for name, row in rows.items() if is_gain(row)} == set(rows) - {"norm.bias", "first.bias"}


def test_roles_and_what_does_not_grow() -> None:
    w = torch.randn(64, 64)
    for role, noise in [("hidden", Noise(0.1, roles={"hidden": 0})), ("vector", Noise(0.1)), ("scalar", Noise(0.1))]:
        assert noisy(noise, square(), w, 0, a_row(role)) is w
    double = noisy(Noise(0.1, roles={"hidden": 2.0}), square(), w, 0, a_row()) - w
    torch.testing.assert_close(double, 2 * (noisy(Noise(0.1), square(), w, 0, a_row()) - w), rtol=1e-3, atol=1e-5)
    still = square(maps=(AxisMap(64, 64), AxisMap(64, 64)))
    for growth, row in [(still, a_row()), (square(fresh="zero"), a_row()), (square(row=None), None)]:
        assert noisy(Noise(0.1), growth, w, 0, row) is w
    table = square(sums=(False, False))
    assert noisy(Noise(0.1), table, w, 0, a_row("input", "Embedding.weight", ("lookup", "out"))) is not w


def test_a_table_gets_noise_at_its_own_scale() -> None:
    """An embedding of std 0.02 is not drowned by noise of std σ/√1."""
    table = TensorGrowth("w", "w", (AxisMap(50, 50), AxisMap(16, 64)), (False, False), row="w")
    w = 0.02 * torch.randn(50, 64)
    noise = noisy(Noise(0.1), table, w, 0, a_row("input", "Embedding.weight", ("lookup", "out"))) - w
    assert float(noise.std()) == pytest.approx(0.002, rel=0.1)


def test_any_order_and_type_gives_the_same_noise() -> None:
    w = torch.randn(64, 64)
    torch.manual_seed(1)
    state = torch.get_rng_state()
    first = noisy(Noise(0.1), square(), w, 5, a_row())
    noisy(Noise(0.1), square(name="other"), w, 5, a_row())
    assert torch.equal(first, noisy(Noise(0.1), square(), w, 5, a_row()))
    assert torch.equal(torch.get_rng_state(), state)
    assert not torch.equal(first, noisy(Noise(0.1), square(), w, 6, a_row()))
    assert not torch.equal(first, noisy(Noise(0.1), square(name="other"), w, 5, a_row()))
    exact = noisy(Noise(0.1), square(), w.double(), 5, a_row())
    torch.testing.assert_close(first.double(), exact, rtol=1e-6, atol=1e-7)
    coarse = noisy(Noise(0.1), square(), w.bfloat16(), 5, a_row())
    assert coarse.dtype == torch.bfloat16
    torch.testing.assert_close(coarse.double(), exact, rtol=0.02, atol=0.01)


def test_noise_that_is_rounded_away_or_impossible_is_told() -> None:
    x = torch.randn(4, 64, dtype=torch.float64)
    _, big, growth = models(net, 32, 64, x)
    assert apply(Noise(0.1), big, growth) == ()
    (left,) = apply(Noise(0.1, preserving=True), big, growth)
    assert left == "no function-preserving noise exists for 0.weight: no axis that they sum over grows"
    (lost,) = apply(Noise(1e-4), big.bfloat16(), growth)
    assert lost.startswith(
        "noise gaussian:0.0001 is below the rounding of most numbers of 0.weight (bfloat16), 2.weight"
    )


# ---------------------------------------------------------------- moments and ties


def test_noise_on_moments_parts_copies_of_equal_weights() -> None:
    m = torch.randn(64, 64)
    noise = Noise(moments=0.1)
    first, second = (
        noisy_moment(noise, square(), v, key, 0, a_row()) for v, key in ((m, "exp_avg"), (m.square(), "exp_avg_sq"))
    )
    assert torch.equal(first.sign(), m.sign()) and bool((second > 0).all())
    assert float((first / m).log().std()) == pytest.approx(0.1, rel=0.05)
    assert float((first / m).mean()) == pytest.approx(1.0, abs=0.01)
    assert not torch.allclose(first / m, second / m.square())
    step = torch.tensor(3.0)
    assert noisy_moment(noise, square(), step, "step", 0, a_row()) is step
    assert noisy_moment(noise, square(), m, "exp_avg", 0, a_row("vector", "LayerNorm.weight")) is m
    assert noisy_moment(noise, square(row=None), m, "exp_avg", 0, None) is m


def test_ties_are_found_in_weights_and_moments() -> None:
    x = torch.randn(8, 64, dtype=torch.float64)
    small, big, growth = models(net, 8, 16, x)
    optimizer = torch.optim.Adam(small.parameters())
    small(x).square().mean().backward()
    optimizer.step()
    grow_by_hand(small, big, growth)
    made = grow_optimizer(optimizer, small, big, growth)
    assert tied(big, growth, optimizer=made) == ("0.weight axis 0 (8→16)", "2.weight axis 0 (8→16)",
                                                 "2.weight axis 1 (8→16)", "4.weight axis 1 (8→16)")  # fmt: skip
    warning = tie_warning(big, growth, optimizer=made)
    assert warning.startswith("the copies are equal in all 4 axes that grew") and warning.endswith(
        "break the tie with noise=0.05"
    )
    moment = made.state[big.get_parameter("2.weight")]["exp_avg"]
    moment.copy_(
        noisy_moment(Noise(moments=0.1), growth.by_name["2.weight"], moment, "exp_avg", 0, growth.plan["2.weight"])
    )
    assert tied(big, growth, optimizer=made) == ("0.weight axis 0 (8→16)", "4.weight axis 1 (8→16)")
    assert tie_warning(big, growth, optimizer=made) == "" and tie_warning(big, growth) != ""
    assert tied(small, replace(growth, tensors=())) == () and tie_warning(small, replace(growth, tensors=())) == ""


# ---------------------------------------------------------------- words


def test_noise_of_words() -> None:
    assert noise_of(0.05) == noise_of("0.05") == noise_of("gaussian:0.05") == noise_of(Noise(0.05)) == Noise(0.05)
    assert noise_of("relative:0.05") == Noise(0.05, "relative")
    assert noise_of("spectral: 1e-1:preserving") == Noise(0.1, "spectral", preserving=True)
    everything = noise_of("gaussian:0.05:preserving:moments=0.1:hidden=2:input=0")
    assert everything == Noise(0.05, "gaussian", True, 0.1, {"hidden": 2.0, "input": 0.0})
    assert noise_of(str(everything)) == everything
    assert noise_of("moments=0.1") == Noise(moments=0.1)
    assert noise_of(0.05) and noise_of("moments=0.1") and not noise_of(0) and not noise_of("0.0")


@pytest.mark.parametrize(
    ("given", "words"),
    [
        (-0.1, "size=-0.1"), (math.nan, "size=nan"), (math.inf, "size=inf"), (True, "noise=True"), (None, "noise=None"),
        ("-0.1", "size=-0.1"), ("nan", "size=nan"), ("uniform:0.1", "noise kind 'uniform': write one of gaussian, relative, spectral"),
        ("gaussian", "says no size"), ("0.1:0.2", "size is said twice"), ("0.1:0.2x", "is no number|said twice"), ("0.1x", "'0.1x' is no number"),
        ("0.1:heads=2", "noise for role 'heads': the roles are input, hidden, output, vector"), ("0.1:moments=-1", "moments=-1"),
        ("", "is no number"), ("relative:spectral:0.1", "kind is said twice"),
    ],
)  # fmt: skip
def test_noise_of_nonsense(given: Any, words: str) -> None:
    with pytest.raises(InputError, match=words):
        noise_of(given)
