"""The compute-optimal frontier: the closed form is the minimum, intervals hold the truth, limited tokens are respected."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from mutransfer.errors import InputError
from mutransfer.predict import fit_loss, frontier
from mutransfer.predict.forecast import LossLaw
from mutransfer.predict.laws import effective_tokens
from tests.predict.known import A, B, E, best_size, curves, fitted, made, sizes


@pytest.fixture(scope="module")
def law() -> LossLaw:
    return fitted(curves(np.random.default_rng(0)))


@pytest.mark.parametrize("name", ["chinchilla", "kaplan", "additive"])
def test_the_closed_form_is_the_minimum_of_the_law(name: str) -> None:
    law = fitted(curves(np.random.default_rng(1)), name)
    best = frontier(law).at(3e22)
    n = best.size.value * np.exp(np.linspace(-0.5, 0.5, 2001))
    loss = law.curve({"params": n, "tokens": 3e22 / 6 / n})
    assert n[loss.argmin()] == pytest.approx(best.size.value, rel=1e-3)
    assert best.law.value == pytest.approx(loss.min(), rel=1e-9)
    assert 6 * best.size.value * best.tokens.value == pytest.approx(3e22)
    assert best.ratio.value == pytest.approx(best.tokens.value / best.size.value)


def test_exponents_are_the_slopes_of_the_frontier_and_add_up_to_one(law: LossLaw) -> None:
    front = frontier(law)
    a, b = front.exponents["a"], front.exponents["b"]
    assert a.value + b.value == pytest.approx(1)
    low, high = front.table([1e20, 1e24])
    assert np.log(high.size.value / low.size.value) / np.log(1e4) == pytest.approx(a.value)
    assert np.log(high.tokens.value / low.tokens.value) / np.log(1e4) == pytest.approx(b.value)


def test_intervals_hold_the_best_size_and_the_exponent_as_often_as_they_say() -> None:
    sizes_held, exponents_held = [], []
    for seed in range(100):
        found = frontier(fitted(curves(np.random.default_rng(seed)), draws=150))
        size, a = found.at(1e23).size, found.exponents["a"]
        sizes_held.append(size.low <= best_size(1e23) <= size.high)
        exponents_held.append(a.low <= 0.366 / 0.716 <= a.high)
    assert 0.80 <= np.mean(sizes_held) <= 0.97
    assert 0.80 <= np.mean(exponents_held) <= 0.97


def test_the_interval_of_the_loss_is_that_of_a_run_there(law: LossLaw) -> None:
    best = frontier(law).at(1e23)
    said = law.predict(params=best.size.value, tokens=best.tokens.value)
    assert best.loss.value == pytest.approx(said.loss)
    assert best.loss.high - best.loss.low == pytest.approx(said.high - said.low, rel=0.25)
    assert best.law.high - best.law.low < best.loss.high - best.loss.low


def test_budgets_far_beyond_the_runs_are_said_to_be(law: LossLaw) -> None:
    front = frontier(law)
    assert not front.warnings([front.at(1e21)])
    assert "a long extrapolation from 1e+28 FLOPs on" in front.warnings([front.at(1e28)])[0]


def test_a_law_that_knows_no_repetition_stops_at_its_tokens(law: LossLaw) -> None:
    front = frontier(law, unique_tokens=1e10)
    poor, rich = front.table([1e19, 1e23])
    assert poor.size.value == pytest.approx(frontier(law).at(1e19).size.value)
    assert rich.tokens.value == pytest.approx(1e10) and rich.size.value == pytest.approx(1e23 / 6e10)
    assert "knows nothing of repeated tokens" in front.warnings([rich])[0]


@pytest.fixture(scope="module")
def repeated() -> LossLaw:
    """Runs that see their tokens once to thirty times, under Muennighoff's law."""
    rng = np.random.default_rng(2)
    n, u, epochs = (v.ravel() for v in np.meshgrid(np.geomspace(5e7, 5e9, 6), [3e8, 3e9, 3e10], [1.0, 3.0, 10.0, 30.0]))
    worth = np.exp(effective_tokens(np.log(u * epochs), np.log(u), np.array(15.0)))
    loss = (E + A / n**0.35 + B / worth**0.366) * np.exp(0.003 * rng.standard_normal(len(n)))
    points = made({"params": n, "tokens": u * epochs, "unique_tokens": u}, loss)
    return fitted(points, "data-constrained", ("params", "tokens", "unique_tokens"), 60)


def test_with_limited_tokens_no_other_size_is_better(repeated: LossLaw) -> None:
    front = frontier(repeated, unique_tokens=1e10)
    best = front.at(1e22)
    n = best.size.value * np.exp(np.linspace(-1, 1, 401))
    d = 1e22 / 6 / n
    loss = repeated.curve({"params": n, "tokens": d, "unique_tokens": np.minimum(d, 1e10)})
    assert best.law.value <= loss.min() * (1 + 1e-6)
    assert n[loss.argmin()] == pytest.approx(best.size.value, rel=0.02)
    assert best.epochs is not None and best.epochs.value == pytest.approx(best.tokens.value / 1e10)
    assert best.epochs.value > 3
    # tokens worth less: a larger budget goes into them less than it would without a limit
    free = frontier(repeated).at(1e22)
    assert best.law.value > free.law.value
    assert front.at(1e19).size.value == pytest.approx(frontier(repeated).at(1e19).size.value, rel=0.02)


def test_sizes_without_the_embedding_and_flops_per_token_count_their_own_compute() -> None:
    points = curves(np.random.default_rng(3))
    renamed: dict[str, Any] = {"flops_per_token": 6 * points.variables["params"], "tokens": points.variables["tokens"]}
    one = frontier(fitted(made(renamed, points.loss), variables=("flops_per_token", "tokens"))).at(1e22)
    assert one.size.value == pytest.approx(6 * frontier(fitted(points)).at(1e22).size.value, rel=1e-3)


@pytest.mark.parametrize(
    "options, message",
    [
        ({"unique_tokens": -1}, "unique_tokens=-1: write a number of tokens, such as 1e12"),
        ({"level": 2}, "level=2: write a level between 0.5 and 0.99"),
    ],
)
def test_bad_options_are_refused_in_one_line(options: dict[str, Any], message: str, law: LossLaw) -> None:
    with pytest.raises(InputError, match=message):
        frontier(law, **options)


def test_laws_without_a_frontier_say_what_is_missing(law: LossLaw) -> None:
    with pytest.raises(InputError, match=r"compute='much': write a budget in FLOPs, such as 1e21"):
        frontier(law).at("much")
    with pytest.raises(InputError, match="needs a law over a size and tokens, and this one is over params"):
        frontier(fitted(sizes(np.random.default_rng(0)), "power", ("params",)))
    points = curves(np.random.default_rng(4))
    width = made({"width": points.variables["params"] ** 0.5, "tokens": points.variables["tokens"]}, points.loss)
    with pytest.raises(InputError, match="a size whose FLOPs are known, and this law is over width and tokens"):
        frontier(fitted(width, variables=("width", "tokens")))


def test_a_loss_that_tokens_do_not_lower_has_no_best_size() -> None:
    points = curves(np.random.default_rng(5))
    n = points.variables["params"]
    flat = made(
        dict(points.variables), 2 + 500 / n**0.35 * np.exp(0.0005 * np.random.default_rng(5).standard_normal(len(n)))
    )
    with pytest.raises(InputError, match="the loss does not fall with tokens in this table"):
        frontier(fit_loss(flat, "chinchilla", over=("params", "tokens")))
