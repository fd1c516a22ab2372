"""Pictures of several verdicts: metric × variant, loss basins, and what size gains at the optimum."""

from __future__ import annotations

import io
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from mutransfer.verdict import Verdict
    from mutransfer.verdict.transfer import Optimum

from mutransfer.verdict.figure import LINES, STATUS

BASIN = 0.01
"""A learning rate lies in the basin when its loss is at most this share above the size's own best."""


def draw_best(verdicts: Mapping[str, Verdict]) -> bytes:
    """PNG: loss at the best learning rate against size with intervals, a line per variant; it should fall."""
    figure = _figure(7.0, 4.5)
    axis = figure.subplots()
    sizes = sorted({o.size for verdict in verdicts.values() for o in verdict.optima})
    for i, (name, verdict) in enumerate(verdicts.items()):
        loss = [o.loss for o in verdict.optima]
        value = np.array([e.value for e in loss])
        bars = [value - [e.low for e in loss], [e.high for e in loss] - value]
        style: dict[str, Any] = {"color": LINES[i % len(LINES)], "ls": "-" if i < len(LINES) else "--"}
        x = np.array([o.size for o in verdict.optima]) * 2 ** (0.03 * (i - (len(verdicts) - 1) / 2))
        axis.errorbar(x, value, np.maximum(bars, 0), marker="o", capsize=3, lw=1.6, label=name, **style)
    _sizes(axis, sizes, next(iter(verdicts.values())).columns["size"])
    axis.set_ylabel(f"{next(iter(verdicts.values())).columns['loss']} at the best learning rate")
    axis.legend(frameon=False, fontsize=9)
    return _png(figure)


def draw_matrix(verdicts: Mapping[str, Mapping[str, Verdict]], variants: tuple[str, ...]) -> bytes:
    """PNG: a row per metric, a column per variant; loss against log2 LR, a curve per size, its fitted optimum as a dot."""
    figure = _figure(2.5 * len(variants) + 0.6, 2.3 * len(verdicts) + 0.6)
    panels = figure.subplots(len(verdicts), len(variants), sharex="col", sharey="row", squeeze=False)
    handles: dict[str, Any] = {}
    for row, (metric, made) in zip(panels, verdicts.items(), strict=True):
        low, top = _range([o for verdict in made.values() for o in verdict.optima])
        for axis, variant in zip(row, variants, strict=True):
            verdict = made.get(variant)
            axis.grid(alpha=0.25)
            if verdict is None:
                axis.text(0.5, 0.5, "cannot be judged", ha="center", va="center", transform=axis.transAxes, color="0.5")
                continue
            for i, one in enumerate(verdict.optima):
                line = _curve(axis, one, _colour(i, len(verdict.optima)), top)
                handles.setdefault(f"{verdict.columns['size']} {one.size:g}", line)
            axis.set_title(verdict.status, fontsize=8, color=STATUS[verdict.status])
        row[0].set_ylim(low - 0.06 * (top - low), top + 0.04 * (top - low))
        row[0].set_ylabel(metric)
    for axis, variant in zip(panels[0], variants, strict=True):
        axis.set_title(f"{variant}\n{axis.get_title()}", fontsize=8, color=axis.title.get_color())
    for axis in panels[-1]:
        axis.set_xlabel("log2 LR")
    figure.legend(handles.values(), handles.keys(), loc="outside lower center", ncols=len(handles), frameon=False)
    return _png(figure)


def draw_basins(verdicts: Mapping[str, Verdict]) -> bytes:
    """PNG: per variant the curves of all sizes above their own best, and below them each size's basin: are they aligned?"""
    figure = _figure(5.5 * len(verdicts), 4.5)
    panels = figure.subplots(1, len(verdicts), sharey=True, squeeze=False)[0]
    for axis, (name, verdict) in zip(panels, verdicts.items(), strict=True):
        spans = []
        for i, one in enumerate(verdict.optima):
            colour = _colour(i, len(verdict.optima))
            x, y = _above(one)
            axis.plot(2.0**x, y, color=colour, marker=".", lw=1.6, label=f"{verdict.columns['size']} {one.size:g}")
            left, right = basin(one)
            spans.append((left, right))
            axis.plot([2.0**left, 2.0**right], [-0.6 - 0.4 * i] * 2, color=colour, lw=4, solid_capstyle="butt")
        common = max(left for left, _ in spans) <= min(right for _, right in spans)
        best = verdict.optima[0].log2_lr.value
        aligned = all(left <= best <= right for left, right in spans)
        text = "aligned" if aligned else "overlapping" if common else "apart"
        axis.axvline(2.0**best, color="0.6", lw=1, ls=":", zorder=0)
        axis.axhline(0, color="0.8", lw=1, zorder=0)
        axis.set_title(f"{name}: basins {text}", fontsize=12)
        axis.set_xscale("log")
        axis.set_xlabel("learning rate (bars: within 1 % of the best)")
        axis.grid(alpha=0.25)
        axis.legend(frameon=False)
    panels[0].set_ylim(-1.2 - 0.4 * max(len(v.optima) for v in verdicts.values()), 15)
    panels[0].set_ylabel("% above the size's own best loss")
    return _png(figure)


def basin(one: Optimum) -> tuple[float, float]:
    """The log2 learning rates about the best of the grid within `BASIN` of its loss, interpolated; the grid's end where it is open."""
    x, y = _above(one)
    at = int(np.argmin(y))
    left, right = float(x[0]), float(x[-1])
    for i in range(at, 0, -1):
        if y[i - 1] > 100 * BASIN:
            left = float(x[i] + (x[i - 1] - x[i]) * (100 * BASIN - y[i]) / (y[i - 1] - y[i]))
            break
    for i in range(at, len(x) - 1):
        if y[i + 1] > 100 * BASIN:
            right = float(x[i] + (x[i + 1] - x[i]) * (100 * BASIN - y[i]) / (y[i + 1] - y[i]))
            break
    return left, right


def _above(one: Optimum) -> tuple[np.ndarray, np.ndarray]:
    """log2 LR, and per cent above the best of the grid, of the runs that did not diverge."""
    x, y = np.array([p for p in one.points if np.isfinite(p[1])]).T
    return x, 100 * (y / y.min() - 1)


def _range(optima: list[Optimum]) -> tuple[float, float]:
    """The losses that are drawn: a nearly diverged run must not squeeze the valley to a line."""
    every = sorted(y for one in optima for _, y in one.points if np.isfinite(y))
    low, median = every[0], every[len(every) // 2]
    return low, min(every[-1], low + 3 * (median - low) + 1e-3 * abs(low))


def _curve(axis: Axes, one: Optimum, colour: Any, top: float) -> Any:
    points = [p for p in one.points if np.isfinite(p[1])]
    (line,) = axis.plot(*zip(*points, strict=True), color=colour, marker=".", ms=3, lw=1.2)
    gone = [x for x, y in one.points if not np.isfinite(y)]
    axis.plot(gone, [top] * len(gone), "x", color=colour, ms=4)
    axis.plot(one.log2_lr.value, one.loss.value, "o", ms=5, color=colour, mfc="white" if one.edge else colour, zorder=5)
    return line


def _sizes(axis: Axes, sizes: list[float], name: str | None) -> None:
    axis.set_xscale("log", base=2)
    axis.set_xticks(sizes, [f"{size:g}" for size in sizes])
    axis.minorticks_off()
    axis.set_xlabel(name or "size")
    axis.grid(alpha=0.25)


def _colour(index: int, count: int) -> tuple[float, float, float, float]:
    from matplotlib import colormaps

    return colormaps["viridis"](0.05 + 0.8 * index / max(1, count - 1))


def _figure(width: float, height: float) -> Figure:
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), layout="constrained")


def _png(figure: Figure) -> bytes:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=130)
    return buffer.getvalue()
