"""From a loss to the run that reaches it."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from mutransfer.errors import InputError
from mutransfer.predict import frontier, size_for
from mutransfer.predict.backtest import Backtest
from mutransfer.predict.forecast import LossLaw
from tests.predict.known import curves, fitted, made, sizes


@pytest.fixture(scope="module")
def power() -> LossLaw:
    return fitted(sizes(np.random.default_rng(0)), "power", ("params",))


@pytest.fixture(scope="module")
def chinchilla() -> LossLaw:
    return fitted(curves(np.random.default_rng(0)))


def test_the_size_inverts_the_law_and_its_interval(power: LossLaw) -> None:
    found = size_for(power, 3.0)
    size = found.at["params"]
    assert found.status == "REACHABLE"
    assert power.curve({"params": np.array([size.value])})[0] == pytest.approx(3.0, abs=1e-4)
    # at the interval's ends the loss is at the ends of the law's own interval
    assert power.predict(params=size.low).law_low == pytest.approx(3.0, abs=2e-3)
    assert power.predict(params=size.high).law_high == pytest.approx(3.0, abs=2e-3)


def test_sizes_are_held_by_their_intervals_as_often_as_they_say() -> None:
    true, held = (1000 / (3.0 - 2.9)) ** (1 / 0.43), []
    for seed in range(60):
        law = fitted(sizes(np.random.default_rng(seed), top=3e9), "power", ("params",), 100)
        found = size_for(law, 3.0).at["params"]
        held.append(found.low <= true <= found.high)
    assert 0.80 <= np.mean(held) <= 0.98


def test_a_loss_below_the_irreducible_one_is_not_reachable_and_it_says_so(power: LossLaw) -> None:
    found = size_for(power, 2.5)
    assert found.status == "UNREACHABLE"
    assert found.limit is not None
    assert f"not reachable at any size: c is {found.limit.value:.3f} [" in found.words()
    assert found.limit.low < 2.9 < found.limit.high


def test_a_loss_within_the_irreducible_ones_interval_may_not_be_reachable(power: LossLaw) -> None:
    limit = size_for(power, 2.5).limit
    assert limit is not None
    above = size_for(power, (limit.value + limit.high) / 2)
    assert above.status == "DOUBTFUL" and np.isfinite(above.at["params"].value) and np.isinf(above.at["params"].high)
    below = size_for(power, (limit.value + limit.low) / 2)
    assert below.status == "DOUBTFUL" and np.isinf(below.at["params"].value) and np.isfinite(below.at["params"].low)
    assert power.predict(params=below.at["params"].low).law_low == pytest.approx(below.loss, abs=2e-3)
    assert "perhaps at no size" in above.words() and "the fit reaches it at no size" in below.words()


def test_of_size_and_tokens_the_compute_optimal_ones_are_given(chinchilla: LossLaw) -> None:
    found = size_for(chinchilla, 2.1)
    best = frontier(chinchilla).at(found.at["compute"].value)
    assert best.law.value == pytest.approx(2.1, abs=1e-4)
    assert best.size.value == pytest.approx(found.at["params"].value, rel=1e-3)
    assert best.tokens.value == pytest.approx(found.at["tokens"].value, rel=1e-3)
    true = frontier(chinchilla).at(found.at["compute"].low).law.value, frontier(chinchilla).at(found.at["compute"].high).law.value  # fmt: skip
    assert true[0] > 2.1 > true[1]
    assert size_for(chinchilla, 1.5).status == "UNREACHABLE"


def test_with_tokens_held_the_size_is_asked_for(chinchilla: LossLaw) -> None:
    found = size_for(chinchilla, 2.3, tokens=3e11)
    n = found.at["params"].value
    assert chinchilla.curve({"params": np.array([n]), "tokens": np.array([3e11])})[0] == pytest.approx(2.3, abs=1e-4)
    assert found.at["compute"].value == pytest.approx(6 * n * 3e11)
    few = size_for(chinchilla, 1.9, tokens=1e10)
    assert few.status == "UNREACHABLE" and "with tokens 1e+10: not reachable" in few.words()
    assert size_for(chinchilla, 2.0, unique_tokens=1e10).status == "UNREACHABLE"


def test_a_misfit_seen_in_the_backtest_widens_the_size(power: LossLaw, chinchilla: LossLaw) -> None:
    test = Backtest((), 0.005, 0.002, 0.01, 0.5)
    for law, loss, name in ((power, 3.05, "params"), (chinchilla, 2.2, "compute")):
        sure, unsure = (size_for(one, loss).at[name] for one in (law, replace(law, backtest=test)))
        assert unsure.value == pytest.approx(sure.value)
        assert unsure.high / unsure.low > 1.2 * sure.high / sure.low


def test_units_of_the_loss_are_those_of_the_table() -> None:
    points = sizes(np.random.default_rng(0))
    nats = size_for(fitted(points, "power", ("params",)), 3.1)
    perplexity = size_for(fitted(replace(points, loss_unit="perplexity"), "power", ("params",)), float(np.exp(3.1)))
    assert perplexity.at["params"].value == pytest.approx(nats.at["params"].value, rel=1e-6)


@pytest.mark.parametrize(
    "loss, options, message",
    [
        (-1, {}, "loss=-1: write a loss above 0"),
        (True, {}, "loss=True"),
        (30.0, {}, "loss=30: a thousandth of the smallest fitted params would reach it"),
        (3.0, {"tokens": 1e9}, "tokens=1000000000.0: the law is over params"),
        (3.0, {"params": 0}, "params=0: write a number above 0"),
        (3.0, {"level": 1}, "level=1: write a level"),
    ],
)
def test_bad_questions_are_refused_in_one_line(
    loss: Any, options: dict[str, Any], message: str, power: LossLaw
) -> None:
    with pytest.raises(InputError) as error:
        size_for(power, loss, **options)
    assert str(error.value).startswith(message) and "\n" not in str(error.value)


def test_holding_everything_leaves_nothing_to_ask() -> None:
    points = curves(np.random.default_rng(0))
    batch = np.tile([1.0, 2.0, 3.0, 4.0, 5.0], 7)
    three = fitted(made({**{k: points.variables[k] for k in ("params", "tokens")}, "batch": batch}, points.loss + 0.2 / batch), "additive", ("params", "tokens", "batch"), 50)  # fmt: skip
    with pytest.raises(InputError, match="hold all but one of them, or none"):
        size_for(three, 2.2, tokens=1e11)
    assert size_for(three, 2.4, tokens=1e11, batch=4.0).status == "REACHABLE"
