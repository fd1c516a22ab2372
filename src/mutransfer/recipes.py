"""Named parametrizations as data. A recipe is a choice of what is scaled; the numbers come from `rules.py`."""

from __future__ import annotations

import difflib
from dataclasses import dataclass
from typing import Literal

from mutransfer.errors import InputError


@dataclass(frozen=True)
class Recipe:
    """What a parametrization scales, and where a published one departs from the derived rules.

    `depth_exponent` e puts `L^(−e)` on each residual branch; None: no depth rule. The other fields are departures, exponents of
    the width ratio N in multiples of ½, in multiplier form (nothing absorbed): the derived LR of embeddings × N^`embedding_lr`
    and of heads × N^`head_lr`, logits × N^`logits` (−1 is the derived one). `decay` "scaled" keeps every tensor's lr·weight_decay,
    "fixed" keeps the number weight_decay itself, so that the decay per step falls with the LR.
    """

    name: str
    width: bool
    depth_exponent: float | None
    source: str
    embedding_lr: float = 0.0
    head_lr: float = 0.0
    logits: float = -1.0
    decay: Literal["scaled", "fixed"] = "scaled"

    @property
    def departs(self) -> bool:
        """Whether any number differs from the derived one."""
        return (self.embedding_lr, self.head_lr, self.logits, self.decay) != (0.0, 0.0, -1.0, "scaled")


_CLAIRE = "the ladder of fixes of CLAIRE (EPFL), AdamW, untied"

RECIPES: dict[str, Recipe] = {
    recipe.name: recipe
    for recipe in (
        Recipe("sp", False, None, "standard parametrization: the user's own code at every size"),
        Recipe("mup", True, None, "maximal update parametrization: 2203.03466 Table 8; 2310.17813"),
        Recipe("depth-mup", True, 0.5, "one matrix per residual branch, branches × L^(−1/2): 2310.02244"),
        Recipe("completep", True, 1.0, "two or more matrices per residual branch, branches × 1/L: 2505.01618"),
        Recipe(
            "claire-mup", True, None, f"{_CLAIRE}: one LR η/N for embedding and unembedding",
            embedding_lr=-1.0, head_lr=-1.0, decay="fixed",
        ),
        Recipe(
            "claire-sqrt-embedding", True, None, f"{_CLAIRE}: that LR as η/√N, √N times the hidden one (2506.15025)",
            embedding_lr=-0.5, head_lr=-0.5, decay="fixed",
        ),
        Recipe(
            "claire-sqrt-logits", True, None, f"{_CLAIRE}: and logits × 1/√N, which that LR of the unembedding calls for",
            embedding_lr=-0.5, head_lr=-0.5, logits=-0.5, decay="fixed",
        ),
        Recipe(
            "claire-independent-decay", True, None, f"{_CLAIRE}: and the decay per step independent of width",
            embedding_lr=-0.5, head_lr=-0.5, logits=-0.5,
        ),
    )
}  # fmt: skip


def recipe_named(name: str) -> Recipe:
    """The recipe of this name. Raises InputError with the closest known name."""
    if name in RECIPES:
        return RECIPES[name]
    close = difflib.get_close_matches(str(name), RECIPES, n=1)
    hint = f"; did you mean {close[0]!r}?" if close else ""
    raise InputError(f"recipe={name!r}: one of {', '.join(RECIPES)}{hint}")
