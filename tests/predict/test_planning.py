"""Next runs: what is expected of them is what they bring, budgets are kept, costs are counted as said."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise
from typing import Any

import numpy as np
import pytest

from mutransfer.errors import InputError
from mutransfer.predict import next_runs
from mutransfer.predict.backtest import Backtest
from mutransfer.predict.costs import cost_of
from mutransfer.predict.forecast import LossLaw
from mutransfer.predict.planning import NextRuns
from mutransfer.predict.points import Points
from tests.predict.known import curves, fitted, made, sizes


def simulated(law: LossLaw, plan: NextRuns, rng: np.random.Generator) -> Points:
    """The table with the planned runs made, as the law says they would come out."""
    points = law.points
    values = {k: np.concatenate([points.variables[k], [run.at[k] for run in plan.runs]]) for k in law.variables}
    x = law.fit.normalise(np.stack([values[k] for k in law.variables]))[:, len(points) :]
    new = np.exp(law.fit.log_loss(x, law.fit.core) + law.fit.sigma * rng.standard_normal(x.shape[1]))
    return made(values, np.concatenate([points.loss, new]))


@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize(
    "name, at, budget",
    [
        ("power", {"params": 1e10}, {"spend": 6.0}),
        ("power", {"params": 1e10}, {"runs": 2}),
        ("chinchilla", {"params": 7e10, "tokens": 1.4e12}, {"spend": 1e22}),
    ],
)
def test_the_interval_after_the_runs_is_the_expected_one(name: str, at: dict[str, float], budget: dict[str, Any], seed: int) -> None:  # fmt: skip
    rng = np.random.default_rng(seed)
    points = sizes(rng) if name == "power" else curves(rng)
    variables = ("params",) if name == "power" else ("params", "tokens")
    law = fitted(points, name, variables, 150)
    plan = next_runs(law, at, **budget)
    assert plan.half_width < 0.95 * plan.now
    widths = [fitted(simulated(law, plan, rng), name, variables, 60).predict(**at).half_width for _ in range(9)]
    assert np.median(widths) == pytest.approx(plan.half_width, rel=0.25)


def test_each_run_narrows_and_the_floor_is_never_passed() -> None:
    law = fitted(sizes(np.random.default_rng(1)), "power", ("params",))
    plan = next_runs(law, {"params": 1e10}, spend=20.0)
    widths = [plan.now, *(run.half_width for run in plan.runs)]
    assert all(a > b for a, b in pairwise(widths))
    assert widths[-1] > plan.floor
    assert plan.total <= 20.0 and all(run.cost < plan.target_cost for run in plan.runs)


def test_more_money_never_tells_less() -> None:
    law = fitted(curves(np.random.default_rng(2)))
    found = [next_runs(law, {"params": 7e10, "tokens": 1.4e12}, spend=spend).half_width for spend in (1e19, 1e21, 1e23)]  # fmt: skip
    assert found[0] * 1.01 > found[1] and found[1] * 1.01 > found[2] and found[2] < 0.9 * found[0]


def test_without_a_sum_no_run_is_larger_than_the_largest_fitted() -> None:
    law = fitted(sizes(np.random.default_rng(3)), "power", ("params",))
    plan = next_runs(law, {"params": 1e10}, runs=3)
    assert len(plan.runs) == 3 and all(run.cost <= 1 + 1e-9 for run in plan.runs)
    assert any(run.repeats for run in plan.runs) and "(again)" in plan.words()
    larger = next_runs(law, {"params": 1e10}, runs=3, each=9.0)
    assert larger.half_width < plan.half_width


def test_a_misfit_sends_runs_towards_the_target() -> None:
    law = replace(fitted(curves(np.random.default_rng(4))), backtest=Backtest((), 0.01, 0.002, 0.01, 0.3))
    at = {"params": 7e10, "tokens": 1.4e12}
    plan = next_runs(law, at, spend=1e22)
    first = plan.runs[0]
    assert 6 * first.at["params"] * first.at["tokens"] > 0.8e22  # as near to the target as the budget pays for
    assert first.half_width < 0.85 * plan.now
    assert plan.floor > 0.01
    # the prediction itself says so once the run is made: the same misfit, a shorter reach
    made_ = simulated(law, plan, np.random.default_rng(0))
    after = replace(fitted(made_), backtest=law.backtest).predict(**at).half_width
    assert after == pytest.approx(plan.half_width, rel=0.2)


def test_a_budget_that_pays_for_the_target_says_so() -> None:
    law = fitted(curves(np.random.default_rng(5)))
    plan = next_runs(law, {"params": 1e10, "tokens": 2e11}, spend=1e24)
    assert "the budget pays for the target itself" in plan.words()


def test_where_means_are_fitted_a_size_is_not_repeated() -> None:
    rng = np.random.default_rng(0)
    n = np.repeat(np.geomspace(1e7, 1e9, 9), 3)
    own = np.repeat(rng.standard_normal(9) * 0.003, 3)
    loss = (2.9 + 1000 * n**-0.43) * np.exp(own + 0.0004 * rng.standard_normal(27))
    law = fitted(made({"params": n}, loss), "power", ("params",))
    assert len(law.fit.y) == 9
    plan = next_runs(law, {"params": 1e10}, spend=9.0)
    places = [run.at["params"] for run in plan.runs]
    assert len(set(places)) == len(places) and not any(run.repeats for run in plan.runs)


def test_costs_are_flops_where_they_are_known() -> None:
    two = fitted(curves(np.random.default_rng(6)))
    values = {"params": np.array([1e9]), "tokens": np.array([2e10])}
    assert cost_of(two).of(values)[0] == pytest.approx(1.2e20) and cost_of(two).flops
    points = sizes(np.random.default_rng(6))
    one = fitted(points, "power", ("params",))
    assert cost_of(one).of({"params": np.array([1e9, 2e9])}) == pytest.approx([1.0, 4.0]) and not cost_of(one).flops
    assert cost_of(one, exponent=1.5).of({"params": np.array([4e9])})[0] == pytest.approx(8.0)
    assert cost_of(one, tokens=1e10).of({"params": np.array([1e9])})[0] == pytest.approx(6e19)
    held = fitted(replace(points, constants={"tokens": 5e9}), "power", ("params",))
    assert cost_of(held).of({"params": np.array([1e9])})[0] == pytest.approx(3e19)
    chinchilla = {**points.variables, "tokens": 20 * points.variables["params"], "compute": 120 * points.variables["params"] ** 2}  # fmt: skip
    grown = fitted(replace(points, variables=chinchilla), "power", ("params",))
    assert cost_of(grown).of({"params": np.array([3e9])})[0] == pytest.approx(120 * 9e18)
    assert "params^2" in cost_of(grown).said


@pytest.mark.parametrize(
    "at, options, message",
    [
        ({"params": 1e10}, {}, "a budget is missing: write spend=1e20"),
        ({"params": 1e10}, {"spend": -1}, "spend=-1: write what runs may cost"),
        ({"params": 1e10}, {"runs": 0}, "runs=0: write how many runs may be made"),
        ({"params": 1e10}, {"spend": 1e-9}, "no run is within 1e-09 × the largest run: the smallest fitted one costs"),
        ({"tokens": 1e10}, {"spend": 1}, "the law is over params, and params is not given"),
        ({"params": 1e10}, {"spend": 1, "exponent": 0}, "exponent=0: write a number above 0"),
    ],
)
def test_bad_questions_are_refused_in_one_line(at: dict[str, float], options: dict[str, Any], message: str) -> None:
    law = fitted(sizes(np.random.default_rng(0)), "power", ("params",), 60)
    with pytest.raises(InputError) as error:
        next_runs(law, at, **options)
    assert str(error.value).startswith(message) and "\n" not in str(error.value)
