"""What every optimizer declares is what its class does: operator norms of real steps, degree, eps, decay, dependence on ‖W‖."""

import math
from fractions import Fraction
from typing import Any

import pytest
import torch

from benchmarks.optimizer_checks import SHAPES, gradients, norm_ratios, raw_steps, runnable
from mutransfer.optimizers import REGISTRY, SQUARED_NORMS, optimizer_class
from mutransfer.optimizers.classes import known_class
from mutransfer.rules import Fan, solve

CERTAIN = [name for name in runnable() if REGISTRY[name].certain]
WITHIN = 0.15


def spread(values: list[float]) -> float:
    middle = math.exp(sum(map(math.log, values)) / len(values))
    return max(max(values) / middle, middle / min(values)) - 1


@pytest.mark.parametrize("name", CERTAIN)
def test_operator_norms_of_real_steps_follow_the_declared_formula(name: str) -> None:
    """Up to one constant per optimizer ‖A‖₂ is the formula, on wide, tall and square gradients of low rank plus noise.

    The constant is what a sign of noisy elements, or five Newton–Schulz steps, leave of 1; it is the same for every size.
    """
    first, later = norm_ratios(name, 0), norm_ratios(name, 5)
    assert spread(first) < WITHIN and spread(later) < WITHIN
    assert 0.4 < first[0] < 6.5


@pytest.mark.parametrize("name", CERTAIN)
@pytest.mark.parametrize("scale", [2.0**-12, 2.0**12])
def test_the_formula_holds_at_any_size_of_the_gradient(name: str, scale: float) -> None:
    """The degree p: SGD's step follows the gradient (its formula is ‖G‖₂), any other stays what it was."""
    small = {"eps": 1e-14} if REGISTRY[name].eps_kind and has_eps(name) else {}
    grads = gradients((48, 24), 3)
    at_one, scaled = (raw_steps(name, [t * g for g in grads], **small)[-1] for t in (1.0, scale))
    assert torch.allclose(
        scaled, scale ** REGISTRY[name].degree * at_one, rtol=1e-2, atol=1e-2 * float(scaled.abs().max())
    )


@pytest.mark.parametrize("name", CERTAIN)
@pytest.mark.parametrize("t", [0.25, 16.0])
def test_the_step_follows_the_weights_as_declared(name: str, t: float) -> None:
    """A(G, tW) = t^q A(G, W)."""
    start = torch.randn(48, 24, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    grads = gradients((48, 24), 2)
    small = {"lr": 1e-9}
    reference, moved = (raw_steps(name, grads, start=w, **small)[-1] for w in (start, t * start))
    ratio = float(torch.linalg.vector_norm(moved) / torch.linalg.vector_norm(reference))
    assert ratio == pytest.approx(t ** REGISTRY[name].weight, rel=1e-4)


EPS_LAWS = {  # how eps must follow G ⊗ 1ₖₓₖ: elements stay, ‖G‖_F is k times as large, G·Gᵀ k² times
    "element": lambda k: 1.0,
    "frobenius": lambda k: float(k),
    "outer": lambda k: float(k * k),
}


def has_eps(name: str) -> bool:
    return REGISTRY[name].eps_kind is not None and name != "adafactor"


@pytest.mark.parametrize("name", [name for name in CERTAIN if has_eps(name)])
def test_eps_is_added_to_what_is_declared(name: str) -> None:
    """A large eps scaled by its law leaves the step alone, on k×k copies of a gradient and on t times the gradient; another law does not.

    Adafactor's eps₁ is a clamp far below any gradient and has no such regime.
    """
    facts, (g,) = REGISTRY[name], gradients((12, 8), 1, noise=0.0, rank=8)
    kind = facts.eps_kind
    assert kind is not None
    # five Newton–Schulz steps undo any eps up to about 500 ‖G‖
    eps = {"element": 0.3, "frobenius": 4000.0 * float(g.norm()), "outer": float((g @ g.T).norm())}[kind]
    eps = 1e-2 if name == "lamb" else eps  # it stands beside the √v of a first step, 0.03·|G|

    def size(gradient: torch.Tensor, eps: float) -> float:
        start = torch.ones(gradient.shape, dtype=torch.float64)
        step = raw_steps(name, [gradient], start=start, eps=eps)[0]
        rows, columns = gradient.shape
        return float(torch.linalg.vector_norm(step)) / math.sqrt(
            SQUARED_NORMS[facts.norm](Fraction(columns), Fraction(rows))
        )

    reference = size(g, eps)
    copies = torch.kron(g, torch.ones(2, 2, dtype=torch.float64))
    assert size(copies, eps * EPS_LAWS[kind](2)) == pytest.approx(reference, rel=2e-2)
    power = 16 if kind == "outer" else 4
    assert size(g / 4, eps / power) == pytest.approx(reference, rel=2e-2)
    if name != "lamb":  # whose trust ratio takes out what eps does to the whole tensor
        assert size(g, eps * 1e-9) > 1.1 * reference
        assert size(g / 4, eps / (4 if kind == "outer" else 16)) != pytest.approx(reference, rel=5e-2)


@pytest.mark.parametrize("name", CERTAIN)
def test_decay_acts_as_declared(name: str) -> None:
    """Decoupled: lr·wd·W beside any gradient. Coupled: nothing beside a huge one, and like a gradient where there is no other."""
    facts = REGISTRY[name]
    start = torch.ones(8, 6, dtype=torch.float64)
    size = 1.0 if facts.degree == 1 else 1e8
    huge = [size * g for g in gradients((8, 6), 1)]
    without, with_decay = (raw_steps(name, huge, start=start, lr=1e-3, weight_decay=wd)[0] for wd in (0.0, 0.1))
    extra = float((with_decay - without).mean())
    if facts.degree == 1:
        assert extra == pytest.approx(0.1, rel=1e-4)
    elif facts.decay == "coupled":
        assert abs(extra) < 1e-6
    else:
        assert extra == pytest.approx(0.1, rel=2e-3)


def required(name: str, base: tuple[int, int], target: tuple[int, int], std: float) -> float:
    """The LR ratio that keeps √(in/out)·‖ΔW‖₂, measured: real steps of both sizes, weights at their init, nothing of the rules."""
    found = []
    for shape, deviation in ((base, 0.5), (target, 0.5 * std)):
        g = torch.Generator().manual_seed(5)
        start = deviation * torch.randn(shape, generator=g, dtype=torch.float64)
        left, right = (torch.randn(n, generator=g, dtype=torch.float64).sign() for n in shape)
        noise = 0.3 * torch.randn(shape, generator=g, dtype=torch.float64)
        gradient = (torch.outer(left, right) + noise) / shape[0]  # |G_ij| ~ 1/n_out, so ‖G‖ ~ √(n_in/n_out)
        step = raw_steps(name, [gradient], start=start)[0]
        found.append(math.sqrt(shape[1] / shape[0]) * float(torch.linalg.matrix_norm(step, 2)))
    return found[0] / found[1]


@pytest.mark.parametrize("name", CERTAIN)
def test_the_rules_give_the_learning_rates_that_the_condition_requires(name: str) -> None:
    """Independent of every formula: two sizes are built, stepped, and the LR that the spectral condition asks for is read off."""
    for role, base, target in (
        ("hidden", (32, 32), (128, 128)),
        ("hidden", (64, 32), (256, 128)),
        ("hidden", (32, 64), (128, 256)),
        ("input", (32, 24), (128, 24)),
    ):
        if REGISTRY[name].matrix_only and role != "hidden":
            continue
        fans = Fan(base[1], target[1]), Fan(base[0], target[0])
        ratios = solve(role, *fans, REGISTRY[name])  # pyright: ignore[reportArgumentType]
        assert required(name, base, target, ratios.std) == pytest.approx(ratios.lr, rel=WITHIN), (role, base)


def test_shapes_are_wide_tall_and_square() -> None:
    assert {(rows > columns) - (rows < columns) for rows, columns in SHAPES} == {-1, 0, 1}
    assert {"lamb", "adafactor", "shampoo", "scion", "ademamix", "schedule-free-adamw", "lion", "sgd", "adamw"} <= {
        *CERTAIN
    }


def test_lamb_follows_weights_of_any_size() -> None:
    """The package's own class clamps ‖W‖_F at 10; ours is that class without the clamp."""
    pytorch_optimizer: Any = pytest.importorskip("pytorch_optimizer")
    big = torch.full((64, 64), 3.0, dtype=torch.float64)
    step = raw_steps("lamb", gradients((64, 64), 1), start=big)[0]
    assert float(step.square().mean().sqrt()) == pytest.approx(3.0, rel=1e-4)
    cls = optimizer_class("lamb")
    assert cls is not None and issubclass(cls, pytorch_optimizer.Lamb) and known_class(cls) is not None
