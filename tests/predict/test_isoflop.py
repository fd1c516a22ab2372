"""isoFLOP curves: exponents recovered, minima held by their intervals, edges left out."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from mutransfer.errors import InputError
from mutransfer.predict import isoflop
from mutransfer.predict.minima import find_minima, shape
from mutransfer.predict.points import Points
from tests.predict.known import best_size, curves, made, sizes

TRUE = 0.366 / 0.716


def test_exponents_of_clean_curves_are_those_of_the_law() -> None:
    found = isoflop(curves(np.random.default_rng(0), noise=1e-5))
    assert found.exponents["a"].value == pytest.approx(TRUE, abs=3e-3)
    assert found.exponents["b"].value == pytest.approx(1 - TRUE, abs=3e-3)
    for budget in found.used:
        assert budget.size.value == pytest.approx(best_size(budget.compute), rel=0.02)
        assert budget.size.value * budget.tokens.value * 6 == pytest.approx(budget.compute, rel=1e-6)
    size, tokens = found.at(1e22)
    assert size.value == pytest.approx(best_size(1e22), rel=0.03) and size.value * tokens.value * 6 == pytest.approx(1e22, rel=1e-3)  # fmt: skip


def test_intervals_hold_exponents_and_minima_as_often_as_they_say() -> None:
    exponents, minima = [], []
    for seed in range(40):
        found = isoflop(curves(np.random.default_rng(seed)))
        a = found.exponents["a"]
        exponents.append(a.low <= TRUE <= a.high)
        minima += [b.size.low <= best_size(b.compute) <= b.size.high for b in found.used]
    assert 0.80 <= np.mean(exponents) <= 1.0
    assert 0.78 <= np.mean(minima) <= 0.96


def test_curves_that_are_steeper_on_one_side_show_their_skew_and_keep_their_minima() -> None:
    found = isoflop(curves(np.random.default_rng(1), noise=2e-4, alpha=0.25, beta=0.55, sizes=11, wide=6.0))
    assert found.skew == pytest.approx(0.1, abs=0.04)  # (β − α)/3
    for budget in found.used:
        assert budget.size.value == pytest.approx(best_size(budget.compute, 0.25, 0.55), rel=0.08)


def test_the_shape_is_convex_with_its_skew_at_third_order() -> None:
    d = np.linspace(-3, 3, 601)
    for skew in (-0.3, -0.05, 0.0, 0.1):
        y = shape(d, skew)
        assert np.all(np.diff(y, 2) > 0) and y[300] == 0
        near = np.abs(d) < 0.1
        assert y[near] == pytest.approx((d**2 + skew * d**3)[near], abs=2e-5)


def test_compute_that_varies_within_a_budget_is_taken_off() -> None:
    exact = isoflop(curves(np.random.default_rng(2), noise=5e-4))
    rough = isoflop(curves(np.random.default_rng(2), noise=5e-4, jitter=0.1))
    assert len(rough.budgets) == len(exact.budgets) == 5
    assert rough.sigma < 2.5 * exact.sigma  # without it, 0.1 of log C alone would be six times the noise
    assert rough.exponents["a"].value == pytest.approx(TRUE, abs=0.02)


def test_minima_at_the_edge_are_left_out_and_named() -> None:
    points = curves(np.random.default_rng(3))
    c, n = points.variables["compute"], points.variables["params"]
    keep = ~((c > 0.9e21) & (n < 1.3 * best_size(1e21)))  # the largest budget has large models only
    extra = best_size(1e21) * np.array([2.0, 2.8, 3.5])
    more = curves(np.random.default_rng(3), noise=0)
    loss = np.interp(np.log(extra), np.log(more.variables["params"][-7:]), more.loss[-7:])
    kept = points.select(keep)
    table = made(
        {k: np.concatenate([kept.variables[k], v]) for k, v in (("params", extra), ("tokens", 1e21 / 6 / extra), ("compute", np.full(3, 1e21)))},
        np.concatenate([kept.loss, loss]),
    )  # fmt: skip
    found = isoflop(table)
    assert len(found.used) == 4 and "at the edge, below the smallest size" in found.budgets[-1].why
    assert "left out, the minimum is at the edge" in found.words()


def test_runs_far_from_their_curve_do_not_move_it() -> None:
    points = curves(np.random.default_rng(4), sizes=9)
    loss = points.loss.copy()
    loss[3] *= 1.05
    wild, clean = isoflop(replace(points, loss=loss)), isoflop(points)
    assert wild.aside >= 1 and wild.exponents["a"].value == pytest.approx(clean.exponents["a"].value, abs=0.02)


def test_repeated_tokens_are_no_part_of_a_budget() -> None:
    points = curves(np.random.default_rng(5))
    rows = np.arange(len(points)) % 8 == 0
    unique = np.where(rows, points.variables["tokens"] / 20, points.variables["tokens"])
    loss = np.where(rows, points.loss * 1.2, points.loss)
    table = replace(points, variables={**points.variables, "unique_tokens": unique}, loss=loss)
    found = isoflop(table)
    assert all(not rows.nonzero()[0].size or len(b.rows) <= 7 for b in found.budgets)
    assert sum(len(b.rows) for b in found.budgets) + found.unused + found.aside == int((~rows).sum())


def test_the_order_of_rows_does_not_matter() -> None:
    points = curves(np.random.default_rng(6))
    order = np.random.default_rng(0).permutation(len(points))
    shuffled = Points({k: v[order] for k, v in points.variables.items()}, points.loss[order], points.run, points.seed)
    assert isoflop(shuffled).exponents["a"].value == pytest.approx(isoflop(points).exponents["a"].value, rel=1e-9)


def test_a_curve_without_a_minimum_says_so() -> None:
    x = [np.linspace(-1, 1, 7), np.linspace(-1, 1, 7)]
    found = find_minima(x, [2 - 0.1 * x[0] ** 2, 2 + 0.2 * x[1] ** 2], 0.9)
    assert "does not bend upwards" in found.found[0].why or "edge" in found.found[0].why
    assert not found.found[1].why and found.found[1].at == pytest.approx(0, abs=0.02)


@pytest.mark.parametrize(
    "options, message",
    [
        ({"tolerance": 2}, "tolerance=2: write the share by which"),
        ({"size": "width"}, "isoFLOP curves need a size that varies"),
        ({"level": 0}, "level=0: write a level"),
        ({"tolerance": 1e-6}, "no budgets with runs of 5 sizes or more"),
    ],
)
def test_bad_options_are_refused_in_one_line(options: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError) as error:
        isoflop(curves(np.random.default_rng(0), jitter=0.1), **options)
    assert str(error.value).startswith(message) and "\n" not in str(error.value)


def test_tables_without_compute_are_refused() -> None:
    with pytest.raises(InputError, match="isoFLOP curves need compute, which the table does not have"):
        isoflop(sizes(np.random.default_rng(0)))
    with pytest.raises(InputError, match="compute=0: write a budget in FLOPs"):
        isoflop(curves(np.random.default_rng(0))).at(0)
