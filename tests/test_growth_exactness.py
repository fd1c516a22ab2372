"""Base and k-fold copied target train as one function for ever under the same base settings: the whole plan at once (theory §6).

Nothing here knows a formula of the plan: if a learning rate, a decay, an L2, an eps, a clipping weight or a multiplier of any
tensor were off by any factor, the two would part at the next step.
"""

from dataclasses import replace
from typing import Any

import pytest
import torch

from mutransfer.optimizers import REGISTRY, OptimizerFacts
from mutransfer.plans import Plan
from tests.growth import assert_same_training, plan_of
from tests.growth_models import CASES
from tests.plan_cases import Lion


class Polar(torch.optim.Optimizer):
    """The test's own Muon in the input's precision: `W ← (1 − lr·wd)·W − lr·scale·UVᵀ·‖M‖/(‖M‖ + eps)`, M a momentum.

    Zero singular values, of which k-fold copies have many, give no direction. torch's own works in bf16.
    """

    def __init__(self, params, lr=1e-3, weight_decay=0.1, eps=1e-2) -> None:
        super().__init__(params, dict(lr=lr, weight_decay=weight_decay, eps=eps))

    @staticmethod
    def scale(fan_in: int, fan_out: int) -> float:
        return 1.0

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        for group in self.param_groups:
            for p in (p for p in group["params"] if p.grad is not None):
                m = self.state[p].setdefault("momentum", torch.zeros_like(p))
                m.mul_(0.9).add_(p.grad)
                u, s, v = torch.linalg.svd(m, full_matrices=False)
                direction = (u * (s > 1e-9 * s[0])) @ v
                size = self.scale(p.shape[1], p.shape[0]) * m.norm() / (m.norm() + group["eps"])
                p.mul_(1 - group["lr"] * group["weight_decay"]).sub_(group["lr"] * size * direction)


class PolarOriginal(Polar):
    """√max(1, out/in)."""

    @staticmethod
    def scale(fan_in: int, fan_out: int) -> float:
        return max(1, fan_out / fan_in) ** 0.5


class PolarSpectral(Polar):
    """√(out/in)."""

    @staticmethod
    def scale(fan_in: int, fan_out: int) -> float:
        return (fan_out / fan_in) ** 0.5


class PolarKimi(Polar):
    """0.2·√max(in, out)."""

    @staticmethod
    def scale(fan_in: int, fan_out: int) -> float:
        return 0.2 * max(fan_in, fan_out) ** 0.5


SCALINGS = {Polar: "1", PolarOriginal: "√max(1,out/in)", PolarSpectral: "√(out/in)", PolarKimi: "0.2√max(in,out)"}


@pytest.fixture(autouse=True)
def declared(monkeypatch: pytest.MonkeyPatch) -> None:
    """The facts of the test's own optimizers."""
    for cls, norm in SCALINGS.items():
        facts = OptimizerFacts(cls.__name__, 0, norm, "matrix", "frobenius", "decoupled")
        monkeypatch.setitem(REGISTRY, cls.__name__.lower(), facts)


EPS = 1e-2  # as large as the gradients: a wrong ratio of eps shows at once
OPTIMIZERS = {
    "sgd": ("sgd", dict(lr=0.1)),
    "sgd + l2": ("sgd", dict(lr=0.1, weight_decay=0.1)),
    "momentum + l2": ("sgd", dict(lr=0.03, momentum=0.9, weight_decay=0.1)),
    "momentum with dampening": ("sgd", dict(lr=0.1, momentum=0.9, dampening=0.5)),
    "nesterov": ("sgd", dict(lr=0.03, momentum=0.9, nesterov=True)),
    "adam": ("adam", dict(lr=0.02, eps=EPS)),
    "adam + l2": ("adam", dict(lr=0.02, weight_decay=0.1, eps=EPS)),
    "adamw": ("adamw", dict(lr=0.02, weight_decay=0.5, eps=EPS)),
    "amsgrad": ("adamw", dict(lr=0.02, weight_decay=0.5, eps=EPS, amsgrad=True)),
    "rmsprop": ("rmsprop", dict(lr=0.01, weight_decay=0.1, eps=EPS, momentum=0.5)),
    "centered rmsprop": ("rmsprop", dict(lr=0.01, eps=EPS, centered=True)),
    "adagrad": ("adagrad", dict(lr=0.05, weight_decay=0.1, eps=EPS, lr_decay=0.01)),
    "adamax": ("adamax", dict(lr=0.02, weight_decay=0.1, eps=EPS)),
    "nadam": ("nadam", dict(lr=0.02, weight_decay=0.1, eps=EPS)),
    "nadam decoupled": ("nadam", dict(lr=0.02, weight_decay=0.5, eps=EPS, decoupled_weight_decay=True)),
    "radam": ("radam", dict(lr=0.05, weight_decay=0.1, eps=EPS)),
    "lion": (Lion, dict(lr=0.01, weight_decay=0.5)),
    **{cls.__name__: (cls, dict(lr=0.02, weight_decay=0.5, eps=EPS)) for cls in SCALINGS},
}
PLACEMENTS = ("absorbed", "multiplier")
SILENT = {"radam": 5}
"""RAdam's first five steps are plain momentum, of degree 1, where its rule is Adam's, of degree 0: no one ratio serves both.
With lr = 0 in them the rest is exact."""
FREE = {"lion": ("*.k_proj.bias",)}
"""A key's bias adds one number to all logits of a query: its gradient is zero but for rounding, whose sign is chance."""


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize(
    ("model", "placement", "steps"),
    [("normed mlp", "multiplier", 20), ("gpt, by head size", "absorbed", 20), ("tied gpt", "absorbed", 8)],
)
def test_every_optimizer(model: str, placement: str, steps: int, optimizer: str) -> None:
    cls, settings = OPTIMIZERS[optimizer]
    silent, free = SILENT.get(optimizer, 0), FREE.get(optimizer, ())
    assert_same_training(CASES[model], cls, settings, placement, steps=steps, silent=silent, free=free)


@pytest.mark.parametrize("model", CASES)
@pytest.mark.parametrize(
    ("optimizer", "placement", "max_norm"), [("adam + l2", "absorbed", 0.3), ("momentum + l2", "multiplier", None)]
)
def test_every_kind_of_model(model: str, optimizer: str, placement: str, max_norm: float | None) -> None:
    cls, settings = OPTIMIZERS[optimizer]
    assert_same_training(CASES[model], cls, settings, placement, steps=5, max_norm=max_norm)


@pytest.mark.parametrize("optimizer", SCALINGS, ids=lambda cls: cls.__name__)
@pytest.mark.parametrize("model", ["mlp", "by hand", "same key heads", "packed, by head size", "LSTM"])
def test_matrix_optimizers_on_every_shape_of_matrix(model: str, optimizer: type) -> None:
    """Rectangular, packed and gated matrices, and those stored (in, out), which the scaling reads upside down."""
    settings = dict(lr=0.02, weight_decay=0.5, eps=EPS)
    assert_same_training(CASES[model], optimizer, settings, "absorbed", steps=5, max_norm=0.3)


@pytest.mark.parametrize("placement", PLACEMENTS)
def test_exceptions_for_some_tensors_are_base_settings_too(placement: str) -> None:
    """No decay on vectors, another rate for the embedding: said once, for the base."""
    overrides = {"*.bias": {"weight_decay": 0.0}, "norm*": {"weight_decay": 0.0, "eps": 1e-3}, "w?e.*": {"lr": 0.05}}
    settings = OPTIMIZERS["adamw"][1] | dict(overrides=overrides)
    assert_same_training(CASES["tied gpt"], "adamw", settings, placement, steps=5, max_norm=0.3)


SPOILED = {"lr": "adamw", "decay": "adamw", "eps": "adamw", "gradient": "adamw", "l2": "adam + l2"}


@pytest.mark.parametrize("number", SPOILED)
def test_one_number_off_by_a_percent_shows(number: str) -> None:
    """The claim above is no empty one: whichever tensor's ratio is wrong, the two models part."""
    cls, settings = OPTIMIZERS[SPOILED[number]]
    case = CASES["normed mlp"]
    rows = plan_of(case, True, cls).rows

    for wrong in range(len(rows)):

        def spoil(plan: Plan, wrong: int = wrong) -> Plan:
            row = plan.rows[wrong]
            ratios = replace(row.ratios, **{number: getattr(row.ratios, number) * 1.01})
            return replace(plan, rows=(*plan.rows[:wrong], replace(row, ratios=ratios), *plan.rows[wrong + 1 :]))

        with pytest.raises(AssertionError, match=r"step \d: (outputs differ|clipping norms)|no scaled copy"):
            assert_same_training(case, cls, settings, "absorbed", steps=2, max_norm=0.3, alter=spoil)
