"""`mutransfer budget`: exit codes, words, JSON, pictures."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from mutransfer.cli import main
from mutransfer.predict.points import Points
from tests.predict.known import curves, sizes

STARTS = {"png": b"\x89PNG", "svg": b"<?xml", "pdf": b"%PDF"}


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    folder = tmp_path_factory.mktemp("tables")
    tables: dict[str, Points] = {"curves": curves(np.random.default_rng(0)), "sizes": sizes(np.random.default_rng(0))}
    found = {}
    for name, points in tables.items():
        rows = [
            {**{k: float(v[i]) for k, v in points.variables.items()}, "loss": float(points.loss[i])}
            for i in range(len(points))
        ]
        (folder / f"{name}.json").write_text(json.dumps(rows))
        found[name] = str(folder / f"{name}.json")
    return found


def test_budgets_give_a_table_with_intervals(files: dict[str, str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["budget", files["curves"], "--compute", "1e22,1e23", "1e24"]) == 0
    said = capsys.readouterr().out
    assert "compute-optimal, C = 6·N·D (90% intervals)" in said and "N_opt ∝ C^a, a 0.5" in said
    assert all(f"\n  {c}" in said for c in ("1e+22", "1e+23", "1e+24"))
    assert "isoFLOP: 5 budgets" in said and "by isoFLOP curves" in said and "they agree" in said


def test_with_no_question_the_next_decades_are_shown(files: dict[str, str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["budget", files["curves"], "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert len(found["frontier"]["optima"]) == 3 and len(found["isoflop"]["budgets"]) == 5
    assert found["target_loss"] is None and found["next_runs"] is None


@pytest.mark.parametrize("table, loss, code", [("curves", "2.2", 0), ("curves", "1.2", 3), ("sizes", "3.1", 0), ("sizes", "2.5", 3), ("sizes", "2.905", 3)])  # fmt: skip
def test_the_exit_code_says_whether_a_loss_is_reachable(table: str, loss: str, code: int, files: dict[str, str], capsys: pytest.CaptureFixture[str]) -> None:  # fmt: skip
    assert main(["budget", files[table], "--target-loss", loss]) == code
    assert f"loss {loss}: " in capsys.readouterr().out


def test_next_runs_are_named_with_costs_and_expected_intervals(files: dict[str, str], capsys: pytest.CaptureFixture[str]) -> None:  # fmt: skip
    assert main(["budget", files["curves"], "--narrow", "params=70B", "tokens=1.4T", "--spend", "1e22", "--runs", "2"]) == 0  # fmt: skip
    said = capsys.readouterr().out
    assert "params 7e+10, tokens 1.4e+12: loss" in said and said.count("\n  run params") <= 2
    assert "expected" in said and "stays whatever is run" in said and "compute-optimal" not in said
    assert main(["budget", files["sizes"], "--narrow", "params=1e10", "--runs", "2", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)["next_runs"]
    assert found["expected_half_width"] < found["half_width"] and found["cost_unit"] == "largest runs"


@pytest.mark.parametrize("format", ["png", "svg", "pdf"])
def test_pictures_of_all_kinds(format: str, files: dict[str, str], tmp_path: Path) -> None:
    path = tmp_path / f"budget.{format}"
    everything = ["--target-loss", "2.2", "--compute", "1e23", "--narrow", "params=1e10", "tokens=3e11", "--spend", "1e21"]  # fmt: skip
    asked = {"png": everything, "svg": ["--narrow", "params=1e10", "tokens=3e11", "--runs", "2"], "pdf": ["--isoflop"]}
    assert main(["budget", files["curves"], *asked[format], "--figure", str(path)]) == 0
    assert path.read_bytes().startswith(STARTS[format])


def test_a_picture_of_one_variable(files: dict[str, str], tmp_path: Path) -> None:
    path = tmp_path / "one.png"
    assert main(["budget", files["sizes"], "--target-loss", "3.05", "--narrow", "params=3e9", "--runs", "1", "--figure", str(path)]) == 0  # fmt: skip
    assert path.read_bytes().startswith(STARTS["png"])


@pytest.mark.parametrize(
    "table, arguments, message",
    [
        ("curves", ["--spend", "1e20"], "--spend, --runs and --each are for --narrow"),
        ("curves", ["--narrow", "params=1e10", "tokens=1e11"], "--narrow needs a budget: write --spend 1e20"),
        ("curves", ["--narrow", "params=1e10,2e10", "tokens=1e11", "--runs", "1"], "write one target"),
        ("curves", ["--narrow", "parms=1e10", "--runs", "1"], "--narrow 'parms=1e10': there is no variable 'parms'"),
        ("curves", ["--compute", "much"], "--compute 'much': write numbers above 0, such as 1e21"),
        ("curves", ["--figure", "frontier.gif"], "the name must end in .png, .svg or .pdf"),
        ("curves", ["--columns", "params"], "--columns 'params': write NAME=VALUE"),
        ("sizes", [], "it has no compute-optimal frontier: ask for a loss"),
        ("sizes", ["--compute", "1e22"], "needs a law over a size and tokens, and this one is over params"),
        ("sizes", ["--isoflop", "--target-loss", "3"], "isoFLOP curves need compute"),
    ],
)
def test_bad_input_is_one_line(table: str, arguments: list[str], message: str, files: dict[str, str], capsys: pytest.CaptureFixture[str]) -> None:  # fmt: skip
    assert main(["budget", files[table], *arguments]) == 2
    said = capsys.readouterr()
    assert message in said.err and said.err.count("\n") == 1 and not said.out
