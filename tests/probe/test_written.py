"""Optimizers written for this test: what they do is known, and the probe finds it or says why it is no fact."""

from __future__ import annotations

import random
import re
from typing import Any

import numpy as np
import pytest
import torch

import mutransfer as mt
from mutransfer.errors import InputError
from mutransfer.models import gpt_factory
from mutransfer.optimizers import REGISTRY
from tests.probe import written

FOUND: dict[str, dict[str, Any]] = {
    "TrustSign": dict(degree=0, norm="√(in·out)", kind="element", eps_kind=None, weight=1, decay="decoupled"),
    "OutsideRoot": dict(degree=0, norm="√(in·out)", kind="element", eps_kind="element", weight=0),
    "InsideRoot": dict(degree=0, norm="√(in·out)", kind="element", eps_kind=None, weight=0),
    "Spectral": dict(degree=0, norm="√(out/in)", kind="matrix", eps_kind="frobenius", weight=0),
    "CoupledSign": dict(degree=0, kind="element", eps_kind="element", decay="coupled"),
    "NormalizedSGD": dict(degree=0, norm="1", kind="element", eps_kind="frobenius"),
    "SingleOnly": dict(degree=0, norm="√(in·out)", eps_kind=None),
    "Momentum": dict(degree=1, norm="‖G‖₂", kind="sgd", eps_kind=None, decay="decoupled"),
}
UNFIT = {
    "Rows": r"none of the known formulas: ‖A‖₂ ∝ in\^0·out\^0\.5",
    "Noisy": r"random: .* differ by \d+%",
    "Seldom": "random",
    "SquaredRate": r"not linear in lr: ∝ lr\^2",
    "IndependentDecay": "does not go with lr",
    "CautiousDecay": "neither decoupled .* nor coupled",
    "Half": r"no power t\^p·A\(G\) with a whole p: measured p = 0\.5",
    "Clipped": "only above |G| ≈ 0.0",
    "Global": "depends on the gradients of others",
    "Turns": "after 100 steps",
    "Aligned": "depends on the weights beyond their size",
    "DeafRate": "lr of a param group is not what acts",
    "Explodes": "infinite or no number",
    "Still": "do not move",
}
REFUSED = {
    "TwoPasses": "two passes",
    "LineSearch": "needs a closure",
    "SilentLineSearch": "needs a closure",
    "Curvature": "second derivatives",
    "WholeModel": "whole model",
    "NoRate": "no lr",
}


@pytest.mark.parametrize("name", FOUND)
def test_the_facts_are_found(name: str) -> None:
    probe = mt.probe_optimizer(getattr(written, name))
    found = vars(probe.facts)
    assert {key: found[key] for key in FOUND[name]} == FOUND[name], str(probe)


@pytest.mark.parametrize("name", UNFIT)
def test_what_is_no_fact_is_not_guessed(name: str) -> None:
    probe = mt.probe_optimizer(getattr(written, name))
    assert not probe.reliable and probe.confidence == 0.0
    with pytest.raises(InputError, match=UNFIT[name]) as caught:
        _ = probe.facts
    assert "\n" not in str(caught.value)
    assert "register_optimizer(" not in str(probe) and all(reason in str(probe) for reason in probe.reasons)
    assert probe.guess is None or not probe.guess.certain


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_probed_is_refused_in_one_line(name: str) -> None:
    with pytest.raises(InputError, match=REFUSED[name]) as caught:
        mt.probe_optimizer(getattr(written, name))
    assert "\n" not in str(caught.value) and name in str(caught.value)


def test_a_decay_that_is_not_used_is_not_asked() -> None:
    facts = mt.probe_optimizer(written.IndependentDecay, weight_decay=0.0).facts
    assert facts.norm == "√(in·out)" and facts.eps_kind is None


def test_the_eps_that_the_user_sets_decides_where_the_step_is_normalised() -> None:
    assert mt.probe_optimizer(torch.optim.AdamW, eps=1e-12).reliable
    with pytest.raises(InputError, match="give a smaller eps"):
        _ = mt.probe_optimizer(torch.optim.AdamW, eps=1e-2).facts


@pytest.mark.parametrize(
    ("cls", "settings", "said"),
    [
        (torch.optim.AdamW, {"momentumm": 0.9}, r"AdamW\(momentumm=0.9\) cannot be built.*momentumm"),
        (torch.optim.AdamW, {"betas": (2.0, 0.9)}, "betas=.*Invalid beta"),
        (torch.optim.AdamW([torch.nn.Parameter(torch.ones(2))]), {}, "give the class AdamW"),
        (torch.nn.Linear, {}, "is a model"),
        (3, {}, r"probe_optimizer\(3\)"),
        (torch.optim.SparseAdam, {}, "dense gradients"),
        (dict, {}, "dict"),
    ],
)
def test_wrong_input_is_one_line(cls: Any, settings: dict[str, Any], said: str) -> None:
    with pytest.raises(InputError, match=said) as caught:
        mt.probe_optimizer(cls, **settings)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_nothing_of_the_users_is_touched(dtype: torch.dtype, capsys: pytest.CaptureFixture[str]) -> None:
    """The global generators, the default dtype, the output; and so the answer does not depend on them."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        states = torch.get_rng_state(), np.random.get_state()[1].copy(), random.getstate()  # type: ignore[union-attr]
        first = mt.probe_optimizer(written.SingleOnly)
        assert torch.get_default_dtype() is dtype and torch.is_grad_enabled()
        assert torch.equal(torch.get_rng_state(), states[0]) and random.getstate() == states[2]
        assert np.array_equal(np.random.get_state()[1], states[1])  # type: ignore[arg-type]
    finally:
        torch.set_default_dtype(before)
    assert capsys.readouterr().out == ""
    torch.rand(3)
    assert mt.probe_optimizer(written.SingleOnly).to_dict() == first.to_dict() and first.dtype == "float32"


def test_the_line_works_when_followed_and_the_facts_plan() -> None:
    class Unheard(torch.optim.AdamW):
        """A class that nobody has declared."""

    make = gpt_factory(vocab_size=17, context=8, head_size=8)
    sizes = dict(base=dict(width=16), target=dict(width=64))
    with pytest.raises(InputError, match=r"mt\.probe_optimizer"):
        mt.plan(make, **sizes, optimizer=Unheard)
    probe = mt.probe_optimizer(Unheard)
    due = [row.ratios for row in mt.plan(make, **sizes, optimizer="adamw").rows]
    assert [row.ratios for row in mt.plan(make, **sizes, optimizer=probe.facts).rows] == due
    line = re.search(r"^mt\.register_optimizer\(.*\)$", str(probe), re.M)
    assert line is not None
    try:
        eval(line.group(), {"mt": mt})
        plan = mt.plan(make, **sizes, optimizer=Unheard)
        assert [row.ratios for row in plan.rows] == due
        model = plan.initialize(make(width=64))
        optimizer = plan.optimizer(model, lr=0.01, weight_decay=0.1)
        assert type(optimizer) is Unheard and plan.verify(optimizer)
    finally:
        REGISTRY.pop("unheard", None)


def test_functions_and_partials_are_classes_too() -> None:
    from functools import partial

    def mine(params: Any, lr: float, weight_decay: float = 0.0) -> torch.optim.Optimizer:
        return torch.optim.SGD(params, lr=lr, momentum=0.5, weight_decay=weight_decay)

    for given in (mine, partial(torch.optim.SGD, momentum=0.5)):
        probe = mt.probe_optimizer(given)
        assert probe.facts.norm == "‖G‖₂" and probe["norm of a step"].value.startswith("‖G‖₂ × 2")


def test_the_evidence_is_a_table() -> None:
    probe = mt.probe_optimizer(torch.optim.SGD, momentum=0.9)
    text = str(probe)
    for finding in probe.findings:
        assert finding.name in text and 0 <= finding.confidence <= 1
    assert probe["degree in G"].value == "1" and probe["over the steps"].value.startswith("×")
    with pytest.raises(InputError, match="no finding 'speed'"):
        probe["speed"]
