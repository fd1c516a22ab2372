"""The tables of all recipes side by side, derived from the code: `docs/recipes.md` is `page()`, and `mutransfer recipes` prints from it.

Every cell is measured on a plan of one small model, a Transformer whose blocks hold a mixture of experts: the plan is made at four
pairs of ratios (N, L), and the exponents are read off. In multiplier form, or the recipe's own placement.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from functools import cache
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mutransfer.build import plan
from mutransfer.plans import Plan
from mutransfer.recipes import RECIPES, Recipe
from mutransfer.table import number

Column = Literal["std", "lr", "decay", "eps", "forward"]
COLUMNS: dict[Column, str] = {
    "std": "initial standard deviation",
    "lr": "learning rate",
    "decay": "weight_decay, as torch's AdamW takes it",
    "eps": "eps of Adam (of a matrix optimizer: what it adds to a norm)",
    "forward": "multiplier in the forward pass",
}
ROWS: dict[str, str] = {
    "embedding": "embed.weight",
    "query": "blocks.0.attn.q_proj.weight",
    "hidden": "blocks.0.up.weight",
    "last of a branch": "blocks.0.down.weight",
    "vector in a block": "blocks.0.norm.weight",
    "final gain": "norm_f.weight",
    "head": "head.weight",
    "router": "blocks.0.moe.router.weight",
    "expert": "blocks.0.moe.experts.0.weight",
}
_WIDTH, _DEPTH, _HEAD, _VOCABULARY, _EXPERTS = 16, 1, 16, 16, 2
_STD = 0.125  # a power of two, so that unit scaling prints a power of two
N = L = 4
DENSITY = 0.25


class _Attention(nn.Module):
    """One attention of the reference model, with separate projections."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.n_heads = width // _HEAD
        self.q_proj, self.k_proj, self.v_proj, self.out_proj = (_linear(width, width) for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        batch, length, width = x.shape
        q, k, v = (
            p(x).view(batch, length, self.n_heads, -1).transpose(1, 2) for p in (self.q_proj, self.k_proj, self.v_proj)
        )
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        return self.out_proj(y.transpose(1, 2).reshape(batch, length, width))


class _Experts(nn.Module):
    """Every expert on every token, weighted by the router: enough for shapes and roles."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.router = _linear(width, _EXPERTS)
        self.experts = nn.ModuleList(_linear(width, width) for _ in range(_EXPERTS))
        self.out_proj = _linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        weights = self.router(x).softmax(-1)
        mixed = sum(weights[..., i : i + 1] * F.relu(expert(x)) for i, expert in enumerate(self.experts))
        return self.out_proj(mixed)


class _Block(nn.Module):
    """Attention, an MLP and a mixture of experts, each a residual branch."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width, bias=False)
        self.attn, self.moe = _Attention(width), _Experts(width)
        self.up, self.down = _linear(width, 4 * width), _linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attn(self.norm(x))
        x = x + self.down(F.relu(self.up(self.norm(x))))
        return x + self.moe(self.norm(x))


class Reference(nn.Module):
    """The model of the tables: token ids (B, T) → logits (B, T, vocabulary)."""

    def __init__(self, width: int, depth: int) -> None:
        super().__init__()
        self.embed = nn.Embedding(_VOCABULARY, width)
        self.positions = nn.Embedding(32, width)
        self.blocks = nn.ModuleList(_Block(width) for _ in range(depth))
        self.norm_f = nn.LayerNorm(width, bias=False)
        self.head = _linear(width, _VOCABULARY)
        nn.init.normal_(self.embed.weight, std=_STD)
        nn.init.normal_(self.positions.weight, std=_STD)

    def forward(self, idx: Tensor) -> Tensor:
        x = self.embed(idx) + self.positions(torch.arange(idx.shape[1], device=idx.device))
        for block in self.blocks:
            x = block(x)
        return self.head(self.norm_f(x))


def _linear(fan_in: int, fan_out: int) -> nn.Linear:
    layer = nn.Linear(fan_in, fan_out, bias=False)
    nn.init.normal_(layer.weight, std=_STD)
    return layer


@dataclass(frozen=True)
class Cell:
    """`constant·N^width·L^depth·ρ^density`; `value` at N = L = 4 (and ρ = ¼ where ρ appears); None: the setting does not exist."""

    constant: float
    width: float
    depth: float
    density: float
    value: float | None

    @property
    def formula(self) -> str:
        """As people write it: `N^-½·L^-1`."""
        if self.value is None:
            return "–"
        factors = [_power(s, e) for s, e in (("N", self.width), ("L", self.depth), ("ρ", self.density)) if e]
        if not math.isclose(self.constant, 1.0, rel_tol=1e-9) or not factors:
            factors.insert(0, number(self.constant))
        return "·".join(factors)

    def __str__(self) -> str:
        varies = self.value is not None and (self.width or self.depth or self.density)
        return f"{self.formula} = {number(self.value)}" if varies else self.formula


def _power(symbol: str, exponent: float) -> str:
    halves = round(2 * exponent)
    text = (
        f"{halves // 2}"
        if halves % 2 == 0
        else ("-" if halves < 0 else "") + (f"{abs(halves)}/2" if abs(halves) > 1 else "½")
    )
    return symbol if text == "1" else f"{symbol}^{text}"


@cache
def _model(n: int, depth: int) -> Reference:
    """The reference model at these ratios, every weight of standard deviation σ exactly."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = Reference(_WIDTH * n, _DEPTH * depth).double()
    with torch.no_grad():
        for weight in (p for p in model.parameters() if p.ndim > 1):
            weight.mul_(_STD / weight.square().mean().sqrt())
    return model


@cache
def _solved(numbers: Recipe, n: int, depth: int, density: float) -> Plan:
    placement = None if numbers.placement else "multiplier"
    sparse = density if density < 1 else None
    return plan(_model(n, depth), base=_model(1, 1), recipe=numbers, placement=placement, density=sparse)


def _planned(recipe: Recipe, n: int, depth: int, density: float) -> Plan:
    """The plan of this recipe; those that differ only in words share one."""
    return _solved(replace(recipe, name="-", source="", beside=""), n, depth, density)


def _value(made: Plan, name: str, column: Column) -> float | None:
    row = made[name]
    if column == "std" and any(zero.name == name for zero in made.zeros):
        return 0.0
    if column == "forward":
        path = name.rpartition(".")[0]
        hooks = math.prod(hook.factor for hook in made.hooks if hook.module == path)
        return hooks
    return getattr(row.ratios, column)


def cell(recipe: Recipe, name: str, column: Column) -> Cell:
    """One cell: exponents read off plans at (N, L) = (1, 1), (4, 1), (1, 4), (4, 4), and with density where the recipe is sparse.

    Raises ValueError where the number is no product of powers.
    """
    sparse = recipe.name == "supar"
    one, wide, deep, both = (
        _value(_planned(recipe, n, d, 1.0), name, column) for n, d in ((1, 1), (N, 1), (1, L), (N, L))
    )
    if one is None or wide is None or deep is None or both is None:
        return Cell(1.0, 0.0, 0.0, 0.0, None)
    if one == 0:
        return Cell(0.0, 0.0, 0.0, 0.0, 0.0)
    width, depth = (_exponent(after / one, base) for after, base in ((wide, N), (deep, L)))
    density, last = 0.0, both
    if sparse:
        thin = _value(_planned(recipe, N, L, DENSITY), name, column)
        assert thin is not None
        density, last = _exponent(thin / both, DENSITY), thin
    if not math.isclose(one * N**width * L**depth * DENSITY**density, last, rel_tol=1e-9):
        raise ValueError(f"{recipe.name}, {name}, {column}: {last} is not {one}·N^{width}·L^{depth}·ρ^{density}")
    return Cell(one, width, depth, density, last)


def _exponent(ratio: float, base: float) -> float:
    exponent = math.log(ratio) / math.log(base)
    return round(2 * exponent) / 2 if abs(2 * exponent - round(2 * exponent)) < 1e-6 else exponent


def table(recipe: Recipe) -> list[tuple[str, ...]]:
    """One recipe: a row per kind of tensor, (kind, std, lr, decay, eps, forward)."""
    return [(kind, *(str(cell(recipe, name, column)) for column in COLUMNS)) for kind, name in ROWS.items()]


def attention_factor(recipe: Recipe) -> str:
    """The recipe's softmax scale for a head of size d."""
    return (
        "1/d at every size"
        if recipe.attention == "1/d"
        else "1/√d at the base, √d_base/d as heads widen"
        if recipe.width
        else "1/√d"
    )


def explained(recipe: Recipe) -> str:
    """One recipe as text: source, table, departures."""
    rows = [("tensor", *COLUMNS), *table(recipe)]
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    lines = ["  ".join(text.ljust(width) for text, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    head = f"{recipe.name}: {recipe.source}"
    return "\n".join([head, f"N = {N} times the width, L = {L} times the depth; attention {attention_factor(recipe)}", "", *lines, "",
                      *_departures(recipe)]).rstrip()  # fmt: skip


def _departures(recipe: Recipe) -> list[str]:
    """What the plan says of the recipe, without its name and source."""
    made = _planned(recipe, N, L, 1.0) if recipe.width else None
    said = (
        [text.partition(" Source:")[0].removeprefix("recipe '-'").lstrip(" ,") for text in made.notes] if made else []
    )
    kept = [text.rstrip(".") for text in said if text.startswith(("departs", "changes"))]
    return [*kept, *([f"outside of the plan: {recipe.beside}"] if recipe.beside else [])]


_HEAD_OF_PAGE = f"""# Recipes

Generated by `python -m mutransfer.recipe_table`, from the plans themselves; do not edit. `mt.plan(…, recipe=NAME)` or
`mutransfer plan … --recipe NAME`; `mutransfer recipes NAME` prints one table. A recipe is data (`recipes.py`): choices and published
departures on top of the [derived rules](theory.md), so that `dataclasses.replace(RECIPES["completep"], …)` makes another, which a plan
takes and keeps in its JSON.

Ratios target/base of a Transformer with a mixture of experts, as powers of the width ratio N, the depth ratio L and (`supar`) the density ρ,
and their value at N = L = {N}, ρ = {number(DENSITY)}. In multiplier form, nothing absorbed (`u-mup`: in its own unit-scaled gauge, whose
constants hold the reference model's init std {number(_STD)}; attention's `1/√d` is 1/4 at its head size {_HEAD}): the gauge moves multipliers into init, LR, decay and eps without
changing anything. "Hidden" is any matrix inside; an expert is one, stacked or apart; a router is an output. AdamW, where a recipe names no
optimizer; under another, the same recipe gives that optimizer's numbers. Vectors under `spectral-muon` run in AdamW, like the rest.
"""

_CONFLICTS = """## Where the originals differ from what is said of them

- `nanogpt-completep`: eps was `1/(N·L)` on all groups as published. In January 2026 the branch was corrected after 2512.22382: embeddings and the final
  norm now have `1/N`, as derived: `nanogpt-completep-eps`. The present code without a depth rule scales eps by `1/N`, too; `nanogpt-mup` keeps
  the first version, in which eps is not scaled.
- `nanogpt-mup` initialises residual projections with `σ/√(2·n_layer·N)`: relative to a base with GPT-2's own `1/√(2·n_layer)` that is
  `(N·L)^-½`. Under a depth rule the derived init rebases that factor instead of counting depth twice.
- `mu-scaling` multiplies the token table only, not the positions; Cerebras-GPT and nanoGPT-mup multiply their sum.
- `megatron-mup` counts an untied head as a hidden matrix: LR `1/N` beside logits × `1/N`, so that its step moves the logits like `1/N`. eps of
  embeddings and of vectors is not scaled. Tied, and for matrices, its AdamW rows are the derived ones.
- `supar`: the paper's table has init and LR only, for SGD and Adam; decay and eps are derived here. Under a matrix optimizer the LR's `ρ^-½` is ours
  and uncertain: between the operator norm of a masked orthogonal step (2√ρ) and its part along the features (ρ).
- `u-mup`: its residual rule makes every branch contribute like `√(2/n_layer)` of the embedding, which is `L^-½` relative to any base. Its Adam
  takes an unscaled eps, on gradients whose scale its own backward pass sets: in true gradients that is the derived eps.
- Vectors without decay are a choice of the base: `overrides={"*.bias": {"weight_decay": 0.0}}`.
"""


def page() -> str:
    """The whole of `docs/recipes.md`."""
    parts = [_HEAD_OF_PAGE]
    shown = [recipe for recipe in RECIPES.values() if recipe.width]
    for column, what in COLUMNS.items():
        parts.append(f"## {what[0].upper()}{what[1:]}\n")
        parts.append(
            _markdown(
                ("recipe", *ROWS), [(f"`{r.name}`", *(str(cell(r, n, column)) for n in ROWS.values())) for r in shown]
            )
        )
    parts.append("## Attention, optimizer, base\n")
    rows = [
        (
            f"`{r.name}`",
            attention_factor(r),
            r.optimizer or "any",
            r.placement or "any",
            "yes" if r.changes_base else "no",
        )
        for r in RECIPES.values()
    ]
    parts.append(_markdown(("recipe", "softmax scale", "optimizer", "placement", "changes the base"), rows))
    parts.append("## Sources, and what each departs in\n")
    for recipe in RECIPES.values():
        parts.append(f"- **{recipe.name}**: {'; '.join((recipe.source, *_departures(recipe)))}.")
    parts.append("")
    parts.append(_CONFLICTS)
    return "\n".join(parts)


def _markdown(head: tuple[str, ...], rows: list[tuple[str, ...]]) -> str:
    lines = [head, ("---",) * len(head), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines) + "\n"


def main() -> None:
    """Print the page."""
    print(page(), end="")


if __name__ == "__main__":
    main()
