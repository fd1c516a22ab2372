"""What may stand for the size: what the table has, and what follows from width, depth, vocabulary and context."""

from __future__ import annotations

import numpy as np
import pytest

from mutransfer.predict.points import Points
from mutransfer.predict.reading import read_points
from mutransfer.predict.sizes import candidates, confounders, families
from tests.predict.tables import WIDTHS, gpt_params, grid, ladder

SHAPES = ((128, 4), (256, 4), (256, 8), (512, 8), (512, 12), (1024, 16))


def shaped(**fields: float) -> Points:
    return read_points(
        [
            {"d_model": w, "n_layer": n, "params": gpt_params(w, n), "loss": 3 - i / 10, **fields}
            for i, (w, n) in enumerate(SHAPES)
        ]
    )


def test_non_embedding_parameters_and_flops_per_token_follow_from_the_shape() -> None:
    points = shaped(seq_len=1024)
    w, n = points.variables["width"], points.variables["depth"]
    assert points.variables["non_embedding"] == pytest.approx(12 * n * w**2)
    assert points.variables["flops_per_token"] == pytest.approx(72 * n * w**2 + 12 * n * w * 1024)  # 2401.02954, eq. 2
    assert candidates(points) == ("params", "non_embedding", "flops_per_token", "width", "depth")


def test_without_a_context_there_are_no_flops_per_token() -> None:
    assert candidates(shaped()) == ("params", "non_embedding", "width", "depth")


def test_the_embedding_is_taken_off_where_the_vocabulary_is_known() -> None:
    assert shaped(vocab_size=50304).variables["non_embedding"] == pytest.approx(
        [gpt_params(w, n) - 50304 * w for w, n in SHAPES]
    )
    rows = [
        {"width": w, "params": 24 * w * w + 200 * w, "vocab_size": 100, "tied": False, "loss": 3 - i / 10}
        for i, w in enumerate(WIDTHS)
    ]
    assert read_points(rows).variables["non_embedding"] == pytest.approx([24 * w * w for w in WIDTHS])


def test_what_the_table_says_is_not_derived() -> None:
    rows = [{**row, "non_embedding_params": 7 * row["width"] ** 2} for row in ladder()]
    points = read_points(rows)
    assert points.variables["non_embedding"] == pytest.approx([7 * w**2 for w in WIDTHS])
    assert points.columns["non_embedding"] == "non_embedding_params"


def test_powers_of_one_another_are_one_candidate() -> None:
    """At one depth 12·depth·width² is a power of the width: a law in either is the same law."""
    points = read_points(ladder())
    assert points.constants["depth"] == 12  # read off params = p·width + 144·width²
    assert candidates(points) == ("params", "non_embedding")
    assert families(points) == (("params",), ("non_embedding", "width"))


def test_only_sizes_that_vary_are_candidates() -> None:
    rows = [{"width": 256, "depth": n, "loss": 3 - n / 10} for n in (2, 4, 6, 8, 12)]
    assert candidates(read_points(rows)) == ("non_embedding",)
    assert families(read_points(rows)) == (("non_embedding", "depth"),)
    assert candidates(read_points([{"D": 10.0**i, "loss": 5 - i / 10} for i in range(7, 12)])) == ()


def test_an_mlp_has_no_six_n_d() -> None:
    rows = [
        {
            "model": "mlp",
            "width": w,
            "depth": 3,
            "params": 3 * w * w + 800 * w,
            "flops": 1e9 * w,
            "batch": 64,
            "steps": 100,
            "loss": 2 - i / 10,
        }
        for i, w in enumerate(WIDTHS)
    ]
    points = read_points(rows)
    assert "tokens" not in points.variables and candidates(points) == ("params", "width")


def test_what_a_law_in_size_alone_would_take_for_noise() -> None:
    points = read_points(grid(seed=0))
    assert confounders(points, ["params"]) == ("tokens", "compute")
    assert confounders(points, ["params", "tokens"]) == ()
    assert confounders(read_points(ladder()), ["params"]) == ()


def test_sizes_are_floats_above_zero() -> None:
    for values in shaped(seq_len=64).variables.values():
        assert values.dtype == np.float64 and (values > 0).all() and np.isfinite(values).all()
