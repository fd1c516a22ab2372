"""`mutransfer predict`: what it says, its exit codes, JSON that `evaluate` reads, files."""

from __future__ import annotations

import csv
import json
import math
from pathlib import Path
from typing import Any

import pytest

import mutransfer as mt
from mutransfer.cli import main
from mutransfer.evaluate.predicted import matching, read_predictions
from mutransfer.predict.laws import LAWS
from mutransfer.predict.outcome import foretell
from tests.predict.tables import gpt_params, grid
from tests.predict.test_holdout import WIDTHS, ladder, noisy

LRS = tuple(range(-10, -3))


def sweep(moves: float) -> list[dict[str, Any]]:
    """A sweep of LRs over six widths; the best one moves by `moves` octaves per doubling."""
    return [
        {"width": w, "lr": 2.0**x, "loss": 2 + 4 * w**-0.5 + 0.02 * (x + 7 - moves * math.log2(w / 64)) ** 2 + 0.0005 * math.sin(7 * x + w)}
        for w in (64, 96, 128, 192, 256, 384) for x in LRS
    ]  # fmt: skip


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("tables")
    fine = ladder(seeds=2)
    tables = {
        "fine": fine,
        "off": [{**row, "loss": row["loss"] * (1.1 if row["width"] >= 384 else 1)} for row in fine],
        "flat": noisy([{**row, "loss": 3.0} for row in fine], 0.002),
        "rising": [{**row, "loss": 2 + row["width"] / 1000} for row in ladder(0.0)],
        "grid": noisy(grid(), 0.002),
        "both": [{**row, "recipe": "mup"} for row in fine]
        + [{**row, "loss": row["loss"] + 0.2, "recipe": "sp"} for row in ladder(seeds=2, seed=1)],
        "holds": sweep(0.0),
        "drifts": sweep(-1.0),
        "deep": [{**row, "n_layer": 12} for row in ladder()],
        "proportional": [
            {"params": n, "tokens": 20 * n, "loss": 2 + 900 * n**-0.4 + 1e-3 * (-1) ** i}
            for i, n in enumerate((1e6, 3e6, 1e7, 3e7, 1e8, 3e8))
        ],
    }
    for name, rows in tables.items():
        with (folder / f"{name}.csv").open("w", newline="") as file:
            writer = csv.DictWriter(file, list(rows[0]))
            writer.writeheader()
            writer.writerows(rows)
    return {name: folder / f"{name}.csv" for name in tables}


def run(files: dict[str, Path], capsys: pytest.CaptureFixture[str], line: str) -> tuple[int, str]:
    name, *words = line.split()
    code = main(["predict", str(files[name]), *words])
    said = capsys.readouterr()
    assert said.err == "", said.err
    return code, said.out


def test_the_big_models_loss_is_predicted_and_hidden_ones_revealed(
    files: dict[str, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    code, said = run(files, capsys, "fine --hold-out largest:2 --target params=1B,10B")
    assert code == 0
    assert said.startswith("L = a·N^b + c  over params") and "params 1e+09: loss 2." in said
    assert "params 1e+10: loss 2." in said and "a long extrapolation" in said
    assert "held out (largest:2), predicted from the other 12 runs" in said and "2 of 2 inside" in said
    assert "drop one:" in said and "matters most: without it the error at" in said
    assert "size variables to choose from: params, which the target gives (the table also has non_embedding)" in said


def test_without_anything_asked_the_law_is_fitted_backtested_and_explained(
    files: dict[str, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    code, said = run(files, capsys, "fine")
    assert code == 0 and "backtest, smallest" in said and "size variable by that backtest: params" in said
    assert "held out" not in said and said.count("drop one:") == 1


@pytest.mark.parametrize("line, code, said", [
    ("fine --hold-out largest:3", 0, "3 of 3 inside"),
    ("off --hold-out largest:3", 1, "does not hold: 3 of 3 held-out places lie outside"),
    ("flat", 3, "nothing can be judged: the loss does not fall with"),
    ("rising", 3, "the loss does not fall with"),
    ("holds --target width=1024", 0, "verdict of the sweep over width: HOLDS"),
    ("drifts --target width=1024", 3, "nothing can be judged: the verdict of the sweep is DRIFTS"),
])  # fmt: skip
def test_exit_codes(line: str, code: int, said: str, files: dict[str, Path], capsys: pytest.CaptureFixture[str]) -> None:  # fmt: skip
    found, out = run(files, capsys, line)
    assert found == code and said in out, out


def test_one_law_per_group_and_the_worst_exit_code(files: dict[str, Path], capsys: pytest.CaptureFixture[str]) -> None:
    code, said = run(files, capsys, "both --by recipe --target params=1e9")
    assert code == 0 and said.startswith("recipe mup: L =") and "\n\nrecipe sp: L =" in said
    code, said = run(files, capsys, "both --by recipe --where recipe=sp --json")
    assert code == 0 and list(json.loads(said)) == ["sp"]


def test_json_has_everything_and_evaluate_reads_it(files: dict[str, Path], capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:  # fmt: skip
    code, said = run(files, capsys, "fine --hold-out largest:2 --target params=1e9,2e9 --level 0.8 --json")
    found = json.loads(said)
    assert code == 0 and found["exit_code"] == 0 and found["law"]["law"] == "power"
    assert [p["at"] for p in found["predictions"]] == [{"params": 1e9}, {"params": 2e9}]
    assert all(p["low"] < p["loss"] < p["high"] and p["level"] == 0.8 for p in found["predictions"])
    assert [one["inside"] for one in found["held_out"]] == [True, True] and len(found["held_out"][0]["losses"]) == 2
    rows = found["drop_one"]["rows"]
    assert rows[0]["without"] is None and len(rows) == len(WIDTHS) - 2 + 1 and len(rows[1]["losses"]) == 4
    path = tmp_path / "prediction.json"
    path.write_text(said)
    read = read_predictions(path)
    assert matching(read, {"params": 2.01e9}).loss == found["predictions"][1]["loss"]
    assert read[0].column == "loss" and read[0].level == 0.8


def test_targets_of_a_law_in_size_and_tokens(files: dict[str, Path], capsys: pytest.CaptureFixture[str]) -> None:
    code, said = run(files, capsys, "grid --target N=1e9 tokens=20B,40B")
    assert code == 0 and said.count("params 1e+09, tokens ") >= 2 and "E + A/N^α + B/D^β" in said
    # compute stands in for tokens
    _, one = run(files, capsys, "grid --target params=1e9 compute=1.2e20 --json")
    _, two = run(files, capsys, "grid --target params=1e9 tokens=2e10 --json")
    assert json.loads(one)["predictions"][0]["loss"] == pytest.approx(json.loads(two)["predictions"][0]["loss"])


def test_a_target_on_width_makes_the_law_one_over_width(files: dict[str, Path], capsys: pytest.CaptureFixture[str]) -> None:  # fmt: skip
    code, said = run(files, capsys, "fine --target n_embd=2048")
    assert code == 0 and "over width" in said and "width 2048: loss" in said
    # given both, the backtest chooses
    code, said = run(files, capsys, f"fine --target width=2048 params={gpt_params(2048)}")
    assert code == 0 and "size variable by that backtest: params" in said
    # what every run has may be said, too
    code, said = run(files, capsys, "deep --target params=1e9 depth=12")
    assert code == 0 and "params 1e+09: loss" in said
    code, said = run(files, capsys, "proportional --target params=1e9 tokens=20B")
    assert code == 0 and "params 1e+09: loss" in said


def test_the_laws_are_listed_with_formula_needs_and_source(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["predict", "--law", "list"]) == 0
    said = capsys.readouterr().out
    for name, one in LAWS.items():
        assert f"{name}: {one.formula}" in said and one.needs in said and one.source in said
    assert main(["predict", "--law", "list", "--json"]) == 0
    assert [one["law"] for one in json.loads(capsys.readouterr().out)] == list(LAWS)


def test_picture_and_page_are_written(files: dict[str, Path], capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:  # fmt: skip
    figure, page = tmp_path / "new" / "loss.png", tmp_path / "page.html"
    code, said = run(files, capsys, f"fine --hold-out largest:2 --interval bootstrap --figure {figure} --page {page}")
    assert code == 0 and said.endswith(f"figure: {figure}\npage: {page}\n")
    assert figure.read_bytes().startswith(b"\x89PNG")
    text = page.read_text()
    assert "What will the big model reach?" in text and "mutransfer predict" in text


def test_the_sweeps_losses_are_those_of_the_lr_that_is_asked_for(files: dict[str, Path], capsys: pytest.CaptureFixture[str]) -> None:  # fmt: skip
    for at, note in (("best", "the LR with the lowest mean loss"), ("shared", "the best one at the smallest size"), ("2^-7", "the runs with LR 0.0078125")):  # fmt: skip
        code, said = run(files, capsys, f"holds --at {at}")
        assert code == 0 and note in said


def test_the_public_names_are_there_and_loaded_when_used() -> None:
    law: mt.LossLaw = mt.fit_loss(ladder(seeds=2), law="power")
    p: mt.Prediction = law.predict(params=1e9, level=0.9)
    assert p.low < p.loss < p.high
    outcome = foretell(ladder(seeds=2), hold_out="largest:2")
    assert outcome.words().startswith("L = ") and outcome.exit_code == 0 and outcome.failed is None
