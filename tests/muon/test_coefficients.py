"""The Polar Express coefficients are derived, and equal the published ones; any triples can be given instead."""

import math

import numpy as np
import pytest

from mutransfer.errors import InputError
from mutransfer.muon.coefficients import JORDAN, best_quintic, polar_express, schedule

PUBLISHED = [  # 2505.16932, algorithm 1, before its safety factor
    (8.28721201814563, -23.595886519098837, 17.300387312530933),
    (4.107059111542203, -2.9478499167379106, 0.5448431082926601),
    (3.9486908534822946, -2.908902115962949, 0.5518191394370137),
    (3.3184196573706015, -2.488488024314874, 0.51004894012372),
    (2.300652019954817, -1.6689039845747493, 0.4188073119525673),
    (1.891301407787398, -1.2679958271945868, 0.37680408948524835),
    (1.8750014808534479, -1.2500016453999487, 0.3750001645474248),
    (1.875, -1.25, 0.375),
]


def value(triple: tuple[float, float, float], x: np.ndarray) -> np.ndarray:
    a, b, c = triple
    return a * x + b * x**3 + c * x**5


def test_the_published_list_is_derived() -> None:
    np.testing.assert_allclose(polar_express(8, safety=1.0), PUBLISHED, rtol=1e-8)
    safe = polar_express(8)
    for k, (a, b, c) in enumerate(PUBLISHED):
        s = 1.01 if k < 7 else 1.0
        np.testing.assert_allclose(safe[k], (a / s, b / s**3, c / s**5), rtol=1e-8)


@pytest.mark.parametrize("low", [0.03, 0.3, 0.9, 0.9999])
def test_the_best_quintic_errs_equally_at_four_points_and_nowhere_more(low: float) -> None:
    """Chebyshev's alternation, which no other odd quintic has."""
    x = np.linspace(low, 1.0, 20_001)
    error = 1 - value(best_quintic(low, 1.0), x)
    largest = abs(error).max()
    signs = np.sign(error[abs(error) > largest * (1 - 1e-3) - 1e-15])
    assert list(signs[np.r_[True, signs[1:] != signs[:-1]]]) == [1, -1, 1, -1] or largest < 1e-12
    for other in (0.99, 1.01):
        a, b, c = best_quintic(low, 1.0)
        assert abs(1 - value((a * other, b, c), x)).max() > largest


def test_every_singular_value_of_the_interval_comes_to_one() -> None:
    x = np.geomspace(1e-3, 1.0, 2000)
    for triple in polar_express(8, safety=1.0):
        x = value(triple, x)
    assert abs(x - 1).max() < 1e-9


def test_schedules() -> None:
    assert schedule("jordan", 3) == (JORDAN,) * 3
    assert schedule("polar-express", 4) == polar_express(4)
    assert schedule((2.0, -1.5, 0.5), 2) == ((2.0, -1.5, 0.5),) * 2
    two = [[3.0, -4.0, 2.0], (2, -1.5, 0.5)]
    assert schedule(two, 4) == ((3.0, -4.0, 2.0), *((2.0, -1.5, 0.5),) * 3)
    assert schedule(two, 1) == ((3.0, -4.0, 2.0),)


@pytest.mark.parametrize(
    "bad", ["newton", (), (1.0, 2.0), [(1.0, 2.0)], [(1, 2, 3), 4], (math.nan, 1, 1), (True, 1, 1), None, 3.0, "123"]
)
def test_bad_coefficients_are_one_clear_line(bad: object) -> None:
    with pytest.raises(InputError, match=r"^coefficients=.*triple"):
        schedule(bad, 5)  # pyright: ignore[reportArgumentType]


@pytest.mark.parametrize("bad", [0, 100, 2.0, True, None])
def test_bad_step_counts(bad: object) -> None:
    with pytest.raises(InputError, match=r"^ns_steps="):
        schedule("jordan", bad)  # pyright: ignore[reportArgumentType]
