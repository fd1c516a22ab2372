"""Pictures of predictions: every format, the same bytes each time, whatever the law and however wide the intervals."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from mutransfer.errors import InputError
from mutransfer.predict.figure import draw_prediction, save_prediction
from mutransfer.predict.outcome import Outcome, foretell
from tests.predict.tables import grid
from tests.predict.test_holdout import ladder, noisy

STARTS = {"png": b"\x89PNG", "svg": b"<?xml", "pdf": b"%PDF"}


@pytest.fixture(scope="module")
def single() -> Outcome:
    return foretell(ladder(seeds=2), hold_out="largest:2", targets=({"params": 1e9},))


@pytest.fixture(scope="module")
def double() -> Outcome:
    return foretell(noisy(grid(), 0.002), hold_out="largest:2", targets=({"params": 1e10, "tokens": 1e11},))


@pytest.mark.parametrize("format", list(STARTS))
def test_every_format_and_the_same_bytes_each_time(format: str, single: Outcome, double: Outcome) -> None:
    for outcome in (single, double):
        first = draw_prediction({"": outcome}, format)
        assert first.startswith(STARTS[format]) and first == draw_prediction({"": outcome}, format)


def test_groups_stand_side_by_side_and_laws_in_two_variables_below_one_another(
    single: Outcome, double: Outcome
) -> None:
    def size(png: bytes) -> tuple[int, int]:
        return int.from_bytes(png[16:20], "big"), int.from_bytes(png[20:24], "big")

    one, two = size(draw_prediction({"": single})), size(draw_prediction({"SP": single, "μP": single}))
    assert two[0] > one[0] and two[1] == pytest.approx(one[1], rel=0.05)
    one, two = size(draw_prediction({"": double})), size(draw_prediction({"a": double, "b": double}))
    assert two[0] == one[0] and two[1] == 2 * one[1]


def test_outliers_unbounded_ends_and_three_variables_are_drawn() -> None:
    rows = ladder(noise=0.001, seeds=4)
    rows[9]["loss"] *= 1.1
    outcome = foretell(rows, targets=({"params": 1e12},))
    assert outcome.law.fit.aside
    assert draw_prediction({"": outcome}).startswith(STARTS["png"])
    few = foretell(ladder()[:4], targets=({"params": 1e12},), level=0.99)  # one degree of freedom
    assert draw_prediction({"": few}).startswith(STARTS["png"])
    rng = np.random.default_rng(0)
    three = [
        {"width": int(w), "tokens": d, "batch": b, "loss": float(2 + 3 / w**0.5 + 40 / d**0.3 + 0.5 / b**0.5 + 1e-3 * rng.standard_normal())}
        for w in (64, 128, 256, 512) for d in (1e6, 1e7, 1e8) for b in (8, 32)
    ]  # fmt: skip
    law = foretell(three, "additive", over=["width", "tokens", "batch"], hold_out="largest:2")
    assert draw_prediction({"": law}).startswith(STARTS["png"])


def test_the_name_decides_the_format(single: Outcome, tmp_path: Path) -> None:
    path = save_prediction({"": single}, tmp_path / "new" / "loss.svg")
    assert path.read_bytes().startswith(STARTS["svg"])
    with pytest.raises(InputError, match="must end in"):
        save_prediction({"": single}, tmp_path / "loss.bmp")
    with pytest.raises(InputError, match="format='bmp'"):
        draw_prediction({"": single}, "bmp")
    assert not (tmp_path / "loss.bmp").exists()


def test_no_held_out_run_lies_outside_the_panels(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two runs of one hidden size, one of them far off: the panel of residuals reaches both, not their mean."""
    from matplotlib.figure import Figure

    from mutransfer.predict import figure as module

    drawn: list[Figure] = []
    monkeypatch.setattr(module, "_bytes", lambda figure, format: drawn.append(figure) or b"")
    n = np.repeat(np.geomspace(1e6, 1e8, 8), 2)
    loss = 2 + 0.5 * (n / 1e7) ** -0.4 * np.exp(0.002 * np.random.default_rng(0).standard_normal(16))
    loss[-1] *= 1.3
    found = foretell({"params": n, "seed": np.tile([0, 1], 8), "loss": loss}, hold_out="largest:1")
    module.draw_prediction({"": found})
    below = drawn[0].axes[1]
    low, high = below.get_ylim()
    shown = [float(y) for line in below.lines for y in np.atleast_1d(line.get_ydata())]
    assert max(shown) > 20
    assert low <= min(shown) and max(shown) <= high
