"""Tables come in as people have them; what cannot be judged is one clear line."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import mutransfer as mt
from tests.verdict.tables import table

ROWS = table(seeds=2)


def renamed(**names: str) -> list[dict[str, Any]]:
    return [{names.get(k, k): v for k, v in row.items()} for row in ROWS]


def without(**fields: Any) -> list[dict[str, Any]]:
    return [row for row in ROWS if not all(row[k] == v for k, v in fields.items())]


@pytest.fixture(scope="module")
def reference() -> mt.Verdict:
    return mt.transfer_verdict(ROWS)


def write_csv(path: Path, rows: list[dict[str, Any]], mark: str = ",") -> Path:
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]), delimiter=mark)
        writer.writeheader()
        writer.writerows(rows)
    return path


@pytest.mark.parametrize("kind", ["csv", "tsv", "semicolon", "bom", "json", "columns", "jsonl"])
def test_every_kind_of_file_gives_the_same_verdict(kind: str, tmp_path: Path, reference: mt.Verdict) -> None:
    plain_rows = [{**row, "loss": None if np.isnan(row["loss"]) else row["loss"]} for row in ROWS]
    if kind in ("csv", "tsv", "semicolon", "bom"):
        path = write_csv(tmp_path / f"runs.{'tsv' if kind == 'tsv' else 'csv'}", ROWS, {"tsv": "\t", "semicolon": ";"}.get(kind, ","))  # fmt: skip
        if kind == "bom":
            path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())
    elif kind == "jsonl":
        path = tmp_path / "runs.jsonl"
        path.write_text("\n".join(json.dumps(row) for row in plain_rows))
    else:
        path = tmp_path / "runs.json"
        columns = {name: [row[name] for row in plain_rows] for name in ROWS[0]}
        path.write_text(json.dumps(columns if kind == "columns" else plain_rows))
    assert mt.transfer_verdict(path).optima == reference.optima


class Frame:
    """What a pandas data frame looks like from here."""

    columns = tuple(ROWS[0])

    def to_dict(self, orient: str) -> list[dict[str, Any]]:
        assert orient == "records"
        return ROWS


def test_a_data_frame_is_read(reference: mt.Verdict) -> None:
    assert mt.transfer_verdict(Frame()).optima == reference.optima


@pytest.mark.parametrize(
    "names",
    [
        dict(width="n_embd", lr="learning_rate", loss="val_loss"),
        dict(width="config.d_model", lr="config.lr", seed="config.seed", loss="train/loss"),
        dict(width="hidden_size", lr="config/optimizer.lr", loss="eval/loss"),
        dict(width="params", lr="max_lr", loss="summary.final_loss"),
        dict(width="depth", lr="peak lr", loss="Validation Loss"),
    ],
)
def test_common_names_are_known_and_said(names: dict[str, str], reference: mt.Verdict) -> None:
    found = mt.transfer_verdict(renamed(**names))
    assert found.columns == {"size": names["width"], "lr": names["lr"], "seed": names.get("seed", "seed"), "loss": names["loss"]}  # fmt: skip
    assert [o.log2_lr for o in found.optima] == [o.log2_lr for o in reference.optima]


def test_other_names_can_be_given(reference: mt.Verdict) -> None:
    rows = renamed(width="W", lr="rate", loss="L", seed="rng")
    found = mt.transfer_verdict(rows, size="W", lr="rate", loss="L", seed="rng")
    assert found.optima == reference.optima


@pytest.mark.parametrize("name, scale", [("log2_lr", 1.0), ("lr", 1.0), ("log10_lr", np.log10(2))])
def test_logarithms_of_the_lr_are_recognised(name: str, scale: float, reference: mt.Verdict) -> None:
    rows = [{**{k: v for k, v in row.items() if k != "lr"}, name: scale * np.log2(row["lr"])} for row in ROWS]
    for one, two in zip(mt.transfer_verdict(rows).optima, reference.optima, strict=True):
        assert one.log2_lr.value == pytest.approx(two.log2_lr.value, abs=1e-6)


def test_lrs_written_with_few_digits_are_one_lr(reference: mt.Verdict) -> None:
    rows = [{**row, "lr": float(f"{row['lr']:.{2 + row['seed']}g}")} for row in ROWS]
    assert len(mt.transfer_verdict(rows).optima[0].points) == len(reference.optima[0].points)


def test_a_history_is_judged_by_its_last_step(reference: mt.Verdict) -> None:
    history = [{**row, "_step": step, "loss": row["loss"] + (100 - step) / 10} for row in ROWS for step in (50, 100)]
    found = mt.transfer_verdict(history)
    assert found.optima == reference.optima
    assert any("last _step" in note for note in found.notes)


def test_a_history_that_ends_early_is_no_low_loss() -> None:
    """A run whose log stops before the NaN must not be scored by its last finite loss."""
    rows = table(seeds=1, lrs=tuple(range(-12, -5)), diverges=9)
    history = [{**row, "_step": step} for row in rows for step in (50, 100)]
    history = [row for row in history if not (row["width"] == 64 and row["lr"] == 2.0**-6 and row["_step"] == 100)]
    for row in history:
        if row["width"] == 64 and row["lr"] == 2.0**-6:
            row["loss"] = 1.0
    found = mt.transfer_verdict(history)
    assert found.optima[1].loss.value > 2
    assert any("end before" in note for note in found.notes)


def test_what_follows_from_the_size_is_no_other_hyperparameter(reference: mt.Verdict) -> None:
    rows = [{**row, "n_head": row["width"] // 16, "params": 12 * row["width"] ** 2, "min_lr": row["lr"] / 10} for row in ROWS]  # fmt: skip
    assert mt.transfer_verdict(rows).optima == reference.optima


def test_identical_rows_count_once(reference: mt.Verdict) -> None:
    assert mt.transfer_verdict(ROWS + ROWS).optima == reference.optima


def test_a_perplexity_is_noted() -> None:
    found = mt.transfer_verdict([{**row, "loss": float(np.exp(2.5 * row["loss"]))} for row in ROWS])
    assert any("perplexity" in note for note in found.notes)


@pytest.mark.parametrize(
    "rows, message",
    [
        ([], "no rows"),
        ([1, 2], "is not a row"),
        (7, "give a list of dicts"),
        (renamed(width="breite"), "a size"),
        (renamed(lr="rate"), "a learning rate"),
        (renamed(loss="verlust"), "a loss"),
        ([row for row in ROWS if row["width"] == 64], "two sizes"),
        ([row for row in ROWS if row["lr"] == 2.0**-8], "two LRs"),
        ([{**row, "lr": 0} for row in ROWS], "above 0"),
        ([{**row, "lr": -row["lr"]} for row in ROWS], "log2 or log10"),
        ([{**row, "lr": -row["lr"] if row["seed"] else row["lr"]} for row in ROWS], "above 0"),
        ([{**row, "lr": "fast"} for row in ROWS], "'fast' is not a number"),
        ([{**row, "loss": "bad"} for row in ROWS], "'bad' is not a number"),
        ([{**row, "loss": float("nan")} for row in ROWS], "diverged"),
        ([{**row, "loss": float("nan") if row["width"] == 64 else row["loss"]} for row in ROWS], "no LR has a finite loss at width 64"),
        ([*ROWS, {**ROWS[0], "loss": 9.0}], "have different loss"),
        ([{**row, "status": "failed"} for row in ROWS], "no run of the table has a result"),
        ([{**row, "status": "odd"} for row in ROWS], "'odd' is unknown"),
        ([{**row, "recipe": "sp" if row["seed"] else "mup"} for row in ROWS], 'where={"recipe": '),
        ([{**row, "weight_decay": 0.1 * row["seed"] + row["lr"]} for row in ROWS], "weight_decay varies too"),
        ([{**row, "depth": d, "loss": row["loss"] + d} for row in ROWS for d in (2, 4)], "depth varies too"),
        ([{**row, "loss": row["loss"] - 10} for row in ROWS], "must be above 0"),
        ([{**row, "width": -row["width"]} for row in ROWS], "must be a number above 0"),
        ([{**row, "width": None if row["seed"] else row["width"]} for row in ROWS], "has no width"),
    ],
)  # fmt: skip
def test_bad_tables_are_one_clear_line(rows: Any, message: str) -> None:
    with pytest.raises(mt.InputError) as error:
        mt.transfer_verdict(rows)
    assert message in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "options, message",
    [
        (dict(size="widht"), "did you mean 'width'"),
        (dict(where={"recipe": "mup"}), "no such column"),
        (dict(where={"seed": 9}), "no row has it; its values are 0, 1"),
        (dict(level=2), "between 0.5 and 0.99"),
        (dict(tolerance=0), "such as 0.01"),
    ],
)
def test_bad_options_are_one_clear_line(options: dict[str, Any], message: str) -> None:
    with pytest.raises(mt.InputError, match=message):
        mt.transfer_verdict(ROWS, **options)


def test_empty_lines_of_a_spreadsheet_are_no_runs(tmp_path: Path, reference: mt.Verdict) -> None:
    path = write_csv(tmp_path / "runs.csv", ROWS)
    path.write_text("\n\n" + path.read_text().replace("\n", "\n\n") + ",,,\n , ,,\n")
    assert mt.transfer_verdict(path).to_dict() == reference.to_dict()


@pytest.mark.parametrize("column", ["loss", "lr"])
def test_a_decimal_comma_is_refused_with_the_number_to_write(column: str) -> None:
    rows = [{**row, column: f"{row[column]:.5f}".replace(".", ",")} for row in ROWS if row["loss"] == row["loss"]]
    with pytest.raises(mt.InputError, match=r"is not a number; write a decimal point, \d\.\d{5}"):
        mt.transfer_verdict(rows)


@pytest.mark.parametrize("name", ["perplexity", "val_ppl", "eval/perplexity"])
def test_a_perplexity_that_is_named_is_judged_and_said_to_be_one(name: str) -> None:
    verdict = mt.transfer_verdict(renamed(loss=name), loss=name)
    assert any("share of the perplexity" in note for note in verdict.notes)
