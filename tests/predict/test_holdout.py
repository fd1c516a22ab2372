"""What is hidden is hidden before anything is chosen, whole places at once; and each fitted place can be left out."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mutransfer.errors import InputError
from mutransfer.predict import fit_loss, read_points
from mutransfer.predict.holdout import REFINED, chance_outside, drop_one, reveal, split
from mutransfer.predict.points import Points
from tests.predict.tables import gpt_params, grid

WIDTHS = (64, 96, 128, 192, 256, 384, 512, 768)


def ladder(noise: float = 0.002, seeds: int = 1, seed: int = 0) -> list[dict[str, Any]]:
    """L = 2 + 900·N^-0.4 with noise."""
    rng = np.random.default_rng(seed)
    return [
        {"width": w, "params": gpt_params(w), "seed": s, "loss": float((2 + 900 * gpt_params(w) ** -0.4) * np.exp(noise * rng.standard_normal()))}
        for w in WIDTHS for s in range(seeds)
    ]  # fmt: skip


def noisy(rows: list[dict[str, Any]], noise: float, seed: int = 0) -> list[dict[str, Any]]:
    rng = np.random.default_rng(seed)
    return [{**row, "loss": row["loss"] * float(np.exp(noise * rng.standard_normal()))} for row in rows]


def widths(points: Points) -> list[int]:
    return sorted({round(w) for w in points.variables["width"]})


def test_the_largest_places_are_hidden_with_all_their_repetitions() -> None:
    points = read_points(ladder(seeds=3))
    fitted, hidden = split(points, "largest:2")
    assert widths(hidden) == [512, 768] and len(hidden) == 6
    assert widths(fitted) == list(WIDTHS[:-2]) and len(fitted) == 18
    assert widths(split(points, "largest:25%")[1]) == [512, 768]
    assert widths(split(points, "largest:1%")[1]) == [768]  # at least one


@pytest.mark.parametrize("spec, expected", [
    ("width>384", [512, 768]), ("width>=384", [384, 512, 768]), ("width<100", [64, 96]), ("width<=64", [64]), ("width=128", [128]),
    ("params>50M", [512, 768]), ("params > 5e7", [512, 768]),
])  # fmt: skip
def test_a_comparison_hides_what_it_names(spec: str, expected: list[int]) -> None:
    assert widths(split(read_points(ladder()), spec)[1]) == expected


def test_of_a_law_in_size_and_tokens_the_largest_are_those_of_the_largest_compute() -> None:
    points = read_points(grid())
    _, hidden = split(points, "largest:3")
    compute = points.variables["params"] * points.variables["tokens"]
    shown = hidden.variables["params"] * hidden.variables["tokens"]
    assert sorted(shown) == sorted(np.sort(compute)[-3:])
    # over the size alone, a place is a size: all its lengths of training go together
    assert len(split(points, "largest:1", law="power")[1]) == 3


def test_of_equal_compute_the_larger_models_are_the_larger_runs_whatever_rounding_says() -> None:
    rows = [
        {"params": n, "tokens": c / 6 / n * (1 + 1e-12 * i), "loss": 3 - 0.01 * i}
        for c in (1e18, 1e19) for i, n in enumerate((1e7, 3e7, 1e8, 3e8))
    ]  # fmt: skip
    _, hidden = split(read_points(rows), "largest:2")
    assert sorted(hidden.variables["params"]) == [1e8, 3e8]


def test_what_is_hidden_does_not_depend_on_the_order_of_rows_nor_on_losses() -> None:
    rows = ladder(seeds=2)
    shuffled = random.Random(0).sample(rows, len(rows))
    for spec in ("largest:3", "width>=384"):
        first, second = (split(read_points(r), spec)[1] for r in (rows, shuffled))
        assert np.array_equal(first.loss, second.loss) and first.run == second.run
    lied = [{**row, "loss": 9.0 if row["width"] >= 512 else row["loss"]} for row in rows]
    one, two = (fit_loss(split(read_points(r), "largest:2")[0]) for r in (rows, lied))
    assert one.variables == two.variables and np.array_equal(one.fit.u, two.fit.u)
    assert [c.error for c in one.tried] == [c.error for c in two.tried]


@pytest.mark.parametrize("spec, said", [
    ("largest:8", "hides 8 of 8 places"), ("largest:99%", "hides 8 of 8 places"), ("largest:0", "largest:3"), ("largest:2.5", "largest:3"), ("largest", "largest:3"),
    ("biggest:3", "largest:3"), ("width>100000", "no run is there"), ("width>1", "hides every run"), ("depth>2", "depth is 12 in every run"), ("tokens>2", "no variable 'tokens'"),
    ("parms>1e6", "did you mean 'params'"), ("width>wide", "'wide' is not a number"),
])  # fmt: skip
def test_a_hold_out_that_hides_nothing_or_all_is_refused(spec: str, said: str) -> None:
    with pytest.raises(InputError) as caught:
        split(read_points(ladder()), spec)
    assert said in str(caught.value) and spec in str(caught.value) and "\n" not in str(caught.value)


def test_a_variable_that_would_no_longer_vary_is_said() -> None:
    with pytest.raises(InputError, match="tokens is 1e\\+09 in every run that is left to fit"):
        split(read_points(grid()), "tokens>1e9")


def test_hidden_runs_of_a_true_law_are_predicted() -> None:
    fitted, hidden = split(read_points(ladder(seeds=2)), "largest:2")
    law = fit_loss(fitted, "power", over=["params"])
    found = reveal(law, hidden)
    assert [len(one.losses) for one in found] == [2, 2]
    assert found[0].at["params"] < found[1].at["params"]
    for one in found:
        assert one.inside and abs(one.error) < 0.01
        assert one.error == pytest.approx(one.prediction.loss / np.mean(one.losses) - 1)
    assert chance_outside(found, 0.9) == pytest.approx(1.0)
    # many places at once: the bootstrap's intervals, about the same
    lots = law.predict_many([{"params": n} for n in np.geomspace(1e6, 3e8, 20)])
    few = law.predict(params=3e8)
    assert lots[-1].loss == pytest.approx(few.loss) and lots[-1].low == pytest.approx(few.bootstrap[0])


def test_losses_in_perplexity_are_revealed_in_perplexity() -> None:
    rows = [{"params": r["params"], "ppl": float(np.exp(r["loss"]))} for r in ladder()]
    fitted, hidden = split(read_points(rows), "largest:2")
    one = reveal(fit_loss(fitted), hidden)[-1]
    assert one.loss == pytest.approx(rows[-1]["ppl"]) and one.prediction.low <= one.loss <= one.prediction.high


@pytest.mark.parametrize("outside, chance", [(0, 1.0), (1, 0.271), (2, 0.028), (3, 0.001)])
def test_how_many_outside_are_too_many_is_binomial(outside: int, chance: float) -> None:
    class One:
        def __init__(self, inside: bool) -> None:
            self.inside = inside

    places: Any = [One(i >= outside) for i in range(3)]
    assert chance_outside(places, 0.9) == pytest.approx(chance, abs=1e-9)


def test_leaving_a_place_out_is_fitting_without_it() -> None:
    points = read_points(ladder(seeds=2))
    law = fit_loss(points, "power", over=["params"])
    target = law.predict(params=5e8)
    found = drop_one(law, (), (target,))
    assert found is not None and len(found.rows) == found.places == len(WIDTHS)
    assert found.whole.losses == (pytest.approx(target.loss),) and found.actual == (None,)
    for left in found.rows:
        assert left.at is not None
        kept = points.select(points.variables["params"] != left.at["params"])
        without = fit_loss(kept, "power", over=["params"], delta=law.fit.delta)
        assert without.predict(params=5e8).loss == pytest.approx(left.losses[0], rel=2e-4)
    most = found.ranked[0]
    assert max(map(abs, found.shift(most))) == max(abs(found.shift(left)[0]) for left in found.rows)


def test_of_many_places_those_with_influence_are_left_out() -> None:
    rows = [
        {"params": float(n), "tokens": float(d), "loss": 1.7 + 400 / n**0.34 + 410 / d**0.28}
        for n in np.geomspace(1e7, 1e9, 10) for d in np.geomspace(1e9, 1e11, 9)
    ]  # fmt: skip
    rows = noisy(rows, 0.003)
    rows[0]["loss"] *= 1.02  # at the smallest corner
    law = fit_loss(rows, "chinchilla", over=["params", "tokens"])
    found = drop_one(law)
    assert found is not None and len(found.rows) == REFINED and found.places > 80
    assert len(found.watched) == 1 and found.watched[0]["params"] == pytest.approx(1e9)


def test_the_published_leave_out_table_is_reproduced(shared: Path) -> None:
    """Mu-scaling: fitted on widths 128 … 896, without width 128 the error at 3072 becomes +1.3 %."""
    points = read_points(shared / "data" / "mu_scaling_gpt2_losses.csv")
    fitted, hidden = split(points, "width>=1024")
    assert widths(fitted) == [128, 256, 384, 512, 640, 768, 896]
    assert np.array_equal(split(points, "largest:3")[1].loss, hidden.loss)
    law = fit_loss(fitted)
    assert law.variables == ("params",) and len(law.tried) > 1  # chosen among the fitted ones
    found = reveal(law, hidden)
    limits = (0.0030, 0.0018, 0.0018)
    assert all(abs(one.error) <= limit and one.inside for one, limit in zip(found, limits, strict=True))
    assert found[-1].prediction.half_width <= 0.016
    dropped = drop_one(law, found)
    assert dropped is not None
    first = dropped.errors(dropped.rows[0])
    assert len(dropped.rows) == 7 and first[2] == pytest.approx(0.013, abs=0.0005)
    assert dropped.ranked[0] is dropped.rows[0]  # width 128 is the one that matters most
    others = [abs(error or 0) for left in dropped.rows[1:] for error in dropped.errors(left)]
    assert max(others) < 0.0095
