"""The answer over a grid: the verdict of every line, the joint one, exponents of both sizes, words, JSON and picture."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from mutransfer.check.feed import Size
from mutransfer.check.findings import PRODUCT
from mutransfer.check.joint import Fit, Joint
from mutransfer.check.points import Grid
from mutransfer.check.report import CheckReport, file_path
from mutransfer.check.slopes import Slope

SIGNS = {"PASS": "✓", "FAIL": "✗"}


@dataclass(frozen=True)
class Line:
    """The check of one line of the grid: along axis 0 or 1, at the value of index `at` of the other axis.

    `report` judges it by itself; `verdict` is what of that stands beside all other runs.
    """

    along: int
    at: int
    axis: str
    other: str
    value: int
    report: CheckReport
    verdict: str

    def words(self) -> str:
        """Such as `width at depth 4`."""
        return f"{self.axis} at {self.other} {self.value}"

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON, without its tables."""
        found = [f.to_dict() for f in self.report.findings]
        return {
            "axis": self.axis, "at": {self.other: self.value}, "values": self.report.raw.values, "verdict": self.verdict,
            "alone": self.report.verdict, "why": self.report.why, "culprits": self.report.culprits, "findings": found,
        }  # fmt: skip


@dataclass(frozen=True)
class GridReport(CheckReport):
    """What the coordinate check found over a grid: as a CheckReport, with the reports of its `lines`.

    `findings` are weighed against all runs: each has an `axis` and says `where` on the grid it holds.
    """

    grid: Grid
    lines: tuple[Line, ...]
    joint: Joint

    @property
    def sizes(self) -> list[Size]:
        """The sizes that were run, one per point."""
        return list(self.raw.sizes)

    @property
    def records(self) -> list[dict[str, Any]]:
        """Every recorded number as one flat row: kind, name, step, both sizes, seed, value."""
        names, values, places = self.grid.axes, self.grid.values, self.joint.places
        return [
            {
                "kind": kind, "name": name, "step": step, names[0]: values[0][places[p][0]], names[1]: values[1][places[p][1]],
                "seed": self.raw.seeds[j], "value": float(value),
            }
            for (kind, name, step), array in self.raw.data.items()
            for (p, j), value in np.ndenumerate(array)
            if not np.isnan(value)
        ]  # fmt: skip

    @property
    def table(self) -> list[dict[str, Any]]:
        """One row per quantity, name (blocks folded to `*`) and step: mean over seeds at every point, and the joint fit.

        `values[j][i]` belongs to the i-th size of the first axis and the j-th of the second. The exponents of both axes (named by them)
        hold at the middle of the grid; `interaction` is γ, by which either grows per unit of the other's logarithm. A zero has None.
        """
        rows = []
        roles = {self.joint.stacks.fold(info.name): info.role for info in reversed(self.tensors)}
        keys = dict.fromkeys((kind, self.joint.stacks.fold(name), step) for kind, name, step in self.raw.data)
        for kind, name, step in keys:
            row = {"kind": kind, "name": name, "role": roles.get(name.partition(" @ ")[0], ""), "step": step, "values": self.means(kind, name, step)}  # fmt: skip
            found = self.fit(kind, name, step)
            for axis, slope in self._named(found):
                low, high = (None, None) if slope is None else slope.interval(self.level)
                row |= {axis: None if slope is None else slope.mean, f"{axis}_low": low, f"{axis}_high": high}
            rows.append(row)
        return rows

    def means(self, kind: str, name: str, step: int = 0) -> list[list[float | None]]:
        """Mean over seeds at every point, rows along the second axis; None where no run gave a number."""
        m, n = (len(values) for values in self.grid.values)
        found: list[list[float | None]] = [[None] * m for _ in range(n)]
        array = self.joint.get(kind, name, step)
        for p, (i, j) in enumerate(self.joint.places):
            if array is not None and np.any(np.isfinite(array[p])):
                found[j][i] = float(np.nanmean(array[p]))
        return found

    def fit(self, kind: str, name: str, step: int = 0) -> Fit | None:
        """The joint fit of one quantity, such as ("change", "blocks.*", 4)."""
        return self.joint.fit(self.joint.get(kind, name, step))

    def _named(self, found: Fit | None) -> list[tuple[str, Slope | None]]:
        slopes = (None,) * 3 if found is None else (found.first, found.second, found.interaction)
        return list(zip((*self.grid.axes, "interaction"), slopes, strict=True))

    def slope(self, kind: str, name: str, step: int = 0, axis: str | None = None) -> tuple[float, float, float] | None:
        """(slope, low, high) of one quantity over `axis` (by default the first) or "interaction"; None when it is zero or unknown."""
        found = dict(self._named(self.fit(kind, name, step))).get(axis or self.grid.axes[0])
        return None if found is None else (found.mean, *found.interval(self.level))

    def words(self) -> str:
        """The verdict in words: one line, one with the verdict of every line of the grid, then one line per finding."""
        head, *rest = super().words().splitlines()
        if self.verdict == "FAIL":
            first = next(f for f in self.findings if f.severity == "fail")
            place = f"over {self.grid.axes[0]} × {self.grid.axes[1]}" if first.rule == PRODUCT else f"over {first.axis}"
            head += f", {place} {first.where}"
        lines = self.lines_in_words()
        return "\n".join([head, *([f"  {lines}"] if lines else []), *rest])

    def lines_in_words(self) -> str:
        """Such as `width at depth 2 ✓, 4 ✓, 8 ✗; depth at width 32 ✓, 64 ✓, 128 ✓`."""
        parts = []
        for along in (0, 1):
            own = [line for line in self.lines if line.along == along]
            marks = ", ".join(f"{line.value} {SIGNS.get(line.verdict, '?')}" for line in own)
            parts += [f"{own[0].axis} at {own[0].other} {marks}"] if own else []
        return "; ".join(parts)

    def setting(self) -> str:
        """The sizes and seeds in words."""
        seeds = len(self.raw.seeds)
        sizes = " × ".join(
            f"{a} {', '.join(map(str, v))}" for a, v in zip(self.grid.axes, self.grid.values, strict=True)
        )
        return f"over {sizes}, {seeds} seed{'s' if seeds > 1 else ''}"

    def __str__(self) -> str:
        first, second = self.grid.axes
        lines = [
            self.words(),
            "",
            f"{'module or tensor':40} {'quantity':9} {'step':>4} {first:>9} {second:>9} interaction",
        ]
        last = max((step for _, _, step in self.raw.data), default=0)
        for row in self.table:
            shown = (row["kind"], row["step"]) in (("size", 0), ("change", last), ("own", last))
            if shown and row["interaction"] is not None:
                lines.append(f"{row['name'][:40]:40} {row['kind']:9} {row['step']:>4} {row[first]:+9.2f} {row[second]:+9.2f} {row['interaction']:+11.2f}")  # fmt: skip
        return "\n".join(lines)

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON: as of a CheckReport, with the values of both axes and the verdict of every line."""
        values = dict(zip(self.grid.axes, map(list, self.grid.values), strict=True))
        return {**super().to_dict(), "axes": list(self.grid.axes), "values": values, "lines": [line.to_dict() for line in self.lines]}  # fmt: skip

    def figure(self, path: str | os.PathLike[str]) -> Path:
        """Draw the grid into a PNG, SVG or PDF file. Raises InputError for another ending or a bad place."""
        from mutransfer.check.grid_figure import draw

        return draw(self, file_path(path, "check.png"))
