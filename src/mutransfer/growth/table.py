"""The grow plan as a table: one line per kind of tensor, its maps, its factors, and what is not exact."""

from __future__ import annotations

import io

from rich.console import Console
from rich.table import Table

from mutransfer.blocks import collapse
from mutransfer.growth.tensors import GrowPlan, TensorGrowth


def render(plan: GrowPlan, width: int = 140) -> str:
    """The table as text. Tensors that differ by their block number alone are one line."""
    table = Table(title=_title(plan), title_justify="left", header_style="bold")
    for heading in ("tensor", "small → big", "copies", "× weight", "× gradient", "× lr", "follows"):
        table.add_column(
            heading, overflow="fold", justify="left" if heading in ("tensor", "copies", "follows") else "right"
        )
    groups: dict[tuple[str, ...], list[TensorGrowth]] = {}
    for tensor in plan.tensors:
        groups.setdefault((collapse(tensor.name), *_cells(plan, tensor)), []).append(tensor)
    for (pattern, *cells), members in groups.items():
        name = members[0].name if len(members) == 1 else f"{pattern} ({len(members)})"
        table.add_row(name, *cells)
    console = Console(width=width, file=io.StringIO(), force_terminal=False, color_system=None)
    console.print(table)
    for note in dict.fromkeys(plan.notes):
        console.print(f"· {note}", markup=False, highlight=False)
    file = console.file
    assert isinstance(file, io.StringIO)
    return "\n".join(line.rstrip() for line in file.getvalue().splitlines())


def _title(plan: GrowPlan) -> str:
    what = (
        "exact by rule: the same function, and the same path under the plan's rates"
        if plan.exact
        else "not exact in every tensor"
    )
    depth = f"; depth: {plan.depth}" if plan.depth else ""
    return f"Grow plan: {len(plan.tensors)} tensors; {what}{depth}"


def _cells(plan: GrowPlan, tensor: TensorGrowth) -> tuple[str, ...]:
    maps = "unchanged" if not any(m.grows for m in tensor.maps) else ", ".join(map(str, tensor.maps))
    shapes = f"{_shape(tensor.base_shape)} → {_shape(tensor.target_shape)}"
    follows = tensor.inexact or {"": "exactly", "new": "new block", "zero": "new block, starts at zero"}[tensor.fresh]
    if tensor.buffer:
        return shapes, maps, "1", "", "", "copied" if follows == "exactly" else follows
    assert tensor.row is not None
    ratio = plan.plan[tensor.row].ratios.lr
    return shapes, maps, f"{tensor.scale:.4g}", f"{tensor.gradient:.4g}", f"{ratio:.4g}", follows


def _shape(shape: tuple[int, ...]) -> str:
    return "×".join(map(str, shape)) or "1"
