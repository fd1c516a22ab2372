"""A table on its way to points: which column is what, and the numbers of each row in units of one."""

from __future__ import annotations

import difflib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from mutransfer.errors import InputError
from mutransfer.predict.names import KNOWN, WITH_UNIT, known, words
from mutransfer.predict.points import VARIABLES
from mutransfer.predict.units import UNITS, quantity, unit, unit_of
from mutransfer.rows.cells import number_in, text
from mutransfer.rows.columns import NAMES, RATES, SEEDS, STATES, STEPS, choose, listed
from mutransfer.rows.rates import to_log2_lr
from mutransfer.rows.read import Row

Array = np.ndarray

OTHERS = ("lr", "seed", "loss", "run", "step", "status")
PLAIN_LEAST = 1e4  # beside "125M" a number without a unit must be at least this to be one in units of one
SHOWN = 4  # rows named in a note


@dataclass(frozen=True)
class Column:
    """Where a variable is read. `unit`: what its name or the caller says, None where neither does; `named`: by the caller; so `declared`, the unit."""

    name: str
    unit: float | None
    named: bool
    declared: bool = False


@dataclass
class Draft:
    """Rows with their numbers. `values` (n,): NaN where a cell is empty; `loss` (n,): +inf for a run that diverged or was given up."""

    rows: list[Row]
    number: dict[int, int]  # id of a row -> its place in the table, from 1
    columns: dict[str, Column]
    values: dict[str, Array] = field(default_factory=dict)
    loss: Array = field(default_factory=lambda: np.empty(0))
    seed: list[str] = field(default_factory=list)
    run: list[str] = field(default_factory=list)  # "" where the table has no name for it
    notes: list[str] = field(default_factory=list)
    transfer: str | None = None

    def __len__(self) -> int:
        return len(self.rows)

    def column(self, variable: str) -> str | None:
        """The name of a variable's column, if it has one."""
        return self.columns[variable].name if variable in self.columns else None

    def keep(self, mask: Array) -> None:
        """Only the rows for which `mask` (n,) is true."""
        index = np.flatnonzero(mask)
        self.rows = [self.rows[i] for i in index]
        self.values = {name: value[index] for name, value in self.values.items()}
        self.loss = self.loss[index] if len(self.loss) else self.loss
        self.seed = [self.seed[i] for i in index] if self.seed else []
        self.run = [self.run[i] for i in index] if self.run else []

    def place(self, index: Sequence[int] | Array) -> str:
        """ "row 3" or "rows 3, 7": counted in the table from 1, its first line not counted."""
        found = sorted(self.number[id(self.rows[int(i)])] for i in index)
        return ("row " if len(found) == 1 else "rows ") + listed(found, SHOWN)

    def label(self, i: int) -> str:
        """A row by what it holds: "params 8.53e+06, tokens 2e+09, seed 1"."""
        said = []
        for group in (("params", "non_embedding", "width", "depth"), ("tokens", "compute", "steps"), ("lr",)):
            name = next((n for n in group if n in self.values and not math.isnan(self.values[n][i])), None)
            if name is not None:
                said.append(f"{name} {self.values[name][i]:.4g}")
        if self.seed and self.seed[i]:
            said.append(f"seed {self.seed[i]}")
        return ", ".join(said) or self.place([i])

    def labels(self, index: Sequence[int] | Array) -> str:
        """Several rows by name, or by what they hold; the same whatever the order of the table."""
        named = [self.run[int(i)] if self.run and self.run[int(i)] else self.label(int(i)) for i in index]
        return "; ".join(sorted(named)[:SHOWN]) + (f" … ({len(named)} in all)" if len(named) > SHOWN else "")


def assign(rows: Sequence[Row], names: Sequence[str], given: Mapping[str, str], units: Mapping[str, Any], notes: list[str]) -> dict[str, Column]:  # fmt: skip
    """Which column is which variable: those the caller names, then by their names. Raises InputError for unknown ones."""
    allowed = (*KNOWN, *OTHERS)
    for variable in given:
        if variable not in allowed:
            close = difflib.get_close_matches(str(variable), allowed, n=1)
            hint = f"did you mean {close[0]!r}?" if close else f"write one of {listed(allowed, 20)}"
            raise InputError(f"columns {variable!r} is no variable: {hint}")
    found = {variable: Column(choose(variable, name, (), names)[0], None, True) for variable, name in given.items()}
    taken = {column.name for column in found.values()}
    guessed: dict[str, list[tuple[int, str]]] = {}
    for name in names:
        said = None if name in taken else known(name)
        if said is not None:
            guessed.setdefault(said.variable, []).append((said.rank, name))
    for variable, known_names in (("lr", RATES), ("seed", SEEDS), ("status", STATES), ("step", STEPS), ("run", NAMES)):
        guessed[variable] = list(enumerate(name for name in choose(variable, None, known_names, names) if name not in taken))  # fmt: skip
    for variable, candidates in guessed.items():
        if variable in found:
            continue
        usable = [name for _, name in sorted(candidates) if variable in OTHERS[1:] or _usable(rows, name)]
        if usable:
            found[variable] = Column(usable[0], None, False)
            if len(usable) > 1 and variable in VARIABLES:
                notes.append(f"{variable} is read from {usable[0]}; the table also has {listed(usable[1:])}")
    for name in units:
        if name not in found and all(column.name != name for column in found.values()):
            raise InputError(f"units {name!r}: no such variable or column is read; those read are {listed(found, 20)}")
    return {
        variable: Column(c.name, _declared(variable, c.name, units), c.named, variable in units or c.name in units)
        for variable, c in found.items()
    }


def _usable(rows: Sequence[Row], column: str) -> bool:
    """Whether any cell of the column is a number."""
    return any(_is_quantity(row.get(column), column) for row in rows)


def _is_quantity(value: Any, column: str) -> bool:
    if isinstance(value, bool) or str(value).strip().lower() in ("true", "false"):
        return True
    try:
        return quantity(value, column)[0] is not None
    except InputError:
        return False


def _declared(variable: str, column: str, units: Mapping[str, Any]) -> float | None:
    """The unit of a column: what the caller declares, else what its name says."""
    if variable in units or column in units:
        return unit(units.get(variable, units.get(column)), variable)
    if variable not in WITH_UNIT:
        return None
    said = known(column)
    if said is not None:
        return said.unit
    last = words(column)[-1:]  # "my_column_M"
    return unit_of(last) if last and (last[0].isupper() or len(last[0]) > 2) and last[0].lower() in UNITS else None


def measure(draft: Draft) -> None:
    """Read the numbers of every variable into `draft.values`, units multiplied in. Raises InputError for other text and values not above 0."""
    for variable, column in draft.columns.items():
        if variable == "lr":
            draft.values["lr"] = _rates(draft, column)
        elif variable == "tied":
            draft.values["tied"] = np.array([_flag(row.get(column.name)) for row in draft.rows])
        elif variable in KNOWN:
            draft.values[variable] = _numbers(draft, variable, column)


def _flag(value: Any) -> float:
    said = str(value).strip().lower()
    return 1.0 if said in ("true", "1", "yes", "1.0") else 0.0 if said in ("false", "0", "no", "0.0") else math.nan


def _rates(draft: Draft, column: Column) -> Array:
    cells = [row.get(column.name) for row in draft.rows]
    filled = [i for i, cell in enumerate(cells) if text(cell) not in ("", "nan")]
    values = np.full(len(cells), math.nan)
    if filled:
        numbers = [number_in(draft.rows[i], column.name) for i in filled]
        to_log2 = to_log2_lr(column.name, numbers, draft.notes)
        values[filled] = np.exp2([to_log2(one) for one in numbers])
    return values


def _numbers(draft: Draft, variable: str, column: Column) -> Array:
    values, bare = np.full(len(draft), math.nan), []
    in_cells = False
    for i, row in enumerate(draft.rows):
        value, own = quantity(row.get(column.name), column.name)
        if (
            value is None or math.isnan(value) or (variable == "compute" and value == 0)
        ):  # diverged before its first update
            continue
        if not value > 0 or not math.isfinite(value):
            raise InputError(f"{column.name}={row.get(column.name)!r} ({draft.place([i])}): write a number above 0, or leave the row out")  # fmt: skip
        in_cells |= own is not None
        if own is None:
            bare.append(i)
        values[i] = value if own is not None else value * (column.unit or 1.0)
    small = [i for i in bare if values[i] < PLAIN_LEAST]
    if in_cells and column.unit is None and small and variable in WITH_UNIT:
        raise InputError(f"{column.name}: some cells have a unit and {draft.place(small)} {'has' if len(small) == 1 else 'have'} none: write one in every cell")  # fmt: skip
    return values


def is_text_model(draft: Draft) -> bool:
    """Whether nothing says that the models are none of language: 6ND and 12·depth·width² are a Transformer's."""
    return not any(str(row.get("model", "")).strip().lower() in ("mlp", "resnet") for row in draft.rows)
