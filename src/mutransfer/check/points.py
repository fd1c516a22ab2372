"""The points of a grid of two sizes: what the user lists, checked and brought into one form."""

from __future__ import annotations

import math
import operator
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from mutransfer.check.feed import DEPTH_WORDS, WIDTH_WORDS
from mutransfer.errors import InputError

LEAST, SPAN = 3, 3.99  # sizes per axis, and largest over smallest, that a PASS needs
EXAMPLE = "sizes={'width': [32, 64, 128], 'depth': [2, 4, 8]}"


@dataclass(frozen=True)
class Grid:
    """Two axes, their values in growing order, and the size at each point that is there."""

    axes: tuple[str, str]
    values: tuple[tuple[int, ...], tuple[int, ...]]
    points: dict[tuple[int, int], dict[str, Any]]  # (index on the first axis, on the second) → what build gets

    def line(self, along: int, at: int) -> list[tuple[int, int]]:
        """The points that are there along axis 0 or 1, at the other axis's value of index `at`."""
        places = [(k, at) if along == 0 else (at, k) for k in range(len(self.values[along]))]
        return [place for place in places if place in self.points]

    def words(self, place: tuple[int, int]) -> str:
        """A point in words, such as `width 64, depth 4`."""
        return ", ".join(f"{axis} {values[k]}" for axis, values, k in zip(self.axes, self.values, place, strict=True))

    def missing(self) -> str:
        """What must be added before the grid can pass; empty when nothing.

        Each axis needs three sizes that span a factor of four, and the grid its whole edge: what is inside may be left out.
        """
        for axis, values in zip(self.axes, self.values, strict=True):
            if len(values) < LEAST:
                between = math.isqrt(values[0] * values[-1])
                far = values[-1] / values[0] >= SPAN
                return f"only {len(values)} sizes of {axis}: add {axis} {between if far else max(values[-1] * 2, values[0] * 4)}"
            if values[-1] / values[0] < SPAN:
                return f"{axis} spans less than a factor 4: add {axis} {values[0] * 4} or larger"
        m, n = (len(values) for values in self.values)
        edge = {(i, j) for i in range(m) for j in range(n) if i in (0, m - 1) or j in (0, n - 1)}
        lacking = sorted(edge - set(self.points), reverse=True)
        if lacking:
            more = f" and {len(lacking) - 1} more" if len(lacking) > 1 else ""
            return f"the edge of the grid has gaps: add {self.words(lacking[0])}{more}"
        return ""


def read_grid(sizes: Any, axis: str | None) -> Grid | None:
    """The grid that these sizes are; None where they are sizes of one axis.

    A mapping from two axes to lists of integers is the full grid. A list of dicts is a grid when two keys vary and neither numbers the
    points alone; other keys may follow from these two.
    Raises InputError for a mapping with fewer or more axes, sizes that are no positive integers or repeated, and an axis named besides.
    """
    if isinstance(sizes, Mapping):
        grid = _full(sizes)
    elif axis is None and isinstance(sizes, list | tuple) and sizes and all(isinstance(s, Mapping) for s in sizes):
        grid = _listed([dict(size) for size in sizes])
    else:
        return None
    if grid is not None and axis is not None:
        raise InputError(f"axis={axis!r}, but sizes name their axes, {' and '.join(grid.axes)}: leave axis out")
    return grid


def _full(sizes: Mapping[Any, Any]) -> Grid:
    names = list(sizes)
    if len(names) != 2:
        raise InputError(f"sizes={dict(sizes)!r}: a grid has two axes, such as {EXAMPLE}; for one axis write a list")
    values = tuple(_integers(name, sizes[name]) for name in names)
    for name, listed in zip(names, values, strict=True):
        if len(listed) < 2:
            raise InputError(
                f"sizes={dict(sizes)!r}: {name} does not vary; list at least three sizes, such as {EXAMPLE}"
            )
    points = {(i, j): {names[0]: a, names[1]: b} for i, a in enumerate(values[0]) for j, b in enumerate(values[1])}
    return Grid((str(names[0]), str(names[1])), (values[0], values[1]), points)


def _integers(name: Any, listed: Any) -> tuple[int, ...]:
    shown = f"sizes={{{name!r}: {listed!r}, …}}"
    if not isinstance(name, str) or not name.strip():
        raise InputError(f"{shown}: an axis is named by a word, such as {EXAMPLE}")
    if isinstance(listed, (str, Mapping)) or not isinstance(listed, Iterable):
        raise InputError(f"{shown}: list the sizes of {name}, such as {EXAMPLE}")
    values = []
    for value in listed:
        try:
            values.append(operator.index(value))
        except TypeError:
            raise InputError(f"{shown}: {value!r} is no integer") from None
        if isinstance(value, bool) or values[-1] <= 0:
            raise InputError(f"{shown}: every {name} must be a positive integer, {value!r} is none")
    if len(set(values)) < len(values):
        raise InputError(f"{shown}: the same {name} is listed twice")
    return tuple(sorted(values))


def _listed(sizes: list[dict[str, Any]]) -> Grid | None:
    if any(set(size) != set(sizes[0]) for size in sizes):
        return None  # `read_sizes` says what is wrong
    columns = {key: [size[key] for size in sizes] for key in sizes[0]}
    varying = [key for key, column in columns.items() if len({repr(v) for v in column}) > 1]
    numeric = [k for k in varying if all(isinstance(v, int) and not isinstance(v, bool) for v in columns[k])]
    if len(numeric) < 2 or any(len(set(columns[key])) == len(sizes) for key in numeric):
        return None
    axes = _axes(numeric, columns)
    if axes is None:
        return None
    places = list(zip(*(columns[key] for key in axes), strict=True))
    if len(set(places)) < len(places):
        twice = next(place for place in places if places.count(place) > 1)
        raise InputError(
            f"sizes: the point {', '.join(f'{k}={v}' for k, v in zip(axes, twice, strict=True))} is listed twice"
        )
    values = tuple(_integers(key, sorted(set(columns[key]))) for key in axes)
    at = [{value: k for k, value in enumerate(listed)} for listed in values]
    points = {(at[0][a], at[1][b]): size for (a, b), size in zip(places, sizes, strict=True)}
    return Grid((axes[0], axes[1]), (values[0], values[1]), points)


def _axes(numeric: list[str], columns: dict[str, list[Any]]) -> tuple[str, str] | None:
    """Two keys of which neither follows from the other, called by their width-like and depth-like names where there are such."""

    def like(key: str, words: tuple[str, ...]) -> bool:
        return any(word in key.lower() for word in words)

    depths = [key for key in numeric if like(key, DEPTH_WORDS)]
    widths = [key for key in numeric if key not in depths and like(key, WIDTH_WORDS)]
    order = [*widths, *(key for key in numeric if key not in (*widths, *depths)), *depths]
    for second in [*depths, *order]:
        for first in order:
            if first != second and not _follows(columns, first, second) and not _follows(columns, second, first):
                return first, second
    return None


def _follows(columns: dict[str, list[Any]], key: str, from_: str) -> bool:
    """Whether one column is a function of another."""
    pairs = set(zip(columns[from_], map(repr, columns[key]), strict=True))
    return len(pairs) == len(set(columns[from_]))
