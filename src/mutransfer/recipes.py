"""Named parametrizations as data. A recipe is a choice of what is scaled; the numbers come from `rules.py`.

What a published code scales in its own way is written as `Change`s and a few other fields, never as code of its own name, so that
`dataclasses.replace(RECIPES["completep"], changes=RECIPES["large-vocabulary"].changes)` is a recipe like any other.
"""

from __future__ import annotations

import difflib
from dataclasses import dataclass, replace
from typing import Any, Literal, get_args

from mutransfer.errors import InputError

Kind = Literal["embedding", "position", "matrix", "residual", "router", "head", "vector", "final"]
"""Where a tensor stands. "residual" are the matrices that end a residual branch, and "matrix" too; "vector" is what sits in a block
and is no matrix (gains, biases), "final" the same outside of blocks; a tied table is an "embedding"."""
Quantity = Literal["std", "lr", "decay", "eps"]
Decay = Literal["scaled", "fixed", "independent"]
Attention = Literal["base", "1/d"]
Zeroed = Literal["query", "embedding", "head"]
Scaled = Literal["embedding", "position", "matrix", "router", "head"]
KINDS: tuple[Kind, ...] = get_args(Kind)
PLACEMENTS = ("absorbed", "multiplier", "unit")


@dataclass(frozen=True)
class Change:
    """The ratio of `quantity` of the tensors of these kinds is N^width·L^depth: times the derived one, or (`instead`) in its place.

    In multiplier form (nothing absorbed). N is the tensor's own growth: of its fan-out for embeddings and for eps, else of its fan-in.
    Exponents are multiples of ½. An LR that changes keeps lr·weight_decay, where the recipe scales decay.
    """

    quantity: Quantity
    kinds: tuple[Kind, ...] = KINDS
    width: float = 0.0
    depth: float = 0.0
    instead: bool = False


@dataclass(frozen=True)
class Recipe:
    """What a parametrization scales, and where a published one departs from the derived rules.

    `depth_exponent` e puts `L^(−e)` on each residual branch; None: no depth rule. `changes` and `logits` (× N^`logits`; −1 is the
    derived one) are departures. `decay`: "scaled" keeps every tensor's lr·weight_decay, "fixed" keeps the number weight_decay itself,
    "independent" takes weight_decay as the decay of one step at the peak LR, whatever that LR is (2309.14322).

    Four fields change the base, too: `attention` "1/d" makes the softmax scale 1/d at every size, and not what the user's code has at
    the base; `multipliers` are constant forward factors by kind; `zero` names what starts at zero (of a fused projection the query's
    rows); the plan says so. `optimizer` and `placement` are the recipe's own, where the user names none; `beside` is what else the
    published variant sets, outside of a plan's reach.
    Raises InputError for an unknown name in any field.
    """

    name: str
    width: bool
    depth_exponent: float | None
    source: str
    changes: tuple[Change, ...] = ()
    logits: float = -1.0
    decay: Decay = "scaled"
    attention: Attention = "base"
    multipliers: tuple[tuple[Scaled, float], ...] = ()
    zero: tuple[Zeroed, ...] = ()
    optimizer: str | None = None
    placement: str | None = None
    beside: str = ""

    def __post_init__(self) -> None:
        for field, value, known in (
            ("decay", self.decay, get_args(Decay)),
            ("attention", self.attention, get_args(Attention)),
            ("placement", self.placement, (*PLACEMENTS, None)),
            ("depth_exponent", self.depth_exponent, (0.5, 1.0, None)),
            *(("zero", item, get_args(Zeroed)) for item in self.zero),
            *(("multipliers", kind, get_args(Scaled)) for kind, _ in self.multipliers),
            *(("changes", change.quantity, get_args(Quantity)) for change in self.changes),
            *(("changes", kind, KINDS) for change in self.changes for kind in change.kinds),
        ):
            if value not in known:
                raise InputError(f"{field}={value!r} of recipe {self.name!r}: one of {', '.join(map(repr, known))}")
        for exponent in (self.logits, *(e for change in self.changes for e in (change.width, change.depth))):
            if 2 * exponent != round(2 * exponent):
                raise InputError(f"exponent {exponent!r} of recipe {self.name!r}: a multiple of ½")
        for kind, factor in self.multipliers:
            if not 0 < factor < float("inf"):
                raise InputError(f"multipliers={kind!r}: {factor!r} of recipe {self.name!r}: a positive number")
        if not self.width and (self.departs or self.depth_exponent is not None):
            raise InputError(
                f"recipe {self.name!r} has width=False, which leaves the user's own code as it is: nothing else may change"
            )

    @property
    def departs(self) -> bool:
        """Whether any number differs from the derived one."""
        own = (self.changes, self.logits, self.decay, self.attention, self.multipliers, self.zero)
        return own != ((), -1.0, "scaled", "base", (), ())

    @property
    def changes_base(self) -> bool:
        """Whether even ratio 1 is another model than the user's own."""
        return bool(self.attention == "1/d" or self.multipliers or self.zero)

    def factor(self, kind: Scaled) -> float:
        """The constant forward multiplier of this kind."""
        return dict(self.multipliers).get(kind, 1.0)


def _lr(width: float, *kinds: Kind) -> Change:
    return Change("lr", kinds, width)


_ALL_EPS = Change("eps", instead=True)
_VECTORS: tuple[Kind, ...] = ("vector", "final")
_NO_ROUTER: tuple[Kind, ...] = ("matrix", "residual")
_TABLES: tuple[Kind, ...] = ("embedding", "position")
_GUIDE = "EleutherAI/nanoGPT-mup; The Practitioner's Guide to the Maximal Update Parameterization (Cerebras, 2024)"
_COMPLETEP = "EleutherAI/nanoGPT-mup, branch completep; 2505.01618 Table 1"
_MEGATRON = "NVIDIA Megatron-LM, get_mup_config_overrides and the scaling policies (2026)"
_CLAIRE = "the ladder of fixes of CLAIRE (EPFL), AdamW, untied"
_SHARED = (_lr(-0.5, *_TABLES), _lr(-0.5, "head"))
_COSINE = "cosine to zero with 3 % warm-up"
_GAINLESS = f"{_COSINE}; gainless RMSNorm"

RECIPES: dict[str, Recipe] = {
    recipe.name: recipe
    for recipe in (
        Recipe("sp", False, None, "standard parametrization: the user's own code at every size"),
        Recipe("mup", True, None, "maximal update parametrization: 2203.03466 Table 8; 2310.17813"),
        Recipe("depth-mup", True, 0.5, "one matrix per residual branch, branches × L^(−1/2): 2310.02244"),
        Recipe("completep", True, 1.0, "two or more matrices per residual branch, branches × 1/L: 2505.01618"),
        Recipe(
            "spectral-muon", True, 1.0, "Muon √(out/in)·UVᵀ on hidden matrices, AdamW on the rest: 2310.17813; with depth 2603.00541",
            optimizer="muon-spectral",
        ),
        Recipe(
            "spectral-muon-kimi", True, 1.0, "Muon 0.2√max(in,out)·UVᵀ on hidden matrices, AdamW on the rest, one LR: 2603.00541; 2502.16982",
            optimizer="muon-kimi",
        ),
        Recipe(
            "u-mup", True, 0.5, "unit-scaled μP: 2407.17465 Table 2 and its residual rule; graphcore-research/unit-scaling",
            changes=(_lr(-0.5, *_TABLES),), placement="unit",
            beside="its residual constants α_res and α_res-attn-ratio, its unit-scaled functions: the base keeps its own",
        ),
        Recipe(
            "large-vocabulary", True, None, "μP with the embedding LR as 1/√N, √N times the hidden one: 2506.15025",
            changes=(_lr(-0.5, *_TABLES),),
        ),
        Recipe(
            "independent-decay", True, None, "μP with a decay per step that depends neither on width nor on the LR: 2309.14322",
            decay="independent",
        ),
        Recipe(
            "nanogpt-mup", True, None, f"{_GUIDE}; as first published, master",
            changes=(_ALL_EPS, Change("std", ("residual",), depth=-0.5)), decay="fixed", attention="1/d",
            beside="no decay of gains and biases; GPT-2's own 1/√(2·n_layer) in the base's code",
        ),
        Recipe(
            "nanogpt-completep", True, 1.0, f"{_COMPLETEP}; as first published",
            changes=(Change("eps", width=-1.0, depth=-1.0, instead=True), Change("decay", _NO_ROUTER, 1.0, instead=True)),
            decay="fixed", attention="1/d", beside="no decay of gains and biases",
        ),
        Recipe(
            "nanogpt-completep-eps", True, 1.0, f"{_COMPLETEP}; with the eps of embeddings corrected in January 2026 after 2512.22382",
            changes=(Change("decay", _NO_ROUTER, 1.0, instead=True),), decay="fixed", attention="1/d",
            beside="no decay of gains and biases",
        ),
        Recipe(
            "supar", True, None, "sparse μP: 2405.15743 Table 1; say density=ρ. Decay and eps, which it does not treat, are derived",
            attention="1/d", beside="α_input and α_output, tuned: give the model its own multipliers",
        ),
        Recipe(
            "cerebras-gpt", True, None, "Cerebras-GPT's μP: 2304.03208",
            changes=(_ALL_EPS, Change("std", ("residual",), depth=-0.5)), decay="fixed", attention="1/d",
            multipliers=(("embedding", 10.0), ("position", 10.0)),
            beside="GPT-2's own 1/√(2·n_layer) in the base's code",
        ),
        Recipe(
            "mu-scaling", True, None, "2304.06875; cofe-ai/Mu-scaling: embedding and logits × a, here a = 5; query and embedding start at zero",
            changes=(
                _ALL_EPS, Change("decay", _NO_ROUTER, 1.0, instead=True), Change("std", ("residual",), depth=-0.5),
            ),
            decay="fixed", multipliers=(("embedding", 5.0), ("head", 5.0)), zero=("query", "embedding"),
            beside="a tied head; GPT-2's own 1/√(2·n_layer) in the base's code",
        ),
        Recipe(
            "megatron-mup", True, None, f"{_MEGATRON}: --scaling-recipe mup",
            changes=(Change("eps", (*_TABLES, *_VECTORS), instead=True), _lr(-1.0, "head")), decay="fixed",
            beside="the attention factor is 1/√d at the base where --scaling-base-head-dim is given, as here",
        ),
        Recipe(
            "megatron-depth-mup", True, 1.0, f"{_MEGATRON}: --scaling-recipe depth_mup",
            changes=(Change("eps", (*_TABLES, *_VECTORS), instead=True), _lr(-1.0, "head")), decay="fixed",
            beside="the attention factor is 1/√d at the base where --scaling-base-head-dim is given, as here",
        ),
        Recipe("claire-sp", False, None, f"{_CLAIRE}: 1, one LR for all", beside="constant LR, LayerNorm"),
        Recipe(
            "claire-mup", True, None, f"{_CLAIRE}: 2, μP with one LR η/N for embedding and unembedding",
            changes=(_lr(-1.0, *_TABLES), _lr(-1.0, "head")), decay="fixed", beside="constant LR, LayerNorm",
        ),
        Recipe(
            "claire-schedule", True, None, f"{_CLAIRE}: 3, and a schedule",
            changes=(_lr(-1.0, *_TABLES), _lr(-1.0, "head")), decay="fixed", beside=f"{_COSINE}; LayerNorm",
        ),
        Recipe(
            "claire-gainless", True, None, f"{_CLAIRE}: 4, and gainless RMSNorm",
            changes=(_lr(-1.0, *_TABLES), _lr(-1.0, "head")), decay="fixed", beside=_GAINLESS,
        ),
        Recipe(
            "claire-sqrt-embedding", True, None, f"{_CLAIRE}: 5, that LR as η/√N, √N times the hidden one (2506.15025)",
            changes=_SHARED, decay="fixed", beside=_GAINLESS,
        ),
        Recipe(
            "claire-sqrt-logits", True, None, f"{_CLAIRE}: 6, and logits × 1/√N, which that LR of the unembedding calls for",
            changes=_SHARED, logits=-0.5, decay="fixed", beside=_GAINLESS,
        ),
        Recipe(
            "claire-independent-decay", True, None, f"{_CLAIRE}: 7, and the decay per step independent of width",
            changes=_SHARED, logits=-0.5, beside=_GAINLESS,
        ),
    )
}  # fmt: skip


def recipe_named(name: str) -> Recipe:
    """The recipe of this name. Raises InputError with the closest known name."""
    if isinstance(name, str) and name in RECIPES:
        return RECIPES[name]
    close = difflib.get_close_matches(str(name), RECIPES, n=1)
    hint = f"; did you mean {close[0]!r}?" if close else ""
    raise InputError(f"recipe={name!r}: one of {', '.join(RECIPES)}{hint}")


def chosen_recipe(recipe: Any) -> Recipe:
    """The recipe given by name or as an object; one that differs from the known one of its name is called `name*`."""
    if not isinstance(recipe, Recipe):
        return recipe_named(recipe)
    known = RECIPES.get(recipe.name)
    return recipe if known is None or known == recipe else replace(recipe, name=f"{recipe.name}*")
