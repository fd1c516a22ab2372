"""The fit finds the law: whatever the law, the units, the order of rows, and a few wild runs."""

from __future__ import annotations

import time
from typing import Any

import numpy as np
import pytest

from mutransfer.errors import InputError
from mutransfer.predict import fit_loss
from mutransfer.predict.fit import fit
from mutransfer.predict.laws import LAWS, effective_tokens, law
from mutransfer.predict.solve import Problem, refine, solve
from tests.predict.synthetic import chinchilla, grid, points, power

SIZES = np.geomspace(1e6, 1e9, 12)


def test_power_law_without_noise_is_found_to_rounding() -> None:
    fitted = fit(law("power", ("params",)), points({"params": SIZES}, power(SIZES)))
    raw = fitted.raw()
    assert float(raw["b"]) == pytest.approx(-0.4, rel=1e-5)
    assert float(raw["c"]) == pytest.approx(2.0, rel=1e-6)
    assert float(raw["a"]) == pytest.approx(0.5 * 3e7**0.4, rel=1e-4)


def test_chinchilla_without_noise_is_found() -> None:
    n, d = grid(np.random.default_rng(0), 60)
    raw = fit(law("chinchilla", ("params", "tokens")), points({"params": n, "tokens": d}, chinchilla(n, d))).raw()
    for name, value in {"E": 1.8172, "A": 482.01, "α": 0.3478, "B": 2085.43, "β": 0.3658}.items():
        assert float(raw[name]) == pytest.approx(value, rel=1e-3)


def test_kaplan_without_noise_is_found() -> None:
    n, d = grid(np.random.default_rng(1), 60)
    loss = ((8.8e13 / n) ** (0.076 / 0.103) + 5.4e13 / d) ** 0.103  # 2001.08361, table 2
    raw = fit(law("kaplan", ("params", "tokens")), points({"params": n, "tokens": d}, loss)).raw()
    for name, value in {"Nc": 8.8e13, "αN": 0.076, "Dc": 5.4e13, "αD": 0.103}.items():
        assert float(raw[name]) == pytest.approx(value, rel=2e-2)


def test_data_constrained_without_noise_is_found() -> None:
    # 2305.16264's own parameters; distinct tokens from all of them down to a hundredth
    rng = np.random.default_rng(2)
    n, d = grid(rng, 150)
    unique = d * 10 ** -rng.uniform(0, 2, 150)
    true = {"E": 1.87, "A": 521.0, "α": 0.35, "B": 1488.0, "β": 0.35, "R*_D": 15.4, "R*_N": 5.3}
    best = (true["α"] * true["A"] / (true["β"] * true["B"]) * unique ** true["β"]) ** (1 / true["α"])
    useful = np.exp(effective_tokens(np.log(n), np.log(np.minimum(best, n)), np.array(true["R*_N"])))
    worth = np.exp(effective_tokens(np.log(d), np.log(unique), np.array(true["R*_D"])))
    loss = true["E"] + true["A"] / useful ** true["α"] + true["B"] / worth ** true["β"]
    table = points({"params": n, "tokens": d, "unique_tokens": unique}, loss)
    raw = fit(law("data-constrained", ("params", "tokens", "unique_tokens")), table).raw()
    for name, value in true.items():
        assert float(raw[name]) == pytest.approx(value, rel=0.05), name


def test_repeated_tokens_are_worth_less_each_time() -> None:
    """Four epochs are worth nearly four times the data, forty far fewer (2305.16264, figure 5)."""
    unique = np.log(np.array([1e9, 1e9, 1e9]))
    worth = np.exp(effective_tokens(unique + np.log([1.0, 4.0, 1000.0]), unique, np.array(15.4))) / 1e9
    assert worth[0] == pytest.approx(1.0)
    assert 3.6 < worth[1] < 4.0
    assert worth[2] == pytest.approx(1 + 15.4, rel=1e-6)


def test_broken_law_is_found() -> None:
    x = np.geomspace(1e3, 1e9, 40)
    loss = 1.5 + 20 * x**-0.3 * (1 + (x / 1e6) ** (1 / 0.5)) ** (0.2 * 0.5)
    fitted = fit(law("broken", ("tokens",)), points({"tokens": x}, loss))
    assert np.abs(fitted.residuals).max() < 2e-4


def test_additive_law_takes_three_variables() -> None:
    rng = np.random.default_rng(3)
    width, depth, tokens = (np.exp(rng.uniform(*np.log(r), 80)) for r in ((64, 4096), (2, 64), (1e8, 1e11)))
    loss = 1.7 + 3 / width**0.5 + 0.4 / depth**0.8 + 900 / tokens**0.4
    found = fit_loss(
        points({"width": width, "depth": depth, "tokens": tokens}, loss), over=("width", "depth", "tokens")
    )
    assert found.parameters["γ"].value == pytest.approx(0.4, rel=0.02)
    assert found.predict(width=8192, depth=64, tokens=1e12).loss == pytest.approx(
        1.7 + 3 / 8192**0.5 + 0.4 / 64**0.8 + 900 / 1e12**0.4, rel=1e-3
    )


def noisy(seed: int, law_name: str) -> dict[str, Any]:
    """Columns of a random table."""
    rng = np.random.default_rng(seed)
    if law_name == "power":
        n = np.geomspace(2e6, 3e8, 9)
        return {"params": n, "loss": power(n, b=rng.uniform(0.2, 0.7)) * np.exp(0.002 * rng.standard_normal(9))}
    n, d = grid(rng, 50)
    return {"params": n, "tokens": d, "loss": chinchilla(n, d) * np.exp(0.004 * rng.standard_normal(50))}


TARGETS = {"power": {"params": 3e9}, "chinchilla": {"params": 7e10, "tokens": 1.4e12}}


@pytest.mark.parametrize("name", TARGETS)
def test_order_of_rows_changes_nothing(name: str) -> None:
    table = noisy(0, name)
    order = np.random.default_rng(1).permutation(len(table["loss"]))
    first = fit_loss(table, name).predict(**TARGETS[name])
    second = fit_loss({k: v[order] for k, v in table.items()}, name).predict(**TARGETS[name])
    assert first == second


@pytest.mark.parametrize("name", TARGETS)
def test_units_change_nothing(name: str) -> None:
    """The same sizes counted in millions, targets alike: the same loss and interval; losses in bits: the same number times log2 e."""
    table = noisy(0, name)
    first = fit_loss(table, name).predict(**TARGETS[name])
    millions = {k: v if k == "loss" else v * 1e-6 for k, v in table.items()}
    second = fit_loss(points({k: v for k, v in millions.items() if k != "loss"}, table["loss"]), name)
    again = second.predict(**{k: v * 1e-6 for k, v in TARGETS[name].items()})
    assert (again.loss, again.low, again.high) == pytest.approx((first.loss, first.low, first.high), rel=1e-6)
    bits = fit_loss({**table, "loss": table["loss"] / np.log(2)}, name, loss_unit="bits").predict(**TARGETS[name])
    assert (bits.loss, bits.low, bits.high) == pytest.approx(
        tuple(v / np.log(2) for v in (first.loss, first.low, first.high)), rel=1e-6
    )


@pytest.mark.parametrize("name", TARGETS)
def test_starting_points_change_nothing(name: str) -> None:
    """From anywhere: fifty random starts end where the search over the grid of exponents ended, or in a worse valley."""
    fitted = fit_loss(noisy(3, name), name).fit
    problem = Problem(fitted.law, fitted.x, np.full(len(fitted.y), fitted.delta), np.ones(len(fitted.y)))
    rng = np.random.default_rng(0)
    k = len(fitted.law.coefficients)
    starts = np.concatenate([rng.uniform(-4, 1, (50, k)), rng.uniform(0.05, 2.0, (50, len(fitted.law.exponents)))], 1)
    ended = refine(problem, fitted.y, starts, 500)
    best = fitted.restarts.objective[0]
    assert ended.objective.min() >= best * (1 - 1e-6)
    assert np.mean(ended.objective < best * (1 + 1e-4)) > 0.9


def test_all_restarts_are_reported_best_first() -> None:
    fitted = fit_loss(noisy(0, "chinchilla")).fit
    assert len(fitted.restarts.u) == len(fitted.restarts.objective) >= 2
    assert np.all(np.diff(fitted.restarts.objective) >= 0)
    assert fitted.agreeing >= 2


def test_no_failure_in_random_tables() -> None:
    """400 of them (benchmarks/prediction_speed.py makes 1,000 of every law). Noise from nothing to more than the signal, one decade or five, 4 sizes or 40: always finite numbers, never an exception."""
    rng = np.random.default_rng(0)
    kind = law("power", ("params",))
    for _ in range(400):
        count = int(rng.integers(4, 41))
        n = 10 ** rng.uniform(3, 11) * np.geomspace(1, 10 ** rng.uniform(0.3, 5), count)
        mean = rng.uniform(0, 4) + rng.uniform(0, 3) * (n / n[0]) ** -rng.uniform(0, 2) + 1e-3
        y = np.log(mean) + 10 ** rng.uniform(-5, -1) * rng.standard_normal(count)
        x = np.log(n)[None] - np.log(n).mean()
        best, every = solve(Problem(kind, x, np.full(count, 1e-3), np.ones(count)), y)
        assert np.isfinite(best.u).all() and np.isfinite(every.objective).all()
        # no line through the logarithms, and no constant, is better than the best of the law, which holds both as limits
        flat = np.abs(y - np.median(y))
        assert best.objective[0] <= np.where(flat < 1e-3, flat**2 / 2, 1e-3 * (flat - 5e-4)).sum() + 1e-9


def test_wild_runs_do_not_set_the_law() -> None:
    """Three of a hundred runs off by 30 %: the exponents move by less than their interval, and the three are named."""
    rng = np.random.default_rng(5)
    n, d = grid(rng, 100)
    loss = chinchilla(n, d) * np.exp(0.004 * rng.standard_normal(100))
    clean = fit_loss({"params": n, "tokens": d, "loss": loss})
    wrong = loss.copy()
    wrong[[3, 40, 77]] *= 1.3
    found = fit_loss({"params": n, "tokens": d, "loss": wrong})
    assert len(found.fit.aside) == 3
    named = {round(float(found.points.variables["params"][rows[0]])) for rows in found.fit.aside}
    assert named == {round(float(n[i])) for i in (3, 40, 77)}
    for name in ("E", "α", "β"):
        assert clean.parameters[name].low <= found.parameters[name].value <= clean.parameters[name].high
    assert "set aside as outliers" in found.words()


def test_a_size_that_carries_the_fit_is_named() -> None:
    n = np.array([1e6, 9e7, 1e8, 1.1e8, 1.2e8, 1.3e8])
    rng = np.random.default_rng(0)
    found = fit_loss({"params": n, "loss": power(n) * np.exp(0.001 * rng.standard_normal(6))})
    assert any("1e+06" in line for line in found.words().splitlines() if "leans on" in line)


def test_repetitions_tell_the_noise() -> None:
    """Where the law is true, the scatter between sizes is that within them (a test at 10 %), and both tell the noise."""
    sizes, seed = np.repeat(np.geomspace(1e6, 1e9, 8), 4), np.tile(np.arange(4), 8)
    pooled, sigma = [], []
    for i in range(30):
        loss = power(sizes) * np.exp(0.003 * np.random.default_rng(i).standard_normal(32))
        fitted = fit(law("power", ("params",)), points({"params": sizes}, loss, seed))
        pooled.append(fitted.dof > 20)
        sigma.append(fitted.sigma)
    assert np.mean(pooled) >= 0.75
    assert float(np.median(sigma)) == pytest.approx(0.003, rel=0.1)


def test_seeds_with_levels_of_their_own_are_seen() -> None:
    """The same seed is the same data at every size: what it adds everywhere is no information about the curve."""
    rng = np.random.default_rng(0)
    n = np.repeat(np.geomspace(1e6, 1e9, 6), 4)
    seed = np.tile(np.arange(4), 6)
    level = np.array([-0.01, 0.0, 0.004, 0.012])
    found = fit_loss(
        {"params": n, "seed": seed, "loss": power(n) * np.exp(level[seed] + 0.001 * rng.standard_normal(24))}
    )
    assert [v for _, v in found.fit.repeats.levels] == pytest.approx(list(level - level.mean()), abs=1e-3)
    assert found.fit.sigma < 0.002


def test_misfit_between_sizes_is_not_hidden_by_many_seeds() -> None:
    """Fifty seeds per size tell the noise, not whether the law is right: sizes that lie off the law by 1 % keep the interval wide."""
    rng = np.random.default_rng(1)
    sizes = np.geomspace(1e6, 1e9, 7)
    off = 0.01 * rng.standard_normal(7)
    n = np.repeat(sizes, 50)
    found = fit_loss({"params": n, "loss": power(n) * np.exp(np.repeat(off, 50) + 0.001 * rng.standard_normal(350))})
    assert found.fit.lack_of_fit is not None and found.fit.lack_of_fit < 1e-3
    assert found.fit.dof == 4
    assert found.predict(params=1e10).half_width > 0.01


@pytest.mark.parametrize(
    "table, kwargs, said",
    [
        ({"params": [1e6, 1e7, 1e8], "loss": [4, 3, 2.5]}, {}, "at least 4 are needed"),
        ({"params": [1e6, 1e7, 1e8, 1e9], "tokens": [2e7, 2e8, 2e9, 2e10], "loss": [4, 3, 2.5, 2.2]}, {"law": "chinchilla"}, "at least 6"),
        ({"params": np.geomspace(1e6, 1e9, 9), "tokens": 20 * np.geomspace(1e6, 1e9, 9), "loss": np.linspace(4, 3, 9)}, {"law": "chinchilla"}, "cannot be told apart"),
        ({"params": SIZES, "loss": power(SIZES)}, {"law": "chinchila"}, "write one of power"),
        ({"params": SIZES, "loss": power(SIZES)}, {"law": "chinchilla"}, "needs tokens"),
        ({"params": SIZES, "loss": power(SIZES)}, {"interval": "bayes"}, "profile or bootstrap"),
        ({"params": SIZES, "loss": power(SIZES)}, {"delta": -1}, "Huber"),
        ({"params": SIZES, "loss": power(SIZES)}, {"size": "weight"}, "write one of"),
        ({"params": SIZES, "loss": power(SIZES)}, {"over": ("depth",)}, "no such variable"),
    ],
)  # fmt: skip
def test_what_cannot_be_fitted_is_said_in_one_line(table: dict[str, Any], kwargs: dict[str, Any], said: str) -> None:
    with pytest.raises(InputError, match=said) as error:
        fit_loss(table, **kwargs)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "at, said",
    [({}, "not given"), ({"width": 5}, "not given|says nothing"), ({"params": -1}, "above 0"), ({"params": "big"}, "above 0"), ({"size": 3}, "no such variable"), ({"params": float("nan")}, "above 0"), ({"params": 1e9, "level": 1.5}, "between 0.5 and 0.99")],
)  # fmt: skip
def test_bad_targets_are_refused(at: dict[str, Any], said: str) -> None:
    found = fit_loss({"params": SIZES, "loss": power(SIZES)})
    with pytest.raises(InputError, match=said):
        found.predict(**at)


def test_every_law_says_what_it_is() -> None:
    assert set(LAWS) >= {"power", "chinchilla", "kaplan", "data-constrained", "broken"}
    variables = ("params", "tokens", "unique_tokens")
    for name, (count, *_) in LAWS.items():
        one = law(name, variables[: count or 2])
        assert one.formula and one.needs and one.source


def test_a_thousand_bootstrap_fits_of_245_points_take_seconds() -> None:
    """The claim is 10 s on two cores (benchmarks/prediction_speed.py); a shared machine gets three times as long here."""
    rng = np.random.default_rng(0)
    n, d = grid(rng, 245)
    found = fit_loss({"params": n, "tokens": d, "loss": chinchilla(n, d) * np.exp(0.006 * rng.standard_normal(245))})
    start = time.perf_counter()
    assert len(found.draws.u) == 1000
    assert time.perf_counter() - start < 30
