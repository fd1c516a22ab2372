"""What a recipe starts at zero: whole tensors by kind, or the query's rows of a fused projection."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import nn

from mutransfer import attention, fused
from mutransfer.departures import Ends
from mutransfer.errors import InputError
from mutransfer.recipes import Recipe
from mutransfer.shapes import TensorShape

if TYPE_CHECKING:
    from mutransfer.plans import Plan


@dataclass(frozen=True)
class Zero:
    """The first `rows` entries along one axis of a tensor start at zero."""

    name: str
    axis: int
    rows: int


def zeros(recipe: Recipe, shapes: Sequence[TensorShape], ends: Ends) -> list[Zero]:
    """What this recipe zeroes in this model. Raises InputError where the query cannot be told, or nothing could ever learn."""
    found: list[Zero] = []
    for what in recipe.zero:
        if what == "query":
            found += _queries(recipe, shapes, ends)
        else:
            found += [Zero(s.name, 0, s.target_shape[0]) for s in shapes if s.target_shape and ends.has(s.name, what)]
    names = {zero.name for zero in found}
    dead = next((s for s in shapes if s.name in ends.tied & names), None)
    if dead is not None and not ends.of("position"):
        raise InputError(f"recipe={recipe.name!r} starts {dead.name!r} at zero, which is embedding and head in one: without a table of "
                         f"positions beside it nothing could ever learn; use dataclasses.replace(RECIPES[{recipe.name!r}], zero=('query',))")  # fmt: skip
    return found


def _queries(recipe: Recipe, shapes: Sequence[TensorShape], ends: Ends) -> list[Zero]:
    found = []
    for shape in shapes:
        if ends.kinds[shape.name] != "matrix" or "out" not in shape.axes:
            continue
        path, _, attribute = shape.name.rpartition(".")
        leaf = path.rpartition(".")[2] if attribute == "weight" else attribute.removesuffix("_weight")
        axis = shape.axes.index("out")
        if attention.is_query(leaf):
            found.append(Zero(shape.name, axis, shape.target_shape[axis]))
        elif attention.is_packed(leaf) and not (leaf == "in_proj" and attribute == "weight"):  # Mamba's has no queries
            sizes, _ = fused.parts(shape, {})
            if len(sizes) != 3:
                raise InputError(f"recipe={recipe.name!r} starts queries at zero, but the query's rows of {shape.name!r} "
                                 f"{shape.target_shape} cannot be told; keep queries, keys and values apart, or one after another")  # fmt: skip
            found.append(Zero(shape.name, axis, sizes[0]))
    return found


def apply(plan: Plan, model: nn.Module) -> None:
    """Write the zeros of a plan into its model. Raises InputError for a sharded tensor of which a part is zeroed."""
    wanted = {zero.name: zero for zero in plan.zeros}
    with torch.no_grad():
        for row, parameter in plan.named(model):
            zero = wanted.get(row.name)
            if zero is None:
                continue
            if zero.rows == row.target_shape[zero.axis]:
                parameter.zero_()
            elif hasattr(parameter, "to_local"):
                raise InputError(
                    f"{row.name!r} is sharded: its query rows cannot be zeroed; call plan.initialize before sharding"
                )
            else:
                parameter.narrow(zero.axis, 0, zero.rows).zero_()
