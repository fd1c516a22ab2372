"""What `mutransfer.grow` makes trains as the small model does, for ever: every module's output is a copy at every step.

The whole matrix, 200 steps of each, is benchmarks/grow_exactness.py. The small model has trained before it grows, so that the optimizer has
state; eps is nearly as large as the gradients, and clipping bites at every step.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch

import mutransfer as mt
from mutransfer.growth import build
from mutransfer.plans import Plan, Row
from tests.grow.models import OPTIMIZERS, SUBJECTS
from tests.grow.race import Outcome, Pair, difference, grow_on, mup_pair, race, sp_pair

NORM = 0.05
TEN = [name for name in OPTIMIZERS if not name.startswith("Muon, ")]


def check(outcome: Outcome, steps: int, norm: float | None) -> None:
    """Far below what is promised for 200 steps, in outputs, weights and buffers; and something happened."""
    limit = 1e-12
    assert outcome.error < limit, f"{outcome.where} departs by {outcome.error:.1e} at step {outcome.step}"
    assert outcome.tensors < limit
    assert outcome.moved > 1e-3, "nothing was trained"
    assert norm is None or outcome.bitten == steps + 1, "the clipping norm did not bite: the test is empty"


@pytest.mark.parametrize("optimizer", TEN)
@pytest.mark.parametrize("subject", ["cnn", "tied gpt, by head size"])
def test_every_optimizer_in_standard_parametrization(subject: str, optimizer: str) -> None:
    """The user's own optimizer in one group, and no plan: the general rule."""
    pair = sp_pair(subject, optimizer)
    assert pair.growth.exact
    check(race(SUBJECTS[subject], pair, 10, NORM), 10, NORM)


@pytest.mark.parametrize("subject", SUBJECTS)
@pytest.mark.parametrize("optimizer", ["SGD + L2", "Adam + L2"])
def test_every_kind_of_model(subject: str, optimizer: str) -> None:
    steps = 1 if subject == "resnet-18" else 3
    check(race(SUBJECTS[subject], sp_pair(subject, optimizer), steps, NORM), steps, NORM)


@pytest.mark.parametrize(("subject", "optimizer"), [("cnn", "Adam + L2"), ("tied gpt, by head size", "Lion")], ids=str)
def test_two_hundred_steps(subject: str, optimizer: str) -> None:
    check(race(SUBJECTS[subject], sp_pair(subject, optimizer), 200), 200, None)


@pytest.mark.parametrize("placement", ["absorbed", "multiplier"])
@pytest.mark.parametrize("optimizer", ["SGD + L2", "AdamW"])
@pytest.mark.parametrize("subject", ["cnn", "tied gpt, by head size"])
def test_under_the_users_plan_from_a_smaller_base(subject: str, optimizer: str, placement: str) -> None:
    """Base → small → big: the small model's plan ends at the small one, and the plan given to `grow` goes from the base to the big one."""
    pair = mup_pair(subject, optimizer, placement)
    check(race(SUBJECTS[subject], pair, 5, NORM), 5, NORM)


def test_the_grown_optimizer_has_the_base_settings_of_the_plan() -> None:
    """Every tensor's rate, decay and eps are what the plan to the big model sets from the same base settings."""
    pair = mup_pair("tied gpt, by head size", "AdamW", "absorbed")
    assert pair.big_plan is not None
    due = pair.big_plan.optimizer(pair.big, lr=3e-3, eps=1e-3, weight_decay=0.5)
    expected, found = settings(due, pair), settings(pair.big_optimizer, pair)
    assert expected.keys() == found.keys()
    for key, value in expected.items():
        assert math.isclose(found[key], value, rel_tol=1e-12), key


def settings(optimizer: Any, pair: Pair) -> dict[tuple[str, str], float]:
    """lr, decay and eps by tensor of the big model."""
    names = {id(p): name for name, p in pair.big.named_parameters()}
    return {
        (names[id(p)], key): float(group[key])
        for group in optimizer.param_groups
        for p in group["params"]
        for key in ("lr", "weight_decay", "eps")
        if key in group
    }


@pytest.mark.parametrize("optimizer", ["AMSGrad", "Muon"])
@pytest.mark.parametrize("subject", ["cnn", "gpt, by both"])
def test_growing_twice_is_growing_once_by_the_product(subject: str, optimizer: str) -> None:
    once, again = sp_pair(subject, optimizer), grow_on(subject, sp_pair(subject, optimizer, size="middle"))
    tensors = [{**dict(m.named_parameters()), **dict(m.named_buffers())} for m in (once.big, again.big)]
    for name, tensor in tensors[0].items():
        assert difference(tensors[1][name].detach(), tensor.detach()) < 1e-14, name
    found, expected = settings(again.big_optimizer, again), settings(once.big_optimizer, once)
    assert found.keys() == expected.keys()
    assert all(math.isclose(found[key], value, rel_tol=1e-14) for key, value in expected.items())
    held = [dict(m.named_parameters()) for m in (once.big, again.big)]
    for name, p in held[0].items():
        state, other = once.big_optimizer.state[p], again.big_optimizer.state[held[1][name]]
        assert state.keys() == other.keys()
        for key, value in state.items():
            if isinstance(value, torch.Tensor):
                assert difference(other[key], value) < 1e-14, (name, key)


@pytest.mark.parametrize("optimizer", ["AdamW", "Muon, float32"])
def test_in_float32_the_two_part_as_two_runs_do_that_differ_by_rounding(optimizer: str) -> None:
    pair, twin = (sp_pair("tied gpt, by head size", optimizer, torch.float32) for _ in range(2))
    outcome = race(SUBJECTS["tied gpt, by head size"], pair, 10, NORM, twin)
    assert outcome.error < 20 * max(outcome.rounding, outcome.big_rounding) < 1e-3


@pytest.mark.parametrize("optimizer", TEN)
def test_grow_verifies_it_by_itself(optimizer: str) -> None:
    """On the user's batches and loss, three training steps of every optimizer: no departure is found where there is none."""
    pair = sp_pair("mlp", optimizer, verify=True)
    assert pair.record.verification.ok
    assert pair.record.verification.steps == 3


# ------------------------------------------------------------------ the claims above are no empty ones


def lr(pair: Pair, group: dict[str, Any]) -> None:
    group["lr"] *= 1.01


def decay(pair: Pair, group: dict[str, Any]) -> None:
    group["weight_decay"] *= 1.01


def eps(pair: Pair, group: dict[str, Any]) -> None:
    group["eps"] *= 1.01


def first_moment(pair: Pair, group: dict[str, Any]) -> None:
    for p in group["params"]:
        pair.big_optimizer.state[p]["exp_avg"] *= 1.01


def second_moment(pair: Pair, group: dict[str, Any]) -> None:
    for p in group["params"]:
        pair.big_optimizer.state[p]["exp_avg_sq"] *= 1.01


def counter(pair: Pair, group: dict[str, Any]) -> None:
    for p in group["params"]:
        pair.big_optimizer.state[p]["step"] += 1


def weight(pair: Pair, group: dict[str, Any]) -> None:
    with torch.no_grad():
        for p in group["params"]:
            p *= 1.01


def clipping(pair: Pair, group: dict[str, Any]) -> None:
    plan = pair.growth.plan
    wrong = group["names"][0]
    pair.big_plan = replace(plan, rows=tuple(_heavier(row) if row.name == wrong else row for row in plan.rows))


def _heavier(row: Row) -> Row:
    return replace(row, ratios=replace(row.ratios, gradient=row.ratios.gradient * 1.01))


@pytest.mark.parametrize("spoil", [lr, decay, eps, first_moment, second_moment, counter, weight, clipping])
def test_any_number_off_by_a_percent_shows(spoil: Callable[[Pair, dict[str, Any]], None]) -> None:
    """In every group of the optimizer."""
    groups = len(sp_pair("mlp", "AdamW").big_optimizer.param_groups)
    assert groups > 3
    for wrong in range(groups):
        pair = sp_pair("mlp", "AdamW")
        spoil(pair, pair.big_optimizer.param_groups[wrong])
        outcome = race(SUBJECTS["mlp"], pair, 1, NORM)
        assert max(outcome.error, outcome.tensors) > 1e-9, pair.big_optimizer.param_groups[wrong]["names"]


@pytest.mark.parametrize("which", ["scale", "gradient"])
def test_a_rule_off_by_a_percent_is_refused_by_grow(which: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The core itself spoiled, one tensor at a time: `grow` raises instead of handing the model over."""
    right = build.numbers
    for wrong in ("second.weight", "third.weight"):

        def numbers(row: Row, plan: Plan, wrong: str = wrong) -> tuple[float, float]:
            scale, gradient = right(row, plan)
            factor = 1.01 if row.name == wrong else 1.0
            return (scale * factor, gradient) if which == "scale" else (scale, gradient * factor)

        monkeypatch.setattr(build, "numbers", numbers)
        with pytest.raises(mt.GrowthError, match="is the first to depart"):
            sp_pair("mlp", "AdamW", verify=True)
