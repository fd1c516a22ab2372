"""Cells hold numbers as people write them; runs have a status, histories an end, comparisons nothing else that varies."""

from __future__ import annotations

import math
from typing import Any

import pytest

from mutransfer.errors import InputError
from mutransfer.rows.cells import (
    decimal_point,
    filtered,
    is_finite,
    is_number,
    matches,
    number,
    number_in,
    status_of,
    text,
)
from mutransfer.rows.confounded import confounded, follows, usual
from mutransfer.rows.history import last_steps
from mutransfer.rows.rates import same_lrs, to_log2_lr


@pytest.mark.parametrize(
    "text, value",
    [("1e-3", 1e-3), ("2^-8", 2**-8), ("2**-8.5", 2**-8.5), ("2^(1/2)", 2**0.5), (" ", None), (None, None), ("Infinity", float("inf"))],
)  # fmt: skip
def test_numbers_as_people_write_them(text: Any, value: float | None) -> None:
    assert number(text) == value


def test_one_value_is_one_text_however_it_is_written() -> None:
    assert {text(v) for v in (1, 1.0, "1", " 1.0 ")} == {"1"} and text(None) == "" and text(" mup ") == "mup"
    assert matches("0.10", 0.1) and matches("mup", "mup ") and not matches("mup", "sp")
    assert is_number("nan") and not is_finite("nan") and not is_number("fast") and not is_number(None)
    assert decimal_point("3,08") == "write a decimal point, 3.08" and decimal_point("3.08") == ""


def test_what_is_no_number_is_quoted() -> None:
    with pytest.raises(InputError, match="lr='fast' is not a number"):
        number_in({"lr": "fast"}, "lr")
    with pytest.raises(InputError, match="a row has no lr"):
        number_in({"lr": "", "width": 64}, "lr")


@pytest.mark.parametrize(
    "row, status",
    [({"loss": 2.0}, "finished"), ({"loss": "nan"}, "diverged"), ({"loss": None}, "diverged"), ({"loss": 2.0, "state": "crashed"}, None),
     ({"loss": 2.0, "state": "Finished"}, "finished"), ({"loss": 2.0, "state": "diverged"}, "diverged"), ({"loss": 2.0, "state": "pruned"}, "stopped")],
)  # fmt: skip
def test_the_status_of_a_run(row: dict[str, Any], status: str | None) -> None:
    assert status_of(row, "state", "loss") == status


def test_rows_are_chosen_by_value() -> None:
    rows: list[dict[str, Any]] = [
        {"recipe": "mup", "depth": "2"},
        {"recipe": "sp", "depth": 2.0},
        {"recipe": "mup", "depth": 4},
    ]
    assert filtered(rows, ["recipe", "depth"], {"recipe": "mup", "depth": 2}) == rows[:1]
    with pytest.raises(InputError, match=r"its values are 2, 2\.0, 4"):
        filtered(rows, ["recipe", "depth"], {"depth": 8})


def test_a_column_that_follows_from_the_sizes_together_is_no_comparison_of_its_own() -> None:
    rows: list[dict[str, Any]] = [
        {"width": w, "depth": d, "dropout": w * d / 1e3, "optimizer": o, "wd": lr / 10, "lr": lr}
        for w in (64, 128) for d in (2, 4) for o in ("adamw", "muon", "muon") for lr in (0.1, 0.2)
    ]  # fmt: skip
    assert follows(rows, "dropout", ["width", "depth"]) and not follows(rows, "dropout", ["width"])
    names = list(rows[0])
    assert list(confounded(rows, names, {"width", "depth", "lr"}, ["width", "depth"], ["lr"])) == ["optimizer"]
    assert list(confounded(rows, names, {"width", "lr"}, ["width"], ["lr"])) == ["depth", "dropout", "optimizer"]
    assert usual(rows, "optimizer") == "muon"


def test_the_last_step_with_a_loss_is_the_runs() -> None:
    rows: list[dict[str, Any]] = [
        {"name": n, "step": s, "loss": None if s == 100 and n == "a" else 3 - s / 100}
        for n in "ab"
        for s in (50, 95, 100)
    ]
    notes: list[str] = []
    kept = last_steps(rows, ["name", "step", "loss"], [], "loss", None, notes)
    assert [(row["name"], row["step"]) for row in kept] == [("a", 95), ("b", 100)] and "history of 6 rows" in notes[0]


def test_learning_rates_as_they_stand_or_as_logarithms() -> None:
    notes: list[str] = []
    assert to_log2_lr("lr", [0.25, 0.5], notes)(0.25) == -2 and to_log2_lr("log2_lr", [-2.0], notes)(-2.0) == -2
    assert to_log2_lr("log10_lr", [-3.0], notes)(-3.0) == pytest.approx(math.log2(1e-3))
    near = same_lrs([math.log2(0.00098), -10.0, -9.0])
    assert len(set(near.values())) == 2
