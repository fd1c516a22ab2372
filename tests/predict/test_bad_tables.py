"""A table that cannot be read is one clear line that says what to write."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mutransfer.errors import InputError
from mutransfer.predict.reading import read_points
from tests.predict.tables import changed, grid, history, ladder

ROWS = ladder()
NAN = float("nan")


@pytest.mark.parametrize(
    "rows, message",
    [
        ([], "no rows"),
        ([1, 2], "is not a row"),
        (7, "give a list of dicts"),
        ({"params": [1e6, 2e6], "loss": [3.0]}, "params has 2, loss has 1"),
        ([{"params": r["params"], "verlust": r["loss"]} for r in ROWS], "no column for a loss, such as 'loss' or 'val_loss': name one with loss="),
        ([{"breite": r["width"], "loss": r["loss"]} for r in ROWS], 'no column is known as a size, tokens or compute'),
        ([{"params": 8e6, "loss": 3 - i / 10} for i in range(5)], "params is 8e+06 in every row"),
        (ROWS[:2], "two points with different values: a law with 3 parameters needs 4 or more"),
        ([*ROWS[:2], *ROWS[:2]], "two points"),
        (ROWS[:1], "one point with different values"),
        (changed(ROWS, tuple(range(9)), loss=NAN), "every run diverged: no row has a finite loss"),
        (changed(ROWS, tuple(range(5)), loss=NAN), "two points"),
        ([{**r, "status": "failed"} for r in ROWS], "no run of the table has a result"),
        ([{**r, "status": "odd"} for r in ROWS], "'odd' is unknown"),
        (changed(ROWS, (2, 4), loss=lambda v: -v), "loss=-3.26191 (rows 3, 5): a loss must be above 0; for a log-likelihood write its negative"),
        (changed(ROWS, (3,), loss=0), "loss=0 (row 4): a loss must be above 0"),
        (changed(ROWS, (2,), loss="bad"), "loss='bad' is not a number; write nan for a run that diverged"),
        (changed(ROWS, (2,), loss="3,08"), "write a decimal point, 3.08"),
        (changed(ROWS, (2,), params="big"), "params='big' is not a number; write it in figures"),
        (changed(ROWS, (2,), params=-5), "params=-5 (row 3): write a number above 0"),
        (changed(ROWS, (2,), width=0), "width=0 (row 3): write a number above 0"),
        (changed(ROWS, (2,), params=float("inf")), "params=inf (row 3)"),
        ([{"val_ppl": 0.9 if i == 2 else 20 - i, "params": r["params"]} for i, r in enumerate(ROWS)], "val_ppl=0.9 (row 3): a perplexity must be above 1"),
        ([{"params": n, "loss": 3 - i / 10} for i, n in enumerate((10, 20, 40, 8e7, 1.6e8))], "params: rows 4, 5 (8e+07, …) and the others (10, …) cannot be in one unit"),
        ([{"params_M": n, "loss": 3 - i / 10} for i, n in enumerate((125, 350, 760, 1.3e9, 2.7e9))], "cannot be in one unit"),
        ([{"tokens": n, "loss": 3 - i / 10} for i, n in enumerate((1, 2, 4, 8e9, 16e9))], "tokens: rows 4, 5"),
        ([{"params": n, "loss": y} for n, y in ((125, 3.2), (350, 3.0), (760, 2.9), (1.3, 2.8), (2.7, 2.7), (6.7, 2.6))], "have lower losses than larger sizes do"),
        (changed(ROWS, (4, 5, 6), params=lambda v: v / 1e6), "params: rows 4, 5 are 6.358e+07 at width 512 and 91.28 at width 640: two units in one column"),
        ([{"params": s, "loss": 3 - i / 10} for i, s in enumerate(("125M", "350M", "760", "1.3B"))], "params: some cells have a unit and row 3 has none"),
        ([{**r, "C": 6 * r["N"] * r["D"] / (1e3 if i in (2, 5) else 1)} for i, r in enumerate(grid())], "in rows 3, 6: one of the three is in another unit there"),
        ([{**r, "C": 6 * r["N"] * r["D"] / 1e18} for r in grid()], 'write units={"compute": 1e18}'),
        ([{**r, "loss": float(np.exp(r["loss"]))} for r in ROWS], 'write loss_unit="perplexity"'),
        ([{**r, "Step": i, "a - loss__MAX": 3.0} for i, r in enumerate(ROWS)], "the export of a chart"),
        ([*history(), history()[0] | {"loss": 9.0}], "two rows of one run have the same _step"),
        (changed(grid(), tuple(range(12)), D=lambda v: None if v < 5e9 else v, N=lambda v: None), "tokens is missing in 8 of 12 rows"),
    ],
)  # fmt: skip
def test_bad_tables_are_one_clear_line(rows: Any, message: str) -> None:
    with pytest.raises(InputError) as error:
        read_points(rows)
    assert message in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "options, message",
    [
        (dict(columns={"params": "parms"}), "params='parms': the table has no such column; did you mean 'params'"),
        (dict(columns={"parms": "params"}), "columns 'parms' is no variable: did you mean 'params'"),
        (dict(columns={"seed": "sed"}), "no such column"),
        (dict(loss="losss"), "did you mean 'loss'"),
        (dict(loss_unit="nat"), "write nats, bits, bits_per_byte, perplexity"),
        (dict(units={"params": "Q"}), "is no unit: write a factor such as 1e6"),
        (dict(units={"params": -1}), "is no unit"),
        (dict(units={"tokens": "B"}), "no such variable or column is read; those read are params, width"),
        (dict(where={"width": 999}), "no row has it; its values are"),
        (dict(where={"recipe": "mup"}), "no such column"),
        (dict(at="worst"), 'write "best", "shared" or a learning rate'),
        (dict(at=0.01), "the table has no column for the LR"),
        (dict(at=-1.0), 'write "best", "shared" or a learning rate'),
    ],
)
def test_bad_options_are_one_clear_line(options: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError) as error:
        read_points(ROWS, **options)
    assert message in str(error.value) and "\n" not in str(error.value)


def test_a_column_that_is_named_must_vary() -> None:
    with pytest.raises(InputError, match=r"tokens \(D\) is 1e\+10 in every row: a law needs tokens that varies"):
        read_points([{**row, "D": 1e10} for row in ROWS], columns={"tokens": "D"})
    assert read_points([{**row, "D": 1e10} for row in ROWS]).constants["tokens"] == 1e10


@pytest.mark.parametrize(
    "name, content, message",
    [("runs.csv", b"", "is empty"), ("runs.csv", b"hello\nworld\n", "is no table"), ("runs.csv", b"params,loss\n", "no rows"),
     ("runs.json", b"{", "is not JSON"), ("none.csv", None, "does not exist"), ("runs.csv", b"params,loss\n1e6,3,4\n", "more values")],
)  # fmt: skip
def test_bad_files_are_one_clear_line(name: str, content: bytes | None, message: str, tmp_path: Path) -> None:
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(InputError, match=message):
        read_points(tmp_path / name)
