"""The plan as a printed table: one line per kind of tensor (blocks folded), then the formulas and the notes."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich.console import Console
from rich.table import Table

from mutransfer.blocks import collapse

if TYPE_CHECKING:
    from mutransfer.plans import Plan, Row

_COLUMNS = ("tensor", "role", "fan-in", "fan-out", "init at base", "std", "lr", "decay", "eps", "forward", "optimizer")


def folded(plan: Plan) -> list[tuple[str, int, Row]]:
    """(name with block numbers as `*`, how many tensors, one of them) for every distinct line of the table."""
    lines: dict[tuple[object, ...], list[Row]] = {}
    for row in plan.rows:
        key = (collapse(row.name), row.fan_in, row.fan_out, row.base_law, row.ratios, row.optimizer)
        lines.setdefault(key, []).append(row)
    return [(_common([row.name for row in rows]), len(rows), rows[0]) for rows in lines.values()]


def _common(names: list[str]) -> str:
    """The names as one, `*` for each number in which they differ."""
    columns = zip(*(name.split(".") for name in names), strict=True)
    return ".".join(parts[0] if len(set(parts)) == 1 else "*" for parts in columns)


def number(value: float | None) -> str:
    """A ratio as people write it: 4, 1/16, 0.354."""
    if value is None:
        return "–"
    if value == 0:
        return "0"
    if value < 1 and abs(1 / value - round(1 / value)) < 1e-9 * (1 / value):
        return f"1/{round(1 / value)}"
    return f"{value:.4g}"


def cells(plan: Plan, name: str, count: int, row: Row) -> list[str]:
    """The texts of one line, in the order of the columns."""
    ratios, facts = row.ratios, plan.facts[row.optimizer]
    decay = ratios.l2 if facts.decay == "coupled" else ratios.decay
    forward = ratios.multiplier * ratios.branch

    def fan(base: float, target: float) -> str:
        return f"{base:g}" if base == target else f"{base:g} → {target:g}"

    return [
        name + (f"  ×{count}" if count > 1 else "") + "".join(f"\n= {alias}" for alias in row.aliases),
        row.role,
        fan(row.fan_in.base, row.fan_in.target),
        fan(row.fan_out.base, row.fan_out.target),
        str(row.base_law),
        *(number(value) for value in (ratios.std, ratios.lr, decay, ratios.eps, forward)),
        row.optimizer,
    ]


def render(plan: Plan, width: int = 150) -> str:
    """The whole plan as text."""
    sizes = (
        f"{_sizes(plan.base)} → {_sizes(plan.target)}, " if plan.base is not None and plan.target is not None else ""
    )
    table = Table(
        title=f"{plan.recipe}: {sizes}ratios target/base ({plan.mode}, {plan.placement})", title_justify="left"
    )
    for column in _COLUMNS:
        table.add_column(column, justify="left" if column in _COLUMNS[:5] + _COLUMNS[-1:] else "right", overflow="fold")
    lines = folded(plan)
    for name, count, row in lines:
        table.add_row(*cells(plan, name, count, row))
    console = Console(width=width, no_color=True, highlight=False, legacy_windows=False)
    with console.capture() as capture:
        console.print(table, markup=False)
        formulas: dict[str, list[str]] = {}
        for name, _, row in lines:
            formulas.setdefault(row.derivation, []).append(name)
        for derivation, names in formulas.items():
            console.print(f"{', '.join(names)}:\n    {derivation}", markup=False)
        for line in plan.duration.lines(number) if plan.duration is not None else ():
            console.print(line, markup=False)
        for hook in plan.hooks:
            console.print(
                f"hook: {hook.where} of {hook.module or 'the model'} × {number(hook.factor)} ({hook.reason})",
                markup=False,
            )
        for note in plan.notes:
            console.print(f"note: {note}", markup=False)
        console.print(
            "clip: plan.clip_grad_norm_ is invariant; a global torch clip_grad_norm_ is not (its norm follows size)",
            markup=False,
        )
    return capture.get().rstrip()


def _sizes(sizes: dict[str, object] | None) -> str:
    return ", ".join(f"{key} {value}" for key, value in (sizes or {}).items())
