"""Against microsoft/mup 1.0, an independent implementation: equal where its rules are right, and why we differ where not."""

import copy
import sys
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

import mutransfer as mt
from mutransfer.models import gpt_factory, mlp_factory, resnet_factory
from tests.plan_cases import build, train, widen

mup = pytest.importorskip("mup", reason="the oracle is installed by `make test`: pip install --no-deps mup pyyaml")

N = 4
WIDTH = 16
_resnet = resnet_factory(classes=5, blocks=(1, 1))


def plain_resnet(width: int) -> nn.Module:
    """The oracle takes it for granted that initial values follow the fan-in: torch's default, not He's law of the fan-out."""
    model = _resnet(width=width)
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            module.reset_parameters()
    return model


MODELS: dict[str, tuple[Callable[..., nn.Module], str]] = {
    "mlp": (mlp_factory(inputs=12, outputs=5, depth=2), "head"),
    "residual mlp": (mlp_factory(inputs=12, outputs=5, residual=True, norm="layernorm"), "head"),
    "resnet": (plain_resnet, "fc"),
    "gpt": (gpt_factory(vocab_size=17, context=8, head_size=8, bias=True), "head"),
}


def oracle(make: Callable[..., nn.Module], head: str, own: nn.Module, constant_std: bool) -> nn.Module:
    """The oracle's version of `own`: MuReadout as the head, base shapes set, its own rescaling of the same draw."""
    models = []
    for width in (WIDTH, 2 * WIDTH, N * WIDTH):
        model = build(make, dict(width=width))
        old = getattr(model, head)
        setattr(model, head, mup.MuReadout(old.in_features, old.out_features, bias=old.bias is not None))
        models.append(model)
    base, delta, model = models
    model.load_state_dict(own.state_dict())
    mup.set_base_shapes(model, base, delta=delta, rescale_params=not constant_std)
    if constant_std:
        with torch.no_grad():
            for p in model.parameters():  # what its normal_ does with a constant std: × N^-½ where two axes grow
                if p.infshape.ninf() == 2:
                    p.mul_(p.infshape.width_mult() ** -0.5)
    return model


def settings(optimizer: torch.optim.Optimizer, model: nn.Module, key: str) -> dict[str, float]:
    names = {id(p): name for name, p in model.named_parameters()}
    return {names[id(p)]: group[key] for group in optimizer.param_groups for p in group["params"]}


OPTIMIZERS: dict[str, tuple[Any, Any, dict[str, float]]] = {
    "adamw": (torch.optim.AdamW, "MuAdamW", dict(lr=0.01, weight_decay=0.1, eps=1e-30)),
    "adam": (torch.optim.Adam, "MuAdam", dict(lr=0.01, eps=1e-30)),
    "sgd": (torch.optim.SGD, "MuSGD", dict(lr=0.1, weight_decay=0.01)),
}


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("model_name", MODELS)
def test_rates_decays_initial_values_and_training_agree(model_name: str, optimizer: str) -> None:
    make, head = MODELS[model_name]
    cls, theirs, options = OPTIMIZERS[optimizer]
    own = build(make, dict(width=N * WIDTH))
    reference = oracle(make, head, own, constant_std=model_name == "gpt")
    plan = mt.plan(make, base=dict(width=WIDTH), target=dict(width=N * WIDTH), optimizer=cls, placement="multiplier")
    plan.initialize(own)
    for (name, p), (_, q) in zip(own.named_parameters(), reference.named_parameters(), strict=True):
        assert torch.allclose(p, q, rtol=1e-5, atol=1e-8), name
    ours, other = plan.optimizer(own, **options), getattr(mup, theirs)(reference.parameters(), **options)
    for key in ("lr", "weight_decay"):
        want = settings(other, reference, key)
        fixed = {name for name, p in reference.named_parameters() if p.infshape.ninf() == 0}
        found = settings(ours, own, key)
        assert {n: v for n, v in found.items() if n not in fixed} == pytest.approx(
            {n: v for n, v in want.items() if n not in fixed}
        )
    if model_name != "resnet":  # batch statistics of small batches amplify rounding
        assert train(own, ours, 5) == pytest.approx(train(reference, other, 5), rel=1e-3)


@pytest.mark.parametrize(("cls", "theirs", "options"), [
    (torch.optim.Adam, "MuAdam", dict(lr=0.01, weight_decay=0.1)),
    (torch.optim.AdamW, "MuAdamW", dict(lr=0.01, weight_decay=0.1, eps=1e-3)),
])  # fmt: skip
def test_adam_with_l2_and_eps_where_the_oracle_is_wrong(cls: Any, theirs: str, options: dict[str, float]) -> None:
    """Copying every neuron is exact under the right rule, and only there (theory §6).

    L2 is added to the gradient before Adam divides by its size. Of a hidden matrix both gradient and weight fall like 1/N,
    so the L2 stays; the oracle multiplies it by N as if it were decoupled. eps is added to a gradient that falls like 1/N, so
    it must fall too; the oracle keeps it.
    """
    make = mlp_factory(inputs=12, outputs=5, depth=2, bias=False)
    small = build(make, dict(width=WIDTH)).double()
    big, reference = (build(make, dict(width=N * WIDTH)).double() for _ in range(2))
    widen(small, big, N)
    plan = mt.plan(make, base=dict(width=WIDTH), target=dict(width=N * WIDTH), optimizer=cls, placement="multiplier")
    plan.attach(big)
    readout = mup.MuReadout(N * WIDTH, 5, bias=False).double()
    readout.weight.data.copy_(big.head.weight)
    reference.load_state_dict(big.state_dict())
    reference.head = readout
    base, delta = (build(make, dict(width=width)).double() for width in (WIDTH, 2 * WIDTH))
    for model, width in ((base, WIDTH), (delta, 2 * WIDTH)):
        model.head = mup.MuReadout(width, 5, bias=False).double()
    mup.set_base_shapes(reference, base, delta=delta, rescale_params=False)
    want = train(small, cls(small.parameters(), **options), 10)
    assert train(big, plan.optimizer(big, **options), 10) == pytest.approx(want, rel=1e-9)
    found = train(reference, getattr(mup, theirs)(reference.parameters(), **options), 10)
    assert found[0] == pytest.approx(want[0], rel=1e-9) and found != pytest.approx(want, rel=1e-3)


def two_factors(
    module: Callable[[int, int], nn.Module], optimizer: str, axes: dict[str, str] | None
) -> tuple[float, float]:
    """LR ratio of one weight whose fan-in grows ×2 and fan-out ×4: ours, and the oracle's."""
    models = [nn.Sequential(module(8 * i, 8 * o)) for i, o in ((1, 1), (2, 4), (3, 9))]
    plan = mt.plan(models[1], base=models[0], optimizer=optimizer, axes=axes)
    mup.set_base_shapes(models[1], models[0], delta=models[2], rescale_params=False)
    cls = {"adamw": mup.MuAdamW, "sgd": mup.MuSGD}[optimizer]
    name = next(iter(dict(models[1].named_parameters())))
    theirs = settings(cls(models[1].parameters(), lr=1.0), models[1], "lr")[name]
    return plan[name].ratios.lr, theirs


class Experts(nn.Module):
    """A stack of matrices (experts, in, out), as mixtures of experts store them."""

    def __init__(self, fan_in: int, fan_out: int) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.randn(4, fan_in, fan_out))


def test_conv_transpose_and_stacked_experts_where_the_oracle_is_wrong() -> None:
    """It takes the last growing axis for the fan-in, and axes 1 and 0 for fan-in and fan-out; here those are other axes.

    AdamW's LR is 1/(fan-in ratio) = ½, SGD's is (fan-out ratio)/(fan-in ratio) = 2. A ConvTranspose stores (in, out, taps) and
    experts (expert, in, out): the oracle finds ¼ for both, and for SGD ½ and (with no fan-out at all) ½.
    """
    transposed = (lambda i, o: nn.ConvTranspose2d(i, o, 3, bias=False), None)
    experts = (Experts, {"0.w": "stack in out"})
    linear = (lambda i, o: nn.Linear(i, o, bias=False), None)
    assert two_factors(linear[0], "adamw", None) == pytest.approx((0.5, 0.5))
    assert two_factors(linear[0], "sgd", None) == pytest.approx((2.0, 2.0))
    for module, axes in (transposed, experts):
        assert two_factors(module, "adamw", axes) == pytest.approx((0.5, 0.25))
        assert two_factors(module, "sgd", axes) == pytest.approx((2.0, 0.5))


def test_the_oracle_hangs_its_numbers_on_tensors_and_loses_them() -> None:
    """Why a plan is data: a rebuilt or reassigned parameter has no infshape, while the plan still knows its name."""
    make, head = MODELS["mlp"]
    own = build(make, dict(width=N * WIDTH))
    reference = oracle(make, head, own, constant_std=False)
    reference.load_state_dict(copy.deepcopy(own.state_dict()), assign=True)
    with pytest.raises(AssertionError, match="infshape"):
        mup.MuAdamW(reference.parameters(), lr=0.1)
    plan = mt.plan(make, base=dict(width=WIDTH), target=dict(width=N * WIDTH))
    plan.initialize(own)
    own.load_state_dict(copy.deepcopy(own.state_dict()), assign=True)
    assert plan.verify(plan.optimizer(own, lr=0.1), own) == {"lr": 0.1}
    assert "seaborn" not in sys.modules
