"""docs/optimizers.md is what the code declares."""

from pathlib import Path

import pytest

from mutransfer.optimizers import REGISTRY
from mutransfer.optimizers.page import TABLES

PAGE = Path(__file__).parents[2] / "docs" / "optimizers.md"


@pytest.mark.parametrize("name", TABLES)
def test_the_page_holds_the_table_that_the_code_makes(name: str) -> None:
    text = PAGE.read_text(encoding="utf-8")
    _, found, rest = text.partition(f"<!-- {name} -->\n")
    assert found and rest.partition(f"\n<!-- end of {name} -->")[0] == TABLES[name]()


def test_every_certain_optimizer_has_its_measured_verdicts_in_the_page() -> None:
    """All that run, over width and depth, on both models: PASS with the plan, FAIL under standard parametrization and wrong facts."""
    text = PAGE.read_text(encoding="utf-8")
    for name, facts in REGISTRY.items():
        for kind in ("gpt", "mlp"):
            for axis in ("width", "depth"):
                if facts.certain:
                    assert f"| {name} | {kind} | {axis} | PASS | FAIL | FAIL |" in text, (name, kind, axis)
