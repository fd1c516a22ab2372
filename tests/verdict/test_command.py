"""`mutransfer verdict`: exit codes, JSON, pictures."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

import mutransfer as mt
from mutransfer.cli import main
from mutransfer.verdict.figure import draw_curves, draw_drift
from tests.verdict.tables import DRIFTING, STAYING, WORSE, table

STARTS = {"png": b"\x89PNG", "svg": b"<?xml", "pdf": b"%PDF"}


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("tables")
    tables: dict[str, list[dict[str, Any]]] = {
        "holds": table(**STAYING),
        "drifts": table(**DRIFTING),
        "worse": table(**WORSE),
        "edge": table(lrs=tuple(range(-14, -9)), diverges=9),
        "both": table(**STAYING, recipe="mup") + table(**DRIFTING, recipe="sp"),
    }
    for name, rows in tables.items():
        plain = [{k: None if v != v else v for k, v in row.items()} for row in rows]
        (folder / f"{name}.json").write_text(json.dumps(plain))
    return {name: folder / f"{name}.json" for name in tables}


@pytest.mark.parametrize("name, code", [("holds", 0), ("drifts", 1), ("worse", 1), ("edge", 3)])
def test_the_exit_code_is_the_verdict(
    name: str, code: int, files: dict[str, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["verdict", str(files[name])]) == code
    assert "tune at width 32, use at width 256" in capsys.readouterr().out


def test_the_exit_code_of_groups_is_the_worst(files: dict[str, Path], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["verdict", str(files["both"]), "--by", "recipe"]) == 1
    said = capsys.readouterr().out
    assert "recipe mup: HOLDS" in said and "recipe sp: DRIFTS" in said
    assert main(["verdict", str(files["both"]), "--where", "recipe=mup"]) == 0


def test_json_is_one_document(files: dict[str, Path], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["verdict", str(files["drifts"]), "--json", "--level", "0.8"]) == 1
    found = json.loads(capsys.readouterr().out)
    assert found["status"] == "DRIFTS" and found["level"] == 0.8
    assert main(["verdict", str(files["both"]), "--by", "recipe", "--json"]) == 1
    assert set(json.loads(capsys.readouterr().out)) == {"mup", "sp"}


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["absent.csv"], "does not exist"),
        (["{both}"], "where={"),
        (["{holds}", "--loss", "lost"], "did you mean 'loss'"),
        (["{holds}", "--figure", "picture.bmp"], ".png, .svg or .pdf"),
        (["{holds}", "--where", "recipe"], "NAME=VALUE"),
        (["{holds}", "--by", "recipe"], "no such column"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(
    arguments: list[str], message: str, files: dict[str, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["verdict", *(a.format(**files) for a in arguments)]) == 2
    said = capsys.readouterr().err
    assert message in said and said.count("\n") == 1


@pytest.mark.parametrize("format", ["png", "svg", "pdf"])
def test_pictures_in_every_format_and_the_same_each_time(format: str, files: dict[str, Path], tmp_path: Path) -> None:
    verdicts = mt.transfer_verdicts(files["both"], by="recipe")
    for draw in (draw_curves, draw_drift):
        first = draw(verdicts, format)
        assert first.startswith(STARTS[format])
        assert first == draw(verdicts, format)
    path = verdicts["sp"].figure(tmp_path / f"one.{format}")
    assert path.read_bytes().startswith(STARTS[format])


def test_the_figure_option_writes_the_picture(
    files: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["verdict", str(files["edge"]), "--figure", str(tmp_path / "new" / "edge.png")]) == 3
    assert (tmp_path / "new" / "edge.png").read_bytes().startswith(STARTS["png"])
