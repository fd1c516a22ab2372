"""`mutransfer recipes`: the named parametrizations, and the table of one."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Annotated, ClassVar

from tyro.conf import Positional, arg

from mutransfer.errors import InputError


@dataclass(frozen=True)
class Recipes:
    """The named parametrizations of the literature; with a name its table at N times the width and L times the depth.

    Examples:
      mutransfer recipes
      mutransfer recipes completep
    """

    summary: ClassVar[str] = "list the recipes of the literature, or print the table of one"

    name: Annotated[Positional[str], arg(metavar="NAME")] = "list"
    """A recipe, or list."""
    json: bool = False
    """Print as JSON."""

    def run(self) -> int:
        """List or print. Returns 0."""
        from mutransfer.commands.builtin import close_name
        from mutransfer.commands.output import show_json
        from mutransfer.recipes import RECIPES

        if self.name == "list":
            if self.json:
                show_json([asdict(recipe) for recipe in RECIPES.values()])
            else:
                for recipe in RECIPES.values():
                    print(f"{recipe.name:26} {recipe.source}")
            return 0
        if self.name not in RECIPES:
            raise InputError(f"there is no recipe {self.name!r}: {close_name(self.name, tuple(RECIPES))}")
        from mutransfer.recipe_table import COLUMNS, explained, table

        recipe = RECIPES[self.name]
        if self.json:
            rows = [dict(zip(("tensor", *COLUMNS), row, strict=True)) for row in table(recipe)]
            show_json({**asdict(recipe), "table": rows})
        else:
            print(explained(recipe))
        return 0
