"""Named parametrizations as data. A recipe is a choice of what is scaled; the numbers come from `rules.py`."""

from __future__ import annotations

import difflib
from dataclasses import dataclass

from mutransfer.errors import InputError


@dataclass(frozen=True)
class Recipe:
    """What a parametrization scales. `depth_exponent` e puts `L^(−e)` on each residual branch; None: no depth rule."""

    name: str
    width: bool
    depth_exponent: float | None
    source: str


RECIPES: dict[str, Recipe] = {
    recipe.name: recipe
    for recipe in (
        Recipe("sp", False, None, "standard parametrization: the user's own code at every size"),
        Recipe("mup", True, None, "maximal update parametrization: 2203.03466 Table 8; 2310.17813"),
        Recipe("depth-mup", True, 0.5, "one matrix per residual branch, branches × L^(−1/2): 2310.02244"),
        Recipe("completep", True, 1.0, "two or more matrices per residual branch, branches × 1/L: 2505.01618"),
    )
}


def recipe_named(name: str) -> Recipe:
    """The recipe of this name. Raises InputError with the closest known name."""
    if name in RECIPES:
        return RECIPES[name]
    close = difflib.get_close_matches(str(name), RECIPES, n=1)
    hint = f"; did you mean {close[0]!r}?" if close else ""
    raise InputError(f"recipe={name!r}: one of {', '.join(RECIPES)}{hint}")
