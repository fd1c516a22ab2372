"""Pictures of what grows: one panel per quantity, one line per variant, both axes logarithmic."""

from __future__ import annotations

import io
import math
from collections.abc import Mapping, Sequence
from fractions import Fraction
from typing import TYPE_CHECKING

from mutransfer.verdict.figure import LINES

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Line = tuple[Sequence[float], Sequence[float]]
"""Sizes and the values there; what is missing, zero or infinite leaves a gap."""
LETTERS = 0.045
"""The height of a slope's text as a share of the panel's."""


def slope(line: Line) -> float | None:
    """The exponent b of value ~ size^b by least squares on the logarithms; None for fewer than two positive values."""
    points = [(math.log(x), math.log(y)) for x, y in _points(line)]
    if len({x for x, _ in points}) < 2:
        return None
    middle, level = (sum(values) / len(points) for values in zip(*points, strict=True))
    return sum((x - middle) * (y - level) for x, y in points) / sum((x - middle) ** 2 for x, _ in points)


def signed(value: float | None) -> str:
    """A slope as text: +0.50, no sign on zero, – for none."""
    text = "–" if value is None else f"{value:+.2f}"
    return "0.00" if text in ("+0.00", "-0.00") else text


def draw_lines(panels: Mapping[str, Mapping[str, Line]], axis: str, ylabel: str) -> bytes:
    """PNG: a panel per title, a line per name; the slope of each is written where its line ends."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(max(6.5, 3.5 * len(panels)), 4.4), layout="constrained")
    axes = figure.subplots(1, len(panels), squeeze=False)[0]
    handles = {}
    for panel, (title, lines) in zip(axes, panels.items(), strict=True):
        sizes = sorted({x for xs, _ in lines.values() for x in xs})
        for i, (name, (xs, ys)) in enumerate(lines.items()):
            shown = [y if 0 < y < math.inf else math.nan for y in ys]
            (handles[name],) = panel.plot(xs, shown, marker="o", ms=4, lw=1.8, color=LINES[i % len(LINES)])
        panel.set_xscale("log", base=2)
        panel.set_xticks(sizes, [str(Fraction(size).limit_denominator(1024)) for size in sizes])
        panel.tick_params(axis="x", which="minor", bottom=False)
        panel.set_xlim(sizes[0] / 1.15, sizes[-1] * (sizes[-1] / sizes[0]) ** 0.2)
        _heights(panel, [y for line in lines.values() for _, y in _points(line)])
        _slopes(panel, list(lines.values()))
        panel.set_title(title, fontsize=11)
        panel.set_xlabel(axis)
        panel.grid(alpha=0.25)
    axes[0].set_ylabel(ylabel)
    figure.legend(list(handles.values()), list(handles), loc="outside lower center", ncols=len(handles), frameon=False)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=130)
    return buffer.getvalue()


def _points(line: Line) -> list[tuple[float, float]]:
    return [(x, y) for x, y in zip(*line, strict=True) if 0 < y < math.inf]


def _heights(panel: Axes, values: Sequence[float]) -> None:
    """A logarithmic axis of at least a factor of ten, so that noise does not look like growth; plain numbers beside it."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

    low, high = (min(values), max(values)) if values else (1.0, 1.0)
    middle, reach = math.sqrt(low * high), max(math.sqrt(10), math.sqrt(high / low) * 1.25)
    panel.set_yscale("log")
    panel.set_ylim(middle / reach, middle * reach)
    panel.yaxis.set_major_locator(LogLocator(subs=(1.0,) if reach > 60 else (1.0, 2.0, 5.0)))
    panel.yaxis.set_major_formatter(FuncFormatter(lambda y, _: f"{y:g}"))
    panel.yaxis.set_minor_locator(NullLocator())


def _slopes(panel: Axes, lines: Sequence[Line]) -> None:
    """Each line's slope beside its last point, moved up where it would lie on another."""
    low, high = (math.log(y) for y in panel.get_ylim())
    ends = []
    for i, line in enumerate(lines):
        if (found := slope(line)) is not None:
            x, y = _points(line)[-1]
            ends.append(((math.log(y) - low) / (high - low), x, signed(found), LINES[i % len(LINES)]))
    above = -math.inf
    for height, x, text, colour in sorted(ends):
        above = max(height, above + LETTERS)
        where = {"xycoords": ("data", "axes fraction"), "textcoords": "offset points"}
        panel.annotate(text, (x, above), (6, 0), va="center", fontsize=8, color=colour, **where)
