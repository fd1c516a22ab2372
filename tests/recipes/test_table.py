"""The page of tables is what the code says now, and the command prints from it."""

import json
from pathlib import Path

import pytest

from mutransfer.cli import main
from mutransfer.recipe_table import ROWS, cell, page
from mutransfer.recipes import RECIPES

PAGE = Path(__file__).parents[2] / "docs" / "recipes.md"


def test_the_page_is_the_generated_one() -> None:
    assert PAGE.read_text(encoding="utf-8") == page(), "run: python -m mutransfer.recipe_table > docs/recipes.md"


def test_the_canonical_cells() -> None:
    """Spot checks by hand, so that the generator itself can be wrong: CompleteP's table, and u-μP's multiplier of a branch's end."""
    complete = {
        column: str(cell(RECIPES["completep"], ROWS["hidden"], column)) for column in ("std", "lr", "decay", "eps")
    }
    assert complete == {"std": "N^-½ = 1/2", "lr": "N^-1 = 1/4", "decay": "N = 4", "eps": "N^-1·L^-1 = 1/16"}
    assert str(cell(RECIPES["u-mup"], ROWS["last of a branch"], "forward")) == "1/8·N^-½·L^-½ = 1/32"
    assert str(cell(RECIPES["supar"], ROWS["expert"], "std")) == "N^-½·ρ^-½ = 1"
    assert str(cell(RECIPES["mu-scaling"], ROWS["query"], "std")) == "0"
    assert str(cell(RECIPES["nanogpt-mup"], ROWS["query"], "forward")) == "1/4"


def test_the_command_lists_and_shows(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["recipes"]) == 0
    listed = capsys.readouterr().out
    assert all(f"\n{name} " in f"\n{listed}" for name in RECIPES)
    assert main(["recipes", "nanogpt-completep"]) == 0
    shown = capsys.readouterr().out
    assert "N^-1·L^-1 = 1/16" in shown and "eps of every tensor = the base's × N^-1·L^-1" in shown
    assert main(["recipes", "mup", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["table"][0]["lr"] == "1"
    assert main(["recipes", "mupp"]) == 2
    assert "did you mean 'mup'" in capsys.readouterr().err


def test_a_plan_on_the_command_line_can_be_sparse(capsys: pytest.CaptureFixture[str]) -> None:
    words = ["plan", "gpt", "--base", "width=64", "--target", "width=256", "--recipe", "supar", "--density", "0.25"]
    assert main(words) == 0
    assert "density ρ ×0.25" in " ".join(capsys.readouterr().out.split())
