"""The adaptive search finds the optimum that the full grid finds, from a fraction of its runs, and decides by losses alone."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest

from mutransfer.sweep.adaptive import adaptive, lowest, parabola
from mutransfer.sweep.driver import Ask
from mutransfer.sweep.points import groups
from mutransfer.sweep.wanted import Call, Wanted

Surface = Callable[[float, float, int], float]
WIDTHS, SEEDS = (32, 64, 128, 256), (0, 1)
LRS = tuple(-11 + i / 2 for i in range(15))


def grid(widths: Sequence[int] = WIDTHS) -> list[Wanted]:
    """Calls of a function that is never called: only their fields matter here."""
    return [
        Wanted.of(Call("m:f", "", {"width": width, "lr": 2.0**lr, "seed": seed}))
        for width in widths for lr in LRS for seed in SEEDS
    ]  # fmt: skip


def never(run: Wanted, paused: object, reason: str) -> None:
    """Calls are never paused, and so never given up."""
    raise AssertionError(reason)


def follow(surface: Surface, widths: Sequence[int] = WIDTHS) -> dict[tuple[int, float, int], float]:
    """Every run that the search asks for, and its loss."""
    (group,) = groups(grid(widths))
    search = adaptive(group, "loss", never)
    made: dict[tuple[int, float, int], float] = {}
    asks: Sequence[Ask] = next(search)
    while True:
        records = []
        for ask in asks:
            assert ask.until is None and isinstance(ask.run.config, Call)
            point = ask.run.config.point
            loss = surface(point["width"], math.log2(point["lr"]), point["seed"])
            assert (point["width"], math.log2(point["lr"]), point["seed"]) not in made  # nothing is asked for twice
            made[point["width"], math.log2(point["lr"]), point["seed"]] = loss
            good = math.isfinite(loss)
            records.append({"status": "finished" if good else "diverged", "metrics": {"loss": loss if good else None}})
        try:
            asks = search.send(records)
        except StopIteration:
            return made


def surface(drift: float, seed: int, shape: str = "quadratic") -> Surface:
    """A loss over (width, log2 LR) as training gives it: 0.03 per squared octave, noise 0.002 beside a seed's own level."""

    def loss(width: float, x: float, run: int) -> float:
        best = -6.0 + drift * math.log2(width / 32)
        if x > best + 3.6:
            return math.inf
        u = x - best
        valley = {"quadratic": 0.03 * u * u, "steep": 0.03 * u * u * (1 + 0.25 * u if u > 0 else 1 - 0.05 * u)}[shape]
        level = np.random.default_rng([seed, run]).normal(0, 0.01)
        noise = np.random.default_rng([seed, run, int(width), round(2 * x) + 100]).normal(0, 0.002)
        return 2.4 - 0.03 * math.log2(width / 32) + valley + level + noise

    return loss


def optimum(points: dict[tuple[int, float, int], float], width: int) -> float:
    """By the same local fit for both."""
    curve: dict[float, dict[Any, float]] = {}
    for (w, x, seed), loss in points.items():
        if w == width:
            curve.setdefault(x, {})[seed] = loss
    found = parabola(curve)
    assert found is not None
    return found.vertex


@pytest.mark.parametrize("shape", ["quadratic", "steep"])
@pytest.mark.parametrize("drift", [0.0, -0.5, -1.0])
def test_it_needs_a_third_of_the_grid_and_finds_its_optimum(drift: float, shape: str) -> None:
    close, cost = [], []
    for trial in range(10):
        loss = surface(drift, trial, shape)
        made = follow(loss)
        full = {(w, x, s): loss(w, x, s) for w in WIDTHS for x in LRS for s in SEEDS}
        close += [abs(optimum(made, width) - optimum(full, width)) <= 0.25 for width in WIDTHS]
        cost.append(sum(w * w for w, _, _ in made) / sum(w * w for w, _, _ in full))
    assert np.mean(close) >= 0.9
    assert max(cost) <= 0.35


def test_the_rate_carried_over_is_measured_where_it_matters() -> None:
    made = follow(surface(-1.0, 0))
    assert any(width == 256 and abs(x + 6) <= 0.5 for width, x, _ in made)


def test_an_optimum_at_the_edge_of_the_range_stays_inside_it() -> None:
    made = follow(surface(-4.0, 0))
    assert all(LRS[0] <= x <= LRS[-1] for _, x, _ in made)
    assert any(width == 256 and x == LRS[0] for width, x, _ in made)


def test_a_size_at_which_all_diverges_does_not_end_the_search() -> None:
    def loss(width: float, x: float, seed: int) -> float:
        return math.inf if width == 64 else surface(0.0, 0)(width, x, seed)

    made = follow(loss)
    assert {width for width, _, _ in made} == set(WIDTHS)
    assert min(x for width, x, _ in made if width == 64) == LRS[0]  # lower and lower, to the end of the range


def test_more_seeds_only_where_the_noise_asks_for_them() -> None:
    def quiet(width: float, x: float, seed: int) -> float:
        return 2.0 + 0.05 * (x + 6.2) ** 2

    assert {seed for width, _, seed in follow(quiet) if width == 256} == {
        0
    }  # smaller sizes are cheap: they have a budget

    def loud(width: float, x: float, seed: int) -> float:
        return quiet(width, x, seed) + float(
            np.random.default_rng([int(width), round(2 * x) + 99, seed]).normal(0, 0.08)
        )

    assert {seed for width, _, seed in follow(loud) if width == 256} == {0, 1}


def test_the_local_fit_is_exact_on_a_parabola_and_blind_to_the_level_of_a_seed() -> None:
    curve = {x: {s: 1.0 + s + 0.3 * (x + 6.4) ** 2 for s in (0, 1)} for x in (-8.0, -7.0, -6.0, -5.0)}
    curve[-7.0].pop(1)
    assert lowest(curve) == -6.0
    found = parabola(curve)
    assert found is not None and found.vertex == pytest.approx(-6.4) and found.squares == pytest.approx(0, abs=1e-20)
    assert parabola({-7.0: {0: math.inf}}) is None
